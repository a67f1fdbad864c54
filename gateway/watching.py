"""The gateway's one follower: what it learns of the log as it grows, for all requests together.

It keeps the names of accounts and of recent messages, whether dispatch is active, and the counters; it rings the bell
that long-polls wait for, and wakes those who wait for a message's outcome. A request never follows the log itself:
with a thousand of them waiting, a commit costs no more than with one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio
from msgspec import Struct

from events.account import AccountSaved, AccountThrottled
from events.fact import Entry
from events.message import DoubtResolved, MessageAccepted, MessageImported, MessageRejected
from store import reading
from store.endings import endings
from store.following import Batch
from store.opening import Store
from store.views import DISPATCH
from store.views.dispatch import DispatchRow

from .event_json import EventCache
from .metrics import Metrics
from .settings import BACKLOG_EVERY_S

NAMES_MAX = 50_000
"""Ids of messages remembered by number: those in the queue's head and in what is streamed."""


class _Start(Struct, frozen=True):
    seq: int
    around: reading.Surroundings
    backlog: int


def _start(connection: reading.Connection) -> _Start:
    return _Start(reading.last_seq(connection), reading.surroundings(connection), reading.open_messages(connection))


class Watch:
    """What the follower has learnt up to the seq `position`. `backlog` is how many messages are not final, give or take
    a second."""

    def __init__(self, store: Store, metrics: Metrics, stopping: trio.Event) -> None:
        self._store = store
        self._metrics = metrics
        self._stopping = stopping
        self.account_ids: dict[int, str] = {}
        self.message_ids: dict[int, str] = {}
        self.events = EventCache(self.account_ids)
        self.dispatch = DispatchRow()
        self.backlog = 0
        self.position = 0
        self._bell = trio.Event()
        self._waiters: dict[int, list[trio.Event]] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow until the store closes; started when the state of this moment is known."""
        start = await self._store.read(_start)
        self.account_ids.update((number, row.id) for number, row in start.around.accounts.items())
        self.dispatch = start.around.dispatch
        self.backlog = start.backlog
        self.position = start.seq
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count_backlog)
            nursery.start_soon(self._ring_at_stop)
            async with self._store.follow(start.seq) as batches:
                task_status.started()
                async for batch in batches:
                    self._take(batch)
                    await self._count_called_sent(batch)
            nursery.cancel_scope.cancel()

    async def _count_backlog(self) -> None:
        while True:
            await trio.sleep(BACKLOG_EVERY_S)
            self.backlog = await self._store.read(reading.open_messages)

    async def _ring_at_stop(self) -> None:
        await self._stopping.wait()
        self._ring(list(self._waiters))

    def _take(self, batch: Batch) -> None:
        for entry in batch.entries:
            self._learn(entry)
        self.position = batch.last
        self._metrics.fold(batch, self.account_ids, self._store.clock.now_us())
        self._ring([entry.message for entry in batch.entries if entry.message in self._waiters])
        if any(isinstance(entry.fact, AccountThrottled) for entry in batch.entries):
            self._ring(list(self._waiters))

    async def _count_called_sent(self, batch: Batch) -> None:
        """What a person's word came to, only the views know."""
        called = {entry.seq: entry.message or 0 for entry in batch.entries if _called_sent(entry)}
        if called:
            for ending in await self._store.read(endings, min(called), max(called), called):
                if ending.seq in called:
                    self._metrics.called_sent(ending.status, ending.account_id or "")

    def _learn(self, entry: Entry) -> None:
        match entry.fact:
            case MessageAccepted() | MessageRejected() | MessageImported() as fact:
                self._name(entry.message or entry.seq, fact.id)
            case AccountSaved() as fact if entry.account is not None:
                self.account_ids[entry.account] = fact.id
        if DISPATCH.keys(entry):
            self.dispatch = DISPATCH.evolve(self.dispatch, entry) or self.dispatch

    def _name(self, number: int, message_id: str) -> None:
        self.message_ids[number] = message_id
        if len(self.message_ids) > NAMES_MAX:
            self.message_ids.pop(next(iter(self.message_ids)))

    def _ring(self, numbers: Sequence[int | None]) -> None:
        for number in numbers:
            for event in self._waiters.get(number or 0, ()):
                event.set()
        self._bell.set()
        self._bell = trio.Event()

    async def after(self, seq: int) -> None:
        """Wait until the log goes beyond a seq, or for the stop."""
        while self._store.last_seq <= seq and not self._stopping.is_set():
            await self._bell.wait()

    async def reached(self, seq: int) -> None:
        """Wait until everything up to a seq has been learnt."""
        while self.position < seq:
            await self._bell.wait()

    @contextmanager
    def waiting(self, number: int) -> Iterator["Waiter"]:
        """Wait for facts about one message, or its account's throttling."""
        waiter = Waiter(self._waiters.setdefault(number, []))
        try:
            yield waiter
        finally:
            waiter.leave()
            if not self._waiters[number]:
                del self._waiters[number]

    async def names_of(self, entries: Sequence[Entry]) -> dict[int, str]:
        """The ids of the messages that these facts are about, from memory or else from the store."""
        numbers = {entry.message for entry in entries if entry.message is not None}
        known = {number: self.message_ids[number] for number in numbers if number in self.message_ids}
        if missing := numbers - known.keys():
            found = await self._store.read(reading.ids_of, missing)
            known.update(found)
            for number, message_id in found.items():
                self._name(number, message_id)
        return known


def _called_sent(entry: Entry) -> bool:
    return isinstance(entry.fact, DoubtResolved) and entry.fact.resolution == "sent"


class Waiter:
    """One who waits: `arm` before looking, then `wait` for what comes after the look."""

    def __init__(self, among: list[trio.Event]) -> None:
        self._among = among
        self._event = trio.Event()
        among.append(self._event)

    def arm(self) -> None:
        self.leave()
        self._event = trio.Event()
        self._among.append(self._event)

    def leave(self) -> None:
        self._among.remove(self._event)

    async def wait(self) -> None:
        await self._event.wait()
