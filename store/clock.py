"""The time, passed in: a wall clock anchored once and carried on by the monotonic one.

`now_us` decides what is due, expired or within a rule; it only jumps when `step` finds that the wall clock has
moved against the monotonic one by more than STEP_US, and then that is a fact (ClockStepped). `monotonic_us` rules
windows and waits, and never jumps.
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

    def step(self) -> int:
        """Compare with the wall clock and follow it: by how much it moved, or 0 for no more than drift."""


class SystemClock:
    """The machine's clocks. `wall` and `monotonic` give nanoseconds, and are arguments so that tests can move them."""

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset_us = (wall() - monotonic()) // 1000

    def now_us(self) -> int:
        return self._offset_us + self._monotonic() // 1000

    def monotonic_us(self) -> int:
        return self._monotonic() // 1000

    def step(self) -> int:
        moved_us = (self._wall() - self._monotonic()) // 1000 - self._offset_us
        if abs(moved_us) <= STEP_US:
            return 0
        self._offset_us += moved_us
        return moved_us


class TrioClock:
    """Trio's own clock as both: under a MockClock, virtual time rules everything that asks for the time."""

    def __init__(self, start_us: int) -> None:
        self._offset_us = start_us - int(trio.current_time() * 1_000_000)

    def now_us(self) -> int:
        return self._offset_us + self.monotonic_us()

    def monotonic_us(self) -> int:
        return int(trio.current_time() * 1_000_000)

    def step(self) -> int:
        return 0

    def jump(self, by_us: int) -> None:
        """Move the wall clock, as an operator or a bad time server would."""
        self._offset_us += by_us
