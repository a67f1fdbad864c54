"""Backing up: a copy of the log and all that stands beside it, of one moment, of a running or a stopped service.

SQLite offers three ways, and they were measured on a log of 1 to 2 GB that grew by some 1,000 to 2,000 facts a second,
on two cores that others used too:

- The backup API by itself reads each stretch of pages in a read transaction of its own, and begins anew whenever
  another connection has written in between. Beside a busy writer it never ends: 640 beginnings in 20 s.
- VACUUM INTO reads within one transaction and builds each table and index anew: 21 s, while the write-ahead file grew
  to 214 MB.
- The backup API within one read transaction, held from the first page to the last, copies the pages as they are and
  never begins anew: 10 s, 114 MB. That is what is done here.

In WAL mode a reader holds no writer up. But while a read transaction lasts, the write-ahead file cannot begin anew, so
it grows by what the service writes meanwhile; the writer asks for room each time it has grown by a quarter of its limit
and waits RESTART_WAIT_MS then (`housekeeping.Relief`). Past WAL_BYTES_MAX the copy is given up, for the service's disk
comes before its backup. What would hold the writer up is the disk: a gigabyte that the system writes out at once had
commits wait for 2.8 s. So the copy is written out every SYNC_PAGES: the longest waits were 0.4 to 0.7 s then, and 99 of
100 were as short as without a backup.

The copy is made under another name, checked (`quick_check`, and that its chain ends with the hash that the log had),
written out and only then renamed: whatever happens, FILE is a whole backup or what it was before. It is left in
SQLite's DELETE mode, so that it is one file and can be read where nothing can be written. Beside it stands FILE.sha256,
as `sha256sum --check` reads it: for the letters in a backup there is no other check, since the chain is over facts.

What was erased before is not in the copy, for erasing overwrites it and the copy is of the database as readers see it.
"""

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from msgspec import Struct

from .file_access import open_to_read
from .files import FileError, lock_path, mark_path, sync_directory, write_whole

STEP_PAGES = 256
"""A megabyte: between two steps the write-ahead file is looked at, and the bar moves."""

SYNC_PAGES = 2_048
"""Eight megabytes are written out in some 50 ms, and a commit that comes meanwhile waits no longer than that."""

WAL_BYTES_MAX = 1_000_000_000
"""Ten times what a gigabyte's backup under full load needed. Beyond it the disk of the copy is too slow for the load,
and what grows is on the disk that the service needs to take mail."""

BLOCK_BYTES = 1_048_576

MAGIC = b"SQLite format 3\0"

SUM_HEX = 64

Advance = Callable[[int, int], None]
Watch = Callable[[str], AbstractContextManager[Advance | None]]
"""What shows how far a stage has come: it is entered with the stage's name."""

_MOMENT = (
    "select (select value from meta where name = 'log'), (select value from meta where name = 'key'), l.seq, l.at_us,"
    " (select hash from commits order by last_seq desc limit 1) from log l order by l.seq desc limit 1"
)
"""Which log it is, where it ends, and the hash that its chain ends with."""


def unwatched(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


class BackupError(FileError):
    """There is no backup, or none that can be used; the text is one line that says what to do."""


class Holding(Struct, frozen=True):
    """What a database holds: its log's id and the id of its key, its last fact (0 in an empty log), and the hash that
    its chain ends with."""

    log: str
    key: str
    seq: int
    at_us: int
    hash: bytes


class Backup(Struct, frozen=True):
    """A backup that was made, or looked at."""

    holding: Holding
    bytes: int
    sha256: str


def holding(connection: sqlite3.Connection) -> Holding:
    """What is in a database of ours, as of one moment."""
    found = connection.execute(_MOMENT).fetchone()
    if found is None:
        meta = dict(connection.execute("select name, value from meta where name in ('log', 'key')"))
        return Holding(meta["log"], meta["key"], 0, 0, b"")
    return Holding(*found)


def back_up(path: Path, file: Path, *, force: bool = False, watch: Watch = unwatched) -> Backup:
    """Write a backup of the database at `path` to `file`. Raises NoLog, BackupError and OSError; then there is none."""
    _see_free(path, file, force)
    with _beside(file) as partial:
        with open_to_read(path) as source:
            held = _copy(source, path, partial, file, watch)
        with watch("checking"):
            _check(path, partial, held)
        with watch("adding up") as advance:
            backup = Backup(held, partial.stat().st_size, sum_of(partial, advance))
        _put(partial, file, backup.sha256)
    return backup


def _see_free(path: Path, file: Path, force: bool) -> None:
    """Whether a backup may be written there."""
    if file.is_dir():
        raise BackupError(f"{file} is a directory: name a file in it")
    if not file.parent.is_dir():
        raise BackupError(f"{file.parent} is no directory: make it first, or name another file")
    own = (path, Path(f"{path}-wal"), Path(f"{path}-shm"), lock_path(path), mark_path(path))
    if any(_is_same(file, each) for each in own):
        raise BackupError(f"{file} belongs to the database itself: name another file")
    if not os.path.lexists(file):
        return
    if not force:
        raise BackupError(f"{file} is there already: name another file, or replace it by --force")
    if not _is_database(file):
        raise BackupError(f"{file} is no backup, so nothing replaces it: name another file")


def _is_database(file: Path) -> bool:
    """So --force takes no key and no configuration for an older backup."""
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        return opened.read(len(MAGIC)) == MAGIC


def _is_same(one: Path, other: Path) -> bool:
    return one.absolute() == other.absolute() or (one.exists() and other.exists() and one.samefile(other))


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """A new file that only its owner may read, beside the one that it is to become; gone afterwards if it has not."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.", suffix=".partial")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        for each in (name, f"{name}-journal"):
            Path(each).unlink(missing_ok=True)


# Copying


def _copy(source: sqlite3.Connection, path: Path, partial: Path, file: Path, watch: Watch) -> Holding:
    """Copy all pages within one read transaction, and say what they hold."""
    source.execute("begin")
    held = holding(source)
    _see_room(source, file)
    with watch("copying") as advance, closing(sqlite3.connect(partial, isolation_level=None)) as target:
        # Whether it is on the disk is our own care, and a copy that broke off is thrown away.
        target.execute("pragma synchronous = off").close()
        target.execute("pragma journal_mode = off").close()
        try:
            with open(partial, "rb") as written:
                source.backup(target, pages=STEP_PAGES, progress=_Steps(path, written.fileno(), advance).step, sleep=0)
                source.execute("rollback")
                target.execute("pragma journal_mode = delete").close()
                os.fsync(written.fileno())
        except sqlite3.Error as error:
            raise BackupError(f"{file} cannot be written: {error}") from error
    return held


def _see_room(source: sqlite3.Connection, file: Path) -> None:
    """Rather now than when the disk is full."""
    (wanted,) = source.execute("select page_count * page_size from pragma_page_count, pragma_page_size").fetchone()
    free = shutil.disk_usage(file.absolute().parent).free
    if free < wanted:
        free_mb = free // 1_000_000
        raise BackupError(f"{file} needs {_mb(wanted)} MB, and {free_mb} MB are free there: name another disk")


def _mb(size: int) -> int:
    return -(-size // 1_000_000)


class _Steps:
    """What is done between two steps of the copy."""

    def __init__(self, path: Path, written: int, advance: Advance | None) -> None:
        self._path = path
        self._written = written
        self._advance = advance
        self._synced = 0

    def step(self, status: int, remaining: int, pages: int) -> None:
        done = pages - remaining
        if self._advance:
            self._advance(done, pages)
        if done >= self._synced + SYNC_PAGES:
            self._synced = done
            os.fdatasync(self._written)
        # The file's size, for its index holds SQLite's locks; while it cannot begin anew it is as full as it is long.
        wal = Path(f"{self._path}-wal")
        if wal.exists() and wal.stat().st_size > WAL_BYTES_MAX:
            raise BackupError(
                f"given up, for {wal} has grown past {_mb(WAL_BYTES_MAX)} MB meanwhile: back up to a faster disk, or"
                " when less is written"
            )


def _check(path: Path, partial: Path, held: Holding) -> None:
    """What was copied is whole, and it ends where the log ended."""
    try:
        with closing(sqlite3.connect(f"{partial.absolute().as_uri()}?mode=ro", uri=True)) as copied:
            (found,) = copied.execute("pragma quick_check(1)").fetchone()
            if found == "ok" and holding(copied) != held:
                found = "it does not end where the log ended"
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        found = " ".join(found.split())
        raise BackupError(f"{path} is damaged, and no backup was made ({found}): restore an earlier one")


def _put(partial: Path, file: Path, sha256: str) -> None:
    """Give the copy its name, and its sum a place beside it. Between the two it has none, rather than a wrong one."""
    sum_path(file).unlink(missing_ok=True)
    os.replace(partial, file)
    sync_directory(file.absolute().parent)
    write_whole(sum_path(file), f"{sha256}  {file.name}\n".encode(), 0o600)


# The sum


def sum_path(file: Path) -> Path:
    return Path(f"{file}.sha256")


def sum_of(file: Path, advance: Advance | None = None) -> str:
    """The file's SHA-256, in hexadecimal."""
    added, size = hashlib.sha256(), file.stat().st_size
    with open(file, "rb") as opened:
        while block := opened.read(BLOCK_BYTES):
            added.update(block)
            if advance:
                advance(opened.tell(), size)
    return added.hexdigest()


def read_sum(file: Path) -> str | None:
    """The sum that stands beside a backup; None where there is none."""
    try:
        return sum_path(file).read_bytes()[:SUM_HEX].decode("ascii", "replace")
    except FileNotFoundError:
        return None
