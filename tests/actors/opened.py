"""What the actors' tests stand on: a real store, inline, under virtual time, and the fold of what it holds."""

import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from events.account import AccountSaved
from events.attempt import AttemptEnded, AttemptStarted
from events.commands import Decision, Reply, Submission
from events.fact import OWN, Draft, Entry
from events.values import Outcome
from store.clock import TrioClock
from store.opening import Store, open_store, page

T0_US = 1_700_000_000_000_000


@asynccontextmanager
async def opened(folder: Path, start_us: int = T0_US) -> AsyncIterator[Store]:
    """A store in this folder, with chance and time from the test; the wall clock shows `start_us`."""
    chance = random.Random(7)
    async with open_store(
        folder / "log.db", folder / "log.key", clock=TrioClock(start_us), entropy=chance.randbytes, threaded=False
    ) as store:
        yield store


async def facts(store: Store, after: int = 0) -> list[Entry]:
    return list(await store.read(page, after, 100_000))


async def kinds(store: Store, after: int = 0) -> list[str]:
    return [entry.kind for entry in await facts(store, after)]


async def rows(store: Store, statement: str, *arguments: Any) -> list[Any]:
    def read(connection: sqlite3.Connection) -> list[Any]:
        return connection.execute(statement, arguments).fetchall()

    return await store.read(read)


async def states(store: Store) -> dict[str, str]:
    """Every message's state by its id."""
    return dict(await rows(store, "select id, state from messages"))


async def save_account(store: Store, account_id: str = "default", **fields: Any) -> int:
    saved = AccountSaved(id=account_id, host="relay.example", port=25, credentials="c" * 16, **fields)
    entry = (await store.record([Draft(saved, account=OWN)])).answers[0]
    if isinstance(entry, Entry):
        return entry.seq
    # Saved before this opening: there is one living account with an id.
    ((number,),) = await rows(store, "select number from accounts where id = ? and removed = 0", account_id)
    return number


def message(message_id: str, to: Sequence[str] = ("anna@example.org",), **fields: Any) -> dict[str, Any]:
    return {"id": message_id, "from": "shop@example.com", "to": list(to), "subject": "s", "body": "b", **fields}


def submission(*messages: Any, **fields: Any) -> Submission:
    items = [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in messages]
    return Submission(items=items, by="test", reply=Reply(), **fields)


async def submit(to: trio.MemorySendChannel, *messages: Any, **fields: Any) -> tuple[Decision, ...]:
    asked = submission(*messages, **fields)
    await to.send(asked)
    return await asked.reply.get()


async def start(store: Store, number: int, account: int, revision: int | None = None, count: int = 1) -> int:
    """Start an attempt; its seq."""
    fact = AttemptStarted(revision=revision or number, recipients=tuple(range(count)))
    entry = (await store.record([Draft(fact, message=number, account=account)])).answers[0]
    assert isinstance(entry, Entry), entry
    return entry.seq


async def end(store: Store, number: int, account: int, attempt: int, next: str, *statuses: str, **fields: Any) -> int:
    """End an attempt with an outcome a recipient."""
    outcomes = tuple(Outcome(index, status, 250) for index, status in enumerate(statuses))
    fact = AttemptEnded(attempt=attempt, outcomes=outcomes, next=next, **fields)
    entry = (await store.record([Draft(fact, message=number, account=account)])).answers[0]
    assert isinstance(entry, Entry), entry
    return entry.seq
