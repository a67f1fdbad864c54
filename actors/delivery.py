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

import datetime as dt
import logging
import random
from collections.abc import Callable, Iterable, Sequence

import trio
from msgspec.structs import replace

from events.account import AccountRemoved, AccountSaved, AccountThrottled
from events.fact import Draft
from events.message import MessageFailed
from events.service import ClockStepped
from events.values import MICROSECONDS
from store import dispatching
from store.dispatching import NOTHING_COUNTED, UnitState
from store.following import Batch
from store.opening import Store
from store.recorder import NotRecorded
from store.views.accounts import AccountRow, RelayRow

from .attachments import AttachmentPolicy, Attachments
from .bell import Bell
from .judgement import interrupted
from .network import Network
from .rate_limiter import RateLimiter, Refused, limits_of
from .scheduler import WINDOW_MAX, Candidate, Plan, Scheduler, Wanted
from .sender_pool import DeliveryPolicy, SenderPool
from .smtp.retry import BACKOFF_SECONDS_MAX
from .timetable import Timetable

logger = logging.getLogger("letterbook.delivery")

REST_S = 1.0
"""How long nothing is offered after the log has refused a start, because the disk is full or the service stops."""

PLAN_RESTS = 4.0
"""A plan looks at every account with mail, some microseconds each. After one over many accounts the next waits for four
times as long as it took, and so finds more to offer: planning has a fifth of the loop at most. Over few accounts a plan
is too short to rest from."""

PLAN_IS_LONG_S = 0.0005

PLAN_REST_S_MAX = 0.02
"""A plan that was kept waiting itself, on a busy machine, is no reason to keep mail."""

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
        disk_low: Callable[[], bool] = lambda: False,
        expiry: Callable[[], bool] = lambda: True,
        timetable: Timetable | None = None,
        attachments: Attachments | None = None,
    ) -> None:
        self._store = store
        self._policy = policy
        self._chance = chance
        self._longest_sleep_s = longest_sleep_s
        self._disk_low = disk_low
        self._expiry = expiry
        self.attachments = attachments or Attachments(store, AttachmentPolicy())
        self._limiter = RateLimiter()
        self._timetable = timetable or Timetable(dt.UTC, store.clock)
        self._scheduler = Scheduler(batch_size, self._timetable)
        self._demand: dict[int, Wanted] = {}
        self._bell = Bell()
        self.pool = SenderPool(
            store, network, policy, chance, self._scheduler, self, lambda: self._demand, self.attachments
        )
        self._give, self._candidates = trio.open_memory_channel[Sequence[Candidate]](policy.connections_max)
        self._deciding = trio.CancelScope()
        self._ahead_us = store.clock.ahead_us()
        self.plans = 0

    # What senders and control call

    def ready(self, account: int) -> None:
        """A sender is about to wait for work. Where there is none for it, its account wants no further connection:
        a demand that stayed would have idle ones made anew, and keep this one from an account that starves."""
        if self._scheduler.hungry(account):
            self._bell.ring()
            return
        self._demand.pop(account, None)
        if self.pool.contended:
            self.pool.bell.ring()

    def release(self, number: int, seq: int) -> None:
        """A grant came to nothing; `seq` is as of when it was refused, or -1 where the log takes no starts now."""
        self._limiter.give_back(number)
        self._scheduler.release(number, max(seq, 0))
        if seq < 0:
            self._scheduler.rest(self._now_us() + int(REST_S * MICROSECONDS))
        self._bell.ring()

    def run_now(self) -> None:
        """Look again at once, at what is due by now whatever the rules say, and probe relays that are known
        unreachable."""
        self._timetable.pass_over()
        self._bell.ring()
        self.pool.probe_now()

    def look_again(self) -> None:
        """What kept everything from going is over."""
        self._bell.ring()

    def account(self, number: int) -> AccountRow | None:
        return self._scheduler.account(number)

    def relay(self, key: str) -> RelayRow | None:
        return self._scheduler.relay(key)

    def relays(self) -> Iterable[str]:
        return self._scheduler.relays()

    # The unit's life

    async def run(self, stopping: trio.Event, drain_s: float) -> None:
        """Deliver until `stopping`; then let attempts under way end for `drain_s`, and cancel what is left."""
        try:
            await self._interrupt_open_attempts()
        except NotRecorded:
            # The service is stopping: the next start will find them.
            return
        state = _believed(await self._read_state(), self._now_us())
        self._scheduler.start(state)
        await self._load_limits([row for row in state.accounts if not row.removed])
        async with trio.open_nursery() as unit:
            unit.start_soon(self._follow, state.seq)
            unit.start_soon(self._decide)
            unit.start_soon(self._drain, unit, stopping, drain_s)
            try:
                await self.pool.run()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await self.attachments.aclose()
            unit.cancel_scope.cancel()

    async def _read_state(self) -> UnitState:
        """All that the log says, and the clock as of the same moment: again, if it has stepped meanwhile."""
        while True:
            self._ahead_us = self._store.logged_ahead_us()
            state = await self._store.read(dispatching.unit_state)
            if self._ahead_us == self._store.logged_ahead_us():
                return state

    def _now_us(self) -> int:
        """The clock, with those of its steps that have been folded."""
        return self._store.clock.monotonic_us() + self._ahead_us

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
        found = await self._store.read(dispatching.open_attempts)
        now_us = self._store.clock.now_us()
        drafts = [
            Draft(
                interrupted(row, attempt.attempt, attempt.indexes(), self._policy.retry, now_us, self._chance.random()),
                message=attempt.message,
                account=attempt.account,
            )
            for attempt, row in found
        ]
        for first in range(0, len(drafts), INTERRUPTED_A_RECORD):
            await self._store.record(drafts[first : first + INTERRUPTED_A_RECORD], urgent=True)

    # Following

    async def _follow(self, after: int) -> None:
        clock = self._store.clock
        async with self._store.follow(after) as batches:
            async for batch in batches:
                monotonic_us = clock.monotonic_us()
                for entry in batch.entries:
                    self._limiter.fold(entry, monotonic_us)
                    self._scheduler.fold(entry)
                    if isinstance(entry.fact, ClockStepped):
                        self._ahead_us += entry.fact.by_us
                        self._timetable.move()
                self._tell_pool(batch)
                if self._scheduler.stirs(self._credit):
                    self._bell.ring()

    def _tell_pool(self, batch: Batch) -> None:
        """What changes connections is known to the pool before anything more is offered."""
        if any(isinstance(entry.fact, AccountSaved | AccountRemoved) for entry in batch.entries):
            self.pool.accounts_changed()
        if any(isinstance(entry.fact, ClockStepped) for entry in batch.entries):
            self.pool.probe_now()

    def _credit(self, account: int) -> int:
        return self.pool.credit(account)

    # Scheduling

    async def _schedule(self) -> None:
        async with trio.open_nursery() as refills:
            while True:
                began, now_us = trio.current_time(), self._now_us()
                plan = self._scheduler.plan(now_us, self._credit, disk_low=self._disk_low(), expiry=self._expiry())
                took_s = trio.current_time() - began
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
                if took_s > PLAN_IS_LONG_S:
                    await trio.sleep(min(PLAN_RESTS * took_s, PLAN_REST_S_MAX))

    def _want(self, plan: Plan) -> None:
        if plan.demand != self._demand:
            self._demand = plan.demand
            self.pool.bell.ring()

    async def _refill(self, windows: Sequence[tuple[int, int]]) -> None:
        self._scheduler.refilled(await self._store.read(dispatching.queues, windows, WINDOW_MAX))
        self._bell.ring()

    # Limiting

    async def _limit(self) -> None:
        async for candidates in self._candidates:
            notes: list[Draft] = []
            refused: dict[int, Refused] = {}
            for candidate in candidates:
                await self._configure(candidate.account)
                if candidate.account in refused:
                    notes += self._refuse_too(candidate, refused[candidate.account])
                elif refusal := self._grant(candidate):
                    refused[candidate.account] = refusal
                    notes += self._refuse(candidate, refusal)
            if notes:
                await self._note(notes)

    async def _configure(self, account: int) -> None:
        row = self._scheduler.account(account)
        if row is not None and self._limiter.differs(row):
            await self._load_limits([row])

    def _grant(self, candidate: Candidate) -> Refused | None:
        """Take a slot and hand the candidate to a sender; the refusal where the account has no slot."""
        refusal = self._limiter.take(candidate.number, candidate.account, self._store.clock.monotonic_us())
        if refusal is not None:
            return refusal
        if self.pool.grant(candidate):
            self._scheduler.granted(candidate.number)
        else:
            self._limiter.give_back(candidate.number)
            self._scheduler.release(candidate.number, 0)
        return None

    def _refuse(self, candidate: Candidate, refusal: Refused) -> list[Draft]:
        """No slot: the account rests until one is free, or its mail is refused where it asked for that. What is to be
        recorded; a message that is to fail stays out until that has been done."""
        if refusal.until_us is None:
            self._scheduler.release(candidate.number, 0)
            self._scheduler.block(candidate.account, None)
            # A plan takes back the demand for connections that would only idle.
            self._bell.ring()
            return []
        if self._rejects(candidate.account):
            failed = MessageFailed(cause="quota", by="rate limiter", revision=candidate.revision)
            return [self._about(candidate, failed)]
        until_us = refusal.until_us + self._ahead_us
        self._scheduler.release(candidate.number, 0)
        self._scheduler.block(candidate.account, until_us)
        self._bell.no_later_than(trio.current_time() + (until_us - self._now_us()) / MICROSECONDS)
        fact = AccountThrottled(until_us=until_us, window_s=refusal.window_s, limit=refusal.limit)
        return [self._about(candidate, fact)]

    def _refuse_too(self, candidate: Candidate, refusal: Refused) -> list[Draft]:
        """One behind the first that was refused: nobody is overtaken, and one fact about the account is enough."""
        if refusal.until_us is not None and self._rejects(candidate.account):
            return self._refuse(candidate, refusal)
        self._scheduler.release(candidate.number, 0)
        return []

    def _rejects(self, account: int) -> bool:
        row = self._scheduler.account(account)
        return row is not None and row.limit_behavior == "reject"

    def _about(self, candidate: Candidate, fact: AccountThrottled | MessageFailed) -> Draft:
        return Draft(fact, message=candidate.number, account=candidate.account)

    async def _note(self, drafts: Sequence[Draft]) -> None:
        """Record what was refused; what has failed comes back only with the seq at which it had."""
        seqs = [-1] * len(drafts)
        try:
            recorded = await self._store.record(drafts, urgent=True)
            seqs = [answer.seq for answer in recorded.answers]
        except NotRecorded:
            self._scheduler.rest(self._now_us() + int(REST_S * MICROSECONDS))
        for draft, seq in zip(drafts, seqs, strict=True):
            if isinstance(draft.fact, MessageFailed):
                self.release(draft.message or 0, seq)

    async def _load_limits(self, accounts: Sequence[AccountRow]) -> None:
        """Give the limiter these accounts' limits, with what has counted in their windows so far."""
        now_us, monotonic_us = self._now_us(), self._store.clock.monotonic_us()
        limited = [row.number for row in accounts if limits_of(row)]
        for number in limited:
            self._limiter.reading(number)
        as_of, counted = await self._store.read(dispatching.counted_as_of, limited, now_us) if limited else (0, {})
        for row in accounts:
            history = counted.get(row.number, NOTHING_COUNTED)
            self._limiter.configure(row, history, as_of, self._ahead_us, monotonic_us)


def _believed(state: UnitState, now_us: int) -> UnitState:
    """The state without moments that a wrong clock may have set: no relay is left alone for longer than the longest
    back-off, and whether a limit is used up the rate limiter says again."""
    latest_us = now_us + int(BACKOFF_SECONDS_MAX * MICROSECONDS)
    return replace(
        state,
        relays=tuple(replace(row, until_us=min(row.until_us, latest_us)) for row in state.relays),
        accounts=tuple(replace(row, throttled_until_us=None) for row in state.accounts),
    )
