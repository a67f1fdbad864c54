"""Clocks: one anchored wall clock that jumps only when it is compared, and Trio's for virtual time."""

import trio

from store.clock import STEP_US, SystemClock, TrioClock

S = 1_000_000


class Machine:
    """A machine's two clocks, in nanoseconds."""

    def __init__(self) -> None:
        self.wall_ns = 1_700_000_000 * 10**9
        self.monotonic_ns = 5 * 10**9

    def clock(self) -> SystemClock:
        return SystemClock(lambda: self.wall_ns, lambda: self.monotonic_ns)

    def later(self, us: int) -> None:
        self.wall_ns += us * 1_000
        self.monotonic_ns += us * 1_000


def test_time_goes_on_with_the_monotonic_clock():
    machine = Machine()
    clock = machine.clock()
    assert clock.now_us() == 1_700_000_000 * S and clock.monotonic_us() == 5 * S
    machine.later(3 * S)
    assert clock.now_us() == 1_700_000_003 * S and clock.monotonic_us() == 8 * S
    assert clock.step() == 0


def test_a_step_of_the_wall_clock_counts_once_it_is_compared():
    for moved in (3600 * S, -3600 * S, STEP_US + 1, -STEP_US - 1):
        machine = Machine()
        clock = machine.clock()
        machine.wall_ns += moved * 1_000
        assert clock.now_us() == 1_700_000_000 * S
        assert clock.step() == moved
        assert clock.now_us() == 1_700_000_000 * S + moved and clock.monotonic_us() == 5 * S
        assert clock.step() == 0


def test_drift_is_left_to_the_time_daemon():
    machine = Machine()
    clock = machine.clock()
    for moved in (STEP_US, -STEP_US):
        machine.wall_ns += moved * 1_000
        assert clock.step() == 0 and clock.now_us() == 1_700_000_000 * S
        machine.wall_ns -= moved * 1_000


async def test_trios_clock_rules_under_virtual_time(autojump_clock):
    clock = TrioClock(1_700_000_000 * S)
    began_us = clock.monotonic_us()
    await trio.sleep(60)
    assert clock.now_us() == 1_700_000_060 * S and clock.monotonic_us() == began_us + 60 * S
    clock.jump(-30 * S)
    assert clock.now_us() == 1_700_000_060 * S and clock.step() == -30 * S
    assert clock.now_us() == 1_700_000_030 * S and clock.monotonic_us() == began_us + 60 * S
    assert clock.ahead_us() == clock.now_us() - clock.monotonic_us()
