"""The rules as those know them who act by them: the scheduler and the fetcher.

The delivery unit's follower folds the facts about rules into it, with everything else that it folds, so nobody else has
to follow the log for them. What the rules say at a moment is worked out once for as long as it holds. Whoever sleeps
until a tick is woken where a rule has changed or the clock has stepped, for then the tick is at another moment.
"""

import datetime as dt
from collections.abc import Callable

import trio
from msgspec.structs import replace

from events.fact import Entry
from events.rules import EVERYTHING, Release, in_force, release
from events.values import MICROSECONDS
from store.clock import Clock
from store.views.rules import NO_RULES, RULES, RulesRow


class Timetable:
    """`changes` counts what has changed moments; then each of `listeners` is called."""

    def __init__(self, zone: dt.tzinfo, clock: Clock) -> None:
        self.zone = zone
        self.changes = 0
        self.listeners: list[Callable[[], None]] = []
        self._clock = clock
        self._row = NO_RULES
        self._rules = in_force(())
        self._release = EVERYTHING
        self._since_us = 0
        self._passed_us: int | None = None

    def take(self, row: RulesRow) -> None:
        """These are the rules."""
        if row != self._row:
            self._row = row
            self._rules = in_force(row.all())
            self.move()

    def fold(self, entry: Entry) -> None:
        """Follow a fact about rules."""
        self.take(RULES.evolve(self._row, entry) or NO_RULES)

    def move(self) -> None:
        """Moments are others than they were: of the rules, or of the clock."""
        self._release = EVERYTHING
        self._since_us = 0
        self.changes += 1
        for call in self.listeners:
            call()

    def pass_over(self) -> None:
        """Somebody is in a hurry: whatever is due at this moment may go, whatever the rules say."""
        self._passed_us = self._clock.monotonic_us()

    def passed_us(self) -> int:
        """The moment of the last hurry, which a step of the clock moves with it; -1 where there was none."""
        return -1 if self._passed_us is None else self._passed_us + self._clock.ahead_us()

    def release(self, now_us: int) -> Release:
        """What may go at this moment."""
        if not self._rules:
            return EVERYTHING
        said = self._said(now_us)
        return said if self._passed_us is None else replace(said, up_to_us=max(said.up_to_us, self.passed_us()))

    def _said(self, now_us: int) -> Release:
        if not self._since_us <= now_us < self._release.until_us or self._release is EVERYTHING:
            self._release, self._since_us = release(self._rules, self.zone, now_us), now_us
        return self._release

    def fetch_at(self, wanted: float, *, at_once: bool) -> float:
        """When to fetch that would be done at `wanted` without rules (Trio's clock): at the next tick, or still at this
        one, where it is to go on at once."""
        if not self._rules:
            return wanted
        now_us = self._clock.now_us()
        said = self._said(now_us)
        if at_once and said.up_to_us >= 0:
            return wanted
        next_us = said.until_us if said.next_us is None else said.next_us
        return trio.current_time() + (next_us - now_us) / MICROSECONDS
