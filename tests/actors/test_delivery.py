"""The delivery unit whole: what a person who runs it would see, in the log and at the relays."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from actors.delivery import Delivery
from actors.pool_plan import FIRST_MAX, HANGS_US
from events.account import AccountPaused, AccountRemoved, AccountResumed, AccountThrottled, RelayUnreachable
from events.attempt import AttemptStarted
from events.fact import Draft, Entry, Fact
from events.message import MessageFailed, MessageRevised, MessageWithdrawn
from events.schedule import DispatchActivated, DispatchSuspended
from events.values import MICROSECONDS
from letterbook.capture import Captured, CaptureRelay
from store.opening import Store
from store.recorder import NotRecorded

from .delivering import (
    Meddling,
    accept,
    delivering,
    done,
    note,
    of_kind,
    opened,
    retrying,
    running,
    save,
    save_many,
    starts_after,
    until,
    within_a_minute,
)
from .opened import T0_US, facts, kinds, start, states
from .world import Relay, takes_at_most

Clock = trio.testing.MockClock
RATE = 30


def slow(chance: random.Random, seconds: float) -> Any:
    """A relay that has counted a message at some moment, and answers at another."""

    async def count(message: Captured) -> None:
        await trio.sleep(chance.uniform(0, seconds))

    return count


def takes(seconds: float) -> CaptureRelay:
    """A relay that answers after so long."""

    async def wait(message: Captured) -> None:
        await trio.sleep(seconds)

    return CaptureRelay(on_message=wait)


async def test_a_message_that_goes_well_is_three_facts(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a"))
        await done(store, 1)
        assert await kinds(store) == ["AccountSaved", "MessageAccepted", "AttemptStarted", "AttemptEnded"]
    assert len(relay.messages) == 1


async def test_all_of_a_queue_arrives_once_each_in_its_order(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with opened(folder) as store:
        account = await save(store, "a", max_connections=1)
        numbers = [
            number for priority in (3, 2, 1, 0) for number in await accept(store, account, 120, priority=priority)
        ]
        async with running(store, {"a": relay}):
            await done(store, 480)
        started = [entry.message for entry in await of_kind(store, "AttemptStarted")]
    assert started == [*numbers[360:], *numbers[240:360], *numbers[120:240], *numbers[:120]]
    assert len(relay.messages) == 480


# Limits


async def test_twenty_slow_connections_keep_a_limit_across_restarts(folder: Path, autojump_clock: Clock) -> None:
    """The relay counts at some moment of an attempt; the unit and then the store are started anew within a minute."""
    chance = random.Random(3)
    relay = CaptureRelay(on_message=slow(chance, 30))
    relays: dict[str, Relay] = {"a": relay}
    async with opened(folder) as store:
        account = await save(store, "a", limit_per_minute=RATE)
        for seconds in (0, 11, 23):
            await accept(store, account, 70, to=(f"slow-{seconds}@example.org",))
        async with running(store, relays, drain_s=3):
            await trio.sleep(100)
            assert relay.connections_max == 20
        async with running(store, relays, drain_s=3):
            await trio.sleep(70)
    async with opened(folder) as store, running(store, relays):
        await done(store, 210)
    assert relay.received >= 210
    assert within_a_minute(relay.messages) == RATE


async def test_a_limit_is_used_up_and_costs_few_facts_and_few_plans(folder: Path, autojump_clock: Clock) -> None:
    """A backlog of 100,000 behind 30 a minute: in ten minutes 330 go, in their order, and nothing else happens."""
    relay = CaptureRelay()
    async with opened(folder) as store:
        account = await save(store, "a", limit_per_minute=RATE)
        # Only what will be sent needs a letter.
        numbers = [number for turn in range(50) for number in await accept(store, account, 2_000, erased=turn > 0)]
        waiting = store.last_seq
        async with running(store, {"a": relay}) as (unit, _):
            await trio.sleep(30)
            plans, sent = unit.plans, relay.received
            await trio.sleep(600)
            plans, sent = unit.plans - plans, relay.received - sent
        started = await starts_after(store, waiting)
        facts = store.last_seq - waiting
    assert sent == 10 * RATE
    # Twenty connections start what they were given in one commit, in any order.
    assert all(abs(number - numbers[place]) < 20 for place, number in enumerate(started))
    assert sorted(started) == numbers[: len(started)]
    assert facts <= 3 * len(started)
    assert plans <= 2 * sent
    assert within_a_minute(relay.messages) == RATE


async def test_new_limits_count_what_was_sent_before_them(folder: Path, autojump_clock: Clock) -> None:
    relay = takes(1)
    async with delivering(folder, {"a": relay}) as (store, _, _):
        account = await save(store, "a", max_connections=5)
        await accept(store, account, 40)
        await trio.sleep(3.5)
        await save(store, "a", account=account, max_connections=5, limit_per_minute=20, limit_per_hour=25)
        await trio.sleep(50)
        assert relay.received == 20
        await trio.sleep(60)
        assert relay.received == 25


async def test_an_account_that_rejects_fails_what_is_over_its_limit(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a", limit_per_minute=5, limit_behavior="reject"), 30)
        await done(store, 30)
        failed = await of_kind(store, "MessageFailed")
        assert {(entry.fact.cause, entry.fact.by) for entry in failed} == {("quota", "rate limiter")}
        assert not await of_kind(store, "AccountThrottled")
    assert (len(failed), relay.received) == (25, 5)
    assert trio.current_time() < 1


async def test_a_start_that_is_refused_gives_its_slot_to_the_next(folder: Path, autojump_clock: Clock) -> None:
    """The only slot is granted and the start refused: nothing but the slot's return says that it is free."""
    relay = CaptureRelay()
    async with opened(folder) as store:
        account = await save(store, "a", limit_per_minute=1, max_connections=2)

        async def revise(draft: Draft) -> None:
            if draft.message == draft.fact.revision and trio.current_time() >= 60:
                await store.record([Draft(revised(store), message=draft.message, account=account)])

        async with running(Meddling(store, revise), {"a": relay}):
            await accept(store, account, 3)
            await done(store, 3)
            assert len(await starts_after(store, 0)) == 3
    assert trio.current_time() < 121


def revised(store: Store) -> MessageRevised:
    now_us = store.clock.now_us()
    return MessageRevised(
        id="m", priority=2, due_us=now_us, expires_us=now_us * 2, size=1, recipients=("d",), reach=(0,), letter=""
    )


async def test_a_limit_that_is_lifted_while_its_refusal_is_recorded_closes_nothing(
    folder: Path, autojump_clock: Clock
) -> None:
    async with opened(folder) as store:
        account = await save(store, "a", limit_per_minute=1)

        async def lift(draft: Draft) -> None:
            assert isinstance(draft.fact, AccountThrottled) and draft.fact.limit == 1
            await save(store, "a", account=account)

        async with running(Meddling(store, lift, AccountThrottled), {"a": CaptureRelay()}):
            await accept(store, account, 3)
            await done(store, 3)
        assert not await of_kind(store, "AccountThrottled")
    assert trio.current_time() < 5


async def test_content_that_came_while_the_old_was_refused_is_judged_anew(folder: Path, autojump_clock: Clock) -> None:
    async with opened(folder) as store:
        account = await save(store, "a", limit_per_minute=1, limit_behavior="reject")

        async def revise(draft: Draft) -> None:
            if draft.fact.revision == draft.message:  # type: ignore[attr-defined]  # it is a MessageFailed
                await store.record([Draft(revised(store), message=draft.message, account=account)])

        async with running(Meddling(store, revise, MessageFailed), {"a": CaptureRelay()}):
            await accept(store, account, 2)
            await done(store, 2)
        [failed], [newer] = await of_kind(store, "MessageFailed"), await of_kind(store, "MessageRevised")
        assert failed.fact.revision == newer.seq


async def test_while_the_log_takes_no_starts_nothing_is_lost_and_little_is_asked(
    folder: Path, autojump_clock: Clock
) -> None:
    asked = 0
    async with opened(folder) as store:

        async def full(_: Draft) -> None:
            nonlocal asked
            asked += 1
            if trio.current_time() < 60:
                raise NotRecorded("the disk is full")

        async with running(Meddling(store, full), {"a": CaptureRelay()}) as (unit, _):
            await accept(store, await save(store, "a", limit_per_minute=5, max_connections=2), 5)
            await done(store, 5)
            assert 60 <= trio.current_time() < 62
            assert asked < 2 * 60 + 10
            await quiet(unit)


# Relays in trouble


async def delivered(inside: Path, trouble: dict[str, Relay], seconds: float) -> int:
    """How many messages two healthy accounts deliver in this time, with these relays beside them."""
    healthy = {host: takes(1) for host in ("a", "b")}
    inside.mkdir()
    async with opened(inside) as store:
        for host in (*trouble, *healthy):
            await accept(store, await save(store, host), 200 if host in healthy else 5)
        async with running(store, {**healthy, **trouble}, connections_max=8, drain_s=0):
            await trio.sleep(seconds)
            return sum(relay.received for relay in healthy.values())


async def test_dead_relays_cost_the_others_nothing(folder: Path, autojump_clock: Clock) -> None:
    alone = await delivered(folder / "alone", {}, 20)
    hangs = CaptureRelay(hang=True)
    fifty: dict[str, Relay] = {f"dead{n}": hangs if n % 2 else ConnectionRefusedError for n in range(50)}
    for name, trouble in {
        "hangs": {"dead": hangs},
        "refuses": {"dead": ConnectionRefusedError},
        "fifty": fifty,
    }.items():
        assert await delivered(folder / name, trouble, 20) >= 0.9 * alone
    assert alone >= 8 * 15


async def test_a_new_relay_waits_half_a_minute_for_eighty_that_never_greet(folder: Path, autojump_clock: Clock) -> None:
    good, hangs = CaptureRelay(), CaptureRelay(hang=True)
    relays: dict[str, Relay] = {**{f"dead{n}": hangs for n in range(80)}, "good": good}
    async with delivering(folder, relays, drain_s=0) as (store, _, _):
        await accept(store, [await save(store, host) for host in relays])
        with trio.fail_after(HANGS_US / MICROSECONDS + 1):
            await good.until_received(1)
        unreachable = [entry.fact for entry in await of_kind(store, "RelayUnreachable")]
        assert {(fact.reason, fact.code) for fact in unreachable} == {("connect_timeout", None)}
        assert len(unreachable) == 81 - FIRST_MAX
        assert not await of_kind(store, "AttemptInterrupted")


async def test_a_relay_that_is_back_is_probed_although_a_hundred_hang(folder: Path, autojump_clock: Clock) -> None:
    """A hundred silent relays and eight places: each has its turn within thirteen rounds, the last in the book too."""
    good, hangs = CaptureRelay(), CaptureRelay(hang=True)
    relays: dict[str, Relay] = {**{f"dead{n}": hangs for n in range(100)}, "good": good}
    async with opened(folder) as store:
        accounts = [await save(store, host) for host in relays]
        await accept(store, accounts)
        down = {"port": 25, "credentials": "c" * 16, "reason": "greeting", "until_us": T0_US, "failures": 1}
        for host, account in zip(relays, accounts, strict=True):
            await note(store, RelayUnreachable(host=host, **down), account=account)
        async with running(store, relays, drain_s=0):
            with trio.fail_after(13 * HANGS_US / MICROSECONDS + 1):
                await good.until_received(1)


async def test_an_account_new_to_a_full_pool_has_its_turn(folder: Path, autojump_clock: Clock) -> None:
    big, small = takes(5), CaptureRelay()
    async with delivering(folder, {"big": big, "small": small}, connections_max=4) as (store, unit, _):
        await accept(store, await save(store, "big"), 100)
        await trio.sleep(20)
        assert unit.pool.connections()["busy"] == 4
        await accept(store, await save(store, "small"), 3)
        await trio.sleep(10)
        assert len(small.messages) == 3
        assert big.connections_max == 4
        await trio.sleep(30)
        assert unit.pool.connections()["busy"] == 4


async def test_a_connection_that_is_done_makes_way_at_once(folder: Path, autojump_clock: Clock) -> None:
    one, other = takes(1), CaptureRelay()
    async with delivering(folder, {"one": one, "other": other}, connections_max=1) as (store, _, _):
        await accept(store, await save(store, "one"))
        await trio.sleep(0.5)
        await accept(store, await save(store, "other"))
        await done(store, 2)
        assert trio.current_time() < 1.1


async def test_idle_connections_are_not_made_anew(folder: Path, autojump_clock: Clock) -> None:
    """Of two connections that wait one gets the only message, and then nothing more is wanted."""
    async with delivering(folder, {"a": takes(1)}) as (store, unit, world):
        account = await save(store, "a", ttl=10)
        await accept(store, account, 3)
        await done(store, 3)
        assert unit.pool.connections()["idle"] > 1
        await accept(store, account)
        await done(store, 4)
        made = len(world.connects)
        await trio.sleep(1000)
        assert len(world.connects) == made
        assert unit.pool.connections() == {"connecting": 0, "idle": 0, "busy": 0}


async def test_more_accounts_than_connections_all_have_their_turns(folder: Path, autojump_clock: Clock) -> None:
    relays = {f"r{n}": takes(0.5) for n in range(10)}
    async with delivering(folder, dict(relays), connections_max=3) as (store, unit, world):
        accounts = [await save(store, host) for host in relays]
        await accept(store, accounts * 30)
        await trio.sleep(40)
        counts = [relay.received for relay in relays.values()]
        assert min(counts) >= 10
        assert sum(counts) >= 0.8 * 3 * 40 / 0.5
        assert len(world.connects) < sum(counts) / 2
        assert sum(unit.pool.connections().values()) <= 3 + 1


async def test_a_relay_is_found_again(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": ConnectionRefusedError}) as (store, unit, world):
        await accept(store, await save(store, "a"), 3)
        await trio.sleep(100)
        unreachable = [entry.fact.failures for entry in await of_kind(store, "RelayUnreachable")]
        assert unreachable == list(range(1, 8))
        assert len(world.connects) == 7
        world.relays["a"] = relay
        unit.run_now()
        await done(store, 3)
        assert trio.current_time() < 101
        assert len(await of_kind(store, "RelayReached")) == 1


async def test_run_now_forgets_the_back_off(folder: Path, autojump_clock: Clock) -> None:
    async with delivering(folder, {"a": ConnectionRefusedError}) as (store, unit, _):
        await accept(store, await save(store, "a"))
        await trio.sleep(100)
        unit.run_now()
        await trio.sleep(0.5)
        assert [entry.fact.failures for entry in await of_kind(store, "RelayUnreachable")][-1] == 1


async def test_connections_that_fail_together_are_one_failure(folder: Path, autojump_clock: Clock) -> None:
    """All that a relay has are busy when it restarts, after 50 seconds."""

    async def hold(message: Captured) -> None:
        await trio.sleep(max(50 - trio.current_time(), 0))

    relay = CaptureRelay(on_message=hold)

    async def until_50(stream: trio.StapledStream) -> None:
        with trio.move_on_at(50 if trio.current_time() < 50 else math.inf):
            await relay.converse(stream)
        await trio.aclose_forcefully(stream)

    async with delivering(folder, {"a": until_50}) as (store, _, _):
        await accept(store, await save(store, "a"), 10)
        await trio.sleep(49)
        assert relay.connections == 10
        await trio.sleep(20)
        assert [entry.fact.failures for entry in await of_kind(store, "RelayUnreachable")] == [1]
        await done(store, 10)
        assert len(await of_kind(store, "RelayReached")) == 1


async def test_a_relay_that_takes_few_connections_is_used_with_few(folder: Path, autojump_clock: Clock) -> None:
    relay = takes(1)
    async with delivering(folder, {"a": takes_at_most(3, relay)}) as (store, _, world):
        await accept(store, await save(store, "a"), 100)
        await trio.sleep(60)
        assert relay.received == 100
        assert not await of_kind(store, "RelayUnreachable")
        assert len(world.connects) <= 10


# What must stop, stops


DUE_S = 0.005
RACE_S = (0.004, DUE_S, DUE_S, DUE_S, 0.006)
"""Most races are within one moment, where nothing but the order of tasks decides."""


async def race(store: Store, chance: random.Random, account: int, stop: Fact, go: Fact | None) -> None:
    """Stop an account just when its mail is due, and let it go again a little later."""
    await trio.sleep(chance.choice(RACE_S))
    await note(store, stop, account=account)
    await trio.sleep(0.01)
    if go is not None:
        await note(store, go, account=account)


def starts_of_the_stopped(entries: Sequence[Entry]) -> tuple[int, int, list[Entry]]:
    """How often something was stopped, how many attempts started, and those that did so while stopped."""
    stopped: set[int | None] = set()
    stops = starts = 0
    wrong = []
    for entry in entries:
        match entry.fact:
            case AccountPaused() | AccountRemoved() | DispatchSuspended():
                stopped.add(entry.account)
                stops += 1
            case AccountResumed() | DispatchActivated():
                stopped.discard(entry.account)
            case AttemptStarted():
                starts += 1
                wrong += [entry] if stopped & {entry.account, None} else []
    return stops, starts, wrong


async def test_nothing_starts_after_a_pause_or_a_removal(folder: Path, autojump_clock: Clock) -> None:
    chance = random.Random(5)
    relay = CaptureRelay(on_message=slow(chance, 0.004))
    async with delivering(folder, {"a": relay}, connections_max=100) as (store, _, _):
        for _ in range(8):
            accounts = await save_many(store, "a", 50, max_connections=1)
            for stop, go in ((AccountPaused(), AccountResumed()), (AccountRemoved(), None)):
                await accept(store, accounts, due_us=store.clock.now_us() + int(DUE_S * MICROSECONDS))
                async with trio.open_nursery() as races:
                    for account in accounts:
                        races.start_soon(race, store, chance, account, stop, go)
        stops, starts, wrong = starts_of_the_stopped(await facts(store))
    assert (stops, wrong) == (800, [])
    assert 200 < starts < 800


async def test_nothing_starts_while_suspended(folder: Path, autojump_clock: Clock) -> None:
    chance = random.Random(5)
    relay = CaptureRelay(on_message=slow(chance, 0.004))
    async with delivering(folder, {"a": relay}) as (store, _, _):
        accounts = await save_many(store, "a", 8, max_connections=1)
        for _ in range(150):
            await accept(store, accounts, due_us=store.clock.now_us() + int(DUE_S * MICROSECONDS))
            await trio.sleep(chance.choice(RACE_S))
            await note(store, DispatchSuspended())
            await trio.sleep(0.01)
            await note(store, DispatchActivated())
        stops, starts, wrong = starts_of_the_stopped(await facts(store))
    assert (stops, wrong) == (150, [])
    assert 400 < starts <= 1200


async def test_stopping_lets_attempts_end_and_cuts_what_takes_too_long(folder: Path, autojump_clock: Clock) -> None:
    async with opened(folder) as store:
        account = await save(store, "a", max_connections=2)
        await accept(store, account, 1, to=("slow-20@example.org",))
        await accept(store, account, 5, to=("slow-200@example.org",))
        async with running(store, {"a": CaptureRelay()}, drain_s=25):
            await trio.sleep(2)
        assert trio.current_time() < 2 + 25 + 1
        first, second = [entry.fact for entry in await of_kind(store, "AttemptEnded")]
        assert (first.next, second.outcomes[0].status, second.due_cause) == ("done", "in_doubt", "retry")
        assert sorted((await states(store)).values()) == ["sent"] + ["waiting"] * 5


async def test_an_idle_unit_stops_at_once(folder: Path, autojump_clock: Clock) -> None:
    async with opened(folder) as store:
        async with running(store, {"a": CaptureRelay()}):
            await accept(store, await save(store, "a"))
            await done(store, 1)
        assert trio.current_time() < 1


async def test_each_start_ends_what_it_finds_open(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with opened(folder) as store:
        account = await save(store, "a", limit_per_minute=1)
        (number,) = await accept(store, account)
        attempt = await start(store, number, account)
        await accept(store, account)
        async with running(store, {"a": relay}):
            (found,) = [entry.fact for entry in await of_kind(store, "AttemptInterrupted")]
            assert (found.attempt, found.outcomes[0].status, found.charged) == (attempt, "in_doubt", True)
            await trio.sleep(59)
            assert relay.received == 0
            await done(store, 2)


# Accounts that change under a sender that waits


async def test_an_account_with_another_relay_sends_there_at_once(folder: Path, autojump_clock: Clock) -> None:
    old, new = CaptureRelay(), CaptureRelay()
    async with delivering(folder, {"old": old, "new": new}) as (store, _, _):
        account = await save(store, "old")
        await accept(store, account)
        await done(store, 1)
        await save(store, "new", account=account, name="old")
        await accept(store, account, 3)
        await done(store, 4)
        assert trio.current_time() < 1
    assert (old.received, new.received) == (1, 3)


async def test_an_account_made_again_uses_connections_of_its_own(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, unit, _):
        account = await save(store, "a")
        await accept(store, account)
        await done(store, 1)
        await note(store, AccountRemoved(), account=account)
        again = await save(store, "a")
        await accept(store, again)
        await done(store, 2)
        await trio.sleep(10)
        assert relay.received == 2
        assert unit.pool.connections() == {"connecting": 0, "idle": 1, "busy": 0}


async def test_fewer_connections_are_used_as_soon_as_an_account_says_so(folder: Path, autojump_clock: Clock) -> None:
    relay = takes(1)
    async with delivering(folder, {"a": relay}) as (store, _, _):
        account = await save(store, "a")
        await accept(store, account, 100)
        await trio.sleep(3.5)
        assert relay.connections == 20
        await save(store, "a", account=account, max_connections=2)
        await trio.sleep(2)
        assert relay.connections == 2


async def test_a_message_withdrawn_in_flight_is_not_tried_again(folder: Path, autojump_clock: Clock) -> None:
    async with delivering(folder, {"a": CaptureRelay()}) as (store, _, _):
        account = await save(store, "a")
        (number,) = await accept(store, account, to=("slow-5@example.org", "451@example.org"))
        await until(store, lambda entry: isinstance(entry.fact, AttemptStarted))
        await note(store, MessageWithdrawn(), message=number)
        await trio.sleep(1000)
        assert len(await starts_after(store, 0)) == 1
        assert list((await states(store)).values()) == ["withdrawn"]


@pytest.mark.parametrize("seed", range(3))
async def test_a_mixed_load_ends_and_everything_is_accounted_for(
    folder: Path, autojump_clock: Clock, seed: int
) -> None:
    chance = random.Random(seed)
    relays = {f"r{n}": CaptureRelay(on_message=slow(chance, 2)) for n in range(5)}
    to = ("anna", "550", "451-then-250", "drop-after-dot-then-250", "slow-3", "451")
    async with delivering(folder, dict(relays), connections_max=6, seed=seed, retry=retrying(20)) as (store, unit, _):
        accounts = [await save(store, host, limit_per_minute=chance.choice([None, 5, 20])) for host in relays]
        for _ in range(10):
            await accept(
                store, chance.choices(accounts, k=4), to=(f"{chance.choice(to)}+{store.last_seq}@example.org",)
            )
            await trio.sleep(chance.uniform(0, 5))
        await done(store, 40)
        found = list((await states(store)).values())
        assert set(found) <= {"sent", "failed"} and len(found) == 40
        await quiet(unit)


async def quiet(unit: Delivery) -> None:
    """Nothing is left behind in the unit's memory."""
    await trio.sleep(1)
    scheduler, limiter = unit._scheduler, unit._limiter
    assert not scheduler._where and not scheduler._out and not scheduler._granted and not scheduler._flying
    assert not limiter._holding and not any(limiter._in_flight.values())
    assert all(known.offered == known.busy == 0 for known in scheduler._accounts.values())


async def test_what_has_expired_is_not_sent_before_retention_has_ended_it(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, _, _):
        account = await save(store, "a")
        await accept(store, account, expires_us=store.clock.now_us() - 1)
        await accept(store, account)
        await trio.sleep(10)
        assert sorted((await states(store)).values()) == ["sent", "waiting"]
    assert len(relay.messages) == 1
