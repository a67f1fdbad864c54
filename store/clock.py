"""The time, passed in: a wall clock anchored once and carried on by the monotonic one.

`now_us` decides what is due, expired or within a rule; it only jumps when `step` finds that the wall clock has
moved against the monotonic one by more than STEP_US, and then that is a fact (ClockStepped). `monotonic_us` rules
windows and waits, and never jumps. `ahead_us` is how far the first is ahead of the second, so it changes by `step`
alone.

What a large step means for the mail that waits stands in `views/clock.py`. In short: retries, quotas and queues wait
as long as they would have; what somebody asked for at a moment goes by the clock, but for an hour not before the clock
from before the step says so too; and nothing expires in that hour. `actors/retention.py` compares, and the start does
(`recovery.py`) with what the mark file says of the clock.

A machine that was suspended, or a virtual one that was paused, wakes with a monotonic clock that did not go on
(CLOCK_MONOTONIC of Linux): that is a step forwards like any other. A time daemon that slews, or steps by less than
STEP_US, is not noticed, and what it corrects is followed with the next larger step.
"""

import time
from collections.abc import Callable
from typing import Protocol

import trio

STEP_US = 2_000_000
"""A smaller difference is drift, which a time daemon slews away."""

COMPARE_EVERY_S = 10.0


class Clock(Protocol):
    def now_us(self) -> int:
        """The wall clock, microseconds since 1970 (UTC)."""

    def monotonic_us(self) -> int:
        """A clock that never jumps, microseconds since some moment."""

    def ahead_us(self) -> int:
        """`now_us` less `monotonic_us`."""

    def step(self) -> int:
        """Compare with the wall clock and follow it: by how much it moved, or 0 for no more than drift."""


class SystemClock:
    """The machine's clocks. `wall` and `monotonic` give nanoseconds, and are arguments so that tests can move them."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._ahead_us = (wall() - monotonic()) // 1000

    def now_us(self) -> int:
        return self._ahead_us + self._monotonic() // 1000

    def monotonic_us(self) -> int:
        return self._monotonic() // 1000

    def ahead_us(self) -> int:
        return self._ahead_us

    def step(self) -> int:
        moved_us = (self._wall() - self._monotonic()) // 1000 - self._ahead_us
        if abs(moved_us) <= STEP_US:
            return 0
        self._ahead_us += moved_us
        return moved_us


class TrioClock(SystemClock):
    """Trio's own clock as both: under a MockClock, virtual time rules everything that asks for the time."""

    def __init__(self, start_us: int) -> None:
        self._began = trio.current_time()
        self._wall_us = start_us
        super().__init__(self._virtual_wall, _trio_ns)

    def _virtual_wall(self) -> int:
        return self._wall_us * 1000 + int((trio.current_time() - self._began) * 1_000_000_000)

    def jump(self, by_us: int) -> None:
        """Move the wall clock, as an operator or a bad time server would: `step` will find it."""
        self._wall_us += by_us


def _trio_ns() -> int:
    return int(trio.current_time() * 1_000_000_000)
