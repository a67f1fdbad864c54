"""The reporter: every outcome in order, at least once, whatever the application's side does meanwhile."""

import json
import random
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from actors.reporter import GIVEN_UP_S, Cursor, Reporter, brings_result, count_as_reported, matters
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import OWN, Draft
from events.message import (
    DoubtResolved,
    MessageAccepted,
    MessageFailed,
    MessageHeld,
    MessageRejected,
    MessageRevised,
    MessageWithdrawn,
)
from events.report import ResultsReported
from events.values import Outcome
from store.beside import Replies
from store.recorder import NotRecorded
from store.worklists import reported_up_to

from .application import Application, say, served
from .opened import T0_US, facts, kinds, opened, save_account, start

S = 1_000_000


async def accept(store, *ids: str, recipients: int = 1, expires_us: int = 2 * T0_US) -> list[int]:
    digests = tuple(f"d{index}" for index in range(recipients))
    drafts = [
        Draft(
            MessageAccepted(
                id=each, priority=2, due_us=0, expires_us=expires_us, size=1, recipients=digests, letter="d"
            ),
            message=OWN,
            account=1,
        )
        for each in ids
    ]
    return [entry.message for entry in (await store.record(drafts)).answers]


async def end(store, number: int, next: str, *outcomes: Outcome, words: str = "", **fields) -> int:
    """Start and end an attempt at a message; the seq of its end."""
    attempt = await start(store, number, 1, count=len(outcomes))
    fact = AttemptEnded(attempt=attempt, outcomes=outcomes, next=next, **fields)
    beside = {0: Replies(((0, words),))} if words else None
    return (await store.record([Draft(fact, message=number, account=1)], beside=beside)).answers[0].seq


DELIVERED = Outcome(0, "delivered", 250, "2.0.0")
DEFERRED = Outcome(0, "deferred", 451, "4.7.1")
REFUSED = Outcome(0, "refused", 550, "5.1.1")


@asynccontextmanager
async def reporting(folder, application: Application, **fields):
    async with opened(folder) as store, application.client() as client, trio.open_nursery() as nursery:
        if not store.last_seq:
            await save_account(store, "main")
        reporter = Reporter(store, client, "http://app.example", random.Random(1), **fields)
        nursery.start_soon(reporter.run)
        yield store, reporter
        nursery.cancel_scope.cancel()


def told(application: Application) -> list[tuple[str, str]]:
    return [(asked.body["id"], asked.body["status"]) for asked in application.asked]


def test_what_the_cursor_has_to_pass():
    ends = [AttemptEnded(attempt=1, outcomes=(), next=next) for next in ("due", "failed", "done")]
    for fact in (*ends, MessageFailed(cause="expired"), MessageRejected(id="a", reason="r"), MessageWithdrawn()):
        assert matters(fact)
    for fact in (ResultsReported(up_to=1), AttemptStarted(revision=1, recipients=()), MessageHeld(cause="x")):
        assert not matters(fact) and not brings_result(fact)
    assert [brings_result(fact) for fact in ends] == [False, True, True]
    assert not brings_result(MessageWithdrawn()) and not matters(DoubtResolved(resolution="resend"))


async def test_every_outcome_is_told_in_the_contracts_shape(tmp_path, autojump_clock):
    application = Application({})
    async with reporting(tmp_path, application) as (store, _):
        sent, late, refused = await accept(store, "sent", "late", "refused", expires_us=T0_US)
        await end(store, sent, "done", DELIVERED)
        until_us = T0_US + 60 * S
        await end(store, late, "due", DEFERRED, words="try later", due_us=until_us, due_cause="retry", charged=True)
        await end(store, refused, "failed", REFUSED, words="no such user", cause="refused")
        await store.record([Draft(MessageRejected(id="faulty", reason="missing to"), message=OWN)])
        await store.record([Draft(MessageFailed(cause="expired", after_s=5), message=late, account=1)])
        await trio.sleep(2)
        base = {"timestamp": "2023-11-14T22:13:20Z", "account": "main"}
        assert [asked[:3] for asked in application.asked] == [("POST", "/delivery-report", {})] * 5
        assert [asked.body for asked in application.asked] == [
            {"id": "sent", "status": "sent", **base},
            {
                "id": "late",
                "status": "deferred",
                **base,
                "error": "451 4.7.1 try later",
                "deferred_until": until_us // S,
            },
            {"id": "refused", "status": "error", **base, "error": "550 5.1.1 no such user"},
            {"id": "faulty", "status": "error", **base, "account": None, "error": "missing to"},
            {"id": "late", "status": "error", **base, "error": "Expired after 5 seconds"},
        ]
        reports = [entry.fact for entry in await facts(store) if isinstance(entry.fact, ResultsReported)]
        assert sum(report.results for report in reports) == 4


async def test_what_was_taken_back_or_only_goes_on_is_not_told(tmp_path, autojump_clock):
    application = Application({})
    async with reporting(tmp_path, application) as (store, _):
        back, marked, more, held = await accept(store, "back", "marked", "more", "held")
        await store.record([Draft(MessageWithdrawn(), message=back, account=1)])
        attempt = await start(store, marked, 1)
        await store.record([Draft(MessageWithdrawn(), message=marked, account=1)])
        fact = AttemptEnded(attempt=attempt, outcomes=(DEFERRED,), next="due", due_us=2 * T0_US)
        await store.record([Draft(fact, message=marked, account=1)])
        await end(store, more, "due", DELIVERED, due_us=T0_US, due_cause="more")
        await end(store, held, "held", Outcome(0, "in_doubt"), cause="in_doubt")
        await trio.sleep(1)
        assert told(application) == []
        assert await store.read(reported_up_to) > 0


async def test_an_outage_of_days_loses_nothing_and_keeps_the_order(tmp_path, autojump_clock, caplog):
    application = Application(*[0, 500, 404, 302] * 3, {})
    async with reporting(tmp_path, application) as (store, _):
        numbers = await accept(store, *[f"id {index}" for index in range(5)])
        for number in numbers:
            await end(store, number, "done", DELIVERED)
        await trio.sleep(1_500)
        assert [each for each, _ in told(application)][12:] == [f"id {index}" for index in range(5)]
        assert {each for each, _ in told(application)[:12]} == {"id 0"} and len(caplog.records) == 12, (
            "a line each time that the trouble is another"
        )


async def test_run_now_forgets_the_back_off(tmp_path, autojump_clock):
    application = Application(0)
    async with reporting(tmp_path, application) as (store, reporter):
        [number] = await accept(store, "a")
        await end(store, number, "done", DELIVERED)
        await trio.sleep(200)
        asked = len(application.asked)
        application.answers = [{}]
        reporter.bell.ring()
        await trio.sleep(0.1)
        assert len(application.asked) == asked + 1 and await store.read(reported_up_to) > 0


async def test_after_a_restart_it_goes_on_at_the_cursor(tmp_path, autojump_clock):
    first, second = Application({}), Application({})
    async with reporting(tmp_path, first) as (store, _):
        numbers = await accept(store, "a", "b", "c")
        await end(store, numbers[0], "done", DELIVERED)
        await trio.sleep(1)
        first.answers = [0]
        await end(store, numbers[1], "done", DELIVERED)
        await trio.sleep(1)
    async with reporting(tmp_path, second) as (store, _):
        await end(store, numbers[2], "done", DELIVERED)
        await trio.sleep(1)
        assert [each for each, _ in told(second)] == ["b", "c"]


async def test_a_crash_tells_some_again_but_never_skips_one(tmp_path, autojump_clock):
    first, second = Application({}), Application({})
    async with reporting(tmp_path, first) as (store, _):
        numbers = await accept(store, *[f"id {index}" for index in range(20)])
        await end(store, numbers[0], "done", DELIVERED)
        await trio.sleep(2)
        for number in numbers[1:]:
            await end(store, number, "done", DELIVERED)
        await trio.sleep(0.5)
        assert len(first.asked) == 20
        # As a crash would: what was told since the cursor last moved is known to nobody.
        store.recorder.shut()
    async with reporting(tmp_path, second) as (store, _):
        await trio.sleep(2)
        again = [each for each, _ in told(second)]
        assert 0 < len(again) < 20 and again == [f"id {index}" for index in range(20 - len(again), 20)]


async def test_a_stop_in_order_tells_nothing_again(tmp_path, autojump_clock):
    first, second = Application({}), Application({})
    async with reporting(tmp_path, first) as (store, _):
        for number in await accept(store, *[f"id {index}" for index in range(20)]):
            await end(store, number, "done", DELIVERED)
        await trio.sleep(0.1)
        assert len(first.asked) == 20
    async with reporting(tmp_path, second):
        await trio.sleep(2)
        assert told(second) == []


class FullAtFirst:
    """A store whose disk is full for the first few facts."""

    def __init__(self, store, times: int) -> None:
        self._store = store
        self.times = times

    async def record(self, drafts):
        self.times -= 1
        if self.times >= 0:
            raise NotRecorded("the disk is full")
        return await self._store.record(drafts)


async def test_a_full_disk_keeps_the_cursor_for_later(tmp_path, autojump_clock):
    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        await save_account(store)
        last = [await end(store, each, "done", DELIVERED) for each in await accept(store, "a", "b")][-1]
        cursor = Cursor(FullAtFirst(store, 3), "test")
        nursery.start_soon(cursor.run)
        cursor.passed(last - 2, 1)
        await trio.sleep(1.5)
        cursor.passed(last, 1)
        await trio.sleep(5)
        assert (await facts(store))[-1].fact == ResultsReported(up_to=last, results=2, by="test")
        nursery.cancel_scope.cancel()


async def test_an_event_that_is_refused_for_a_week_is_given_up(tmp_path, autojump_clock, caplog):
    assert GIVEN_UP_S == 7 * 86_400
    application = Application(lambda asked: 422 if asked.body["id"] == "poison" else {})
    async with reporting(tmp_path, application, given_up_s=600) as (store, _):
        for number in await accept(store, "poison", "next"):
            await end(store, number, "done", DELIVERED)
        await trio.sleep(500)
        assert {each for each, _ in told(application)} == {"poison"}
        await trio.sleep(700)
        assert told(application)[-1] == ("next", "sent")
        assert "given up" in caplog.text


async def test_a_message_queued_again_is_told_twice(tmp_path, autojump_clock):
    application = Application({})
    async with reporting(tmp_path, application) as (store, _):
        [number] = await accept(store, "a")
        await end(store, number, "failed", REFUSED, cause="refused")
        revised = MessageRevised(
            id="a", priority=2, due_us=0, expires_us=2 * T0_US, size=1, recipients=("d0",), reach=(0,), letter="d"
        )
        revision = (await store.record([Draft(revised, message=number, account=1)])).answers[0].seq
        attempt = await start(store, number, 1, revision)
        fact = AttemptEnded(attempt=attempt, outcomes=(DELIVERED,), next="done")
        await store.record([Draft(fact, message=number, account=1)])
        await trio.sleep(1)
        assert told(application) == [("a", "error"), ("a", "sent")]


async def test_without_upstream_the_cursor_follows_once_a_second_at_most(tmp_path, autojump_clock):
    async with opened(tmp_path) as store, trio.open_nursery() as nursery:
        await save_account(store)
        nursery.start_soon(count_as_reported, store)
        numbers = await accept(store, *[f"id {index}" for index in range(40)])
        for number in numbers:
            last = await end(store, number, "done", DELIVERED)
            await trio.sleep(0.1)
        await trio.sleep(2)
        assert await store.read(reported_up_to) == last
        reports = [entry.fact for entry in await facts(store) if isinstance(entry.fact, ResultsReported)]
        assert 4 <= len(reports) <= 12 and sum(report.results for report in reports) == 40
        await trio.sleep(30)
        assert (await kinds(store)).count("ResultsReported") == len(reports), "its own facts are no results"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>thanks</html>", b"x" * 1_000_000])
async def test_any_2xx_of_a_real_server_acknowledges(tmp_path, body):
    asked, told_all, token = [], trio.Event(), trio.lowlevel.current_trio_token()

    def answer(handler):
        asked.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        say(handler, 202, body)
        if len(asked) == 3:
            token.run_sync_soon(told_all.set)

    with served(answer) as url:
        async with opened(tmp_path) as store, httpx.AsyncClient() as client:
            await save_account(store, "main")
            last = [await end(store, each, "done", DELIVERED) for each in await accept(store, "a", "b", "c")][1]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Reporter(store, client, url, random.Random(1)).run)
                await told_all.wait()
                nursery.cancel_scope.cancel()
            assert await store.read(reported_up_to) >= last
    assert [event["id"] for event in asked] == ["a", "b", "c"]
