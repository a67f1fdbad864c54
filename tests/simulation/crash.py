"""A crash: what the disk holds in one moment is all that is left.

The files are copied in that moment and the next life opens the copies, so the old life can unwind as it likes and
nothing that it still does can reach them. The write-ahead file is copied as it stands, so that each restart after a
crash is SQLite's own recovery. A torn commit is a crash while SQLite writes: the last transaction's part of the
write-ahead file ends anywhere, and whether it is in the log is for recovery to find out; nobody had an answer.
"""

import fcntl
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from store.files import lock_path, mark_path
from store.housekeeping import WalIndex
from store.opening import Store
from store.writer import Request, TurnResult

from .machine import SlowTurner

DATABASE = "log.db"
KEY = "log.key"


class Torn(NamedTuple):
    """Where the write-ahead file ends, and the mark, which is only ever written after the commit."""

    wal_bytes: int
    mark: bytes | None


def copy_files(database: Path, to: Path, torn: Torn | None = None) -> Path:
    """Copy what survives a crash into a new folder."""
    to.mkdir()
    for path in (database, Path(f"{database}-wal"), mark_path(database), database.with_name(KEY)):
        if path.exists():
            shutil.copyfile(path, to / path.name)
    if torn is not None:
        _tear(to / DATABASE, torn)
    return to / DATABASE


def _tear(database: Path, torn: Torn) -> None:
    wal = Path(f"{database}-wal")
    with wal.open("r+b") as file:
        file.truncate(min(torn.wal_bytes, wal.stat().st_size))
    if torn.mark is None:
        mark_path(database).unlink(missing_ok=True)
    else:
        mark_path(database).write_bytes(torn.mark)


def shut(store: Store) -> None:
    """From here on nothing is written, and whoever waits for a fact is told that it is not recorded."""
    store.recorder.shut()


def is_free(database: Path) -> bool:
    """Whether no lock of SQLite's or ours is left on a stopped life's files."""
    with lock_path(database).open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


PAGES_MIN, PAGES_MAX = 1, 1_073_741_823


def limit_pages(turner: SlowTurner, pages: int) -> None:
    """Let SQLite itself find the disk full, in the middle of whatever transaction needs another page."""
    run: Any = turner.run
    work: Any = run.__self__
    work = getattr(work, "work", work)
    work._writer.connection.execute(f"pragma max_page_count = {pages}").close()


class Tearing:
    """Stands around the writer's turns and lets the life crash in the middle of the n-th."""

    def __init__(
        self, database: Path, index: WalIndex, run: Callable[[Sequence[Request]], TurnResult], nth: int,
        chance: random.Random, crash: Callable[[Torn], None],
    ) -> None:  # fmt: skip
        self._database = database
        self._index = index
        self._run = run
        self.work: Any = run.__self__  # type: ignore[attr-defined]  # the turn is a method
        self._left = nth
        self._chance = chance
        self._crash = crash

    def turn(self, requests: Sequence[Request]) -> TurnResult:
        self._left -= 1
        if self._left != 0:
            return self._run(requests)
        before, mark = self._index.look().bytes, _read(mark_path(self._database))
        result = self._run(requests)
        self._crash(Torn(self._torn_at(before, self._index.look().bytes), mark))
        return result

    def _torn_at(self, before: int, after: int) -> int:
        """Anywhere in what this turn wrote; where the file had begun anew, that is from its beginning."""
        begin = before if after >= before else 0
        return WAL_HEADER_BYTES + self._chance.randint(begin, after)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


WAL_HEADER_BYTES = 32
