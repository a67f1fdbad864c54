"""Opening and closing the store: the lock, the key, the tables, what recovery decided, then the recorder.

    async with open_store(path, key_file, clock=clock) as store:
        await store.record([...])
        async with store.follow(after=0) as batches: ...
        await store.read(reading.pending, ...)

That is all there is to the store's outside: record, follow, read.
"""

import logging
import math
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import trio
from msgspec import Struct

from events.fact import Draft, Entry
from events.message import ContentErased
from events.service import ClockStepped
from events.wire import decode_row

from .beside import Beside
from .clock import Clock
from .erasing import erase_step
from .examining import examine, is_log
from .faults import Fault, faults_of
from .files import MarkKeeper, WrongKey, hold_lock, read_mark, read_or_make_key
from .following import Follower, Hub
from .housekeeping import MB, Growth, Housekeeper, Relief, WalIndex
from .recorder import InlineTurner, NotRecorded, Recorder, ThreadTurner, Turner
from .recovery import Decision, decide
from .replay import rebuild
from .schema import PUT_BACK, VIEW_VERSIONS, migrate
from .secrets import Secrets
from .surveying import survey
from .views.clock import ClockRow, step
from .worklists import clock_row
from .writer import Recorded, Request, TurnResult, Writer

logger = logging.getLogger("letterbook.store")

READERS_MAX = 4
"""Threads that read at once: pages for slow followers, lists for the API, refills; each has its own connection."""

LOG_ID_BYTES = 8
WAL_MB_MAX = 16
WAL_KEPT_BYTES = 2 * WAL_MB_MAX * MB
"""What load writes past the limit is kept for the next load; what a long reader has let it grow to is given back."""

ERASE_LOOK_S = 1.0
"""Erasing is never urgent: a crash may always put it off to the next start."""

ERASE_RESTS = 3.0
"""After a step of erasing the writer is left alone for three times as long as that took: attempts have the rest."""

DRAIN_S = 3.0

READ_AGAIN_S = 0.5
"""A reading that a full disk or another program has kept from its moment is tried again."""

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
        connection.execute(f"pragma journal_size_limit = {WAL_KEPT_BYTES}").close()
        connection.execute("pragma cache_size = -65536")
        # What is freed is overwritten: erasing counts on it.
        connection.execute("pragma secure_delete = on").close()
    return connection


class Readers:
    """Reading connections, lent out one a call; in threads, or inline where there are none.

    Where the database cannot be read, nobody who asked could go on: `watch` ends the store by the Fault, and the askers
    wait for that.
    """

    def __init__(self, path: Path, threaded: bool) -> None:
        self._path = path
        self._free: list[sqlite3.Connection] = []
        self._limiter = trio.CapacityLimiter(READERS_MAX) if threaded else None
        self._fault: Fault | None = None
        self._broken = trio.Event()

    async def read(self, reading: Callable[[sqlite3.Connection], Result]) -> Result:
        """Run `reading` within one read transaction."""
        while True:
            try:
                return await self._try(reading)
            except sqlite3.DatabaseError as error:
                fault = Fault(self._path, error)
                if not fault.known:
                    raise
            if fault.passing is None:
                self.break_down(fault)
            await trio.sleep(READ_AGAIN_S if fault.passing else math.inf)

    async def _try(self, reading: Callable[[sqlite3.Connection], Result]) -> Result:
        if self._limiter:
            return await trio.to_thread.run_sync(self._lend, reading, limiter=self._limiter)
        await trio.lowlevel.checkpoint()
        return self._lend(reading)

    def break_down(self, fault: Fault) -> None:
        self._fault = fault
        self._broken.set()

    async def watch(self) -> None:
        """Raises the Fault that a reading has met."""
        await self._broken.wait()
        assert self._fault is not None
        raise self._fault

    def _lend(self, reading: Callable[[sqlite3.Connection], Result]) -> Result:
        """In the thread, so that there are never more connections than threads that read."""
        try:
            connection = self._free.pop()
        except IndexError:
            connection = connect(self._path, read_only=True)
        try:
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
        self,
        path: Path,
        clock: Clock,
        opened: "_Opened",
        recorder: Recorder,
        hub: Hub,
        readers: Readers,
        wal_index: WalIndex,
        growth: Growth,
        logged_ahead_us: Callable[[], int],
    ) -> None:
        self.path = path
        self.wal_index = wal_index
        self.growth = growth
        self.clock = clock
        self.log_id = opened.log_id
        self.secrets = opened.secrets
        self.recovered = opened.decision
        self.clock_row = opened.clock_row
        self.recorder = recorder
        self.logged_ahead_us = logged_ahead_us
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

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written at this moment; None while all is well."""
        return self.recorder.trouble

    def post(self, drafts: Sequence[Draft], *, beside: Mapping[int, Beside] | None = None) -> None:
        """See `Recorder.post`."""
        self.recorder.post(drafts, beside=beside)

    async def record_step(self, draft: Draft) -> Recorded:
        """See `Recorder.record_step`."""
        return await self.recorder.record_step(draft)

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


@asynccontextmanager
async def open_store(
    path: Path,
    key_file: Path,
    *,
    clock: Clock,
    entropy: Callable[[int], bytes] = os.urandom,
    threaded: bool = True,
    wal_mb_max: int = WAL_MB_MAX,
    drain_s: float = DRAIN_S,
) -> AsyncIterator[Store]:
    """Open the store for writing and hold it until the block ends; then what is queued is written for `drain_s`.

    Raises FileError (locked, key), OpeningError (views to be rebuilt first), and Fault, also later. `threaded=False`
    runs everything inline, for virtual time.
    """
    with ExitStack() as stack:
        wal_index = WalIndex(path)
        stack.callback(wal_index.close)
        with faults_of(path):
            opened = _open(path, key_file, clock, entropy, stack)
            chores = stack.enter_context(_closing(connect(path)))
        wal_index.open()
        writer = opened.writer
        work = _Work(path, writer, opened.keeper, Relief(wal_index, writer.connection, wal_mb_max * MB), clock)
        turner: Turner = ThreadTurner(work.turn) if threaded else InlineTurner(work.turn)
        readers = Readers(path, threaded)
        stack.callback(readers.close)
        housekeeper = Housekeeper(wal_index, chores, threaded)

        async def read_page(after: int, limit: int) -> tuple[Entry, ...]:
            return await readers.read(lambda reading: page(reading, after, limit))

        hub = Hub(writer.last_seq, read_page)
        recorder = Recorder(turner, hub.publish)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(recorder.run)
                nursery.start_soon(_keep_house, housekeeper, path)
                nursery.start_soon(readers.watch)
                nursery.start_soon(work.erase, recorder, housekeeper)
                try:
                    yield Store(
                        path, clock, opened, recorder, hub, readers, wal_index, housekeeper.growth, work.ahead_us
                    )
                finally:
                    await recorder.close(trio.current_time() + drain_s)
                    hub.close()
                    nursery.cancel_scope.cancel()
        finally:
            turner.close()
        opened.keeper.finish(writer.last_seq, work.now_us())


async def _keep_house(housekeeper: Housekeeper, path: Path) -> None:
    with faults_of(path):
        await housekeeper.run()


class _Opened(Struct, frozen=True):
    """A database that is ours, recovered, with its writer."""

    log_id: str
    secrets: Secrets
    writer: Writer
    keeper: MarkKeeper
    decision: Decision
    clock_row: ClockRow


def _open(path: Path, key_file: Path, clock: Clock, entropy: Callable[[int], bytes], stack: ExitStack) -> _Opened:
    """Lock, key, tables, and what recovery decided; that a backup was restored is on disk when it returns."""
    for line in examine(path, key_file):
        logger.warning("%s", line)
    log_exists = is_log(path)
    stack.enter_context(hold_lock(path))
    secrets = Secrets(read_or_make_key(key_file, log_exists, entropy), entropy)
    # It holds letters: like the key, it is its owner's alone. SQLite gives the files beside it the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = stack.enter_context(_closing(connect(path)))
    migrate(connection)
    log_id = _identify(connection, secrets, key_file, entropy)
    decision = decide(survey(connection, read_mark(path), clock.now_us()))
    if decision.refuse:
        raise OpeningError("; ".join(decision.lines))
    for line in decision.lines:
        logger.warning("%s", line)
    if decision.refold:
        rebuild(connection)
    writer = Writer(connection, clock.now_us)
    if decision.stepped_us:
        fact = step(clock_row(connection), decision.stepped_us, clock.now_us())
        writer.turn([Request((Draft(fact),), {})])
    if decision.restored:
        # The id comes first: after a crash between the two the mark is of another log, which is a restoration again.
        log_id = entropy(LOG_ID_BYTES).hex()
        connection.execute("update meta set value = ? where name = 'log'", (log_id,))
        writer.turn([Request(tuple(map(Draft, decision.facts)), {})])
        connection.execute("delete from meta where name = ?", (PUT_BACK,))
    return _Opened(log_id, secrets, writer, MarkKeeper(path, log_id), decision, clock_row(connection))


class Alone(Struct, frozen=True):
    """A log that nobody else writes, without a recorder: for a command that writes once."""

    log_id: str
    secrets: Secrets
    writer: Writer


@contextmanager
def open_alone(
    path: Path, key_file: Path, clock: Clock, entropy: Callable[[int], bytes] = os.urandom
) -> Iterator[Alone]:
    """Hold the log, or make it, as a start does. Raises FileError (a service holds it, or its key) and OpeningError."""
    with ExitStack() as stack:
        opened = _open(path, key_file, clock, entropy, stack)
        yield Alone(opened.log_id, opened.secrets, opened.writer)
        opened.keeper.finish(opened.writer.last_seq, clock.now_us())


@contextmanager
def _closing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    finally:
        connection.close()


class _Work:
    """What the writer's thread does: a turn; then the mark, for only what is on disk is marked; then room in the
    write-ahead file, and a step of erasing, if this turn was asked for it by a request without facts."""

    def __init__(self, path: Path, writer: Writer, keeper: MarkKeeper, relief: Relief, clock: Clock) -> None:
        self._path = path
        self._writer = writer
        self._keeper = keeper
        self._relief = relief
        self._clock = clock
        self._ahead_us = clock.ahead_us()
        # What a crash left unerased is taken up again.
        self._erasing = True
        self._cut_wanted = False
        self._fault: Fault | None = None
        self._untidy = False

    def turn(self, requests: Sequence[Request]) -> TurnResult:
        """Raises Fault; nothing of the turn is on disk then."""
        if self._fault:
            raise self._fault
        with faults_of(self._path):
            if not requests:
                self._writer.probe()
            result = self._writer.turn(requests)
        self._ahead_us += sum([entry.fact.by_us for entry in result.entries if isinstance(entry.fact, ClockStepped)])
        self._mark()
        if any(isinstance(entry.fact, ContentErased) for entry in result.entries):
            self._erasing = True
        self._try_to_tidy(erase=not all(request.drafts for request in requests))
        return result

    def _mark(self) -> None:
        said = self._keeper.failing
        error = self._keeper.keep(self._writer.last_seq, self._clock.monotonic_us(), self.now_us())
        if error and not said:
            logger.warning("the mark file cannot be written: %s", error)

    def _try_to_tidy(self, erase: bool) -> None:
        """The turn is on disk, so its askers must not hear of an error here; the next turn tries again, or says it."""
        try:
            self._tidy(erase)
        except sqlite3.Error as error:
            fault = Fault(self._path, error)
            self._fault = None if fault.passing else fault
            if not self._untidy:
                logger.warning("housekeeping between two turns failed: %s", fault)
            self._untidy = True
        else:
            self._untidy = False

    def ahead_us(self) -> int:
        """`Clock.ahead_us` without the steps that are not in the log yet: after a crash they are found anew."""
        return self._ahead_us

    def now_us(self) -> int:
        return self._clock.monotonic_us() + self._ahead_us

    def _tidy(self, erase: bool) -> None:
        self._relief.between_turns()
        if self._erasing and erase:
            self._erasing = erase_step(self._writer.connection) > 0
            self._cut_wanted = self._cut_wanted or not self._erasing

    async def erase(self, recorder: Recorder, housekeeper: Housekeeper) -> None:
        """While there is something to erase, see that turns go on; then have the write-ahead file cut."""
        while True:
            if self._erasing:
                began = trio.current_time()
                await _empty_turn(recorder)
                await trio.sleep(ERASE_RESTS * (trio.current_time() - began))
            if self._cut_wanted:
                self._cut_wanted = False
                housekeeper.ask_for_truncating()
            if not self._erasing:
                await trio.sleep(ERASE_LOOK_S)


async def _empty_turn(recorder: Recorder) -> None:
    try:
        await recorder.record(())
    except NotRecorded:
        await trio.sleep(ERASE_LOOK_S)


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
