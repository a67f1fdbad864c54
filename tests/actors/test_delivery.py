"""The delivery unit whole: a real store inline, scripted relays in memory, virtual time."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing

from actors.delivery import Delivery
from actors.sender_pool import DeliveryPolicy
from events.account import AccountSaved
from events.fact import OWN, Draft, Entry
from events.letter import Envelope, Letter
from events.message import MessageAccepted
from letterbook.capture import CaptureRelay
from store.beside import LetterRow
from store.opening import Store

from .opened import facts, kinds, opened, states
from .world import World


async def save(store: Store, host: str, **fields: Any) -> int:
    saved = AccountSaved(id=host, host=host, port=25, credentials="c" * 16, **fields)
    entry = (await store.record([Draft(saved, account=OWN)])).answers[0]
    assert isinstance(entry, Entry)
    return entry.seq


def letter(number: int, to: tuple[str, ...]) -> LetterRow:
    content = Letter(id=f"m{number}", sender="shop@example.com", to=to, subject=f"s{number}", body="hello")
    envelope = Envelope("shop@example.com", to, f"s{number}")
    return LetterRow(msgspec.json.encode(envelope), msgspec.json.encode(content), bytes(16))


async def accept(
    store: Store, account: int, numbers: range, *, to: tuple[str, ...] = ("anna@example.org",), priority: int = 2
) -> None:
    now_us = store.clock.now_us()
    drafts = [
        Draft(
            MessageAccepted(
                id=f"m{number}",
                priority=priority,
                due_us=now_us,
                expires_us=now_us + 10**12,
                size=100,
                recipients=to,
                letter="",
            ),
            message=OWN,
            account=account,
        )
        for number in numbers
    ]
    beside = {index: letter(number, to) for index, number in enumerate(numbers)}
    recorded = await store.record(drafts, beside=beside)
    assert recorded.complete, recorded


@asynccontextmanager
async def delivering(
    folder: Path, relays: dict[str, Any], *, drain_s: float = 25, **policy: Any
) -> AsyncIterator[tuple[Store, Delivery, World]]:
    async with opened(folder) as store, trio.open_nursery() as nursery:
        world = World(nursery, relays)
        unit = Delivery(
            store, world, DeliveryPolicy(**policy), random.Random(1), longest_sleep_s=10**6
        )
        stopping = trio.Event()
        nursery.start_soon(unit.run, stopping, drain_s)
        await trio.testing.wait_all_tasks_blocked()
        yield store, unit, world
        stopping.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


async def all_final(store: Store, count: int) -> None:
    async with store.follow(0) as batches:
        async for _ in batches:
            found = await states(store)
            if len(found) == count and all(state in ("sent", "failed") for state in found.values()):
                return


async def test_a_message_is_delivered(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    relay = CaptureRelay()
    async with delivering(tmp_path, {"a": relay}) as (store, _, _):
        account = await save(store, "a")
        await accept(store, account, range(1))
        await all_final(store, 1)
        assert await kinds(store) == ["AccountSaved", "MessageAccepted", "AttemptStarted", "AttemptEnded"]
    assert len(relay.messages) == 1


async def test_many_messages_arrive_once_each_in_priority_order(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    relay = CaptureRelay()
    async with delivering(tmp_path, {"a": relay}) as (store, _, _):
        account = await save(store, "a", max_connections=1)
        for priority in (3, 2, 1, 0):
            await accept(store, account, range(priority * 150, priority * 150 + 150), priority=priority)
        await all_final(store, 600)
    assert len(relay.messages) == 600


async def test_a_limit_counts_at_the_relay(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    relay = CaptureRelay()
    async with delivering(tmp_path, {"a": relay}) as (store, unit, _):
        account = await save(store, "a", limit_per_minute=30)
        await accept(store, account, range(300), to=("slow-7@example.org",))
        await all_final(store, 300)
        found = await facts(store)
        print(trio.current_time(), unit.plans, len(found), [k for k in {e.kind for e in found}])
    times = sorted(each.at for each in relay.messages)
    for first, last in zip(times, times[30:]):
        assert last - first >= 60


async def test_a_temporary_refusal_is_retried(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    relay = CaptureRelay()
    async with delivering(tmp_path, {"a": relay}) as (store, _, _):
        account = await save(store, "a")
        await accept(store, account, range(1), to=("451-then-250@example.org",))
        await all_final(store, 1)
        assert (await states(store)) == {"m0": "sent"}
        assert 60 <= trio.current_time() <= 66.1


async def test_a_dead_relay_costs_others_nothing(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    relay = CaptureRelay()
    relays: dict[str, Any] = {f"dead{n}": CaptureRelay(hang=True) if n % 2 else ConnectionRefusedError for n in range(50)}
    async with delivering(tmp_path, {"a": relay, **relays}) as (store, unit, _):
        for host in relays:
            account = await save(store, host)
            await accept(store, account, range(account * 10, account * 10 + 10))
        account = await save(store, "a")
        await accept(store, account, range(10000, 10100))
        while len(relay.messages) < 100:
            await trio.sleep(0.5)
        print(trio.current_time())
        assert trio.current_time() < 5
