"""Verifying: walk the log and its commits, and name the first place where they do not say what was written.

The chain has a hash a commit, so a changed fact shows in its commit: a fact alone in its commit is named by its seq,
one of several by the commit's range `a-b`. Damage to the sequence itself (a seq missing, a seq outside every commit)
is named exactly. Where a commit's own row is missing, its facts seem to belong to the next one; the walk then finds
out where the missing one ended, for only there do the two hashes agree.

The log is read in pages, and no read transaction lasts longer than a page, so a running service is not held up; it is
verified as far as it went when the walk began.
"""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Literal

from msgspec import Struct

from .chain import FORMAT, GENESIS, LogRow, commit_hash

COMMITS_PER_PAGE = 256
"""A commit holds up to 2,000 facts, nearly always a few: a page is read in well under a second."""

SEARCHED_MAX = 4_000
"""Facts among which the end of a missing commit is looked for: two commits of 2,000. Each guess hashes all of them,
so it takes seconds at most; damage that is wider is named by its range."""

Kind = Literal["changed", "missing", "outside", "commit_missing", "commit_changed", "format", "unreadable", "restored"]

SENTENCES: dict[Kind, str] = {
    "changed": "what is stored is not what was written",
    "missing": "this fact is missing from the log",
    "outside": "this fact is in no commit: it was put in, or the commits after it are gone",
    "commit_missing": "the commit that ended here is missing; its facts are as they were written",
    "commit_changed": "the commit's hash was changed; its facts are as they were written",
    "format": "this commit's hash is of a format that this release does not know: use a newer one",
    "unreadable": "the file cannot be read here",
    "restored": "restored or truncated: the mark beside the log says that it went on from here",
}


class Damage(Struct, frozen=True):
    """The first damage: from seq `first` to seq `last`, the same where one fact can be named."""

    kind: Kind
    first: int
    last: int

    @property
    def place(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def line(self) -> str:
        return f"{self.place}: {SENTENCES[self.kind]}"


class Verdict(Struct, frozen=True):
    """What the walk found: `facts` and `commits` that are as they were written, up to the first damage.

    `hash` is that of the last good commit: kept elsewhere, it shows later that the log up to here was not rewritten.
    """

    facts: int
    commits: int
    hash: bytes
    damage: Damage | None = None

    @property
    def line(self) -> str:
        if self.damage:
            return self.damage.line
        return f"{self.facts} facts in {self.commits} commits are as they were written; hash {self.hash.hex()}"


class Commit(Struct, frozen=True):
    last_seq: int
    format: int
    hash: bytes


Progress = Callable[[int, int], None]
"""Called after every page with how many facts are verified, of how many. A caller inside the service sleeps here."""

_ENDS = (
    "select coalesce((select min(seq) from log), 1), coalesce((select max(seq) from log), 0),"
    " coalesce((select max(last_seq) from commits), 0)"
)
"""Where the log begins and ends, and where its commits end, in one reading; each is an end of a key."""

_COMMITS = "select last_seq, format, hash from commits where last_seq > ? and last_seq <= ? order by last_seq limit ?"
"""The next page of commits."""

_FACTS = "select seq, at_us, kind, version, message, account, data from log where seq > ? and seq <= ? order by seq"
"""The stored rows of a page's commits."""


def verify(connection: sqlite3.Connection, marked_seq: int | None, progress: Progress | None = None) -> Verdict:
    """Walk the whole log. `marked_seq` is the seq of the mark beside it, None where there is none.

    `connection` is in autocommit and only read; its text is read as it is, damaged or not.
    """
    connection.text_factory = _readable
    try:
        return _Walk(connection, marked_seq, progress).verdict()
    finally:
        connection.text_factory = str


def _readable(text: bytes) -> str:
    """Text that is no UTF-8 becomes other text, never an error: kinds are ASCII, so its hash cannot be right."""
    return text.decode("utf-8", "replace")


class _DamageFound(Exception):
    """Ends the walk."""

    def __init__(self, kind: Kind, first: int, last: int) -> None:
        self.damage = Damage(kind, first, last)


class _Walk:
    """One walk: where it is, and the hash of the commit that ended there."""

    def __init__(self, connection: sqlite3.Connection, marked_seq: int | None, progress: Progress | None) -> None:
        self._connection = connection
        self._marked_seq = marked_seq
        self._progress = progress
        self._seq = 0
        self._commits = 0
        self._hash = GENESIS

    def verdict(self) -> Verdict:
        damage = None
        try:
            self._walk()
        except _DamageFound as found:
            damage = found.damage
        except sqlite3.DatabaseError:
            damage = Damage("unreadable", self._seq + 1, self._seq + 1)
        return Verdict(self._seq, self._commits, self._hash, damage)

    def _walk(self) -> None:
        first, last, committed = self._connection.execute(_ENDS).fetchone()
        if first < 1:
            raise _DamageFound("outside", first, first)
        while commits := self._page_of_commits(committed):
            for commit, rows in self._facts_of(commits):
                self._judge(commit, rows)
            if self._progress:
                self._progress(self._seq, max(last, committed))
        if last > self._seq:
            raise _DamageFound("outside", self._first_after(), self._first_after())
        if self._marked_seq is not None and self._marked_seq > last:
            raise _DamageFound("restored", last + 1, self._marked_seq)

    def _page_of_commits(self, committed: int) -> list[Commit]:
        return [Commit(*row) for row in self._connection.execute(_COMMITS, (self._seq, committed, COMMITS_PER_PAGE))]

    def _first_after(self) -> int:
        """The first seq in the log after the last commit."""
        after = self._connection.execute(_FACTS, (self._seq, 2**63 - 1)).fetchone()
        return int(after[0])

    def _facts_of(self, commits: list[Commit]) -> Iterator[tuple[Commit, list[LogRow]]]:
        """The rows of each commit; raises where a seq is missing."""
        cursor = self._connection.execute(_FACTS, (self._seq, commits[-1].last_seq))
        for commit in commits:
            expected = range(self._seq + 1, commit.last_seq + 1)
            rows = cursor.fetchmany(len(expected)) if expected else []
            for seq, row in zip(expected, rows, strict=False):
                if row[0] != seq:
                    raise _DamageFound("missing", seq, seq)
            if len(rows) < len(expected):
                missing = expected[len(rows)]
                raise _DamageFound("missing", missing, missing)
            yield commit, rows

    def _judge(self, commit: Commit, rows: list[LogRow]) -> None:
        """Go on past a commit that is as it was written, or raise what is wrong with it."""
        if commit.format != FORMAT:
            raise _DamageFound("format", self._seq + 1, commit.last_seq)
        found = commit_hash(self._hash, rows)
        if found != commit.hash:
            raise self._changed(commit, rows, found)
        self._seq, self._commits, self._hash = commit.last_seq, self._commits + 1, found

    def _changed(self, commit: Commit, rows: list[LogRow], found: bytes) -> _DamageFound:
        """What it is that does not agree: a fact, the commit's hash, or a commit that is missing before it."""
        if self._next_agrees_with(commit, found):
            return _DamageFound("commit_changed", self._seq + 1, commit.last_seq)
        for count in range(1, len(rows) if len(rows) <= SEARCHED_MAX else 0):
            if commit_hash(commit_hash(self._hash, rows[:count]), rows[count:]) == commit.hash:
                return _DamageFound("commit_missing", rows[count - 1][0], rows[count - 1][0])
        return _DamageFound("changed", self._seq + 1, commit.last_seq)

    def _next_agrees_with(self, commit: Commit, found: bytes) -> bool:
        """Whether the next commit was chained to the hash that these facts give, and not to the one stored."""
        following = self._connection.execute(_COMMITS, (commit.last_seq, 2**63 - 1, 1)).fetchone()
        if following is None:
            return False
        rows = self._connection.execute(_FACTS, (commit.last_seq, following[0]))
        return bool(commit_hash(found, rows) == following[2])
