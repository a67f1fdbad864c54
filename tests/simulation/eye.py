"""Looking at the store's files from outside, on a connection of our own: what is on disk, and nothing else."""

import sqlite3
from pathlib import Path
from typing import NamedTuple

import msgspec

from events.fact import Entry
from events.letter import Letter
from events.wire import decode_row


class Seen(NamedTuple):
    """A message as the disk has it: `started` is whether the fact of its open attempt is in the log."""

    number: int
    state: str
    attempt: int | None
    revision: int
    started: bool
    letter: str | None


_MESSAGE = "select number, state, attempt, revision from messages where number = (select number from ids where id = ?)"
_STARTED = "select 1 from log where seq = ? and kind = 'AttemptStarted' and message = ?"
_LETTER = "select content from letters where letter = ? and length(content) > 0"
_NEXT = (
    "select id from messages where state = 'waiting' and account ="
    " (select account from messages where number = (select number from ids where id = ?))"
    " order by priority, due_us, number limit 1"
)
_UNREPORTED = "select 1 from results where seq > coalesce((select seq from cursors where name = 'reported'), 0)"
_LOG = "select seq, at_us, kind, version, message, account, data from log where seq > ? order by seq"


class Eye:
    """A reading connection to one generation of the files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)

    def close(self) -> None:
        self.connection.close()

    def message(self, message_id: str) -> Seen | None:
        row = self.connection.execute(_MESSAGE, (message_id,)).fetchone()
        if row is None:
            return None
        number, state, attempt, revision = row
        started = self.connection.execute(_STARTED, (attempt, number)).fetchone() is not None
        letter = self.connection.execute(_LETTER, (revision,)).fetchone()
        subject = msgspec.json.decode(letter[0], type=Letter).subject if letter else None
        return Seen(number, state, attempt, revision, started, subject)

    def beside(self, message_id: str) -> str | None:
        """The message that goes next of those that wait behind this one."""
        found = self.connection.execute(_NEXT, (message_id,)).fetchone()
        return found[0] if found else None

    def last_seq(self) -> int:
        return int(self.connection.execute("select coalesce(max(seq), 0) from log").fetchone()[0])

    def log(self, after: int = 0) -> list[Entry]:
        return [decode_row(row) for row in self.connection.execute(_LOG, (after,))]

    def states(self) -> dict[str, int]:
        return dict(self.connection.execute("select state, count(*) from messages group by state"))

    def all_reported(self) -> bool:
        return self.connection.execute(_UNREPORTED).fetchone() is None
