"""The recorder: the only door through which facts reach the log. How it works:

`record` puts a request into one of two queues and waits until it is decided and on disk. One task takes what waits,
a turn at a time: first the urgent queue (attempts and control), then the other (accepts), until a turn is full; one
request is never split. The turn runs in a thread of its own, which does nothing else; in the simulation, which has
virtual time and no threads, it runs inline. While a turn is on disk the next one gathers, and that is all the
batching there is: alone a fact waits for nobody, under load one commit carries hundreds.

When the turn is on disk its entries are published to the followers, and then the askers are answered: so whoever
has an answer can be sure that every follower has at least been given what it is about.

Once queued, a request is shielded from its asker's cancellation, since its facts may be in the log a moment later.
So everybody who waits must be answered, whatever happens: `run` itself is shielded too, ends only by `close`, `shut`
or an error, and answers NotRecorded to whoever is left.

Errors. A full disk refuses at once what can be refused (accepts, starts, and whatever else is not an end), with
NotRecorded; the ends of attempts stay queued and are tried again each second, for they say what has happened. Only
when they are on disk, and a turn without requests has found room for more (`Writer.probe`), is everything taken again:
nobody need ask in vain to find that out. The same holds while another program keeps the database locked. Any other
error of SQLite leaves nothing that one could go on from: it stops the recorder, and with it the service.
At the end `close` lets what is queued be written until a deadline and answers NotRecorded to the rest; the attempts
whose ends were given up so are counted, for the next start finds them open.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import trio
from msgspec import Struct

from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Draft, Entry
from events.service import ClockStepped

from .beside import Beside
from .faults import Fault
from .writer import Recorded, Request, TurnResult

FACTS_A_TURN_MAX = 2_000
"""One commit of so many takes some 30 ms: no attempt waits longer than that to start or end."""

BYTES_A_TURN_MAX = 4_000_000
"""Letters of 100 KB make a commit slow long before their number does (measured: 1,000 of them took 0.8 s)."""

RETRY_S = 1.0
"""How long a full disk is left alone: each try that fails costs a turn and the rows in memory."""

logger = logging.getLogger("letterbook.store")


class NotRecorded(Exception):
    """The facts are not in the log and will not be: the disk is full, or the service is stopping."""


class EndsGivenUp(Exception):
    """The log took the ends of some attempts no more before the service had to stop; the text is one line."""

    def __init__(self, path: Path, attempts: int, trouble: str | None) -> None:
        which = "the end of 1 attempt is" if attempts == 1 else f"the ends of {attempts} attempts are"
        super().__init__(
            f"{path}: {which} not in the log ({trouble or STOPPING}): the next start finds them open, and"
            " whether they arrived is in doubt"
        )
        self.attempts = attempts


STOPPING = "the service is stopping"


class Turner(Protocol):
    """How a turn is run: in a thread of its own, or inline."""

    async def turn(self, requests: Sequence[Request]) -> TurnResult:
        """Raises Fault, and then nothing of the turn is on disk. A turn without requests looks for room."""

    def close(self) -> None: ...


RunTurn = Callable[[Sequence[Request]], TurnResult]


class InlineTurner:
    """Turns run where they are asked for: no threads, so virtual time holds still meanwhile."""

    def __init__(self, run: RunTurn) -> None:
        self._run = run

    async def turn(self, requests: Sequence[Request]) -> TurnResult:
        await trio.lowlevel.checkpoint()
        return self._run(requests)

    def close(self) -> None:
        pass


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
                self._result = self._run(requests)
            except BaseException as error:  # handed to the task that waits for this turn, which raises it
                self._result = error
            try:
                self._token.run_sync_soon(self._done.set)
            except trio.RunFinishedError:
                return

    def close(self) -> None:
        self._jobs.put(None)
        self._thread.join()


_KEPT = AttemptEnded | AttemptInterrupted | ClockStepped


class _Asked(Struct, eq=False):
    """A request that waits, and the task that waits for it, if one does."""

    request: Request
    facts: int
    size: int
    task: trio.lowlevel.Task | None
    recorded: Recorded | None = None
    reason: str = STOPPING

    @property
    def is_kept(self) -> bool:
        """Whether it waits for room on a full disk: what has happened already, and cannot be refused any more."""
        return any(isinstance(draft.fact, _KEPT) for draft in self.request.drafts)

    @property
    def ends(self) -> int:
        """How many attempts it ends."""
        return sum(isinstance(draft.fact, AttemptEnded | AttemptInterrupted) for draft in self.request.drafts)

    def answer(self, recorded: Recorded | None, reason: str = STOPPING) -> None:
        self.recorded = recorded
        self.reason = reason
        if self.task:
            trio.lowlevel.reschedule(self.task)


def _never(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
    """Nobody stops waiting for an answer: it always comes, and the facts may be in the log already."""
    return trio.lowlevel.Abort.FAILED


def _asked(request: Request, task: trio.lowlevel.Task | None) -> _Asked:
    size = sum([each.size for each in request.beside.values()]) if request.beside else 0
    return _Asked(request, len(request.drafts), size, task)


_NOTHING_BESIDE: Mapping[int, Beside] = MappingProxyType({})


class Recorder:
    """The queue before the writer. `publish(entries, bytes)` is called after each turn, before anyone is answered.

    `trouble` says why nothing can be written at this moment, None while all is well; `turns` counts those on disk, and
    `given_up` the attempts whose ends will not be.
    """

    def __init__(self, turner: Turner, publish: Callable[[tuple[Entry, ...], int], None]) -> None:
        self._turner = turner
        self._publish = publish
        self._urgent: deque[_Asked] = deque()
        self._queued: deque[_Asked] = deque()
        self._taken: Sequence[_Asked] = ()
        self._bell = trio.Event()
        self._closed = trio.Event()
        self._ended = trio.Event()
        self._scope = trio.CancelScope(shield=True)
        self._shut = False
        self.trouble: str | None = None
        self.turns = 0
        self.given_up = 0

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
        asked = _asked(Request(drafts, beside or _NOTHING_BESIDE, whole), trio.lowlevel.current_task())
        if refusal := self._queue(asked, urgent):
            await trio.lowlevel.checkpoint()
            raise NotRecorded(refusal)
        await trio.lowlevel.wait_task_rescheduled(_never)
        if asked.recorded is None:
            raise NotRecorded(asked.reason)
        return asked.recorded

    def post(self, drafts: Sequence[Draft], *, beside: Mapping[int, Beside] | None = None) -> None:
        """Record facts as urgent ones without waiting for them: they are written in the order in which they came, so
        before whatever is recorded as urgent from here on."""
        self._queue(_asked(Request(drafts, beside or _NOTHING_BESIDE), None), urgent=True)

    async def record_step(self, draft: Draft) -> Recorded:
        """Record that the clock has moved: after all that is queued, which was made by the clock before, and before all
        that comes from now on. The caller has moved the clock, without an await in between."""
        self._urgent.extend(self._queued)
        self._queued.clear()
        return await self.record((draft,), urgent=True)

    def _queue(self, asked: _Asked, urgent: bool) -> str | None:
        """Put a request before the writer, or say why it cannot be."""
        if self._closed.is_set():
            self.given_up += asked.ends
            return STOPPING
        if self.trouble and not asked.is_kept:
            return self.trouble
        (self._urgent if urgent else self._queued).append(asked)
        self._bell.set()
        return None

    async def run(self) -> None:
        """Take turns until `close` has emptied the queues. Raises Fault where one cannot go on."""
        with self._scope:
            try:
                await self._take_turns()
            finally:
                self._closed.set()
                self._refuse([*self._taken, *self._urgent, *self._queued])
                self._taken = ()
                self._urgent.clear()
                self._queued.clear()
                self._ended.set()

    async def _take_turns(self) -> None:
        while True:
            self._taken = self._take()
            if self._taken:
                await self._turn(self._taken)
            elif self._closed.is_set():
                return
            elif self.trouble:
                await self._turn(())
            else:
                self._bell = trio.Event()
                await self._bell.wait()

    def _take(self) -> Sequence[_Asked]:
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

    async def _turn(self, taken: Sequence[_Asked]) -> None:
        """One turn; one for nobody, in trouble, looks whether that is over."""
        try:
            result = await self._turner.turn([asked.request for asked in taken])
        except Fault as fault:
            if fault.passing is None:
                raise
            await self._wait_for_better(taken, fault.passing)
            return
        if self._shut:
            self._taken = ()
            self._refuse(taken)
            return
        if self.trouble and not taken:
            logger.info("writing again: %s no longer", self.trouble)
            self.trouble = None
        self.turns += bool(taken)
        if result.entries:
            self._publish(result.entries, result.size)
        self._taken = ()
        for asked, recorded in zip(taken, result.recorded, strict=True):
            asked.answer(recorded)

    async def _wait_for_better(self, taken: Sequence[_Asked], trouble: str) -> None:
        """Nothing can be written for now: refuse what can be refused, keep the ends, and try again in a while."""
        if self.trouble != trouble:
            logger.error("%s: only the ends of attempts wait to be written, everything else is refused", trouble)
        self.trouble = trouble
        waiting = [*taken, *self._urgent, *self._queued]
        self._taken = ()
        self._urgent = deque([asked for asked in waiting if asked.is_kept])
        self._queued.clear()
        self._refuse([asked for asked in waiting if not asked.is_kept], trouble)
        with trio.move_on_after(RETRY_S):
            if not self._urgent:
                # Nothing is to be tried again, so `close` need not wait for it.
                await self._closed.wait()
            else:
                await trio.sleep_forever()

    def _refuse(self, asked: Sequence[_Asked], reason: str = STOPPING) -> None:
        for each in asked:
            self.given_up += each.ends
            each.answer(None, reason)

    async def close(self, deadline: float) -> int:
        """Write what waits until `deadline` (Trio's clock), then answer NotRecorded; how many were so answered."""
        self._closed.set()
        self._bell.set()
        with trio.CancelScope(shield=True, deadline=deadline):
            await self._ended.wait()
        left = [*self._urgent, *self._queued]
        self._urgent.clear()
        self._queued.clear()
        self._refuse(left)
        # Only a sleep between two tries is cut short: a turn that is under way is still waited for.
        self._scope.cancel()
        return len(left)

    def shut(self) -> None:
        """As a crash would: nothing more is written, and nobody hears of what is being written now."""
        self._shut = True
        self._closed.set()
        self._refuse([*self._urgent, *self._queued])
        self._urgent.clear()
        self._queued.clear()
        self._scope.cancel()
