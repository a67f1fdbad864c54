"""Retention ends what has waited too long, sweeps up after removed accounts, and lets go of what was reported.

It promises that mail past its time fails with a fact, that no open message of a removed account is left over, that
content goes only after its result was reported and kept long enough, and never past what is unreported. It all goes
in steps of STEP messages, each a commit of its own, so nothing else waits for long; what a step meets in another
state than it read is refused by admission and met again, or not, in a later one.

It cannot know whether the wall clock is right. So it compares it with the monotonic one, writes down every step of it,
and while the clock is doubted (`store/views/clock.py`) lets nothing expire and nothing go: a wrong clock must not
expire a queue. Removed accounts are swept all the same, for that depends on no clock. Whoever else must know of the
doubt asks here (`clock_row`), for here it is known in the very moment in which the clock is followed.

Letting go has a loop of its own, for it may take minutes, and what else a round does may not wait so long. It can also
be asked for (cleanup-messages), with another age; one at a time, so that every message is counted once. Whoever asks is
believed, whatever the clock has done.

A message in flight under a removed account is left to its attempt; when that has ended, the next round finds it.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from events.fact import Draft, Entry
from events.message import ContentErased, MessageFailed, RetentionPassed
from events.report import TokensForgotten
from events.values import MICROSECONDS
from store.clock import COMPARE_EVERY_S
from store.opening import Store
from store.recorder import NotRecorded
from store.views.clock import BELIEVED, CLOCK, ClockRow, step
from store.worklists import STEP, Expired, Finished, clock_row, dispatch_row, expired, finished, old_tokens, orphaned

logger = logging.getLogger("letterbook.retention")

ROUND_S = 1.0
"""Mail fails within a second of its end; a round that finds nothing is five look-ups."""

RETAIN_EVERY_S = 60.0
"""What was kept for days may be kept for a minute more."""

RETENTION = "retention"

TOKENS_KEPT_S = 30 * 86_400.0
"""An upstream that offers a batch again after a month in which it could not hear of it is none."""

REFUSED_STEPS_MAX = 3
"""A step is refused where one of its messages was queued again since it was read: it is read again so often, and each
time another person would have to have come in between."""

AGE_S_MAX = 100_000_000_000.0
"""Three thousand years: an older age is taken for this one, and fits the arithmetic."""

DOUBT = "; for an hour nothing expires, and nothing that was asked for later goes early: set the clock if it is wrong"


def expiries(found: Sequence[Expired], now_us: int) -> list[Draft]:
    """The facts that end these messages, each with its age in seconds."""
    return [
        Draft(
            MessageFailed(cause="expired", after_s=max(0, now_us - each.created_us) // MICROSECONDS, by=RETENTION),
            message=each.number,
            account=each.account,
        )
        for each in found
    ]


def sweepings(found: Sequence[tuple[int, int]]) -> list[Draft]:
    """The facts that end the mail of removed accounts."""
    return [
        Draft(MessageFailed(cause="account_removed", by=RETENTION), message=number, account=account)
        for number, account in found
    ]


def lettings(step: Finished, by: str) -> list[Draft]:
    """The facts that let a step go: contents first, so that a row never leaves before its content."""
    erased = [Draft(ContentErased(letters=step.letters, by=by))] if step.letters else []
    return [*erased, Draft(RetentionPassed(before=step.before, by=by))]


class Retention:
    """`keep_s` is how long results are kept once reported."""

    def __init__(self, store: Store, keep_s: float) -> None:
        self._store = store
        self._keep_s = keep_s
        self._letting_go = trio.Lock()
        self._compare_at_us = 0
        self._look_later()
        self._clock_row = store.clock_row

    def clock_row(self) -> ClockRow:
        """Whether the clock is believed, as of now."""
        return self._clock_row

    @property
    def doubted(self) -> bool:
        """Whether the clock has moved by so much that nothing expires by it yet."""
        return self._clock_row.doubted(self._store.clock.now_us())

    async def run(self) -> None:
        """Rounds and letting go, for ever. While nothing can be recorded, they do nothing."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._again_and_again, self._round, ROUND_S)
            nursery.start_soon(self._again_and_again, self._retain, RETAIN_EVERY_S)

    async def _again_and_again(self, what: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            try:
                await what()
            except NotRecorded as error:
                logger.info("nothing was ended this time: %s", error)
            await trio.sleep(every_s)

    async def _round(self) -> None:
        """Compare the clocks where it is time, then end whatever is due to end."""
        if self._store.clock.monotonic_us() >= self._compare_at_us:
            self._look_later()
            await self._compare_clocks()
        self._clock_row = await self._store.read(clock_row)
        await self._sweep()
        if not self.doubted:
            await self._expire()

    async def _retain(self) -> None:
        """Let go of what is kept no longer; not beside somebody who asked for it, for the next time is soon enough."""
        if self.doubted:
            return
        if not self._letting_go.locked():
            await self.let_go(None, RETENTION)
        await self._forget_tokens()

    def _look_later(self) -> None:
        self._compare_at_us = self._store.clock.monotonic_us() + int(COMPARE_EVERY_S * MICROSECONDS)

    async def _compare_clocks(self) -> None:
        moved_us = self._store.clock.step()
        if not moved_us:
            return
        fact = step(self._clock_row, moved_us, self._store.clock.now_us())
        self._clock_row = CLOCK.evolve(self._clock_row, Entry(0, 0, None, None, fact)) or BELIEVED
        logger.warning("the clock moved by %.1f s%s", moved_us / 1e6, DOUBT if self.doubted else "")
        await self._store.record_step(Draft(fact))

    async def _sweep(self) -> None:
        while await self._end(sweepings(await self._store.read(orphaned))):
            pass

    async def _expire(self) -> None:
        """Not while somebody is still to say what becomes of a restored backup's mail: it may have been sent."""
        if (await self._store.read(dispatch_row)).restored:
            return
        now_us = self._store.clock.now_us()
        while await self._end(expiries(await self._store.read(expired, now_us), now_us)):
            pass

    async def _end(self, drafts: Sequence[Draft]) -> bool:
        """Record a step; whether another may follow. One in which nothing fitted has no successor in this round."""
        if not drafts:
            return False
        recorded = await self._store.record(drafts)
        return len(drafts) >= STEP and any(isinstance(answer, Entry) for answer in recorded.answers)

    async def _forget_tokens(self) -> None:
        seen_by_us = self._store.clock.now_us() - int(TOKENS_KEPT_S * MICROSECONDS)
        while tokens := await self._store.read(old_tokens, seen_by_us):
            await self._store.record([Draft(TokensForgotten(tokens=tokens, by=RETENTION))])
            if len(tokens) < STEP:
                return

    async def let_go(self, older_than_s: float | None, by: str) -> int:
        """Let go of what was reported so long ago (None: as configured), a step at a time; how many messages.

        RetentionPassed is judged like any fact: past what is unreported it is refused, and so is the whole step where
        one of its messages was queued again meanwhile. Then it is read again, without that one.
        """
        age_s = self._keep_s if older_than_s is None else older_than_s
        before_us = self._store.clock.now_us() - int(min(age_s, AGE_S_MAX) * MICROSECONDS)
        gone = refused = 0
        async with self._letting_go:
            while refused < REFUSED_STEPS_MAX and (step := await self._store.read(finished, before_us)):
                recorded = await self._store.record(lettings(step, by), whole=True)
                if not recorded.complete:
                    refused += 1
                    continue
                gone += len(step.letters)
                if not step.more:
                    break
        return gone
