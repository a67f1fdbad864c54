"""The delivery unit whole, for its tests: a real store inline, relays in memory, virtual time."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing

from actors.delivery import Delivery
from actors.judgement import RetryPolicy
from actors.sender_pool import DeliveryPolicy
from actors.timetable import Timetable
from events.account import AccountSaved
from events.attempt import AttemptStarted
from events.fact import OWN, Draft, Entry, Fact
from events.letter import Envelope, Letter
from events.message import MessageAccepted
from letterbook.capture import Captured
from store.beside import LetterRow
from store.clock import TrioClock
from store.opening import Store, open_store
from store.writer import Recorded

from .opened import T0_US, facts
from .world import Relay, World

ANNA = ("anna@example.org",)
NO_SLEEP_S = 1_000_000.0
"""The scheduler's longest sleep in these tests: whatever is not thought of in time is never done."""


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Store]:
    """A store in this folder; opened again, its clock has gone on."""
    clock = TrioClock(T0_US + int(trio.current_time() * 1_000_000))
    chance = random.Random(7)
    path, key = folder / "log.db", folder / "log.key"
    async with open_store(path, key, clock=clock, entropy=chance.randbytes, threaded=False) as store:
        yield store


class Meddling:
    """A store in which something happens just before each start of an attempt, or fact of another kind, is recorded."""

    def __init__(
        self, store: Store, before: Callable[[Draft], Awaitable[None]], kind: type[Fact] = AttemptStarted
    ) -> None:
        self._store = store
        self._before = before
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def record(self, drafts: Sequence[Draft], **fields: Any) -> Recorded:
        for draft in drafts:
            if isinstance(draft.fact, self._kind):
                await self._before(draft)
        return await self._store.record(drafts, **fields)


@asynccontextmanager
async def running(
    store: Store | Meddling,
    relays: dict[str, Relay],
    *,
    drain_s: float = 25,
    seed: int = 1,
    timetable: Timetable | None = None,
    **policy: Any,
) -> AsyncIterator[tuple[Delivery, World]]:
    """The unit over these relays; at the end it is stopped, and the relays end when it has."""
    async with trio.open_nursery() as outside:
        world = World(outside, relays)
        fields = {"longest_sleep_s": NO_SLEEP_S, "timetable": timetable}
        unit = Delivery(store, world, DeliveryPolicy(**policy), random.Random(seed), **fields)
        stopping = trio.Event()
        async with trio.open_nursery() as inside:
            inside.start_soon(unit.run, stopping, drain_s)
            await trio.testing.wait_all_tasks_blocked()
            yield unit, world
            stopping.set()
        outside.cancel_scope.cancel()


@asynccontextmanager
async def delivering(
    folder: Path, relays: dict[str, Relay], **policy: Any
) -> AsyncIterator[tuple[Store, Delivery, World]]:
    async with opened(folder) as store, running(store, relays, **policy) as (unit, world):
        yield store, unit, world


def retrying(*delays: float, retries: int = 5, **fields: Any) -> RetryPolicy:
    return RetryPolicy(max_retries=retries, retry_delays=delays or (60.0,), **fields)


# What is recorded


async def note(store: Store, fact: Fact, *, message: int | None = None, account: int | None = None) -> Entry:
    (entry,) = (await store.record([Draft(fact, message=message, account=account)], urgent=True)).answers
    assert isinstance(entry, Entry), entry
    return entry


async def save(store: Store, host: str, *, account: int = OWN, name: str = "", **fields: Any) -> int:
    """Make or change an account at this relay; its number."""
    fact = AccountSaved(id=name or host, host=host, port=25, credentials="c" * 16, **fields)
    return (await note(store, fact, account=account)).account or 0


async def save_many(store: Store, host: str, count: int, **fields: Any) -> list[int]:
    """Make so many accounts at this relay."""
    base = store.last_seq
    facts = [AccountSaved(id=f"{base}-{n}", host=host, port=25, credentials="c" * 16, **fields) for n in range(count)]
    return [answer.seq for answer in (await store.record([Draft(fact, account=OWN) for fact in facts])).answers]


def letter(to: Sequence[str]) -> LetterRow:
    content = Letter(id="m", sender="shop@example.com", to=tuple(to), subject="s", body="hello")
    envelope = Envelope("shop@example.com", tuple(to), "s")
    return LetterRow(msgspec.json.encode(envelope), msgspec.json.encode(content), bytes(16))


async def accept(
    store: Store,
    account: int | Iterable[int],
    count: int = 1,
    *,
    to: Sequence[str] = ANNA,
    beside: LetterRow | None = None,
    erased: bool = False,
    **fields: Any,
) -> list[int]:
    """Take so many messages for an account, or one for each of several; their numbers."""
    accounts = [account] * count if isinstance(account, int) else list(account)
    now_us, row = store.clock.now_us(), beside or letter(to)
    given = {"priority": 2, "due_us": now_us, "expires_us": now_us + 10**13, "size": 1, "letter": ""} | fields
    base = store.last_seq
    drafts = [
        Draft(MessageAccepted(id=f"{base}-{index}", recipients=tuple(to), **given), message=OWN, account=each)
        for index, each in enumerate(accounts)
    ]
    recorded = await store.record(drafts, beside={} if erased else dict.fromkeys(range(len(drafts)), row))
    assert recorded.complete, recorded
    return [answer.seq for answer in recorded.answers]


# What has come of it


async def until(store: Store, wanted: Callable[[Entry], bool], count: int = 1, *, after: int = 0) -> list[Entry]:
    """The first so many facts that are wanted, as soon as they are in the log."""
    found: list[Entry] = []
    async with store.follow(after) as batches:
        async for batch in batches:
            found += filter(wanted, batch.entries)
            if len(found) >= count:
                break
    return found[:count]


async def ends(store: Store, count: int = 1) -> list[Any]:
    """The first so many ends of attempts."""
    found = await until(store, lambda entry: entry.kind in ("AttemptEnded", "AttemptInterrupted"), count)
    return [entry.fact for entry in found]


async def done(store: Store, count: int) -> None:
    """Wait for so many messages to have been sent or to have failed."""

    def final(entry: Entry) -> bool:
        return getattr(entry.fact, "next", "") in ("done", "failed") or entry.kind == "MessageFailed"

    await until(store, final, count)


async def of_kind(store: Store, *kinds: str) -> list[Entry]:
    return [entry for entry in await facts(store) if entry.kind in kinds]


async def starts_after(store: Store, seq: int, account: int | None = None) -> list[int]:
    """The messages whose attempts have started later than this."""
    return [
        entry.message or 0
        for entry in await facts(store, seq)
        if isinstance(entry.fact, AttemptStarted) and account in (None, entry.account)
    ]


def within_a_minute(messages: Iterable[Captured]) -> int:
    """The most that a relay has counted in any 60 seconds."""
    times = sorted(each.at for each in messages)
    return max(_windows(times), default=0)


def _windows(times: list[float]) -> Iterator[int]:
    first = 0
    for last, moment in enumerate(times):
        # A microsecond is what clocks of integers may lose.
        while moment - times[first] >= 60 - 1e-6:
            first += 1
        yield last - first + 1
