"""The delivery unit under rules: what goes at which moment, in virtual time. The tests begin at 22:13:20 UTC."""

import datetime as dt
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import trio
import trio.testing

from actors.timetable import Timetable
from events.account import AccountPaused, AccountResumed
from events.fact import OWN
from events.schedule import DispatchActivated, DispatchSuspended, RuleRemoved, RuleSaved
from events.service import ClockStepped
from letterbook.capture import CaptureRelay

from .delivering import accept, done, note, of_kind, opened, retrying, running, save
from .opened import T0_US, facts

Clock = trio.testing.MockClock
MINUTE_US = 60_000_000
START = dt.datetime.fromtimestamp(T0_US / 1e6, dt.UTC)


def rule(start: int = 0, end: int = 24, interval: int = 15, number: int = OWN, **fields: Any) -> RuleSaved:
    given = {"name": "", "enabled": True, "priority": 0, "days": tuple(range(7)), "cross_midnight": False, **fields}
    return RuleSaved(**given, start_hour=start, end_hour=end, interval_minutes=interval, rule=number)


async def until(hour: int, minute: int, day: int = 14) -> None:
    """Sleep until the wall clock shows this, and for a second more."""
    moment = START.replace(day=day, hour=hour, minute=minute, second=1, microsecond=0)
    await trio.sleep_until((moment - START).total_seconds())
    await trio.testing.wait_all_tasks_blocked()


async def started(store: Any) -> dict[int, str]:
    """When the attempts of each message began, the last one of each."""
    return {
        entry.message or 0: f"{dt.datetime.fromtimestamp(entry.at_us / 1e6, dt.UTC):%H:%M:%S}"
        for entry in await of_kind(store, "AttemptStarted")
    }


@asynccontextmanager
async def ruled(folder: Path, *rules: RuleSaved, **policy: Any):
    """A unit with one account under these rules: (store, unit, account)."""
    async with opened(folder) as store:
        for each in rules:
            await note(store, each)
        account = await save(store, "a")
        async with running(store, {"a": CaptureRelay()}, **policy) as (unit, _):
            yield store, unit, account


async def test_a_tick_lets_go_what_is_due_and_the_rest_waits_for_the_next(folder: Path, autojump_clock: Clock) -> None:
    async with ruled(folder, rule(interval=15)) as (store, unit, account):
        await until(22, 14)
        (first,) = await accept(store, account)
        (deferred,) = await accept(store, account, due_us=store.clock.now_us() + 10 * MINUTE_US)
        await until(22, 16)
        (second,) = await accept(store, account)
        await until(22, 29)
        assert await started(store) == {first: "22:15:00"}
        await done(store, 3)
        assert await started(store) == {first: "22:15:00", second: "22:30:00", deferred: "22:30:00"}
        plans = unit.plans
        await until(22, 44)
        assert unit.plans - plans <= 6, "nothing is looked at between two ticks"


async def test_immediate_mail_goes_at_once(folder: Path, autojump_clock: Clock) -> None:
    async with ruled(folder, rule(8, 18)) as (store, _, account):
        await until(22, 20)
        (urgent,) = await accept(store, account, priority=0)
        await accept(store, account, priority=1)
        await until(23, 0)
        assert list(await started(store)) == [urgent]


async def test_outside_the_window_nothing_goes_until_it_opens(folder: Path, autojump_clock: Clock) -> None:
    async with ruled(folder, rule(8, 18, 60)) as (store, _, account):
        await accept(store, account)
        await done(store, 1)
        (entry,) = await of_kind(store, "AttemptStarted")
        assert dt.datetime.fromtimestamp(entry.at_us / 1e6, dt.UTC) == START.replace(day=15, hour=8, minute=0, second=0)


async def test_what_a_tick_let_go_goes_on_until_the_window_closes(folder: Path, autojump_clock: Clock) -> None:
    """A limit of two a minute, twenty messages, five minutes left: the rest waits for the next day."""
    async with opened(folder) as store:
        await note(store, rule(22, 23, 55))
        account = await save(store, "a", limit_per_minute=2)
        await accept(store, account, 20)
        async with running(store, {"a": CaptureRelay()}):
            await until(23, 0)
            sent = len(await of_kind(store, "AttemptStarted"))
            assert sent == 10
            await accept(store, account)
            await until(23, 30)
            assert len(await of_kind(store, "AttemptStarted")) == sent
            await until(22, 0, day=15)
            assert len(await of_kind(store, "AttemptStarted")) == 12


async def test_run_now_passes_over_the_rules_for_what_is_due_at_that_moment(
    folder: Path, autojump_clock: Clock
) -> None:
    async with ruled(folder, rule(8, 18)) as (store, unit, account):
        (due,) = await accept(store, account)
        (later,) = await accept(store, account, due_us=store.clock.now_us() + 5 * MINUTE_US)
        await until(22, 14)
        unit.run_now()
        await until(22, 15)
        (after,) = await accept(store, account)
        await until(23, 0)
        assert list(await started(store)) == [due], (later, after)


async def test_a_retry_waits_for_the_next_tick(folder: Path, autojump_clock: Clock) -> None:
    async with ruled(folder, rule(interval=15), retry=retrying(60.0)) as (store, _, account):
        await accept(store, account, to=("451@example.org",))
        await until(22, 44)
        attempts = [entry.at_us for entry in await of_kind(store, "AttemptStarted")]
        moments = [f"{dt.datetime.fromtimestamp(at_us / 1e6, dt.UTC):%H:%M:%S}" for at_us in attempts]
        assert moments == ["22:15:00", "22:30:00"]


async def test_a_rule_that_changes_acts_at_once(folder: Path, autojump_clock: Clock) -> None:
    async with ruled(folder, rule(8, 18)) as (store, _, account):
        number = (await facts(store))[0].seq
        await accept(store, account)
        await until(22, 20)
        assert await started(store) == {}
        await note(store, rule(8, 23, 5, number=number))
        await done(store, 1)
        (second,) = await accept(store, account)
        await note(store, rule(8, 18, number=number))
        await until(22, 40)
        assert second not in await started(store)
        await note(store, RuleRemoved(rule=number))
        await trio.testing.wait_all_tasks_blocked()
        assert (await started(store))[second] == "22:40:01"


async def test_suspension_and_pauses_are_over_all_rules(folder: Path, autojump_clock: Clock) -> None:
    async with ruled(folder, rule(interval=15)) as (store, unit, account):
        await note(store, DispatchSuspended())
        await accept(store, account, 2)
        await until(22, 16)
        unit.run_now()
        await note(store, AccountPaused(), account=account)
        await note(store, DispatchActivated())
        await until(22, 17)
        assert await started(store) == {}
        # The tick has let them go; what kept them is over.
        await note(store, AccountResumed(), account=account)
        await done(store, 2)
        assert set((await started(store)).values()) == {"22:17:01"}


async def test_a_unit_that_was_down_for_the_tick_goes_on_with_what_it_let_go(
    folder: Path, autojump_clock: Clock
) -> None:
    async with ruled(folder, rule(interval=15)) as (store, _, account):
        (number,) = await accept(store, account, to=("ann@example.org",), due_us=T0_US)
    await until(22, 16)
    async with opened(folder) as store, running(store, {"a": CaptureRelay()}):
        await done(store, 1)
        assert await started(store) == {number: "22:16:01"}


async def test_a_clock_that_steps_brings_other_ticks(folder: Path, autojump_clock: Clock) -> None:
    async with ruled(folder, rule(interval=60)) as (store, _, account):
        await accept(store, account)
        await until(22, 20)
        await note(store, ClockStepped(by_us=30 * MINUTE_US, to_us=store.clock.now_us() + 30 * MINUTE_US))
        await until(22, 31)
        assert len(await of_kind(store, "AttemptStarted")) == 1


async def test_hours_are_those_of_the_time_zone(folder: Path, autojump_clock: Clock) -> None:
    """22:13 UTC is 3:58 in Kathmandu; the quarter past three is behind, four o'clock is 22:15 UTC."""
    async with opened(folder) as store:
        await note(store, rule(4, 5, 60))
        account = await save(store, "a")
        timetable = Timetable(ZoneInfo("Asia/Kathmandu"), store.clock)
        async with running(store, {"a": CaptureRelay()}, timetable=timetable):
            (number,) = await accept(store, account)
            await done(store, 1)
            assert await started(store) == {number: "22:15:00"}
