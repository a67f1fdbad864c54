"""Supervision: a crash is started again, a crash loop stops the service, an end is an end."""

import logging

import pytest
import trio

from actors.supervision import Budget, GivenUp, keep

pytestmark = pytest.mark.filterwarnings("error")


class Bug(Exception):
    pass


def crashing(starts: list[float], every_s: float = 0.0, times: int = 10**6):
    """A task that crashes so often, each time after `every_s`, and then returns."""

    async def start() -> None:
        starts.append(trio.current_time())
        await trio.sleep(every_s)
        if len(starts) <= times:
            raise Bug("a bug")

    return start


async def test_what_returns_is_not_started_again(autojump_clock):
    starts = []
    await keep("it", crashing(starts, times=0))
    assert len(starts) == 1


async def test_what_crashes_is_started_again_with_a_line(autojump_clock, caplog):
    starts = []
    with caplog.at_level(logging.ERROR):
        await keep("the actor", crashing(starts, times=3))
    assert len(starts) == 4
    assert [record.getMessage().split(" (")[1] for record in caplog.records] == ["1 of 5)", "2 of 5)", "3 of 5)"]
    assert all("the actor" in record.getMessage() and record.exc_info for record in caplog.records)


async def test_a_crash_loop_is_given_up_with_a_line_and_its_cause(autojump_clock):
    starts = []
    with pytest.raises(GivenUp, match="the actor crashed more than 2 times within 60 s") as caught:
        await keep("the actor", crashing(starts), Budget(crashes=2))
    assert len(starts) == 3 and isinstance(caught.value.__cause__, Bug)


async def test_a_crash_now_and_then_is_borne_for_ever(autojump_clock):
    starts = []
    await keep("the actor", crashing(starts, every_s=31, times=50), Budget(crashes=2))
    assert len(starts) == 51


async def test_cancellation_is_no_crash(autojump_clock):
    starts = []
    with trio.move_on_after(5) as scope:
        await keep("the actor", crashing(starts, every_s=100))
    assert scope.cancelled_caught and len(starts) == 1


async def test_a_crash_within_a_nursery_counts_as_one(autojump_clock):
    starts = []

    async def start() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(crashing(starts, times=2))
            if len(starts) >= 2:
                await trio.sleep(1)
                nursery.cancel_scope.cancel()

    await keep("the unit", start)
    assert len(starts) == 3
