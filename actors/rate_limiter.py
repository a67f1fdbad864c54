"""The rate limiter: whether an account may have another transaction now. How it works:

A limit of N in W seconds is what the relay counts, and the relay counts a transaction at some moment between our
start and our end. So a *slot* is taken with the grant and held until the attempt's end plus W: two transactions that
used the same slot are then at least W apart at the relay, wherever within its attempt each was counted, and of N
slots no window of W seconds ever sees more than N. (Counting from the start of an attempt let a slow relay see 39 in
60 s at a limit of 30.) An attempt that delivered to nobody gives its slot back at its end; one in doubt may have been
counted, so it counts.

The minute's window is exact to the microsecond; that of an hour keeps seconds and that of a day minutes, each held to
its end. All of it
runs on the monotonic clock, and an end counts from the moment at which it is folded, which is never before it. After a
restart, and when limits change, the last minute is read from the log and the rest from the view `slots`; an end that
lies in the future, because the clock was set back, counts as now. Such a reading is as of some seq: ends up to it are
in it, and those beyond it that are folded while the reading is under way are kept until it is there.

When the first message of an account is refused, the rest of that account's are refused with it, so nobody is
overtaken. Every refused number goes back to the scheduler, with the moment at which a slot will be free in every
window, where that is known: it is not while one of the account's slots is in flight. Only where it is known is
AccountThrottled recorded, so there is at most one for each freed slot.
"""

import math
from collections import deque

from msgspec import Struct

from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Entry
from store.dispatching import Counted
from store.views.accounts import AccountRow
from store.views.counts import counts_against_limits

SECOND_US = 1_000_000
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400

GRAIN_US = {MINUTE_S: 0, HOUR_S: SECOND_US, DAY_S: 60 * SECOND_US}
"""How far apart the ends of a window are kept: each counts until its grain is over. So an account that uses up any
limit needs a few thousand of them, and not one for each of a day's messages; a day's slot is held 0.07 % longer."""


class Refused(Struct, frozen=True):
    """No slot of `limit` is free in the window of `window_s`; `until_us` (monotonic) is when one will be, None if
    unknown."""

    window_s: int
    until_us: int | None
    limit: int


class _Window:
    """The ends of the last `window_s` seconds, oldest first, as (moment it counts until, how many)."""

    def __init__(self, window_s: int, limit: int) -> None:
        self.window_s = window_s
        self.limit = limit
        self._grain_us = GRAIN_US[window_s]
        self._held: deque[tuple[int, int]] = deque()
        self._count = 0

    def add(self, end_us: int, n: int = 1) -> None:
        """An end at this moment holds its slot for the window's length from the end of its grain."""
        grain_us = self._grain_us
        moment_us = (end_us // grain_us + 1) * grain_us if grain_us else end_us
        until_us = moment_us + self.window_s * SECOND_US
        if self._held and self._held[-1][0] >= until_us:
            until_us, before = self._held.pop()
            n += before
            self._count -= before
        self._held.append((until_us, n))
        self._count += n

    def refusal(self, in_flight: int, now_us: int) -> Refused | None:
        """None where a slot is free; `limit` may have become less than what is held already."""
        held = self._held
        while held and held[0][0] <= now_us:
            self._count -= held.popleft()[1]
        over = self._count + in_flight - self.limit
        if over < 0:
            return None
        return Refused(self.window_s, None if in_flight else self._free_at(over + 1), self.limit)

    def _free_at(self, n: int) -> int | None:
        """When the n-th of what is held will be free."""
        for until_us, count in self._held:
            n -= count
            if n <= 0:
                return until_us
        return None


class _Account:
    """One account's windows; ends up to `as_of` are in them."""

    def __init__(self, row: AccountRow, history: Counted, as_of: int, wall_ahead_us: int, now_us: int) -> None:
        self.limits = limits_of(row)
        self.as_of = as_of
        self.windows = [_Window(seconds, limit) for seconds, limit in self.limits]
        for window in self.windows:
            if window.window_s == MINUTE_S:
                ends = [(end_us, 1) for end_us in history.ends_us]
            else:
                # Somewhere within its second, which need not be one of the monotonic clock's.
                ends = [((second + 1) * SECOND_US - 1, n) for second, n in history.seconds]
            for end_us, n in ends:
                window.add(min(end_us - wall_ahead_us, now_us), n)

    def add(self, end_us: int) -> None:
        for window in self.windows:
            window.add(end_us)

    def refusal(self, in_flight: int, now_us: int) -> Refused | None:
        """The refusal that lasts longest: a free slot in one window is none while another one refuses."""
        refusals = [each for window in self.windows if (each := window.refusal(in_flight, now_us))]
        return max(refusals, key=lambda each: each.until_us or math.inf, default=None)


def limits_of(row: AccountRow) -> tuple[tuple[int, int], ...]:
    """(seconds, limit) of each window that the account has; None or 0 is no limit."""
    windows = ((MINUTE_S, row.limit_per_minute), (HOUR_S, row.limit_per_hour), (DAY_S, row.limit_per_day))
    return tuple((seconds, limit) for seconds, limit in windows if limit)


class RateLimiter:
    """All accounts' slots. Moments are microseconds of the monotonic clock."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        self._holding: dict[int, int] = {}
        self._in_flight: dict[int, int] = {}
        self._kept: dict[int, list[tuple[int, int]]] = {}

    def reading(self, account: int) -> None:
        """What has counted is being read for this account: keep the ends that are folded meanwhile."""
        self._kept[account] = []

    def configure(self, row: AccountRow, history: Counted, as_of: int, wall_ahead_us: int, now_us: int) -> None:
        """Take an account's limits, with what has counted up to `as_of`. `wall_ahead_us` is wall clock minus monotonic,
        for history is of the wall clock."""
        known = self._accounts[row.number] = _Account(row, history, as_of, wall_ahead_us, now_us)
        for seq, end_us in self._kept.pop(row.number, ()):
            if seq > as_of:
                known.add(end_us)

    def differs(self, row: AccountRow) -> bool:
        """Whether `configure` must be called before this account is asked for."""
        known = self._accounts.get(row.number)
        return known is None or known.limits != limits_of(row)

    def in_flight(self, account: int) -> int:
        return self._in_flight.get(account, 0)

    def take(self, number: int, account: int, now_us: int) -> Refused | None:
        """Take a slot for a message, or say which window refuses."""
        known = self._accounts.get(account)
        in_flight = self._in_flight.get(account, 0)
        if known and (refusal := known.refusal(in_flight, now_us)):
            return refusal
        self._holding[number] = account
        self._in_flight[account] = in_flight + 1
        return None

    def give_back(self, number: int) -> None:
        """The message's attempt has not begun: its slot is free again."""
        account = self._holding.pop(number, None)
        if account is not None:
            self._in_flight[account] -= 1

    def fold(self, entry: Entry, now_us: int) -> None:
        """An attempt's end frees its slot, and if it counts, holds it in every window."""
        if not isinstance(entry.fact, AttemptEnded | AttemptInterrupted) or entry.message is None:
            return
        self.give_back(entry.message)
        if not counts_against_limits(entry.fact):
            return
        account = entry.account or 0
        if account in self._kept:
            self._kept[account].append((entry.seq, now_us))
        known = self._accounts.get(account)
        if known and entry.seq > known.as_of:
            known.add(now_us)
