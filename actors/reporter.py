"""The reporter tells the application's side what became of its mail, one event at a time, in the order of the log.

It promises at least once, in order: an event is offered until it is acknowledged, and only then the cursor, a fact in
the log, passes it. The cursor is the seq of the last fact told, so it covers deferrals as well as results. It cannot
promise exactly once: after a crash the events of the last second are told again.

It follows the log from the cursor, and looks up what a fact does not hold: ids, addresses' codes, the relay's words.
An outage of days loses nothing. An event that the upstream itself refuses, whatever else it takes, is given up after
GIVEN_UP_S, for everything behind it waits.

In test mode it waits to be rung, and then tells what there is.

Without an upstream a result counts as reported when it is final, and `count_as_reported` moves the cursor.
"""

import logging
import math
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import trio

from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Draft, Entry, Fact
from events.message import DoubtResolved, MessageFailed, MessageImported, MessageRejected, MessageWithdrawn
from events.report import ResultsReported
from events.values import MICROSECONDS
from store.following import Batch
from store.opening import Store
from store.recorder import NotRecorded
from store.results_text import reply_text, result_error
from store.views.messages import RecipientState
from store.worklists import Reportable, reportable, reported_up_to

from .bell import Bell
from .upstream import Line, Trouble, back_off_s, call, shown

logger = logging.getLogger("letterbook.reporter")

GATHER_S = 1.0
"""The cursor moves once a second at most, for it is one more fact each time."""

GIVEN_UP_S = 7 * 86_400.0
"""As long as the reports in batches are offered again."""

REFUSING = frozenset({400, 409, 410, 413, 415, 422})
"""Answers that speak of the event and not of the upstream's own state."""

ANSWER_BYTES_MAX = 65_536

NO_UPSTREAM = "no upstream"
REPORTER = "reporter"

Event = dict[str, Any]


def matters(fact: Fact) -> bool:
    """Whether the fact may have ended its message or put it off: what the cursor has to pass."""
    if isinstance(fact, DoubtResolved):
        return fact.resolution != "resend"
    ends = MessageRejected | MessageFailed | MessageWithdrawn | MessageImported
    return isinstance(fact, AttemptEnded | AttemptInterrupted | ends)


def brings_result(fact: Fact) -> bool:
    """Whether the fact is a result, as far as the fact alone can say."""
    if isinstance(fact, AttemptEnded | AttemptInterrupted):
        return fact.next in ("done", "failed")
    if isinstance(fact, MessageImported):
        return not fact.reported
    return matters(fact) and not isinstance(fact, MessageWithdrawn)


def deferred_until_us(entry: Entry) -> int | None:
    """Until when an attempt put its message off; None where it did not, or only other recipients have their turn."""
    match entry.fact:
        case AttemptEnded() | AttemptInterrupted() as fact if fact.next == "due" and fact.due_cause != "more":
            return fact.due_us
    return None


def iso(moment_us: int) -> str:
    return datetime.fromtimestamp(moment_us // MICROSECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def event_of(entry: Entry, found: Reportable) -> Event | None:
    """What the upstream is told of a fact; None for nothing."""
    return _result(entry, found) or _deferral(entry, found)


def _result(entry: Entry, found: Reportable) -> Event | None:
    row = found.results.get(entry.seq)
    if row is None:
        return None
    event = _event(row.id, row.status, row.at_us, row.account, found)
    if (error := result_error(row, found.replies)) is not None:
        event["error"] = error
    return event


def _deferral(entry: Entry, found: Reportable) -> Event | None:
    """A message that was being withdrawn ended with this very attempt, so nothing is put off."""
    until_us = deferred_until_us(entry)
    row = found.messages.get(entry.message or 0)
    if until_us is None or row is None or row.final_seq == entry.seq:
        return None
    event = _event(row.id, "deferred", entry.at_us, entry.account, found)
    if error := _words(entry, found):
        event["error"] = error
    event["deferred_until"] = until_us // MICROSECONDS
    return event


def _event(message_id: str, status: str, at_us: int, account: int | None, found: Reportable) -> Event:
    name = found.accounts.get(account) if account is not None else None
    return {"id": message_id, "status": status, "timestamp": iso(at_us), "account": name}


def _words(entry: Entry, found: Reportable) -> str | None:
    """The first reply of the attempt that was no delivery."""
    assert isinstance(entry.fact, AttemptEnded | AttemptInterrupted)
    for outcome in entry.fact.outcomes:
        if outcome.status != "delivered":
            state = RecipientState(outcome.status, outcome.code, outcome.enhanced, None, entry.seq)
            return reply_text(state, outcome.recipient, found.replies)
    return None


class Cursor:
    """Moves the durable cursor to what was passed, once in GATHER_S at most, and a last time when it is cancelled."""

    def __init__(self, store: Store, by: str) -> None:
        self._store = store
        self._by = by
        self._bell = Bell()
        self._up_to = 0
        self._results = 0

    def passed(self, up_to: int, results: int) -> None:
        """Everything up to this seq has been told, so many results of it since the last call."""
        self._up_to = up_to
        self._results += results
        self._bell.ring()

    async def run(self) -> None:
        try:
            while True:
                await self._bell.wait()
                await self._move()
                await trio.sleep(GATHER_S)
        finally:
            with trio.CancelScope(shield=True):
                await self._move()

    async def _move(self) -> None:
        """While nothing can be recorded, what was passed is kept for the next time."""
        up_to, results = self._up_to, self._results
        if not up_to:
            return
        self._up_to = self._results = 0
        try:
            await self._store.record([Draft(ResultsReported(up_to=up_to, results=results, by=self._by))])
        except NotRecorded:
            self.passed(max(up_to, self._up_to), results)


async def count_as_reported(store: Store) -> None:
    """Without an upstream: move the cursor past every result, until the log ends."""
    cursor = Cursor(store, NO_UPSTREAM)
    async with store.follow(await store.read(reported_up_to)) as batches, trio.open_nursery() as nursery:
        nursery.start_soon(cursor.run)
        async for batch in batches:
            if past := [entry for entry in batch.entries if matters(entry.fact)]:
                cursor.passed(past[-1].seq, sum(brings_result(entry.fact) for entry in past))
        nursery.cancel_scope.cancel()


class Reporter:
    """`url` is the one below which /delivery-report stands; `bell` is rung by run-now."""

    def __init__(
        self,
        store: Store,
        client: httpx.AsyncClient,
        url: str,
        chance: random.Random,
        *,
        test_mode: bool = False,
        bell: Bell | None = None,
        line: Line | None = None,
        given_up_s: float = GIVEN_UP_S,
    ) -> None:
        self._store = store
        self._client = client
        self._url = f"{url.rstrip('/')}/delivery-report"
        self._chance = chance
        self._given_up_s = given_up_s
        self._test_mode = test_mode
        self.bell = bell or Bell()
        self._line = line or Line()
        self._let_go = 0

    async def run(self) -> None:
        """Follow the log from the cursor, and tell what there is to tell, until the log ends."""
        cursor = Cursor(self._store, REPORTER)
        async with (
            self._store.follow(await self._store.read(reported_up_to)) as batches,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(cursor.run)
            async for batch in batches:
                await self._report(batch, cursor)
            nursery.cancel_scope.cancel()

    async def _report(self, batch: Batch, cursor: Cursor) -> None:
        """Tell a batch's events; the cursor passes what needs no telling with what does."""
        past = [entry for entry in batch.entries if matters(entry.fact)]
        if not past:
            return
        found = await self._look_up(past)
        for entry in past:
            event = event_of(entry, found)
            if event is not None:
                await self._leave(entry.seq)
                await self._tell(event)
            cursor.passed(entry.seq, int(event is not None and event["status"] != "deferred"))

    async def _leave(self, seq: int) -> None:
        """In test mode each ring lets go what was there when it rang."""
        while self._test_mode and seq > self._let_go:
            await self.bell.wait()
            self._let_go = self._store.last_seq

    async def _look_up(self, entries: Sequence[Entry]) -> Reportable:
        put_off = [entry for entry in entries if deferred_until_us(entry) is not None]
        numbers = [entry.message for entry in put_off if entry.message is not None]
        return await self._store.read(
            reportable, entries[0].seq, entries[-1].seq, numbers, [entry.seq for entry in put_off]
        )

    async def _tell(self, event: Event) -> None:
        """Until it is acknowledged, or refused for so long that it stands in the way of the rest."""
        content = msgspec.json.encode(event)
        failures, began = 0, trio.current_time()
        while True:
            answer = await call(self._client, "POST", self._url, content=content, body_bytes_max=ANSWER_BYTES_MAX)
            if not isinstance(answer, Trouble):
                self._line.fine(self._url)
                return
            if answer.status in REFUSING and trio.current_time() - began > self._given_up_s:
                self._line.given_up += 1
                logger.error("%s: the event of %s is given up: %s", shown(self._url), event["id"], answer.text)
                return
            failures += 1
            wait_s = back_off_s(failures, self._chance)
            self._line.trouble(self._url, answer.text, wait_s)
            until = math.inf if self._test_mode else trio.current_time() + wait_s
            await self.bell.wait(until)
            if trio.current_time() < until:
                failures = 0
