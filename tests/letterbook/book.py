"""A small log made by the real store, for the commands that read one: a message of every fate, with all that stands
beside it."""

from pathlib import Path

import msgspec
import trio

from events.account import AccountSaved
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import OWN, Draft, Entry
from events.letter import Envelope, Letter
from events.message import MessageAccepted, MessageRejected
from events.values import Outcome
from store.beside import Beside, LetterRow, Replies, Sealed
from store.clock import TrioClock
from store.opening import Store, open_store

T0_US = 1_700_000_000_000_000
"""2023-11-14T22:13:20Z, when the first fact was written; all of it is written within that second."""

FAR_US = 4_000_000_000_000_000

NASTY = "bell\a \x1b[2J\u202e"
"""What a terminal must not obey."""


class Book:
    """Writes facts; each is a commit of its own."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def write(self, draft: Draft, *beside: Beside) -> int:
        recorded = await self._store.record([draft], beside=dict(enumerate(beside)))
        (answer,) = recorded.answers
        assert isinstance(answer, Entry), answer
        return answer.seq

    async def account(self, name: str, **fields: object) -> int:
        sealed = Sealed(self._store.secrets.seal(msgspec.json.encode({"user": "ann", "password": "pw"})))
        fact = AccountSaved(id=name, host="relay.example", port=587, credentials="c" * 16, has_password=True, **fields)
        return await self.write(Draft(fact, account=OWN), sealed)

    async def accept(self, name: str, account: int, to: tuple[str, ...], subject: str, due_us: int = T0_US) -> int:
        envelope = Envelope("shop@example.com", to, subject)
        letter = Letter(id=name, sender="shop@example.com", to=to, subject=subject, body="b")
        row = LetterRow(msgspec.json.encode(envelope), msgspec.json.encode(letter), b"salt")
        fact = MessageAccepted(
            id=name,
            priority=2,
            due_us=due_us,
            expires_us=2 * FAR_US,
            size=100,
            recipients=tuple(f"{name}:{index}" for index in range(len(to))),
            letter="d" * 16,
        )
        return await self.write(Draft(fact, message=OWN, account=account), row)

    async def attempt(self, number: int, account: int, next: str, *outcomes: Outcome, **fields: object) -> None:
        indexes = tuple(outcome.recipient for outcome in outcomes)
        started = await self.write(Draft(AttemptStarted(revision=number, recipients=indexes), number, account))
        ended = AttemptEnded(attempt=started, outcomes=outcomes, next=next, charged=True, **fields)
        words = tuple((one.recipient, f"{one.code} {one.enhanced} no") for one in outcomes if one.status != "delivered")
        await self.write(Draft(ended, number, account), *([Replies(words)] if words else []))


async def fill(store: Store) -> None:
    book = Book(store)
    default = await book.account("default", limit_per_minute=30)
    await book.account("other")
    sent = await book.accept("sent/1", default, ("anna@example.org",), "Hello")
    await book.attempt(sent, default, "done", Outcome(0, "delivered", 250, "2.0.0", "Q1"))
    failed = await book.accept("failed-2", default, ("bert@example.org", "carl@example.org"), "Twice")
    outcomes = Outcome(0, "delivered", 250, "2.0.0", "Q2"), Outcome(1, "refused", 550, "5.1.1")
    await book.attempt(failed, default, "failed", *outcomes, cause="refused")
    later = await book.accept("later-3", default, ("dora@example.org",), "Again")
    retry = {"due_us": FAR_US, "due_cause": "retry"}
    await book.attempt(later, default, "due", Outcome(0, "deferred", 451, "4.3.0"), **retry)
    await book.accept("waiting-4", default, ("emil@example.org",), NASTY)
    rejected = MessageRejected(id="rejected-5", reason="missing subject", field="subject")
    await book.write(Draft(rejected, message=OWN, account=default))


def write_log(folder: Path) -> Path:
    """The log's file, closed; its key stands beside it."""

    async def write() -> None:
        clock = TrioClock(T0_US)
        async with open_store(folder / "log.db", folder / "log.key", clock=clock, threaded=False) as store:
            await fill(store)

    trio.run(write)
    return folder / "log.db"
