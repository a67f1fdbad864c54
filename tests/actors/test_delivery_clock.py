"""The delivery unit while the wall clock steps: retries and queues wait as long as they would have, what was asked for
goes by the clock that is believed, and the relay's limits hold. Virtual time is the true one."""

from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock as Clock

from actors.retention import Retention
from events.account import RelayUnreachable
from letterbook.capture import CaptureRelay
from store.clock import TrioClock
from store.dispatching import NEVER_US
from store.opening import Store, open_store

from .delivering import accept, done, note, retrying, running, save, within_a_minute
from .opened import T0_US
from .world import Relay

S = 1_000_000
HOUR, DAY = 3600 * S, 86_400 * S
YEAR = 365 * DAY
GREYLISTED = ("451-then-250@example.org",)
STEPS = [HOUR, -HOUR, 5 * DAY, -5 * DAY, YEAR, -YEAR]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@asynccontextmanager
async def stepping(folder: Path, ahead_us: int = 0):
    """A store whose clock is compared every ten seconds and is so much ahead of the true time."""
    clock = TrioClock(T0_US + ahead_us + int(trio.current_time() * S))
    async with (
        open_store(folder / "log.db", folder / "log.key", clock=clock, threaded=False) as store,
        trio.open_nursery() as nursery,
    ):
        retention = Retention(store, 100)
        nursery.start_soon(retention.run)
        yield store, retention
        nursery.cancel_scope.cancel()


async def arrived_at(relay: CaptureRelay, count: int) -> float:
    await relay.until_received(count)
    return trio.current_time()


@pytest.mark.parametrize("by_us", STEPS)
async def test_a_retry_waits_as_long_as_it_would_have(folder: Path, autojump_clock: Clock, by_us: int) -> None:
    relay = CaptureRelay()
    relays: dict[str, Relay] = {"a": relay}
    policy = retrying(300.0)
    async with stepping(folder) as (store, _), running(store, relays, retry=policy):
        began = trio.current_time()
        await accept(store, await save(store, "a"), 1, to=GREYLISTED, expires_us=NEVER_US)
        await trio.sleep(20)
        store.clock.jump(by_us)  # type: ignore[attr-defined]
        waited = await arrived_at(relay, 1) - began
        assert 290 <= waited <= 400


@pytest.mark.parametrize("by_us", [5 * DAY, YEAR, -HOUR, -YEAR])
async def test_a_retry_waits_as_long_across_a_restart(folder: Path, autojump_clock: Clock, by_us: int) -> None:
    relay = CaptureRelay()
    relays: dict[str, Relay] = {"a": relay}
    policy = retrying(300.0)
    began = trio.current_time()
    async with stepping(folder) as (store, _), running(store, relays, retry=policy):
        await accept(store, await save(store, "a"), 1, to=GREYLISTED, expires_us=NEVER_US)
        await trio.sleep(20)
    async with stepping(folder, by_us) as (store, _), running(store, relays, retry=policy):
        waited = await arrived_at(relay, 1) - began
        assert 280 <= waited <= 400


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_was_asked_for_in_three_months_does_not_go_by_a_clock_a_year_ahead(
    folder: Path, autojump_clock: Clock, restarted: bool
) -> None:
    relay = CaptureRelay()
    relays: dict[str, Relay] = {"a": relay}
    asked_us = T0_US + 90 * DAY
    async with stepping(folder) as (store, _), running(store, relays):
        account = await save(store, "a")
        await accept(store, account, 1, due_us=asked_us, asked_us=asked_us, expires_us=NEVER_US)
        if not restarted:
            store.clock.jump(YEAR)  # type: ignore[attr-defined]
            await _goes_only_after_the_hour(store, relay, account)
    if restarted:
        async with stepping(folder, YEAR) as (store, _), running(store, relays):
            await _goes_only_after_the_hour(store, relay, account)


async def _goes_only_after_the_hour(store: Store, relay: CaptureRelay, account: int) -> None:
    await trio.sleep(60)
    await accept(store, account, 1, expires_us=NEVER_US)
    await trio.sleep(60)
    assert relay.received == 1, "what nobody asked to be late goes as ever"
    await trio.sleep(3400)
    assert relay.received == 1
    await trio.sleep(100)
    assert relay.received == 2


async def test_a_step_that_is_taken_back_leaves_every_moment_as_it_was(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    relays: dict[str, Relay] = {"a": relay}
    began = trio.current_time()
    async with stepping(folder) as (store, retention), running(store, relays):
        asked_us = store.clock.now_us() + 600 * S
        await accept(store, await save(store, "a"), 1, due_us=asked_us, asked_us=asked_us, expires_us=NEVER_US)
        for by_us in (YEAR, -YEAR, -YEAR, YEAR):
            store.clock.jump(by_us)  # type: ignore[attr-defined]
            await trio.sleep(30)
        assert not retention.doubted and relay.received == 0
        assert 599 <= await arrived_at(relay, 1) - began <= 601


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("by_us", [5 * DAY, -5 * DAY, YEAR, -YEAR])
async def test_a_limit_holds_over_a_step(folder: Path, autojump_clock: Clock, by_us: int, restarted: bool) -> None:
    relay = CaptureRelay()
    relays: dict[str, Relay] = {"a": relay}
    async with stepping(folder) as (store, _), running(store, relays):
        account = await save(store, "a", limit_per_minute=5)
        await accept(store, account, 12, expires_us=NEVER_US)
        await trio.sleep(8)
        assert relay.received == 5
        if not restarted:
            store.clock.jump(by_us)  # type: ignore[attr-defined]
            await trio.sleep(10)
            # What has counted is read anew.
            await save(store, "a", account=account, limit_per_minute=4)
            await done(store, 12)
    if restarted:
        async with stepping(folder, by_us) as (store, _), running(store, relays):
            await done(store, 12)
    assert within_a_minute(relay.messages) == 5
    assert trio.current_time() <= 400


@pytest.mark.parametrize("by_us", [-HOUR, -5 * DAY, -YEAR])
async def test_a_relay_that_nobody_wanted_while_the_clock_stepped_is_probed_once_somebody_does(
    folder: Path, autojump_clock: Clock, by_us: int
) -> None:
    relay = CaptureRelay()
    async with stepping(folder) as (store, _):
        account = await save(store, "a")
        until_us = store.clock.now_us() + 200 * S
        down = RelayUnreachable(host="a", port=25, credentials="c" * 16, reason="dns", until_us=until_us, failures=9)
        await note(store, down, account=account)
        async with running(store, {"a": relay}):
            store.clock.jump(by_us)  # type: ignore[attr-defined]
            await trio.sleep(20)
            began = trio.current_time()
            await accept(store, account, expires_us=NEVER_US)
            with trio.move_on_after(2 * DAY / S):
                await relay.until_received(1)
            assert relay.received == 1
            assert trio.current_time() - began < 300
