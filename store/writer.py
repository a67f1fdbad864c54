"""The writer: one turn is one transaction that judges, numbers, appends, folds and chains what was asked for.

Nothing here waits or knows of threads: `turn` takes requests and gives their answers, or raises the error of
SQLite that made the whole turn undone. Whoever calls it (the recorder) is the only one who writes the log.

A turn, in order: BEGIN; read every row that the drafts name; judge each draft against the rows as the facts
before it left them; number what fits; write ids, letters, replies, log rows, views and the commit's hash; COMMIT.
A request that must be whole and is not leaves no trace: its folds, numbers and rows are taken back.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from events.account import AccountRemoved
from events.attempt import AttemptStarted
from events.fact import OWN, Draft, Entry
from events.lifecycle import Refusal
from events.message import ContentErased, FirstFact, MessageAccepted, MessageImported, MessageRejected
from events.volume import VolumeRemoved, VolumeSaved
from events.wire import decode_row, encode_data

from .admission import Judge
from .beside import Beside, LetterRow, Replies, Sealed, secret_name, volume_secret_name
from .chain import FORMAT, GENESIS, LogRow, commit_hash
from .folding import MOVES_WAITS, Folding
from .views.messages import MessageRow

PROBE_BYTES = 1_000_000
"""With less room than that the next few letters would find the disk full again."""

_WITH_MORE = frozenset(
    {AttemptStarted, MessageAccepted, MessageRejected, MessageImported, ContentErased, AccountRemoved, VolumeRemoved}
)

INCOMPLETE = Refusal("another fact of the same request did not fit")

_APPEND = "insert into log values (?, ?, ?, ?, ?, ?, ?)"
_COMMIT = "insert into commits values (?, ?, ?)"
_NEW_ID = "insert into ids values (?, ?)"
_NEW_LETTER = "insert into letters values (?, ?, ?, ?, ?)"
_NEW_REPLY = "insert or replace into replies values (?, ?, ?, ?)"
_SEALED = "insert into secrets values (?, ?) on conflict (name) do update set sealed = excluded.sealed"
_UNSEALED = "delete from secrets where name = ?"
_ERASURE = "insert into erasures values (?, ?) on conflict (message) do update set up_to = max(up_to, excluded.up_to)"
_LETTERS = (
    "select letter, envelope, content, salt from letters"
    " where letter in (select value from json_each(?)) and length(content) > 0"
)
"""The letters of these revisions; one that was erased has no content."""
_HISTORY = "select seq, at_us, kind, version, message, account, data from log where message = ? order by seq"
_PROBE = "insert or replace into secrets values ('', zeroblob(?))"
_PROBED = "delete from secrets where name = ''"
_LAST = "select seq, at_us from log order by seq desc limit 1"
_LAST_HASH = "select hash from commits order by last_seq desc limit 1"


class Declined(Struct, frozen=True):
    """A fact that did not fit: why, judged as of which seq, and the message's row that it was judged by."""

    reason: str
    seq: int
    row: MessageRow | None = None


class Incomplete(Exception):
    """A fact did not fit, so that nothing was written; the text is the reason."""


class Started(Struct, frozen=True):
    """What a sender needs for an attempt that may begin: the message's row and its letter, None if that was erased."""

    row: MessageRow
    letter: LetterRow | None


class Recorded(Struct, frozen=True):
    """What became of a request's drafts, in their order; `started` is for its AttemptStarted, by position."""

    answers: tuple[Entry | Declined, ...]
    started: Mapping[int, Started] = {}

    @property
    def complete(self) -> bool:
        """Whether every draft became a fact."""
        return all(isinstance(answer, Entry) for answer in self.answers)


class Request(Struct, frozen=True, eq=False):
    """Drafts to be recorded together, with what stands beside them, by position."""

    drafts: Sequence[Draft]
    beside: Mapping[int, Beside]
    whole: bool = False


class TurnResult(Struct, frozen=True):
    """A turn's answers, its new entries, and the length of their data in bytes."""

    recorded: list[Recorded]
    entries: tuple[Entry, ...]
    size: int


class _Turn:
    """What a turn is going to write; lists that `cut` can shorten back to a mark."""

    __slots__ = ("entries", "erasures", "ids", "letters", "replies", "rows", "secrets", "starts", "unsealed")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.starts: list[Entry] = []
        self.rows: list[LogRow] = []
        self.ids: list[tuple[str, int]] = []
        self.letters: list[tuple[int, int, bytes, bytes, bytes]] = []
        self.replies: list[tuple[int, int, int, bytes]] = []
        self.secrets: list[tuple[str, bytes]] = []
        self.unsealed: list[tuple[str]] = []
        self.erasures: list[tuple[int, int]] = []

    def _lists(self) -> tuple[list, ...]:  # type: ignore[type-arg]  # they hold different rows
        return (
            self.ids,
            self.entries,
            self.starts,
            self.rows,
            self.letters,
            self.replies,
            self.secrets,
            self.unsealed,
            self.erasures,
        )

    def mark(self) -> tuple[int, ...]:
        return tuple(map(len, self._lists()))

    def ids_since(self, mark: tuple[int, ...]) -> list[tuple[str, int]]:
        return self.ids[mark[0] :]

    def cut(self, mark: tuple[int, ...]) -> None:
        for each, length in zip(self._lists(), mark, strict=True):
            del each[length:]


def _secret_of(entry: Entry) -> str:
    if isinstance(entry.fact, VolumeSaved):
        return volume_secret_name(entry.fact.name)
    return secret_name(entry.account or 0)


class Writer:
    """The one writing connection with its rows in memory. `connection` is in autocommit mode (isolation_level None)."""

    def __init__(self, connection: sqlite3.Connection, now_us: Callable[[], int]) -> None:
        self.connection = connection
        self._now_us = now_us
        self._folding = Folding(connection, self._history)
        self._judge = Judge(connection, self._folding, lambda: self.last_seq)
        self._at_us = 0
        self.last_seq = 0
        self._last_at_us = 0
        self._hash = GENESIS
        self._read_end()

    def _read_end(self) -> None:
        last = self.connection.execute(_LAST).fetchone()
        self.last_seq, self._last_at_us = last or (0, 0)
        (self._hash,) = self.connection.execute(_LAST_HASH).fetchone() or (GENESIS,)

    def _history(self, number: int) -> Iterator[Entry]:
        return map(decode_row, self.connection.execute(_HISTORY, (number,)))

    def turn(self, requests: Sequence[Request]) -> TurnResult:
        """The answers to the requests, in their order, and the turn's new entries, all of it on disk.

        Raises sqlite3.Error when nothing of it is.
        """
        self._begin()
        try:
            turn, seq = _Turn(), self.last_seq
            recorded = self._take_all(requests, turn)
            if turn.starts:
                letters = self._letters([entry.fact.revision for entry in turn.starts])  # type: ignore[attr-defined]
                recorded = [self._attach(each, letters) for each in recorded]
            digest = self._write(turn)
            self.connection.execute("commit")
        except BaseException:
            self._roll_back()
            raise
        if turn.rows:
            self._hash, self._last_at_us = digest, self._at_us
        else:
            self.last_seq = seq
        return TurnResult(recorded, tuple(turn.entries), sum(len(row[-1]) for row in turn.rows))

    def probe(self) -> None:
        """Raises sqlite3.Error where the disk would not take an ordinary commit. What is put in is taken out again in
        the same commit, and is written all the same, since what is freed is overwritten (`secure_delete`)."""
        self.connection.execute("begin immediate")
        try:
            self.connection.execute(_PROBE, (PROBE_BYTES,))
            self.connection.execute(_PROBED)
            self.connection.execute("commit")
        except BaseException:
            self._roll_back()
            raise

    def turns_in_one(self, requests: Iterable[Request]) -> int:
        """Many turns as one transaction: how many facts were written, all of them or, with an error, none.

        Each request is a commit of its own in the chain, so memory holds one at a time, however many there are. What is
        asked for in it is on the connection when the next one is taken from `requests`. Raises Incomplete where a
        fact does not fit, and sqlite3.Error.
        """
        first = self.last_seq
        self._begin()
        try:
            for request in requests:
                turn = _Turn()
                (recorded,) = self._take_all([request], turn)
                if not recorded.complete:
                    raise Incomplete(next(each for each in recorded.answers if isinstance(each, Declined)).reason)
                self._hash = self._write(turn)
            self.connection.execute("commit")
        except BaseException:
            self._roll_back()
            raise
        self._last_at_us = self._at_us
        return self.last_seq - first

    def _begin(self) -> None:
        self.connection.execute("begin immediate")
        self._at_us = max(self._last_at_us, self._now_us())

    def _roll_back(self) -> None:
        # SQLite has rolled back by itself after some errors, a full disk among them.
        if self.connection.in_transaction:
            self.connection.execute("rollback")
        self._folding.forget()
        self._read_end()

    def _take_all(self, requests: Sequence[Request], turn: _Turn) -> list[Recorded]:
        self._judge.load([draft for request in requests for draft in request.drafts], self._at_us)
        return [self._take_whole(request, turn) if request.whole else self._take(request, turn) for request in requests]

    def _take(self, request: Request, turn: _Turn) -> Recorded:
        beside, decide = request.beside, self._decide
        return Recorded(tuple([decide(draft, beside.get(at), turn) for at, draft in enumerate(request.drafts)]))

    def _take_whole(self, request: Request, turn: _Turn) -> Recorded:
        if any(type(draft.fact) in MOVES_WAITS for draft in request.drafts):
            return Recorded(tuple([Declined(INCOMPLETE, self.last_seq) for _ in request.drafts]))
        seq, mark, folded = self.last_seq, turn.mark(), self._folding.mark()
        recorded = self._take(request, turn)
        if recorded.complete:
            self._folding.keep()
            return recorded
        for message_id, _ in turn.ids_since(mark):
            self._judge.unlearn(message_id)
        turn.cut(mark)
        self._folding.undo(folded)
        self.last_seq = seq
        return Recorded(tuple(map(self._undone, request.drafts, recorded.answers)))

    def _undone(self, draft: Draft, answer: Entry | Declined) -> Declined:
        """What a draft of an incomplete request is told, as of before the request: nothing of it can be seen."""
        reason = answer.reason if isinstance(answer, Declined) else INCOMPLETE
        return Declined(reason, self.last_seq, self._judge.row(draft))

    def _decide(self, draft: Draft, beside: Beside | None, turn: _Turn) -> Entry | Declined:
        refusal = self._judge.fits(draft)
        if refusal is not None:
            return Declined(refusal, self.last_seq, self._judge.row(draft))
        fact = draft.fact
        self.last_seq = seq = self.last_seq + 1
        message = seq if draft.message == OWN else draft.message
        account = seq if draft.account == OWN else draft.account
        entry = Entry(seq, self._at_us, message, account, fact)
        kind = type(fact)
        turn.entries.append(entry)
        turn.rows.append((seq, self._at_us, kind.__name__, kind.VERSION, message, account, encode_data(fact)))
        if kind in _WITH_MORE:
            self._set_more(entry, turn)
        if beside is not None:
            self._set_beside(entry, beside, turn)
        self._folding.fold(entry)
        return entry

    def _set_more(self, entry: Entry, turn: _Turn) -> None:
        """What follows from a fact beside its row and its folds."""
        fact = entry.fact
        if isinstance(fact, AttemptStarted):
            turn.starts.append(entry)
            self._folding.expect_new("attempts", entry.seq)
        elif isinstance(fact, FirstFact):
            turn.ids.append((fact.id, entry.seq))
            self._judge.learn(fact.id, entry.seq)
            self._folding.expect_new("messages", entry.seq)
        elif isinstance(fact, ContentErased):
            turn.erasures.extend(fact.letters)
        elif isinstance(fact, AccountRemoved):
            turn.unsealed.append((secret_name(entry.account or 0),))
        elif isinstance(fact, VolumeRemoved):
            # Control waits for each command's commit, so no turn removes a volume and makes it again.
            turn.unsealed.append((volume_secret_name(fact.name),))

    def _set_beside(self, entry: Entry, beside: Beside, turn: _Turn) -> None:
        about = entry.message or 0
        match beside:
            case LetterRow(envelope, content, salt):
                turn.letters.append((entry.seq, about, envelope, content, salt))
            case Replies(texts):
                turn.replies.extend((entry.seq, recipient, about, text.encode()) for recipient, text in texts)
            case Sealed(data):
                turn.secrets.append((_secret_of(entry), data))

    def _letters(self, revisions: Iterable[int]) -> dict[int, LetterRow]:
        wanted = msgspec.json.encode(list(revisions)).decode()
        return {row[0]: LetterRow(*row[1:]) for row in self.connection.execute(_LETTERS, (wanted,))}

    def _attach(self, recorded: Recorded, letters: Mapping[int, LetterRow]) -> Recorded:
        started = {}
        for index, answer in enumerate(recorded.answers):
            if isinstance(answer, Entry) and isinstance(answer.fact, AttemptStarted):
                row = self._folding.message(answer.message or 0)
                assert row is not None, "an attempt was admitted for a message without a row"
                started[index] = Started(row, letters.get(answer.fact.revision))
        return Recorded(recorded.answers, started) if started else recorded

    def _write(self, turn: _Turn) -> bytes:
        """Write the turn's rows, a statement a table; the commit's hash."""
        if not turn.rows:
            self._folding.shrink()
            return self._hash
        run = self.connection.executemany
        run(_APPEND, turn.rows)
        for statement, rows in (
            (_NEW_ID, turn.ids),
            (_NEW_LETTER, turn.letters),
            (_NEW_REPLY, turn.replies),
            (_SEALED, turn.secrets),
            (_UNSEALED, turn.unsealed),
            (_ERASURE, turn.erasures),
        ):
            if rows:
                run(statement, rows)
        self._folding.flush()
        digest = commit_hash(self._hash, turn.rows)
        self.connection.execute(_COMMIT, (turn.rows[-1][0], FORMAT, digest))
        return digest
