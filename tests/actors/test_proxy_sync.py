"""The side that starts, and the stream of reports in both directions, over a real store under virtual time."""

import random
from contextlib import asynccontextmanager

import pytest
import trio

from actors.fetcher import UPSTREAM
from actors.ingest import run_ingest
from actors.parse import Policy
from actors.proxy_sync import Reports, Syncer, understood
from actors.upstream import Answered, Line, Trouble
from events.exchange import Heard
from events.report import ResultsReported
from store.worklists import reported_up_to

from .application import Application
from .opened import facts, kinds, message, opened, save_account, states, submit
from .test_batch_reporter import deliver

URL = "http://app.example/sync"


@asynccontextmanager
async def syncing(folder, application: Application, batch=1_000, **fields):
    send, receive = trio.open_memory_channel(4)
    async with opened(folder) as store, application.client() as client, trio.open_nursery() as nursery:
        await save_account(store)
        nursery.start_soon(run_ingest, receive, store, Policy())
        reports = Reports(store, batch)
        fields = {"line": Line(), "interval_s": 60.0, **fields}
        syncer = Syncer(store, client, URL, send, reports, random.Random(1), **fields)
        nursery.start_soon(syncer.run)
        yield store, reports, syncer
        nursery.cancel_scope.cancel()


def said(application, *names):
    return [tuple(asked.body[name] for name in names) for asked in application.asked]


class Side:
    """An upstream that confirms and acknowledges as it should: `offers` are its batches by token."""

    def __init__(self, *offers):
        self.offers = list(offers)
        self.reports = []

    def __call__(self, asked):
        if self.offers and asked.body["confirm"] == self.offers[0][0]:
            self.offers.pop(0)
        self.reports += [each["id"] for each in asked.body["delivery_report"]]
        token, messages = self.offers[0] if self.offers else (None, [])
        return {"log": asked.body["log"], "messages": messages, "token": token,
                "ack_cursor": asked.body["report_cursor"]}  # fmt: skip


async def test_batches_are_stored_and_confirmed_one_after_the_other_at_once(tmp_path, autojump_clock):
    side = Side(("t1", [message("a")]), (2, [message("b"), {"id": "faulty"}]), ("t3", []))
    application = Application(side)
    async with syncing(tmp_path, application, sync_token="S") as (store, _, _):
        await trio.sleep(1)
        assert said(application, "confirm", "sync_token") == [(None, "S"), ("t1", "S"), (2, "S"), ("t3", "S")]
        assert await states(store) == {"a": "waiting", "b": "waiting", "faulty": "rejected"}
        assert (await kinds(store)).count("BatchFetched") == 3
        await trio.sleep(58)
        assert side.reports == ["faulty"], "a rejection is reported, as any result"
        assert said(application, "messages", "token", "ack_cursor")[0] == ([], None, None)
        exchanges = len(application.asked)
        await trio.sleep(61)
        assert len(application.asked) == exchanges + 1, "the next when the interval is over"


async def test_a_batch_that_is_offered_again_is_confirmed_and_not_stored_twice(tmp_path, autojump_clock, caplog):
    offer = {"messages": [message("a")], "token": "t", "log": "x"}
    application = Application(offer)
    async with syncing(tmp_path, application) as (store, _, _):
        await trio.sleep(30)
        assert (await kinds(store)).count("MessageAccepted") == (await kinds(store)).count("BatchFetched") == 1
        assert 3 <= len(application.asked) <= 8, "it never heeds the confirmation, and is asked less and less often"
        assert {confirm for (confirm,) in said(application, "confirm")} == {None, "t"}
        assert len(caplog.records) == 1 and "offers again" in caplog.text


async def test_reports_go_soon_and_are_offered_until_they_are_acknowledged(tmp_path, autojump_clock):
    application = Application({"log": None})
    async with syncing(tmp_path, application, batch=2) as (store, _, syncer):
        await trio.sleep(2)
        _, b, c = await deliver(store, "a", "b", "c")
        await trio.sleep(2)
        told = [[each["id"] for each in reports] for (reports,) in said(application, "delivery_report")]
        assert told == [[], ["a", "b"]] and said(application, "report_cursor") == [(0,), (b,)]
        application.answers = [Side()]
        syncer.bell.ring()
        await trio.sleep(1)
        assert said(application, "report_cursor")[2:] == [(b,), (c,)] and await store.read(reported_up_to) == c
        reports = [entry.fact for entry in await facts(store) if isinstance(entry.fact, ResultsReported)]
        assert [(each.up_to, each.results, each.by) for each in reports] == [(b, 2, "proxySync"), (c, 1, "proxySync")]
        await trio.sleep(61)
        assert said(application, "report_cursor")[-1] == (c,), "with nothing to tell, the last acknowledged"


async def test_an_acknowledgement_passes_only_what_was_offered_in_this_log(tmp_path, autojump_clock):
    application = Application({})
    async with syncing(tmp_path, application, test_mode=True) as (store, reports, _):
        a, b = await deliver(store, "a", "b")
        await reports.hear(Heard(log=store.log_id, ack_cursor=b))
        assert await store.read(reported_up_to) == 0, "nothing was offered yet"
        half = await reports.exchange(Heard())
        assert [each["id"] for each in half["delivery_report"]] == ["a", "b"] and half["report_cursor"] == b
        [late] = await deliver(store, "late")
        await reports.hear(Heard(log="another", ack_cursor=b))
        assert await store.read(reported_up_to) == 0
        await reports.hear(Heard(log=store.log_id, ack_cursor=late + 99))
        assert await store.read(reported_up_to) == b, "and not what came since"
        await reports.hear(Heard(log=store.log_id, ack_cursor=a))
        assert await store.read(reported_up_to) == b
        assert application.asked == [], "in test mode nothing starts of itself"


async def test_both_directions_at_once_store_a_batch_once_and_move_one_cursor(tmp_path, autojump_clock):
    """The same token comes in our answer and in a request of its own, while both acknowledge."""
    side = Side(("t", [message("a")]))
    application = Application(side)
    async with syncing(tmp_path, application) as (store, reports, syncer):
        [done] = await deliver(store, "done")
        async with trio.open_nursery() as both:

            async def served():
                half = await reports.exchange(Heard())
                await submit(syncer._submissions, message("a"), token=store.secrets.token_digest("t"))
                await reports.hear(Heard(log=store.log_id, ack_cursor=half["report_cursor"]))

            for _ in range(3):
                both.start_soon(served)
                both.start_soon(syncer.exchange)
        assert (await kinds(store)).count("MessageAccepted") == 2 and (await kinds(store)).count("BatchFetched") == 1
        assert await store.read(reported_up_to) == done


async def test_while_no_mail_is_taken_reports_go_and_nothing_is_confirmed(tmp_path, autojump_clock, caplog):
    taken = False
    side = Side(("t", [message("a")]))
    application = Application(side)
    async with syncing(tmp_path, application, accepting=lambda: taken) as (store, _, _):
        await deliver(store, "done")
        await trio.sleep(10)
        assert side.reports[:1] == ["done"] and "a" not in await states(store)
        assert {confirm for (confirm,) in said(application, "confirm")} == {None}
        taken = True
        await trio.sleep(20)
        assert (await states(store))["a"] == "waiting"


WRONG = [0, 500, b"<html>", b"", b"[]", b"[" * 100_000, {"messages": 5}, {"messages": [message("a")]},
         {"messages": [message("a")] * 3, "token": "t"}, {"ack_cursor": "9"}]  # fmt: skip


@pytest.mark.parametrize("answer", WRONG, ids=[f"{each}"[:30] for each in WRONG])
async def test_whatever_is_no_exchange_is_one_line_and_a_longer_wait(tmp_path, autojump_clock, caplog, answer):
    application = Application(answer)
    async with syncing(tmp_path, application, batch_max=2) as (store, _, _):
        await trio.sleep(400)
        assert 9 <= len(application.asked) <= 10 and await states(store) == {}
        assert len(caplog.records) == 1 and caplog.records[0].getMessage().startswith(f"{URL}: ")


def test_an_answer_that_is_too_long_is_trouble():
    assert isinstance(understood(Answered(b"{}", whole=False), 9), Trouble)
    assert understood(Answered(b"{}"), 9) == Heard() and UPSTREAM == "upstream"
