"""Verifying an exported log: its lines alone, with nothing of the service beside them.

A line holds the stored fields of a fact, and at the end of a commit its hash, so the chain can be computed anew from
the lines (`chain.py`). What is found is named as `verifying` names it in the log itself, by seq. Memory holds one
commit, however long the file is.

What lines can show is less than what the log shows. A file that was cut off at the end of a commit looks whole: whoever
has kept the last hash elsewhere sees that. A file that begins later than the log (`log --after`) is verified from the
end of its first commit on, as the continuation of the hash that stands there; the facts before it prove nothing. From
a file in which facts were left out by a filter nothing can be verified, and it looks as if they had been taken out.
"""

from collections.abc import Callable, Iterable, Iterator

import msgspec
from msgspec import Struct

from .chain import FORMAT, GENESIS, LogRow, commit_hash
from .verifying import SEARCHED_MAX

LINE_BYTES_MAX = 64_000_000
"""The data of a fact is far below 10 MB, and a sign of it is at most six bytes in JSON; more is no export."""

LINES_A_STEP = 10_000
"""Between two calls of `progress`."""

HASH_BYTES = 32

UNREADABLE = "this line is not as an export has it: damaged, or cut off"
TOO_LONG = "this line is longer than any of an export"
MISSING = "missing, or not in its place (nothing can be verified of an export that a filter has left facts out of)"
AGAIN = "this fact stands here again, or its line is not in its place"
CHANGED = "what stands here is not what was written"
COMMIT_CHANGED = "the commit's hash was changed; its facts are as they were written"
COMMIT_MISSING = "the hash of the commit that ended here is missing; its facts are as they were written"
OTHER_FORMAT = "this commit's hash is of a format that this release does not know: use a newer one"
CUT = "these facts are in no commit: the export was cut off here, or the hash of their commit taken out"
EMPTY = "it holds no facts"


class Found(Struct, frozen=True):
    """The first damage: from the seq `first` to `last` (0 where it has none), in the line `line`."""

    line: int
    first: int
    last: int
    sentence: str

    @property
    def words(self) -> str:
        if not self.first:
            return f"line {self.line}: {self.sentence}"
        where = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{where} (line {self.line}): {self.sentence}"


class ExportVerdict(Struct, frozen=True):
    """What the lines show. Facts from `first` to `last` are verified, in so many commits; `begins` is the first seq in
    the file. `hash` is that of the last commit that agreed."""

    begins: int
    first: int
    last: int
    commits: int
    hash: bytes
    damage: Found | None = None

    @property
    def facts(self) -> int:
        return max(0, self.last - self.first + 1)

    @property
    def whole(self) -> bool:
        """Whether it is verified from the log's first fact on."""
        return self.first == 1


class _Commit(Struct):
    format: int
    hash: str


class _Line(Struct, gc=False):
    seq: int
    at_us: int
    kind: str
    version: int
    message: int | None
    account: int | None
    data: str
    commit: _Commit | None = None


Progress = Callable[[int], None]
"""Called every LINES_A_STEP lines, with the bytes that were read since."""

_decode = msgspec.json.Decoder(_Line).decode


class _DamageFound(Exception):
    def __init__(self, line: int, first: int, last: int, sentence: str) -> None:
        self.damage = Found(line, first, last, sentence)


def verify_export(lines: Iterable[bytes], progress: Progress | None = None) -> ExportVerdict:
    """Walk the lines of an export, and name the first damage."""
    walk = _Walk()
    damage = None
    try:
        walk.go(_counted(lines, progress))
    except _DamageFound as found:
        damage = found.damage
    return walk.verdict(damage)


def _counted(lines: Iterable[bytes], progress: Progress | None) -> Iterator[tuple[int, bytes]]:
    read = 0
    for number, line in enumerate(lines, 1):
        read += len(line)
        if progress and number % LINES_A_STEP == 0:
            progress(read)
            read = 0
        yield number, line


class _Walk:
    """One walk: the hash that the next commit goes on from (None while it is not known), and that commit's rows."""

    def __init__(self) -> None:
        self._previous: bytes | None = GENESIS
        self._rows: list[LogRow] = []
        self._begins = 0
        self._verified_from = 1
        self._last = 0
        self._commits = 0
        # A commit whose hash does not agree, until the next one tells what it is: its damage, and what its facts give.
        self._doubted: tuple[_DamageFound, bytes] | None = None

    def verdict(self, damage: Found | None) -> ExportVerdict:
        known = self._previous or bytes(HASH_BYTES)
        return ExportVerdict(self._begins, self._verified_from, self._last, self._commits, known, damage)

    def go(self, lines: Iterable[tuple[int, bytes]]) -> None:
        rows, number = self._rows, 0
        expected = None
        for number, line in lines:
            read = _read(line, number, expected or 0)
            if read.seq != expected:
                self._see_place(read.seq, expected, number)
            expected = read.seq + 1
            rows.append((read.seq, read.at_us, read.kind, read.version, read.message, read.account, read.data.encode()))
            if read.commit is not None:
                self._end(read.commit, number)
                rows.clear()
        if self._doubted:
            raise self._doubted[0]
        if expected is None:
            raise _DamageFound(number, 0, 0, EMPTY)
        if rows:
            raise _DamageFound(number, rows[0][0], rows[-1][0], CUT)

    def _see_place(self, seq: int, expected: int | None, number: int) -> None:
        if expected is None:
            self._begins = seq
            if seq != 1:
                self._previous = None
            return
        if self._doubted:
            raise self._doubted[0]
        if seq < expected:
            raise _DamageFound(number, seq, seq, AGAIN)
        raise _DamageFound(number, expected, seq - 1, MISSING)

    def _end(self, commit: _Commit, number: int) -> None:
        first, last = self._rows[0][0], self._rows[-1][0]
        if commit.format != FORMAT:
            raise _DamageFound(number, first, last, OTHER_FORMAT)
        try:
            written = bytes.fromhex(commit.hash)
        except ValueError:
            written = b""
        if self._previous is None:
            # What comes before is not in the file: this hash is taken as it stands, and the rest is held against it.
            self._previous, self._verified_from, self._last = written, last + 1, last
            return
        if self._doubted:
            raise self._told_by_the_next(written)
        found = commit_hash(self._previous, self._rows)
        if found == written:
            self._previous, self._last, self._commits = found, last, self._commits + 1
            return
        if (end := self._missing_end(written)) is not None:
            raise _DamageFound(number, end, end, COMMIT_MISSING)
        self._doubted = _DamageFound(number, first, last, CHANGED), found

    def _told_by_the_next(self, written: bytes) -> _DamageFound:
        """Whether this commit goes on from what the facts of the doubted one give: then only its hash was changed."""
        assert self._doubted is not None
        damage, found = self._doubted
        if commit_hash(found, self._rows) != written:
            return damage
        where = damage.damage
        return _DamageFound(where.line, where.first, where.last, COMMIT_CHANGED)

    def _missing_end(self, written: bytes) -> int | None:
        """Where two commits are taken for one, the seq at which the first ended: only there do both hashes agree."""
        rows, previous = self._rows, self._previous or b""
        for count in range(1, len(rows) if len(rows) <= SEARCHED_MAX else 0):
            if commit_hash(commit_hash(previous, rows[:count]), rows[count:]) == written:
                return rows[count - 1][0]
        return None


def _read(line: bytes, number: int, seq: int) -> _Line:
    if len(line) > LINE_BYTES_MAX:
        raise _DamageFound(number, seq, seq, TOO_LONG)
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _DamageFound(number, seq, seq, UNREADABLE) from error
