"""What SQLite says when it cannot go on, by its code, and what the operator reads instead: one line that names the file
and says what to do.

Some faults pass by themselves, or once somebody has made room: the recorder waits for that, and readers try again. All
others end the service, since nothing could be told from what is read or written after them.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

DISK_FULL = "the disk is full"
LOCKED = "another program keeps the database locked"


class Row(Struct, frozen=True):
    """What to say of the file, after its name; and why nothing can be written for now, where the fault may pass."""

    sentence: str
    passing: str | None = None


_FULL = Row("cannot be written, for the disk is full: free some space, then start again", DISK_FULL)
_BUSY = Row("is kept locked by another program: end that (`fuser` names it), then start again", LOCKED)
_DAMAGED = (
    "is damaged: keep a copy of it and of the files beside it, and restore a backup; where it can still be read,"
    " `letterbook verify` says how far the log is whole"
)
_FAILED = "cannot be read or written, for the disk fails: see the system's own log, then start again"
_CLOSED = "cannot be opened: let the service's user read and write it, its folder, and the files beside it"

ROWS: dict[int, Row] = {
    sqlite3.SQLITE_FULL: _FULL,
    # The index of the write-ahead log could not grow: SQLite has no better word for a disk that is full there.
    sqlite3.SQLITE_IOERR_SHMSIZE: _FULL,
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_CORRUPT: Row(_DAMAGED),
    sqlite3.SQLITE_NOTADB: Row(
        "is no SQLite database, or its beginning was overwritten: restore a backup, or write another path"
    ),
    sqlite3.SQLITE_IOERR: Row(_FAILED),
    sqlite3.SQLITE_CANTOPEN: Row(_CLOSED),
    sqlite3.SQLITE_PERM: Row(_CLOSED),
    sqlite3.SQLITE_READONLY: Row(
        "can only be read: let the service's user write it, its folder, and the files beside it, and see that the disk"
        " is not mounted read-only"
    ),
}
"""By extended code, else by its last byte, which is the primary one."""


class Fault(Exception):
    """SQLite cannot go on with a file; the text is one line. `passing` says why where that may pass, else None."""

    def __init__(self, path: Path, error: sqlite3.Error) -> None:
        code = getattr(error, "sqlite_errorcode", 0)
        row = ROWS.get(code) or ROWS.get(code & 0xFF)
        super().__init__(f"{path} {row.sentence} ({error})" if row else f"{path}: {error}")
        self.passing = row.passing if row else None
        self.known = row is not None


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """Within, what SQLite raises about the file becomes a Fault."""
    try:
        yield
    except sqlite3.Error as error:
        raise Fault(path, error) from error
