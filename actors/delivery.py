"""The delivery unit: scheduler, rate limiter and sender pool, their channels, and the one follower that feeds them.

    follower --folds--> limiter, pool's relays and accounts, scheduler
    scheduler --candidates--> rate limiter --grant--> a sender that waits
    scheduler --demand--> sender pool                (a bell; the state stands in a cell here)
    sender --ready(), release()--> scheduler         (plain calls, never blocking)

Each batch of facts is folded into the limiter first and the scheduler last, so the scheduler never offers what the
limiter does not know yet. The unit is supervised as one: whatever crashes in it takes all of it down, and each start,
not only the process's first, begins by recording AttemptInterrupted for every attempt that is found open.

At the end `stop` lets no new grant out, and gives attempts under way until a deadline; then they are cancelled and
their ends recorded by how far they had come.
"""

import logging
import random
from collections.abc import Sequence

import trio

from events.account import AccountThrottled
from events.fact import Draft
from events.message import MessageFailed
from events.values import MICROSECONDS
from store import dispatching
from store.dispatching import NOTHING_COUNTED
from store.opening import Store
from store.recorder import NotRecorded
from store.views.accounts import AccountRow, RelayRow

from .bell import Bell
from .judgement import interrupted
from .network import Network
from .rate_limiter import RateLimiter, Refused
from .scheduler import WINDOW_MAX, Candidate, Plan, Scheduler, Wanted
from .sender_pool import DeliveryPolicy, SenderPool

logger = logging.getLogger("letterbook.delivery")

REST_S = 1.0
"""How long nothing is offered after the log has refused a start, because the disk is full or the service stops."""

INTERRUPTED_A_RECORD = 500


class Delivery:
    """One start of the unit. `longest_sleep_s` is the longest that the scheduler sleeps without any cause."""

    def __init__(
        self,
        store: Store,
        network: Network,
        policy: DeliveryPolicy,
        chance: random.Random,
        *,
        batch_size: int = 1,
        longest_sleep_s: float = 5.0,
    ) -> None:
        self._store = store
        self._policy = policy
        self._chance = chance
        self._longest_sleep_s = longest_sleep_s
        self._limiter = RateLimiter()
        self._scheduler = Scheduler(batch_size)
        self._demand: dict[int, Wanted] = {}
        self._bell = Bell()
        self.pool = SenderPool(store, network, policy, chance, self._scheduler, self, lambda: self._demand)
        self._give, self._candidates = trio.open_memory_channel[Sequence[Candidate]](policy.connections_max)
        self._deciding = trio.CancelScope()
        self.plans = 0

    # What senders and control call

    def ready(self, account: int) -> None:
        """A sender is about to wait for work."""
        if self._scheduler.hungry(account):
            self._bell.ring()

    def release(self, number: int, seq: int) -> None:
        """A grant came to nothing; `seq` is as of when it was refused, or -1 where the log takes no starts now."""
        self._limiter.give_back(number)
        self._scheduler.release(number, max(seq, 0))
        if seq < 0:
            self._scheduler.rest(self._store.clock.now_us() + int(REST_S * MICROSECONDS))
        self._bell.ring()

    def run_now(self) -> None:
        """Look again at once, and probe relays that are known unreachable."""
        self._bell.ring()
        self.pool.probe_now()

    def account(self, number: int) -> AccountRow | None:
        return self._scheduler.account(number)

    def relay(self, key: str) -> RelayRow | None:
        return self._scheduler.relay(key)

    # The unit's life

    async def run(self, stopping: trio.Event, drain_s: float) -> None:
        """Deliver until `stopping`; then let attempts under way end for `drain_s`, and cancel what is left."""
        await self._interrupt_open_attempts()
        state = await self._store.read(dispatching.unit_state)
        self._scheduler.start(state)
        await self._load_limits(state.accounts)
        async with trio.open_nursery() as unit:
            unit.start_soon(self._follow, state.seq)
            unit.start_soon(self._decide)
            unit.start_soon(self._drain, unit, stopping, drain_s)
            await self.pool.run()
            unit.cancel_scope.cancel()

    async def _drain(self, unit: trio.Nursery, stopping: trio.Event, drain_s: float) -> None:
        await stopping.wait()
        self._deciding.cancel()
        self.pool.stop()
        await trio.sleep(drain_s)
        unit.cancel_scope.cancel()

    async def _decide(self) -> None:
        """The scheduler and the rate limiter; cancelled first, so that nothing new begins."""
        with self._deciding:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._schedule)
                nursery.start_soon(self._limit)

    async def _interrupt_open_attempts(self) -> None:
        """Whoever had these attempts is gone, and nobody knows how far they had come."""
        now_us = self._store.clock.now_us()
        drafts = [
            Draft(
                interrupted(row, attempt.attempt, attempt.indexes(), self._policy.retry, now_us, self._chance.random()),
                message=attempt.message,
                account=attempt.account,
            )
            for attempt, row in await self._store.read(dispatching.open_attempts)
        ]
        for first in range(0, len(drafts), INTERRUPTED_A_RECORD):
            await self._store.record(drafts[first : first + INTERRUPTED_A_RECORD], urgent=True)

    # Following

    async def _follow(self, after: int) -> None:
        clock = self._store.clock
        async with self._store.follow(after) as batches:
            async for batch in batches:
                monotonic_us = clock.monotonic_us()
                ahead_us = clock.now_us() - monotonic_us
                for entry in batch.entries:
                    self._limiter.fold(entry, ahead_us, monotonic_us)
                    self._scheduler.fold(entry)
                if self._scheduler.stirs(self._credit):
                    self._bell.ring()

    def _credit(self, account: int) -> int:
        return self.pool.credit(account)

    # Scheduling

    async def _schedule(self) -> None:
        async with trio.open_nursery() as refills:
            while True:
                now_us = self._store.clock.now_us()
                plan = self._scheduler.plan(now_us, self._credit)
                self.plans += 1
                self._want(plan)
                if plan.refills:
                    self._scheduler.refilling(plan.refills)
                    refills.start_soon(self._refill, plan.refills)
                if plan.candidates:
                    await self._give.send(plan.candidates)
                sleep_s = self._longest_sleep_s
                if plan.wake_us is not None:
                    sleep_s = min(sleep_s, max(plan.wake_us - now_us, 0) / MICROSECONDS)
                await self._bell.wait(trio.current_time() + sleep_s)

    def _want(self, plan: Plan) -> None:
        if plan.demand != self._demand:
            self._demand = plan.demand
            self.pool.bell.ring()

    async def _refill(self, windows: Sequence[tuple[int, int]]) -> None:
        as_of, queues = await self._store.read(dispatching.queues, windows, WINDOW_MAX)
        for (account, priority), rows in zip(windows, queues, strict=True):
            self._scheduler.refilled(account, priority, as_of, rows)
        self._bell.ring()

    # Limiting

    async def _limit(self) -> None:
        async for candidates in self._candidates:
            refused: set[int] = set()
            for candidate in candidates:
                if candidate.account in refused:
                    self._scheduler.release(candidate.number, 0)
                elif not await self._grant(candidate):
                    refused.add(candidate.account)

    async def _grant(self, candidate: Candidate) -> bool:
        """Take a slot and hand the candidate to a sender; False where the account has no slot."""
        account = self._scheduler.account(candidate.account)
        if account is not None and self._limiter.differs(account):
            await self._load_limits([account])
        refusal = self._limiter.take(candidate.number, candidate.account, self._store.clock.monotonic_us())
        if refusal is not None:
            await self._refuse(candidate, refusal)
            return False
        if self.pool.grant(candidate):
            self._scheduler.granted(candidate.number)
        else:
            self._limiter.give_back(candidate.number)
            self._scheduler.release(candidate.number, 0)
        return True

    async def _refuse(self, candidate: Candidate, refusal: Refused) -> None:
        """No slot: the account rests until one is free, or its mail is refused where it asked for that."""
        clock = self._store.clock
        self._scheduler.release(candidate.number, 0)
        if refusal.until_us is None:
            self._scheduler.block(candidate.account, None)
            return
        until_us = clock.now_us() + refusal.until_us - clock.monotonic_us()
        self._scheduler.block(candidate.account, until_us)
        self._bell.no_later_than(trio.current_time() + (until_us - clock.now_us()) / MICROSECONDS)
        account = self._scheduler.account(candidate.account)
        if account is not None and account.limit_behavior == "reject":
            self._scheduler.block(candidate.account, clock.now_us())
            self._bell.ring()
            await self._note(candidate, MessageFailed(cause="quota", by="rate limiter"))
        else:
            await self._note(candidate, AccountThrottled(until_us=until_us, window_s=refusal.window_s))

    async def _note(self, candidate: Candidate, fact: AccountThrottled | MessageFailed) -> None:
        try:
            draft = Draft(fact, message=candidate.number, account=candidate.account)
            await self._store.record((draft,), urgent=True)
        except NotRecorded:
            self._scheduler.rest(self._store.clock.now_us() + int(REST_S * MICROSECONDS))

    async def _load_limits(self, accounts: Sequence[AccountRow]) -> None:
        """Give the limiter these accounts' limits, with what has counted in their windows so far."""
        now_us, monotonic_us = self._store.clock.now_us(), self._store.clock.monotonic_us()
        limited = [row.number for row in accounts if row.limit_per_minute or row.limit_per_hour or row.limit_per_day]
        counted = await self._store.read(dispatching.counted, limited, now_us) if limited else {}
        for row in accounts:
            history = counted.get(row.number, NOTHING_COUNTED)
            self._limiter.configure(row, history, now_us - monotonic_us, monotonic_us)
