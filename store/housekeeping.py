"""Housekeeping: the write-ahead file stays small, freed pages go back, and somebody looks at the disk.

SQLite's own checkpoints are off, for they come in the middle of a commit. A connection of its own runs a PASSIVE one
every 250 ms while the write-ahead file is over 4 MB. Under full load that alone is not enough, since the writer is
always past what was copied and the file never begins anew; so past a limit the writer itself, between two turns, runs
PASSIVE and then RESTART, which is short because little is left to copy (`Relief`).

How full the file is stands in the index beside it (`-shm`), in a header whose layout SQLite documents (its page "WAL-
mode File Format", section 2.1): reading it costs microseconds and no lock. The file's own size only says how full it
has been at most. That index also carries SQLite's locks, and POSIX has a process lose all its locks on a file when it
closes any descriptor of it: another process that then came to read found none, took itself for the first, and cut the
index that this one had mapped (measured: SIGBUS within seconds). So `WalIndex` is closed only after every connection.

After an erasure a TRUNCATE checkpoint is asked for and tried until one succeeds, for only then is what was erased gone
from the write-ahead file too. One is always tried at the start: a crash may have come between the two.
"""

import logging
import os
import shutil
import sqlite3
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import trio
from msgspec import Struct

logger = logging.getLogger("letterbook.store")

PASSING = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN)
"""Errors that may be over at the next tick."""

TICK_S = 0.25
CHECKPOINT_ABOVE_BYTES = 4_000_000
"""A passive checkpoint of so much takes some 10 ms of another thread; below, it would only cost fsyncs."""

RESTART_WAIT_MS = 20
"""How long the writer waits for readers before it goes on without having made room: a page is read faster."""

TRUNCATE_WAIT_MS = 100
IDLE_TICK_S = 5.0
"""When nothing is committed, and nothing to be given back, there is nothing to look for."""

IDLE_TICKS = 40
"""Ten seconds without a commit: then a few milliseconds of the writer's lock are nobody's."""

VACUUM_PAGES = 64
"""A quarter of a megabyte a tick takes a few milliseconds: a gigabyte is given back in a quarter of an hour."""

VACUUM_KEEPS_PAGES = 4_096
"""16 MB of free pages stay for the next letters; giving them back only to ask again would be work for nothing."""

MB = 1_000_000
DAY_S = 86_400.0
SAMPLE_EVERY_S = 600.0
SAMPLES_KEPT = 144
"""A day of samples, one in ten minutes: growth is seen over a whole day, with its nights."""


# The write-ahead file


class Wal(Struct, frozen=True):
    """How full the write-ahead file is: `bytes` since it last began anew, and `unsaved` of them not yet copied."""

    bytes: int
    unsaved: int


NO_WAL = Wal(0, 0)

_FRAME_HEADER_BYTES = 24
_FRAMES = struct.Struct("=HI")
_BACKFILLED = struct.Struct("=I")
_INDEX_BYTES = 100
"""Up to the number of frames copied (offset 96); page size and number of frames stand at offset 14."""


class WalIndex:
    """The index beside the write-ahead file of a database that this process has open. Close it after all of them."""

    def __init__(self, db_path: Path) -> None:
        self._path = f"{db_path}-shm"
        self._descriptor: int | None = None

    def open(self) -> None:
        """To be called once a connection has read: before, there is no such file."""
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def look(self) -> Wal:
        """How full the write-ahead file is now. From any thread."""
        if self._descriptor is None:
            return NO_WAL
        index = os.pread(self._descriptor, _INDEX_BYTES, 0)
        if len(index) < _INDEX_BYTES:
            return NO_WAL
        page_size, frames = _FRAMES.unpack_from(index, 14)
        (copied,) = _BACKFILLED.unpack_from(index, 96)
        frame = (65_536 if page_size == 1 else page_size) + _FRAME_HEADER_BYTES
        return Wal(frames * frame, max(0, frames - copied) * frame)


def checkpoint(connection: sqlite3.Connection, mode: Literal["passive", "restart", "truncate"]) -> bool:
    """Run a checkpoint; whether it did all that its mode promises."""
    busy, frames, copied = connection.execute(f"pragma wal_checkpoint({mode})").fetchone()
    return not busy and frames == copied


def relieve(connection: sqlite3.Connection, wal_bytes: int, limit_bytes: int) -> bool:
    """Between two turns of the writer: where the write-ahead file is past the limit, let it begin anew.

    True where there was nothing to do or the next commit begins the file anew; False where a reader kept it from
    that for RESTART_WAIT_MS.
    """
    if wal_bytes <= limit_bytes:
        return True
    checkpoint(connection, "passive")
    return _waiting_at_most(connection, RESTART_WAIT_MS, lambda: checkpoint(connection, "restart"))


def _waiting_at_most(connection: sqlite3.Connection, wait_ms: int, run: Callable[[], bool]) -> bool:
    (usual_ms,) = connection.execute("pragma busy_timeout").fetchone()
    connection.execute(f"pragma busy_timeout = {wait_ms}").close()
    try:
        return run()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return False
        raise
    finally:
        connection.execute(f"pragma busy_timeout = {usual_ms}").close()


class Relief:
    """What the writer calls between two turns. While a long reader is in the way it waits for it only now and then:
    each time the file has grown by another quarter of the limit."""

    def __init__(self, index: WalIndex, connection: sqlite3.Connection, limit_bytes: int) -> None:
        self._index = index
        self._connection = connection
        self._limit_bytes = limit_bytes
        self._past_bytes = limit_bytes

    def between_turns(self) -> None:
        """Costs some microseconds where there is nothing to do."""
        wal = self._index.look()
        if wal.bytes <= self._limit_bytes:
            self._past_bytes = self._limit_bytes
        elif wal.bytes > self._past_bytes and not relieve(self._connection, wal.bytes, self._limit_bytes):
            self._past_bytes = wal.bytes + self._limit_bytes // 4


# The chores

Chore = Literal["passive", "truncate", "vacuum"]
Result = TypeVar("Result")


class Seen(Struct, frozen=True):
    """What a tick sees: the write-ahead file, whether truncating is asked for, since how many ticks nothing was
    committed, and how many pages of the file are free."""

    wal: Wal
    truncate: bool
    idle_ticks: int
    free_pages: int


def chore(seen: Seen) -> Chore | None:
    """What to do in this tick: what was asked for, else what is needed, else what idle hands may do."""
    if seen.truncate:
        return "truncate"
    if seen.wal.bytes > CHECKPOINT_ABOVE_BYTES and seen.wal.unsaved:
        return "passive"
    if seen.idle_ticks >= IDLE_TICKS and seen.free_pages > VACUUM_KEEPS_PAGES:
        return "vacuum"
    return None


def free_pages(connection: sqlite3.Connection) -> int:
    return _pragma(connection, "freelist_count")


def used_bytes(connection: sqlite3.Connection) -> int:
    """What the database needs: its file without the pages that are free."""
    pages = _pragma(connection, "page_count") - free_pages(connection)
    return pages * _pragma(connection, "page_size")


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"pragma {name}").fetchone()
    return int(value)


def vacuum_step(connection: sqlite3.Connection) -> None:
    """Give a few free pages back to the file system."""
    # Each step of this statement frees one page, and `execute` stops after the first: it has no columns.
    connection.executescript(f"pragma incremental_vacuum({VACUUM_PAGES})")


def truncate(connection: sqlite3.Connection) -> bool:
    """Copy everything and cut the write-ahead file to nothing; False where a reader or the writer was in the way."""
    return _waiting_at_most(connection, TRUNCATE_WAIT_MS, lambda: checkpoint(connection, "truncate"))


class Housekeeper:
    """Does a chore a tick on a connection of its own, in a thread, or inline where there are none."""

    def __init__(self, index: WalIndex, connection: sqlite3.Connection, threaded: bool) -> None:
        self._index = index
        self._connection = connection
        self._limiter = trio.CapacityLimiter(1) if threaded else None
        self._truncate = True
        self._asked = 0
        self._idle_ticks = 0
        self._last_wal = NO_WAL
        self._put_off = False
        self.growth = Growth()

    def ask_for_truncating(self) -> None:
        """Something was erased: try a truncating checkpoint until one succeeds that began after this call."""
        self._truncate = True
        self._asked += 1

    async def run(self) -> None:
        """A tick every TICK_S, or IDLE_TICK_S when there is nothing to do, until cancelled."""
        while True:
            did = await self._do(self.tick)
            if self.growth.wants_sample(now_s := trio.current_time()):
                self.growth.note(now_s, await self._do(partial(used_bytes, self._connection)))
            await trio.sleep(TICK_S if did or self._idle_ticks < IDLE_TICKS else IDLE_TICK_S)

    async def _do(self, work: Callable[[], Result]) -> Result:
        if self._limiter:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
        return work()

    def tick(self) -> Chore | None:
        """Look, and do what is to be done now. A full disk or a busy file only puts it off to a later tick."""
        try:
            done = self._tick()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in PASSING:
                raise
            if not self._put_off:
                logger.warning("housekeeping is put off: %s", error)
            self._put_off = True
            return None
        self._put_off = False
        return done

    def _tick(self) -> Chore | None:
        wal = self._index.look()
        self._idle_ticks = self._idle_ticks + 1 if wal == self._last_wal else 0
        self._last_wal = wal
        idle = self._idle_ticks >= IDLE_TICKS
        do = chore(Seen(wal, self._truncate, self._idle_ticks, free_pages(self._connection) if idle else 0))
        if do == "truncate":
            self._try_truncating()
        elif do == "passive":
            checkpoint(self._connection, "passive")
        elif do == "vacuum":
            _waiting_at_most(self._connection, TRUNCATE_WAIT_MS, self._vacuum)
        if do == "vacuum":
            # Its own commit is no sign of life.
            self._last_wal = self._index.look()
        return do

    def _try_truncating(self) -> None:
        asked = self._asked
        if truncate(self._connection) and asked == self._asked:
            self._truncate = False

    def _vacuum(self) -> bool:
        vacuum_step(self._connection)
        return True


# The disk


def disk_free_bytes(db_path: Path) -> int:
    """What an ordinary user may still write on the database's disk."""
    return shutil.disk_usage(db_path.absolute().parent).free


def disk_low(db_path: Path, min_free_mb: float) -> bool:
    """Whether less is free than the configuration asks for; never where it asks for nothing."""
    return min_free_mb > 0 and disk_free_bytes(db_path) < min_free_mb * MB


def log_bytes(db_path: Path) -> int:
    """What the database takes on the disk, without its write-ahead file."""
    try:
        return os.stat(db_path).st_size
    except FileNotFoundError:
        return 0


class Figures(Struct, frozen=True):
    """For /metrics: sizes in bytes; growth and days are None until an hour of samples is there, days also where
    nothing grows."""

    wal_bytes: int
    log_bytes: int
    free_bytes: int
    bytes_a_day: float | None
    days_left: float | None


class Growth:
    """How fast what the database needs grows: samples of (seconds on a monotonic clock, bytes), a day of them.

    Not the file's size: that stands still while retention's pages are filled again, and falls when they go back.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES_KEPT + 1)

    def wants_sample(self, now_s: float) -> bool:
        return not self._samples or now_s - self._samples[-1][0] >= SAMPLE_EVERY_S

    def note(self, now_s: float, used: int) -> None:
        self._samples.append((now_s, used))

    @property
    def used(self) -> int | None:
        """As of the last sample."""
        return self._samples[-1][1] if self._samples else None

    def bytes_a_day(self) -> float | None:
        """None until the samples span an hour."""
        if not self._samples:
            return None
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        if last_s - first_s < 3600:
            return None
        return max(0, last - first) * DAY_S / (last_s - first_s)


def figures(db_path: Path, index: WalIndex, growth: Growth) -> Figures:
    """How large the files are, and for how long there is room: on the disk, and in the file's own free pages."""
    size, free = log_bytes(db_path), disk_free_bytes(db_path)
    a_day = growth.bytes_a_day()
    reusable = max(0, size - (growth.used or size))
    return Figures(index.look().bytes, size, free, a_day, (free + reusable) / a_day if a_day else None)
