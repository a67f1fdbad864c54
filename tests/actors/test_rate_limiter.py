"""The rate limiter against a relay that counts: exact moments, and any schedule at all."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.rate_limiter import RateLimiter, Refused
from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Entry
from events.values import Outcome
from store.dispatching import NOTHING_COUNTED, Counted

from .test_pool_plan import account

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
AHEAD_US = 1_700_000_000 * SECOND_US
"""The wall clock, where the monotonic one says 0."""


def limiter(history: Counted = NOTHING_COUNTED, *, as_of: int = 0, now_us: int = 0, **limits: Any) -> RateLimiter:
    made = RateLimiter()
    made.configure(account(1, **limits), history, as_of, AHEAD_US, now_us)
    return made


def end(number: int, seq: int = 1, *statuses: str) -> Entry:
    outcomes = tuple(Outcome(index, status) for index, status in enumerate(statuses or ("delivered",)))
    return Entry(seq, AHEAD_US, number, 1, AttemptEnded(attempt=1, outcomes=outcomes, next="done"))


def test_an_account_without_limits_is_never_refused():
    made = limiter()
    assert [made.take(number, 1, 0) for number in range(1000)] == [None] * 1000
    assert made.in_flight(1) == 1000


def test_a_slot_is_held_until_the_end_and_a_minute_more():
    made = limiter(limit_per_minute=1)
    assert made.take(1, 1, 0) is None
    assert made.take(2, 1, 10 * SECOND_US) == Refused(60, None, 1)
    made.fold(end(1), 40 * SECOND_US)
    assert made.take(2, 1, 40 * SECOND_US) == Refused(60, 100 * SECOND_US, 1)
    assert made.take(2, 1, 100 * SECOND_US - 1) == Refused(60, 100 * SECOND_US, 1)
    assert made.take(2, 1, 100 * SECOND_US) is None


@pytest.mark.parametrize("status", ["deferred", "refused"])
def test_an_attempt_that_delivered_to_nobody_gives_its_slot_back(status):
    made = limiter(limit_per_minute=1)
    made.take(1, 1, 0)
    made.fold(end(1, 1, status), SECOND_US)
    assert made.take(2, 1, SECOND_US) is None


def test_an_attempt_in_doubt_counts():
    made = limiter(limit_per_minute=1)
    made.take(1, 1, 0)
    made.fold(end(1, 1, "refused", "in_doubt"), SECOND_US)
    assert made.take(2, 1, SECOND_US) == Refused(60, 61 * SECOND_US, 1)


def test_a_grant_that_comes_back_gives_its_slot_back_once():
    made = limiter(limit_per_minute=2)
    made.take(1, 1, 0)
    made.take(2, 1, 0)
    made.give_back(1)
    made.give_back(1)
    assert made.in_flight(1) == 1
    assert made.take(3, 1, 0) is None
    assert made.take(4, 1, 0) == Refused(60, None, 2)


@pytest.mark.parametrize(("name", "seconds", "grain"), [("limit_per_hour", 3600, 1), ("limit_per_day", 86_400, 60)])
def test_hour_and_day_hold_a_slot_to_the_end_of_its_second_or_minute(name, seconds, grain):
    made = limiter(**{name: 1})
    made.take(1, 1, 0)
    made.fold(end(1), grain * SECOND_US + 500_000)
    free_us = (2 * grain + seconds) * SECOND_US
    assert made.take(2, 1, 2 * grain * SECOND_US) == Refused(seconds, free_us, 1)
    assert made.take(2, 1, free_us) is None


def test_a_days_ends_are_a_few_thousand_however_many_there_were():
    made = limiter(limit_per_hour=100_000, limit_per_day=1_000_000)
    for second in range(90_000):
        made.take(1, 1, second * SECOND_US)
        made.fold(end(1), second * SECOND_US)
    assert made.take(1, 1, 90_000 * SECOND_US) is None
    assert sum(len(window._held) for window in made._accounts[1].windows) <= 3_601 + 1_442


def test_after_a_restart_no_slot_is_free_before_the_end_it_is_held_by():
    """The log's seconds are not the monotonic clock's: an end lies somewhere within one of them."""
    second = 1_700_000_000 - 3_000
    made, ahead_us = RateLimiter(), AHEAD_US + 600_000
    made.configure(account(1, limit_per_hour=1), Counted(seconds=((second, 1),)), 0, ahead_us, 0)
    latest_us = (second + 1) * SECOND_US - 1 - ahead_us
    refused = made.take(1, 1, 0)
    assert refused is not None and refused.until_us >= latest_us + 3_600 * SECOND_US


def test_the_window_that_refuses_longest_is_named():
    made = limiter(limit_per_minute=1, limit_per_hour=1)
    made.take(1, 1, 0)
    made.fold(end(1), 0)
    assert made.take(2, 1, 0) == Refused(3600, 3601 * SECOND_US, 1)


def test_where_the_limit_has_become_less_than_what_is_held_enough_must_go():
    made = limiter(Counted(ends_us=tuple(AHEAD_US + second * SECOND_US for second in range(5))), now_us=10 * SECOND_US,
                   limit_per_minute=2)  # fmt: skip
    assert made.take(1, 1, 10 * SECOND_US) == Refused(60, 63 * SECOND_US, 2)


def test_new_limits_must_be_configured():
    made = limiter(limit_per_minute=1)
    assert not made.differs(account(1, limit_per_minute=1, ttl=5))
    assert made.differs(account(1, limit_per_minute=2))
    assert made.differs(account(2))


def test_history_counts_after_a_restart():
    history = Counted(
        ends_us=(AHEAD_US - 59 * SECOND_US,), seconds=((1_700_000_000 - 3000, 1), (1_700_000_000 - 59, 1))
    )
    assert limiter(history, limit_per_minute=1).take(1, 1, 0) == Refused(60, SECOND_US, 1)
    assert limiter(history, limit_per_minute=2).take(1, 1, 0) is None
    assert limiter(history, limit_per_hour=2).take(1, 1, 0) == Refused(3600, 601 * SECOND_US, 2)


def test_history_in_the_future_counts_as_now():
    history = Counted(ends_us=(AHEAD_US + 3600 * SECOND_US,))
    made = limiter(history, now_us=5 * SECOND_US, limit_per_minute=1)
    assert made.take(1, 1, 5 * SECOND_US) == Refused(60, 65 * SECOND_US, 1)


def test_an_end_folded_while_history_is_read_counts_once():
    made = limiter(limit_per_minute=9)
    for number in (1, 2, 3):
        made.take(number, 1, 0)
    made.reading(1)
    made.fold(end(1, seq=7), SECOND_US)
    made.fold(end(2, seq=8), SECOND_US)
    # The reading is as of 7, so it has the first of them and not the second; the third is folded after it.
    made.configure(account(1, limit_per_minute=3), Counted(ends_us=(AHEAD_US + SECOND_US,)), 7, AHEAD_US, SECOND_US)
    made.fold(end(3, seq=9), SECOND_US)
    assert made.take(4, 1, SECOND_US) == Refused(60, 61 * SECOND_US, 3)
    made.configure(account(1, limit_per_minute=4), Counted(ends_us=(AHEAD_US + SECOND_US,) * 3), 9, AHEAD_US, SECOND_US)
    assert made.take(4, 1, SECOND_US) is None


def test_an_end_that_history_has_is_not_counted_when_it_is_folded_later():
    made = limiter(Counted(ends_us=(AHEAD_US,)), as_of=7, limit_per_minute=2)
    made.fold(end(1, seq=7), 0)
    assert made.take(2, 1, 0) is None


def test_an_interrupted_attempt_counts_from_then():
    made = limiter(limit_per_minute=1)
    outcomes = (Outcome(0, "in_doubt"),)
    made.fold(Entry(1, AHEAD_US, 1, 1, AttemptInterrupted(attempt=1, outcomes=outcomes, next="due")), 5 * SECOND_US)
    assert made.take(2, 1, 5 * SECOND_US) == Refused(60, 65 * SECOND_US, 1)


# Any schedule: a relay that counts


class Attempt:
    """From `start_us` to `end_us`; the relay counts it at `counted_us`, we fold its end at `folded_us`."""

    def __init__(self, start_us: int, took_us: int, share: float, lag_us: int, delivered: bool) -> None:
        self.end_us = start_us + took_us
        self.counted_us = start_us + int(took_us * share)
        self.folded_us = self.end_us + lag_us
        self.statuses = ("delivered",) if delivered else ("deferred",)


def at_most(n: int, moments: Sequence[int], window_us: int) -> bool:
    """Whether no window of this length, half open, sees more than `n` of the moments."""
    ordered = sorted(moments)
    return all(later - first >= window_us for first, later in zip(ordered, ordered[n:], strict=False))


asks = st.tuples(
    st.integers(0, 20 * SECOND_US),
    st.integers(0, 90 * SECOND_US),
    st.floats(0, 1),
    st.integers(0, 3 * SECOND_US),
    st.booleans(),
)
"""Time until the next ask, how long the attempt takes, when within it the relay counts, lag, whether it delivers."""


class Service:
    """A limiter that is asked, with attempts under way; what the relay has counted is a list."""

    def __init__(self, **limits: int) -> None:
        self.limits = limits
        self.limiter = limiter(**limits)
        self.granted: list[Attempt] = []
        self.ends: list[int] = []
        self.open: dict[int, Attempt] = {}
        self.now_us = 0
        self.seq = 0

    def ask(self, wait_us: int, took_us: int, share: float, lag_us: int, delivered: bool) -> None:
        self.pass_time(wait_us)
        self.seq += 1
        if self.limiter.take(self.seq, 1, self.now_us) is None:
            attempt = self.open[self.seq] = Attempt(self.now_us, took_us, share, lag_us, delivered)
            self.granted.append(attempt)

    @property
    def counted(self) -> list[int]:
        return [each.counted_us for each in self.granted if each.statuses == ("delivered",)]

    def pass_time(self, wait_us: int) -> None:
        until_us = self.now_us + wait_us
        for number, attempt in sorted(self.open.items(), key=lambda each: each[1].folded_us):
            if attempt.folded_us <= until_us:
                del self.open[number]
                self.limiter.fold(end(number, number, *attempt.statuses), attempt.folded_us)
                if attempt.statuses == ("delivered",):
                    self.ends.append(attempt.end_us)
        self.now_us = until_us

    def restart(self, away_us: int, set_back_us: int) -> None:
        """Whatever is open ends in doubt, and the relay sees it end; the wall clock is set back meanwhile."""
        for attempt in self.open.values():
            attempt.counted_us = min(attempt.counted_us, self.now_us)
        self.now_us += away_us
        ends_us = [*self.ends, *([self.now_us] * len(self.open))]
        self.ends = ends_us
        self.open.clear()
        wall_us = AHEAD_US - set_back_us
        recent = tuple(AHEAD_US + each for each in ends_us if AHEAD_US + each > wall_us + self.now_us - MINUTE_US)
        seconds = tuple(((AHEAD_US + each) // SECOND_US, 1) for each in sorted(ends_us))
        self.limiter = RateLimiter()
        history = Counted(ends_us=recent, seconds=seconds)
        self.limiter.configure(account(1, **self.limits), history, self.seq, wall_us, self.now_us)


@given(st.integers(1, 5), st.lists(asks, max_size=60))
def test_no_minute_at_the_relay_sees_more_than_the_limit(limit, schedule):
    service = Service(limit_per_minute=limit)
    for ask in schedule:
        service.ask(*ask)
    assert at_most(limit, service.counted, MINUTE_US)


@given(st.integers(1, 5), st.lists(asks, max_size=40))
def test_no_hour_at_the_relay_sees_more_than_the_limit(limit, schedule):
    service = Service(limit_per_hour=limit)
    for wait_us, *rest in schedule:
        service.ask(wait_us * 20, *rest)
    assert at_most(limit, service.counted, 60 * MINUTE_US)


@given(
    st.integers(1, 5),
    st.lists(asks, max_size=30),
    st.integers(0, 100 * SECOND_US),
    st.just(0) | st.integers(0, 200 * SECOND_US),
    st.lists(asks, max_size=30),
)
def test_nor_across_a_restart_with_the_clock_set_back(limit, before, away_us, set_back_us, after):
    service = Service(limit_per_minute=limit)
    for ask in before:
        service.ask(*ask)
    service.restart(away_us, set_back_us)
    for ask in after:
        service.ask(*ask)
    assert at_most(limit, service.counted, MINUTE_US)


@given(st.integers(1, 5), st.integers(1, 200))
def test_a_limit_is_used_up(limit, asked):
    """Attempts without latency get every slot there is."""
    service = Service(limit_per_minute=limit)
    for _ in range(asked):
        service.ask(6 * SECOND_US, 0, 0.0, 0, True)
    minutes, rest = divmod(asked, 10)
    assert len(service.counted) == minutes * min(limit, 10) + min(rest, limit)
