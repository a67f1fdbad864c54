"""The log as it is stored, in order: what an auditor is given, and what the command line lists.

Each fact comes with its stored bytes and, where a commit ends with it, the commit's hash: so whoever has the export
can follow the chain as it is described in `chain`. It is read in stretches, each of one moment; the log below its end
never changes, so they fit together.
"""

import sqlite3
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from events.fact import Entry
from events.wire import decode_data

from .reading import account_names, account_numbers, ids_of, last_seq, message_number

STRETCH_FACTS = 5_000
"""Facts that one stretch looks at: some ten milliseconds in which the service's write-ahead file cannot begin anew."""

_STORED = (
    "select l.seq, l.at_us, l.kind, l.version, l.message, l.account, l.data, c.format, c.hash"
    " from log l left join commits c on c.last_seq = l.seq where l.seq > :after and l.seq <= :up_to"
    " and (:kind is null or l.kind = :kind)"
    " and (:message is null or l.message = :message)"
    " and (:accounts is null or l.account in (select value from json_each(:accounts)))"
    " order by l.seq"
)
"""A stretch of the log, and the commits that end in it."""

_STORED_OF_MESSAGE = _STORED.replace("from log l", "from log l indexed by log_by_message").replace(
    "(:message is null or l.message = :message)", "l.message = :message"
)
"""The same for one message: a range of the index log_by_message."""

_STAMP = "select at_us from log where seq = ?"


class StoredFact(Struct, frozen=True):
    """A row of the log; `format` and `hash` are of the commit that ends with it."""

    seq: int
    at_us: int
    kind: str
    version: int
    message: int | None
    account: int | None
    data: bytes
    format: int | None
    hash: bytes | None

    def entry(self) -> Entry:
        """The fact in today's shape. Raises UnknownKind, and msgspec.ValidationError on damage."""
        fact = decode_data(self.kind, self.version, self.data)
        return Entry(self.seq, self.at_us, self.message, self.account, fact)


class Selection(Struct, frozen=True, kw_only=True):
    """Which facts: after a seq, about a message or an account (whoever has its id), of a kind, of a span of time."""

    after: int = 0
    message_id: str | None = None
    account_id: str | None = None
    kind: str | None = None
    since_us: int | None = None
    until_us: int | None = None


class Stretch(Struct, frozen=True):
    """Facts, and the ids of the messages and accounts that they are about, by number; `last` is how far it looked."""

    facts: tuple[StoredFact, ...]
    message_ids: dict[int, str]
    account_ids: dict[int, str]
    last: int


def stretches(connection: sqlite3.Connection, selection: Selection) -> Iterator[Stretch]:
    """What the log holds now, in stretches. `connection` is in autocommit; between two stretches nothing is held."""
    last = end(connection, selection)
    after = _beginning(connection, selection)
    step = last if selection.message_id is not None else STRETCH_FACTS
    while after < last:
        up_to = min(after + step, last)
        yield _stretch(connection, selection, after, up_to)
        after = up_to


def _stretch(connection: sqlite3.Connection, selection: Selection, after: int, up_to: int) -> Stretch:
    connection.execute("begin")
    try:
        facts = _facts(connection, selection, after, up_to)
        ids = ids_of(connection, {fact.message for fact in facts if fact.message is not None})
        _, names = account_names(connection)
        return Stretch(facts, ids, names, up_to)
    finally:
        connection.execute("rollback")


def _facts(connection: sqlite3.Connection, selection: Selection, after: int, up_to: int) -> tuple[StoredFact, ...]:
    accounts = None
    if selection.account_id is not None:
        accounts = msgspec.json.encode(sorted(account_numbers(connection, selection.account_id))).decode()
    values = {"after": after, "up_to": up_to, "kind": selection.kind, "accounts": accounts, "message": None}
    if selection.message_id is None:
        return tuple(StoredFact(*row) for row in connection.execute(_STORED, values))
    values["message"] = message_number(connection, selection.message_id) or 0
    return tuple(StoredFact(*row) for row in connection.execute(_STORED_OF_MESSAGE, values))


def _beginning(connection: sqlite3.Connection, selection: Selection) -> int:
    """The seq after which to look. Stamps never decrease, so a moment is found by halving."""
    if selection.since_us is None:
        return selection.after
    seqs = range(1, last_seq(connection) + 1)
    before = bisect_left(seqs, selection.since_us, key=lambda seq: _stamp(connection, seq))
    return max(selection.after, before)


def end(connection: sqlite3.Connection, selection: Selection) -> int:
    """The seq up to which a selection looks."""
    last = last_seq(connection)
    if selection.until_us is None:
        return last
    return bisect_right(range(1, last + 1), selection.until_us, key=lambda seq: _stamp(connection, seq))


def _stamp(connection: sqlite3.Connection, seq: int) -> int:
    (at_us,) = connection.execute(_STAMP, (seq,)).fetchone()
    return int(at_us)
