"""Large logs, made quickly and through the recorder: facts in full turns, letters beside them."""

import random
import uuid
from collections.abc import AsyncIterator, Callable, Container, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from events.account import AccountSaved
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import OWN, Draft, Entry, Fact
from events.letter import Envelope, Letter
from events.message import MessageAccepted
from events.report import ResultsReported
from events.values import Outcome
from store.beside import LetterRow
from store.clock import Clock, SystemClock
from store.opening import Store, open_store
from store.recorder import FACTS_A_TURN_MAX

DAY_US = 86_400_000_000
BODY = "x" * 70 + "\n"
LOW, MEDIUM, IMMEDIATE = 3, 2, 0


class Waiting(Struct, frozen=True):
    """Where one waiting message stands: the account's index, its priority, and when it is due, from now."""

    account: int
    priority: int = MEDIUM
    due_in_us: int = 0


Shape = Callable[[int, int, random.Random], Waiting]
"""(index of a message, how many accounts, chance) -> where it stands."""


def mixed(index: int, accounts: int, chance: random.Random) -> Waiting:
    """Two messages of three are due within a month; a third is due now, most of it of the first two accounts."""
    if index % 3:
        return Waiting(chance.randrange(accounts), chance.randrange(4), chance.randrange(30 * DAY_US))
    return Waiting(index % 2 if index % 12 else chance.randrange(accounts), chance.randrange(1, 4))


def one_account(index: int, accounts: int, chance: random.Random) -> Waiting:
    """All mail is of one account, and due."""
    return Waiting(0)


def one_is_free(index: int, accounts: int, chance: random.Random) -> Waiting:
    """Every account but the last is throttled, with the same amount ahead."""
    return Waiting(index % accounts)


def all_later(index: int, accounts: int, chance: random.Random) -> Waiting:
    """Everything is due at a moment of its own within a month: a minute of an account holds one message or none."""
    return Waiting(chance.randrange(accounts), MEDIUM, 60_000_000 + chance.randrange(30 * DAY_US))


def low_behind_immediate(index: int, accounts: int, chance: random.Random) -> Waiting:
    """All of priority low, but for one in a thousand that is immediate."""
    return Waiting(index % accounts, LOW if index % 1000 else IMMEDIATE)


SHAPES: dict[Shape, Callable[[int], Container[int]]] = {
    mixed: lambda accounts: (0, 1),
    one_account: lambda accounts: (),
    one_is_free: lambda accounts: range(accounts - 1),
    all_later: lambda accounts: (),
    low_behind_immediate: lambda accounts: (),
}
"""Each with the accounts that are throttled: their limit is one message a day."""


@asynccontextmanager
async def opened(folder: Path, clock: Clock | None = None, *, threaded: bool = False) -> AsyncIterator[Store]:
    async with open_store(
        folder / "letterbook.db", folder / "letterbook.key", clock=clock or SystemClock(), threaded=threaded
    ) as store:
        yield store


async def take(store: Store, drafts: Sequence[Draft], beside: LetterRow | None = None) -> list[int]:
    """Record drafts of one kind in full turns; their seqs."""
    seqs: list[int] = []
    for first in range(0, len(drafts), FACTS_A_TURN_MAX):
        turn = drafts[first : first + FACTS_A_TURN_MAX]
        recorded = await store.record(turn, beside=dict.fromkeys(range(len(turn)), beside) if beside else None)
        seqs += [answer.seq for answer in recorded.answers if isinstance(answer, Entry)]
    assert len(seqs) == len(drafts), "a fact was refused"
    return seqs


async def save_accounts(store: Store, accounts: int, port: int, throttled: Container[int] = ()) -> list[int]:
    """Accounts at a relay on this machine, half a message a second each, but one a day for the throttled; their
    numbers."""
    facts = [
        AccountSaved(
            id=f"account-{index}", host="127.0.0.1", port=port, credentials="c" * 16, tls="none",
            limit_per_minute=30, limit_per_day=1 if index in throttled else 100_000,
        )
        for index in range(accounts)
    ]  # fmt: skip
    return await take(store, [Draft(fact, account=OWN) for fact in facts])


def letter() -> LetterRow:
    """One customer's order, a kilobyte of text; every message has the same."""
    content = Letter(
        id="x", sender="shop@sender.example", to=("customer@receiver.example",), subject="Your order", body=BODY * 14
    )
    envelope = Envelope(content.sender, content.to, content.subject)
    return LetterRow(msgspec.json.encode(envelope), msgspec.json.encode(content), bytes(16))


async def fill(store: Store, accounts: Sequence[int], messages: int, shape: Shape) -> list[int]:
    """Waiting messages of this shape; their numbers."""
    chance, now_us = random.Random(1), store.clock.now_us()
    row, numbers = letter(), []
    for first in range(0, messages, FACTS_A_TURN_MAX):
        places = [
            shape(index, len(accounts), chance) for index in range(first, min(first + FACTS_A_TURN_MAX, messages))
        ]
        drafts = [Draft(_accepted(place, now_us), message=OWN, account=accounts[place.account]) for place in places]
        numbers += await take(store, drafts, row)
    return numbers


def _accepted(place: Waiting, now_us: int) -> MessageAccepted:
    return MessageAccepted(
        id=str(uuid.uuid4()), priority=place.priority, due_us=now_us + place.due_in_us, expires_us=now_us + 60 * DAY_US,
        size=1_000, recipients=("r" * 22,), letter="l" * 22, by="bench",
    )  # fmt: skip


async def deliver(store: Store, account: int, numbers: Sequence[int]) -> None:
    """An attempt for each, that its only recipient's relay took."""
    delivered = (Outcome(0, "delivered", 250, "2.0.0", "4XyZ1234Ab"),)
    for first in range(0, len(numbers), FACTS_A_TURN_MAX):
        turn = numbers[first : first + FACTS_A_TURN_MAX]
        starts = [_of(AttemptStarted(revision=number, recipients=(0,)), number, account) for number in turn]
        attempts = await take(store, starts)
        ends = [AttemptEnded(attempt=attempt, outcomes=delivered, next="done", took_us=9_000) for attempt in attempts]
        await take(store, [_of(end, number, account) for end, number in zip(ends, turn, strict=True)])


def _of(fact: Fact, number: int, account: int) -> Draft:
    return Draft(fact, message=number, account=account)


async def report_all(store: Store) -> None:
    await take(store, [Draft(ResultsReported(up_to=store.last_seq, results=0, by="bench"))])
