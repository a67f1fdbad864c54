"""The recorder: the only door through which facts reach the log. How it works:

`record` puts a request into one of two queues and waits until it is decided and on disk. One task takes what waits,
a turn at a time: first the urgent queue (attempts and control), then the other (accepts), until a turn is full; one
request is never split. The turn runs in a thread of its own, which does nothing else; in the simulation, which has
virtual time and no threads, it runs inline. While a turn is on disk the next one gathers, and that is all the
batching there is: alone a fact waits for nobody, under load one commit carries hundreds.

When the turn is on disk its entries are published to the followers, and then the askers are answered: so whoever
has an answer can be sure that every follower has at least been given what it is about.

Once queued, a request is shielded from its asker's cancellation, since its facts may be in the log a moment later.

Errors. A full disk refuses at once what can be refused (accepts, starts, and whatever else is not an end), with
NotRecorded; the ends of attempts stay queued and are tried again each second, for they say what has happened. Any
other error of SQLite leaves nothing that one could go on from: it stops the recorder, and with it the service.
At the end `close` lets what is queued be written until a deadline and answers NotRecorded to the rest.
"""

import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import trio
from msgspec import Struct

from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Draft, Entry

from .beside import Beside
from .writer import Recorded, Request, TurnResult

FACTS_A_TURN_MAX = 2_000
"""One commit of so many takes some 30 ms: no attempt waits longer than that to start or end."""

BYTES_A_TURN_MAX = 4_000_000
"""Letters of 100 KB make a commit slow long before their number does (measured: 1,000 of them took 0.8 s)."""

RETRY_FULL_DISK_S = 1.0


class NotRecorded(Exception):
    """The facts are not in the log and will not be: the disk is full, or the service is stopping."""


class TurnError(Exception):
    """SQLite could not do the turn, and nothing of it is on disk."""

    def __init__(self, error: sqlite3.Error) -> None:
        super().__init__(str(error))
        self.full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


class Turner(Protocol):
    """How a turn is run: in a thread of its own, or inline."""

    async def turn(self, requests: Sequence[Request]) -> TurnResult:
        """Raises TurnError."""

    def close(self) -> None: ...


RunTurn = Callable[[Sequence[Request]], TurnResult]


class InlineTurner:
    """Turns run where they are asked for: no threads, so virtual time holds still meanwhile."""

    def __init__(self, run: RunTurn) -> None:
        self._run = run

    async def turn(self, requests: Sequence[Request]) -> TurnResult:
        await trio.lowlevel.checkpoint()
        return _guarded(self._run, requests)

    def close(self) -> None:
        pass


def _guarded(run: RunTurn, requests: Sequence[Request]) -> TurnResult:
    try:
        return run(requests)
    except sqlite3.Error as error:
        raise TurnError(error) from error


class ThreadTurner:
    """Turns run in one dedicated thread: a pool's hand-over costs ten times as much (measured)."""

    def __init__(self, run: RunTurn) -> None:
        self._run = run
        self._token = trio.lowlevel.current_trio_token()
        self._jobs: queue.SimpleQueue[Sequence[Request] | None] = queue.SimpleQueue()
        self._done = trio.Event()
        self._result: TurnResult | BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="letterbook writer", daemon=True)
        self._thread.start()

    async def turn(self, requests: Sequence[Request]) -> TurnResult:
        self._done = trio.Event()
        self._jobs.put(requests)
        with trio.CancelScope(shield=True):
            await self._done.wait()
        if isinstance(self._result, BaseException):
            raise self._result
        assert self._result is not None
        return self._result

    def _work(self) -> None:
        while (requests := self._jobs.get()) is not None:
            try:
                self._result = _guarded(self._run, requests)
            except BaseException as error:  # handed to the task that waits for this turn, which raises it
                self._result = error
            try:
                self._token.run_sync_soon(self._done.set)
            except trio.RunFinishedError:
                return

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()


class _Asked(Struct, eq=False):
    """A request that waits, with the event its asker waits for."""

    request: Request
    facts: int
    size: int
    done: trio.Event
    recorded: Recorded | None = None

    @property
    def is_end(self) -> bool:
        return any(isinstance(draft.fact, AttemptEnded | AttemptInterrupted) for draft in self.request.drafts)


class Recorder:
    """The queue before the writer. `publish(entries, bytes)` is called after each turn, before anyone is answered."""

    def __init__(self, turner: Turner, publish: Callable[[tuple[Entry, ...], int], None]) -> None:
        self._turner = turner
        self._publish = publish
        self._urgent: deque[_Asked] = deque()
        self._queued: deque[_Asked] = deque()
        self._bell = trio.Event()
        self._closing = False
        self._idle = trio.Event()
        self.full = False
        self.turns = 0

    @property
    def waiting(self) -> int:
        """How many requests wait for a turn."""
        return len(self._urgent) + len(self._queued)

    async def record(
        self,
        drafts: Sequence[Draft],
        *,
        beside: Mapping[int, Beside] | None = None,
        whole: bool = False,
        urgent: bool = False,
    ) -> Recorded:
        """Record facts; returns when each is decided and what fits is on disk.

        `beside` is what stands beside the drafts, by position. With `whole` either all are recorded or none is.
        `urgent` requests go before others. Raises NotRecorded.
        """
        request = Request(drafts, beside or {}, whole)
        size = sum(each.size for each in request.beside.values())
        asked = _Asked(request, len(drafts), size, trio.Event())
        if self._closing or (self.full and not asked.is_end):
            await trio.lowlevel.checkpoint()
            raise NotRecorded("the disk is full" if self.full else "the service is stopping")
        (self._urgent if urgent else self._queued).append(asked)
        self._bell.set()
        with trio.CancelScope(shield=True):
            await asked.done.wait()
        if asked.recorded is None:
            raise NotRecorded("the disk is full" if self.full else "the service is stopping")
        return asked.recorded

    async def run(self) -> None:
        """Take turns until `close` has emptied the queues. Raises TurnError where one cannot go on."""
        while True:
            taken = self._take()
            if taken:
                await self._turn(taken)
            elif self._closing:
                self._idle.set()
                return
            else:
                self._bell = trio.Event()
                await self._bell.wait()

    def _take(self) -> list[_Asked]:
        """What the next turn is for: the urgent first, up to a turn's bounds, at least one request."""
        taken: list[_Asked] = []
        facts = size = 0
        for waiting in (self._urgent, self._queued):
            while waiting:
                asked = waiting[0]
                facts += asked.facts
                size += asked.size
                if taken and (facts > FACTS_A_TURN_MAX or size > BYTES_A_TURN_MAX):
                    return taken
                taken.append(waiting.popleft())
        return taken

    async def _turn(self, taken: list[_Asked]) -> None:
        try:
            result = await self._turner.turn([asked.request for asked in taken])
        except TurnError as error:
            if not error.full:
                self._abandon(taken)
                raise
            await self._wait_for_room(taken)
            return
        self.full = False
        self.turns += 1
        if result.entries:
            self._publish(result.entries, result.size)
        for asked, answer in zip(taken, result.recorded, strict=True):
            asked.recorded = answer
            asked.done.set()

    async def _wait_for_room(self, taken: list[_Asked]) -> None:
        """The disk is full: refuse what can be refused, keep the ends, and try them again in a while."""
        self.full = True
        ends = [asked for asked in (*taken, *self._urgent, *self._queued) if asked.is_end]
        others = [asked for asked in (*taken, *self._urgent, *self._queued) if not asked.is_end]
        self._urgent = deque(ends)
        self._queued.clear()
        self._abandon(others)
        if ends:
            await trio.sleep(RETRY_FULL_DISK_S)
        else:
            self.full = False

    def _abandon(self, asked: Sequence[_Asked]) -> None:
        for each in asked:
            each.done.set()

    async def close(self, deadline: float) -> int:
        """Write what waits until `deadline` (Trio's clock), then answer NotRecorded; how many were so answered."""
        self._closing = True
        self._bell.set()
        with trio.move_on_at(deadline) as scope:
            scope.shield = True
            await self._idle.wait()
        left = [*self._urgent, *self._queued]
        self._urgent.clear()
        self._queued.clear()
        self._abandon(left)
        return len(left)

    def shut(self) -> None:
        """As a crash would: nothing more is written, and nobody is answered."""
        self._closing = True
        self._urgent.clear()
        self._queued.clear()
