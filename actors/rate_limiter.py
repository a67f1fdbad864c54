"""The rate limiter: whether an account may have another transaction now. How it works:

A limit of N in W seconds is what the relay counts, and the relay counts a transaction at some moment between our
start and our end. So a *slot* is taken with the grant and held until the attempt's end plus W: two transactions that
used the same slot are then at least W apart at the relay, wherever within its attempt each was counted, and of N
slots no window of W seconds ever sees more than N. (Counting from the start of an attempt let a slow relay see 39 in
60 s at a limit of 30.) An attempt that delivered to nobody gives its slot back at its end; one in doubt may have been
counted, so it counts.

The minute's window is exact to the microsecond; those of hour and day keep seconds, each held to its end. All of it
runs on the monotonic clock. After a restart the last minute is read from the log and the rest from the view `slots`;
an end that lies in the future, because the clock was set back, counts as now.

When the first message of an account is refused, the rest of that account's are refused with it, so nobody is
overtaken. Every refused number goes back to the scheduler, with the moment at which a slot will be free where that
is known: it is not while one of the account's slots is in flight. Only then is AccountThrottled recorded, so there is
at most one for each freed slot.
"""

from collections import deque

from msgspec import Struct

from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Entry
from store.dispatching import Counted
from store.views.accounts import AccountRow
from store.views.counts import counts_against_limits

SECOND_US = 1_000_000
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400


class Refused(Struct, frozen=True):
    """No slot is free in the window of `window_s`; `until_us` (monotonic) is when one will be, None if unknown."""

    window_s: int
    until_us: int | None


class _Window:
    """The ends of the last `window_s` seconds, oldest first, as (moment it counts until, how many)."""

    def __init__(self, window_s: int, limit: int, exact: bool) -> None:
        self.window_s = window_s
        self.limit = limit
        self._exact = exact
        self._held: deque[tuple[int, int]] = deque()
        self._count = 0

    def add(self, end_us: int, n: int = 1) -> None:
        """An end at this moment holds its slot for the window's length; an inexact one until its second is over."""
        moment_us = end_us if self._exact else (end_us // SECOND_US + 1) * SECOND_US
        until_us = moment_us + self.window_s * SECOND_US
        if self._held and self._held[-1][0] >= until_us:
            until_us, before = self._held.pop()
            n += before
            self._count -= before
        self._held.append((until_us, n))
        self._count += n

    def refusal(self, in_flight: int, now_us: int) -> Refused | None:
        held = self._held
        while held and held[0][0] <= now_us:
            self._count -= held.popleft()[1]
        if self._count + in_flight < self.limit:
            return None
        return Refused(self.window_s, held[0][0] if held and not in_flight else None)


class _Account:
    """One account's windows and the messages that hold a slot of it now."""

    def __init__(self, row: AccountRow, history: Counted, wall_ahead_us: int, now_us: int) -> None:
        self.limits = limits_of(row)
        self.windows = [_Window(seconds, limit, seconds == MINUTE_S) for seconds, limit in self.limits]
        for window in self.windows:
            if window.window_s == MINUTE_S:
                ends = [(end_us, 1) for end_us in history.ends_us]
            else:
                ends = [(second * SECOND_US, n) for second, n in history.seconds]
            for end_us, n in ends:
                window.add(min(end_us - wall_ahead_us, now_us), n)


def limits_of(row: AccountRow) -> tuple[tuple[int, int], ...]:
    """(seconds, limit) of each window that the account has; None or 0 is no limit."""
    windows = ((MINUTE_S, row.limit_per_minute), (HOUR_S, row.limit_per_hour), (DAY_S, row.limit_per_day))
    return tuple((seconds, limit) for seconds, limit in windows if limit)


class RateLimiter:
    """All accounts' slots. Moments are microseconds of the monotonic clock unless a name says otherwise."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        self._holding: dict[int, int] = {}
        self._in_flight: dict[int, int] = {}

    def configure(self, row: AccountRow, history: Counted, wall_ahead_us: int, now_us: int) -> None:
        """Take an account's limits, with what has counted so far. `wall_ahead_us` is wall clock minus monotonic."""
        self._accounts[row.number] = _Account(row, history, wall_ahead_us, now_us)

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
        if known:
            for window in known.windows:
                if refusal := window.refusal(in_flight, now_us):
                    return refusal
        self._holding[number] = account
        self._in_flight[account] = in_flight + 1
        return None

    def give_back(self, number: int) -> None:
        """The message's attempt has not begun: its slot is free again."""
        account = self._holding.pop(number, None)
        if account is not None:
            self._in_flight[account] -= 1

    def fold(self, entry: Entry, wall_ahead_us: int, now_us: int) -> None:
        """An attempt's end frees its slot, and if it counts, holds it in every window."""
        if not isinstance(entry.fact, AttemptEnded | AttemptInterrupted) or entry.message is None:
            return
        self.give_back(entry.message)
        known = self._accounts.get(entry.account or 0)
        if known and counts_against_limits(entry.fact):
            for window in known.windows:
                window.add(min(entry.at_us - wall_ahead_us, now_us))
