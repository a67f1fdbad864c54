"""Results in batches: oldest first, one request at a time, nothing lost, and what is refused by name offered again."""

import json
import logging
import random
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import trio

from actors.batch_reporter import (
    ANSWER_BYTES_MAX,
    KEEP_ALIVE_S,
    BatchReporter,
    Taken,
    again_in_us,
    understood,
)
from actors.reporter import GIVEN_UP_S
from actors.retention import Retention
from actors.upstream import Answered, Line, Trouble, credentials
from events.fact import OWN, Draft
from events.message import MessageRejected
from events.report import ReportRefused, ReportSettled, ResultsReported
from events.values import Outcome
from store.reading import reported_us
from store.worklists import reported_up_to

from .application import Application, say, served
from .opened import T0_US, facts, opened, rows, save_account
from .test_reporter import DELIVERED, REFUSED, FullAtFirst, accept, end

HOUR_S = 3_600
DAY_S = 86_400
URL = "http://app.example/sync"


@asynccontextmanager
async def reporting(folder, application: Application, **fields):
    async with opened(folder) as store, application.client() as client, trio.open_nursery() as nursery:
        if not store.last_seq:
            await save_account(store, "main")
        reporter = BatchReporter(store, client, URL, random.Random(1), **{"line": Line(), **fields})
        nursery.start_soon(reporter.run)
        yield store, reporter
        nursery.cancel_scope.cancel()


async def deliver(store, *ids: str) -> list[int]:
    return [await end(store, number, "done", DELIVERED) for number in await accept(store, *ids)]


def told(application: Application) -> list[list[str]]:
    """The ids of each request."""
    return [[each["id"] for each in asked.body["delivery_report"]] for asked in application.asked]


# What an answer means


REFUSES = [
    (b'{"rejected":["a",{"id":"b"},7,{"x":1},null,{"id":9}]}', {"a", "b"}, False),
    (b'{"error":[{"id":"c","reason":"unknown"}],"rejected":["a"]}', {"a", "c"}, False),
    (b'{"rejected":3,"error":"a"}', set(), False),
    (b'{"rejected":{"id":"a"},"error":null}', set(), False),
    (b'{"queued":1}', set(), True),
    (b'{"queued":0}', set(), False),
    (b'{"queued":true}', set(), False),
    (b'{"queued":"9"}', set(), False),
    (b'{"more_messages":true}', set(), True),
    (b'{"more_messages":"yes"}', set(), False),
    (b"", set(), False),
    (b"OK", set(), False),
    (b"[]", set(), False),
    (b'["a"]', set(), False),
    (b"<html>thanks</html>", set(), False),
    (b"\xff", set(), False),
    (b"[" * 500_000, set(), False),
]


@pytest.mark.parametrize(("body", "refused", "mail"), REFUSES, ids=[f"{body[:40]}" for body, _, _ in REFUSES])
def test_any_2xx_acknowledges_all_but_the_ids_that_it_names(body, refused, mail):
    assert understood(Answered(body)) == Taken(frozenset(refused), mail)


def test_an_answer_that_is_too_long_to_be_read_acknowledges_nothing():
    assert isinstance(understood(Answered(b"x" * 9, whole=False)), Trouble)
    assert understood(Trouble("down")) == Trouble("down")


def test_what_is_refused_comes_again_after_as_long_as_it_was_refused_within_bounds():
    chance = random.Random(2)
    for refused_s, least, most in ((0, 48, 60), (600, 480, 600), (5 * DAY_S, 0.8 * DAY_S, DAY_S)):
        waits = [again_in_us(refused_s * 1_000_000, chance) / 1e6 for _ in range(50)]
        assert least <= min(waits) < max(waits) <= most


def test_a_bearer_is_shown_before_a_name():
    assert credentials("t", "u", "p") == {"authorization": "Bearer t"}
    assert credentials("", "u", "p") == {"authorization": "Basic dTpw"}
    assert credentials("", None, "") == {}


# Telling


async def test_results_go_in_the_contracts_shape_nulls_included_oldest_first(tmp_path, autojump_clock):
    application = Application({})
    async with reporting(tmp_path, application) as (store, _):
        await trio.sleep(1)
        assert told(application) == [[]], "an empty one at the start"
        sent, refused = await accept(store, "sent", "refused")
        await end(store, refused, "failed", REFUSED, words="no such user", cause="refused")
        await end(store, sent, "done", DELIVERED)
        await store.record([Draft(MessageRejected(id="faulty", reason="missing to"), message=OWN)])
        await trio.sleep(2)
        assert [asked[:3] for asked in application.asked] == [("POST", "/sync", {})] * len(application.asked)
        moment = T0_US // 1_000_000 + 1
        nothing = {"sent_ts": None, "error_ts": None, "error": None, "deferred_ts": None}
        assert [each for asked in application.asked for each in asked.body["delivery_report"]] == [
            nothing
            | {
                "id": "refused",
                "account_id": "main",
                "priority": 2,
                "error_ts": moment,
                "error": "550 5.1.1 no such user",
            },
            nothing | {"id": "sent", "account_id": "main", "priority": 2, "sent_ts": moment},
            nothing | {"id": "faulty", "account_id": None, "priority": 2, "error_ts": moment, "error": "missing to"},
        ]
        reports = [entry.fact for entry in await facts(store) if isinstance(entry.fact, ResultsReported)]
        assert sum(report.results for report in reports) == 3
        assert reports[-1].up_to == await store.read(reported_up_to)


async def test_many_results_go_in_batches_of_the_size_that_is_set_one_after_the_other(tmp_path, autojump_clock):
    class Slow(Application):
        open = 0

        def client(self):
            async def handle(request):
                assert self.open == 0, "one request at a time"
                self.open += 1
                await trio.sleep(3)
                self.open -= 1
                return httpx.Response(200, content=self.answer("POST", request.url, request.content)[1])

            return httpx.AsyncClient(transport=httpx.MockTransport(handle))

    application = Slow({})
    async with reporting(tmp_path, application, batch_max=3) as (store, _):
        ids = [f"m{index}" for index in range(8)]
        await deliver(store, *ids)
        await trio.sleep(30)
        batches = [batch for batch in told(application) if batch]
        assert [len(batch) for batch in batches] == [3, 3, 2] and [each for batch in batches for each in batch] == ids


async def test_an_empty_one_goes_every_five_minutes_and_a_result_at_once(tmp_path, autojump_clock):
    application = Application({})
    async with reporting(tmp_path, application) as (store, _):
        await trio.sleep(2 * KEEP_ALIVE_S + 1)
        assert told(application) == [[]] * 3
        await deliver(store, "a")
        await trio.sleep(0.1)
        assert told(application)[3:] == [["a"]]
        await trio.sleep(KEEP_ALIVE_S - 1)
        assert len(application.asked) == 4
        await trio.sleep(2)
        assert told(application)[4:] == [[]]


async def test_mail_that_waits_there_is_fetched_at_once(tmp_path, autojump_clock):
    rung = []
    application = Application({"queued": 0}, {"queued": 2}, {"more_messages": True}, {})
    async with reporting(tmp_path, application, mail_waits=lambda: rung.append(trio.current_time())):
        await trio.sleep(3 * KEEP_ALIVE_S + 1)
        assert len(rung) == 2


async def test_an_outage_loses_nothing_keeps_the_order_and_says_so_once_an_hour(tmp_path, autojump_clock, caplog):
    caplog.set_level(logging.INFO, "letterbook")
    application = Application(0)
    line = Line()
    async with reporting(tmp_path, application, batch_max=2, line=line) as (store, _):
        await deliver(store, "a", "b", "c")
        await trio.sleep(3 * HOUR_S)
        calls = len(application.asked)
        assert 3 * HOUR_S / 300 <= calls < 3 * HOUR_S / 300 * 1.5 and line.failing
        assert len(caplog.records) == 3
        application.answers = [{}]
        await trio.sleep(301)
        assert [batch for batch in told(application)[calls:] if batch] == [["a", "b"], ["c"]]
        assert not line.failing and caplog.records[-1].getMessage() == f"{URL} answers again"


async def test_run_now_forgets_the_back_off(tmp_path, autojump_clock):
    application = Application(500)
    async with reporting(tmp_path, application) as (store, reporter):
        await deliver(store, "a")
        await trio.sleep(1000)
        application.answers = [{}]
        calls = len(application.asked)
        reporter.bell.ring()
        await trio.sleep(0.1)
        assert told(application)[calls:] == [["a"]]


async def test_results_that_come_during_a_back_off_do_not_cut_it_short(tmp_path, autojump_clock):
    application = Application(0)
    async with reporting(tmp_path, application) as (store, _):
        await trio.sleep(2_000)
        calls = len(application.asked)
        for index in range(20):
            await deliver(store, f"m{index}")
            await trio.sleep(0.1)
        assert len(application.asked) <= calls + 1


async def test_in_test_mode_nothing_goes_before_it_is_rung(tmp_path, autojump_clock):
    application = Application({})
    async with reporting(tmp_path, application, test_mode=True, batch_max=2) as (store, reporter):
        await deliver(store, "a", "b", "c")
        await trio.sleep(HOUR_S)
        assert told(application) == []
        reporter.bell.ring()
        await trio.sleep(1)
        assert told(application) == [["a", "b"], ["c"]]
        await deliver(store, "d")
        application.answers = [0]
        await trio.sleep(HOUR_S)
        assert len(application.asked) == 2
        reporter.bell.ring()
        await trio.sleep(HOUR_S)
        assert told(application)[2:] == [["d"]], "trouble waits to be rung too"


async def test_after_a_restart_it_goes_on_at_the_cursor(tmp_path, autojump_clock):
    first, second = Application({}), Application({})
    async with reporting(tmp_path, first) as (store, _):
        await deliver(store, "a")
        await trio.sleep(1)
        first.answers = [0]
        await deliver(store, "b")
        await trio.sleep(1)
    async with reporting(tmp_path, second):
        await trio.sleep(1)
        assert told(second) == [["b"]]


async def test_what_was_taken_and_cannot_be_recorded_is_told_again(tmp_path, autojump_clock, caplog):
    application = Application({})
    async with reporting(tmp_path, application) as (store, reporter):
        await trio.sleep(1)
        full = FullAtFirst(store, 2)
        reporter._store = _Through(store, full)
        await deliver(store, "a")
        await trio.sleep(10)
        assert told(application)[1:] == [["a"]] * 3
        assert "cannot be recorded now" in caplog.text and await store.read(reported_up_to) > 0


class _Through:
    def __init__(self, store, full):
        self._store, self.record = store, full.record

    def __getattr__(self, name):
        return getattr(self._store, name)


# Refused by name


def refusing(*names: str):
    return lambda asked: {"rejected": [each["id"] for each in asked.body["delivery_report"] if each["id"] in names]}


async def test_what_is_refused_is_passed_and_offered_again_until_it_is_taken(tmp_path, autojump_clock):
    application = Application(refusing("poison"))
    async with reporting(tmp_path, application) as (store, _):
        poison, good = await deliver(store, "poison", "good")
        await trio.sleep(3)
        assert await store.read(reported_up_to) == good
        assert await store.read(reported_us, poison) is None and await store.read(reported_us, good)
        await trio.sleep(600)
        offered = sum("poison" in batch for batch in told(application))
        assert 3 <= offered <= 6
        application.answers = [{}]
        await trio.sleep(900)
        assert sum("poison" in batch for batch in told(application)) == offered + 1
        assert await store.read(reported_us, poison)
        (settled,) = [entry.fact for entry in await facts(store) if isinstance(entry.fact, ReportSettled)]
        assert settled == ReportSettled(result=poison)


async def test_what_is_refused_has_at_most_half_of_a_batch(tmp_path, autojump_clock):
    application = Application(refusing("p0", "p1", "p2", "p3"))
    async with reporting(tmp_path, application, batch_max=4) as (store, reporter):
        await deliver(store, "p0", "p1", "p2", "p3")
        await trio.sleep(5)
        application.answers = [0]
        reporter.bell.ring()
        await trio.sleep(1_000)
        await deliver(store, "a", "b", "c")
        application.answers = [refusing("p0", "p1", "p2", "p3")]
        calls = len(application.asked)
        await trio.sleep(300)
        first, second, *_ = told(application)[calls:]
        assert [each[0] for each in first] == ["p", "p", "a", "b"] and second[-1] == "c"


async def test_what_is_refused_for_a_week_is_given_up_with_a_line_and_a_count(tmp_path, autojump_clock, caplog):
    application = Application(refusing("poison"))
    line = Line()
    assert GIVEN_UP_S == 7 * DAY_S
    async with reporting(tmp_path, application, line=line, given_up_s=HOUR_S) as (store, _):
        await deliver(store, "poison")
        await trio.sleep(HOUR_S - 1)
        assert line.given_up == 0 and "given up" not in caplog.text
        refusals = [entry for entry in await facts(store) if isinstance(entry.fact, ReportRefused)]
        assert 5 <= len(refusals) <= 9, "after twice as long each time"
        await trio.sleep(1.2 * HOUR_S)
        assert line.given_up == 1
        assert f"{URL}: 1 reports are given up, refused for too long: poison" in caplog.text
        offered = len([batch for batch in told(application) if batch])
        await trio.sleep(HOUR_S)
        assert len([batch for batch in told(application) if batch]) == offered
        assert await rows(store, "select seq from refused where settled_us is null") == []


async def test_refusals_outlast_a_restart(tmp_path, autojump_clock):
    first, second = Application(refusing("poison")), Application({})
    async with reporting(tmp_path, first) as (store, _):
        await deliver(store, "poison", "good")
        await trio.sleep(2)
    async with reporting(tmp_path, second):
        await trio.sleep(120)
        assert [batch for batch in told(second) if batch] == [["poison"]]


async def test_retention_keeps_what_is_refused_and_counts_from_when_it_was_settled(tmp_path, autojump_clock):
    application = Application(refusing("poison"))
    keep_s = HOUR_S
    async with reporting(tmp_path, application) as (store, reporter), trio.open_nursery() as nursery:
        nursery.start_soon(Retention(store, keep_s).run)

        async def there():
            return {name for (name,) in await rows(store, "select id from results")}

        await deliver(store, "before", "poison", "after")
        await trio.sleep(keep_s - 120)
        assert await there() == {"before", "poison", "after"}
        await trio.sleep(240)
        assert await there() == {"poison", "after"}
        await trio.sleep(HOUR_S / 2)
        application.answers = [{}]
        reporter.bell.ring()
        await trio.sleep(keep_s - 120)
        assert await there() == {"poison", "after"}, "kept as long after it was taken"
        await trio.sleep(240)
        assert await there() == set() and await rows(store, "select * from refused") == []
        nursery.cancel_scope.cancel()


# An upstream that is wrong, over real sockets


def html(handler):
    say(handler, 500, b"<html>busy</html>", "text/html")


def long(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(4_000):
        handler.wfile.write(b"x" * 65_536)


def endless_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        handler.wfile.write(b"X-Filler: " + b"y" * 4_000 + b"\r\n")


def zipped(handler):
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.close_connection = True


def elsewhere(handler):
    handler.send_response(307)
    handler.send_header("Location", "http://169.254.0.1/")
    handler.end_headers()


def hang_up(handler):
    handler.close_connection = True


@pytest.mark.parametrize("answer", [html, long, endless_headers, zipped, elsewhere, hang_up])
async def test_an_upstream_that_is_wrong_acknowledges_nothing_and_is_one_line(tmp_path, caplog, answer):
    with served(answer) as url:
        async with opened(tmp_path) as store, httpx.AsyncClient() as client:
            await save_account(store)
            number = (await accept(store, "a"))[0]
            await end(store, number, "done", DELIVERED)
            line = Line()
            reporter = BatchReporter(store, client, url, random.Random(1), line=line)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reporter.run)
                with trio.fail_after(60):
                    while not line.failing:
                        await trio.sleep(0.01)
                    reporter.bell.ring()
                    while reporter._failures != 1 or not line.failing:
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            assert await store.read(reported_up_to) == 0
    assert len(caplog.records) == 1 and caplog.records[0].getMessage().startswith(url)


async def test_the_real_answer_over_a_real_socket(tmp_path):
    shown = []

    def answer(handler):
        shown.append((handler.headers["Authorization"], handler.headers["Content-Type"]))
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        say(handler, 202, msgspec.json.encode({"rejected": [each["id"] for each in body["delivery_report"]]}))

    with served(answer) as url:
        async with opened(tmp_path) as store, httpx.AsyncClient() as client, trio.open_nursery() as nursery:
            await save_account(store)
            number = (await accept(store, "a"))[0]
            await end(store, number, "failed", Outcome(0, "refused", 550), cause="refused")
            headers = credentials("secret", None, "")
            nursery.start_soon(BatchReporter(store, client, url, random.Random(1), line=Line(), headers=headers).run)
            with trio.fail_after(60):
                while not await rows(store, "select seq from refused"):
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert shown == [("Bearer secret", "application/json")]
    assert ANSWER_BYTES_MAX == 1_000_000
