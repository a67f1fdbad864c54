"""Opening and closing the store: the lock, the key, the tables, what recovery decided, then the recorder.

    async with open_store(path, key_file, clock=clock) as store:
        await store.record([...])
        async with store.follow(after=0) as batches: ...
        await store.read(reading.pending, ...)

That is all there is to the store's outside: record, follow, read.
"""

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import trio

from events.fact import Draft, Entry
from events.wire import decode_row

from .beside import Beside
from .clock import Clock
from .files import MarkKeeper, WrongKey, hold_lock, read_or_make_key
from .following import Follower, Hub
from .recorder import InlineTurner, Recorder, ThreadTurner, Turner
from .schema import VIEW_VERSIONS, migrate
from .secrets import Secrets
from .writer import Recorded, Request, TurnResult, Writer

READERS_MAX = 4
"""Threads that read at once: pages for slow followers, lists for the API, refills; each has its own connection."""

LOG_ID_BYTES = 8
DRAIN_S = 3.0

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Reading = Callable[Concatenate[sqlite3.Connection, Arguments], Result]

_PAGE = "select seq, at_us, kind, version, message, account, data from log where seq > ? order by seq limit ?"


def page(connection: sqlite3.Connection, after: int, limit: int) -> tuple[Entry, ...]:
    """The entries that follow a seq, at most `limit`."""
    return tuple(map(decode_row, connection.execute(_PAGE, (after, limit))))


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode: transactions are begun and ended by hand."""
    mode = "ro" if read_only else "rwc"
    connection = sqlite3.connect(
        f"file:{path.absolute().as_posix().replace('?', '%3f').replace('#', '%23')}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute("pragma busy_timeout = 5000")
    if not read_only:
        connection.execute("pragma auto_vacuum = incremental")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = full")
        connection.execute("pragma wal_autocheckpoint = 0")
        connection.execute("pragma cache_size = -65536")
    return connection


class Readers:
    """Reading connections, lent out one a call; in threads, or inline where there are none."""

    def __init__(self, path: Path, threaded: bool) -> None:
        self._path = path
        self._free: list[sqlite3.Connection] = []
        self._limiter = trio.CapacityLimiter(READERS_MAX) if threaded else None

    async def read(self, reading: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `reading` within one read transaction."""
        connection = self._free.pop() if self._free else connect(self._path, read_only=True)
        try:
            if self._limiter:
                return await trio.to_thread.run_sync(_transact, connection, reading, limiter=self._limiter)
            await trio.lowlevel.checkpoint()
            return _transact(connection, reading)
        finally:
            self._free.append(connection)

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


def _transact(connection: sqlite3.Connection, reading: Callable[[sqlite3.Connection], Result]) -> Result:
    connection.execute("begin")
    try:
        return reading(connection)
    finally:
        connection.execute("rollback")


class Store:
    """What is remembered, seen from outside."""

    def __init__(
        self, path: Path, log_id: str, clock: Clock, secrets: Secrets, recorder: Recorder, hub: Hub, readers: Readers
    ) -> None:
        self.path = path
        self.log_id = log_id
        self.clock = clock
        self.secrets = secrets
        self.recorder = recorder
        self._hub = hub
        self._readers = readers

    @property
    def last_seq(self) -> int:
        """The seq of the last fact that was published to followers."""
        return self._hub.last_seq

    @property
    def lag(self) -> int:
        """How many facts the slowest follower is behind."""
        return self._hub.lag()

    async def record(
        self,
        drafts: Sequence[Draft],
        *,
        beside: Mapping[int, Beside] | None = None,
        whole: bool = False,
        urgent: bool = False,
    ) -> Recorded:
        """See `Recorder.record`."""
        return await self.recorder.record(drafts, beside=beside, whole=whole, urgent=urgent)

    def follow(self, after: int) -> AbstractAsyncContextManager[Follower]:
        """See `Hub.follow`."""
        return self._hub.follow(after)

    async def read(
        self, reading: Reading[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Run `reading(connection, ...)` within one read transaction: everything it sees is of one moment."""
        return await self._readers.read(lambda connection: reading(connection, *args, **kwargs))


class OpeningError(Exception):
    """The store cannot be opened as it is; the text is one line that says what to do."""


def _is_there(path: Path) -> bool:
    """SQLite makes an empty file before the first table: that is no log yet."""
    return path.exists() and path.stat().st_size > 0


@asynccontextmanager
async def open_store(
    path: Path,
    key_file: Path,
    *,
    clock: Clock,
    version: str = "",
    entropy: Callable[[int], bytes] = os.urandom,
    threaded: bool = True,
    drain_s: float = DRAIN_S,
) -> AsyncIterator[Store]:
    """Open the store for writing and hold it until the block ends; then what is queued is written for `drain_s`.

    Raises FileTrouble (locked, key), OpeningError (damaged, of a newer release). `threaded=False` runs everything
    inline, for virtual time.
    """
    with ExitStack() as stack:
        log_exists = _is_there(path)
        stack.enter_context(hold_lock(path))
        secrets = Secrets(read_or_make_key(key_file, log_exists, entropy), entropy)
        connection = connect(path)
        stack.callback(connection.close)
        migrate(connection)
        log_id = _identify(connection, secrets, key_file, entropy)
        writer = Writer(connection, clock.now_us)
        readers = Readers(path, threaded)
        stack.callback(readers.close)
        keeper = MarkKeeper(path, log_id)
        run = _marking(writer, keeper, clock)
        turner: Turner = ThreadTurner(run) if threaded else InlineTurner(run)
        stack.callback(turner.close)

        async def read_page(after: int, limit: int) -> tuple[Entry, ...]:
            return await readers.read(lambda reading: page(reading, after, limit))

        hub = Hub(writer.last_seq, read_page)
        recorder = Recorder(turner, hub.publish)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder.run)
            try:
                yield Store(path, log_id, clock, secrets, recorder, hub, readers)
            finally:
                with trio.CancelScope(shield=True):
                    await recorder.close(trio.current_time() + drain_s)
                hub.close()
                nursery.cancel_scope.cancel()
        keeper.finish(writer.last_seq)


def _marking(writer: Writer, keeper: MarkKeeper, clock: Clock) -> Callable[[Sequence[Request]], TurnResult]:
    """A turn, and then the mark: only what is on disk is marked."""

    def turn(requests: Sequence[Request]) -> TurnResult:
        result = writer.turn(requests)
        keeper.keep(writer.last_seq, clock.monotonic_us())
        return result

    return turn


def _identify(connection: sqlite3.Connection, secrets: Secrets, key_file: Path, entropy: Callable[[int], bytes]) -> str:
    """The log's id, made with a new log; and the proof that the key is this log's. Raises WrongKey."""
    meta: dict[str, Any] = dict(connection.execute("select name, value from meta"))
    if not meta:
        meta = {"log": entropy(LOG_ID_BYTES).hex(), "key": secrets.key_id}
        meta |= {f"view:{name}": str(version) for name, version in VIEW_VERSIONS.items()}
        connection.executemany("insert into meta values (?, ?)", list(meta.items()))
    if meta["key"] != secrets.key_id:
        raise WrongKey(key_file, secrets.key_id, meta["key"])
    return str(meta["log"])
