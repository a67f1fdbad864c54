"""The fetcher: a batch is stored before its token is echoed, and no upstream can hurt it."""

import json
import random
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from actors.fetcher import Fetched, Fetcher, State, follow_up
from actors.ingest import run_ingest
from actors.parse import Policy
from actors.upstream import Trouble

from .application import Application, say, served
from .opened import kinds, message, opened, save_account, states

CHANCE = random.Random(3)


@asynccontextmanager
async def fetching(folder, application: Application, interval_s=60.0, batch_max=1_000):
    """A store with ingest and a fetcher that asks this application: (store, fetcher)."""
    send, receive = trio.open_memory_channel(4)
    async with opened(folder) as store, application.client() as client, trio.open_nursery() as nursery:
        if not store.last_seq:
            await save_account(store)
        nursery.start_soon(run_ingest, receive, store, Policy())
        fetcher = Fetcher(
            client,
            "http://app.example/",
            send,
            store.secrets,
            random.Random(1),
            interval_s=interval_s,
            batch_max=batch_max,
        )
        nursery.start_soon(fetcher.run)
        yield store, fetcher
        nursery.cancel_scope.cancel()


# Pure: given a state, after an outcome, then.


def test_more_messages_are_asked_for_at_once():
    assert follow_up(State(), Fetched(5, more=True, token="t"), 60, CHANCE) == (State("t"), 0)


def test_more_of_nothing_waits_for_the_interval():
    assert follow_up(State(), Fetched(0, more=True), 60, CHANCE) == (State(), 60)


def test_trouble_keeps_the_token_and_waits_longer_each_time():
    state, first = follow_up(State("t"), Trouble("down"), 60, CHANCE)
    state, second = follow_up(state, Trouble("down"), 60, CHANCE)
    assert state == State("t", 2) and 0.8 <= first <= 1 and 1.6 <= second <= 2


def test_the_same_batch_again_after_its_token_was_echoed_is_waited_for():
    state, wait_s = follow_up(State("t"), Fetched(5, more=True, token="t"), 60, CHANCE)
    assert state == State("t", 1) and wait_s > 0.5


# With ingest and a real store.


async def test_batches_come_at_once_while_there_are_more_and_then_every_interval(tmp_path, autojump_clock):
    application = Application(
        {"messages": [message("a"), message("b")], "more_messages": True},
        {"messages": [message("c")]},
        {"messages": []},
    )
    async with fetching(tmp_path, application) as (store, _):
        await trio.sleep(1)
        assert set(await states(store)) == {"a", "b", "c"} and len(application.asked) == 2
        await trio.sleep(60)
        assert len(application.asked) == 3
        assert application.asked[0][:3] == ("GET", "/fetch-messages", {})


async def test_a_token_is_echoed_once_its_batch_is_stored(tmp_path, autojump_clock):
    application = Application({"messages": [message("a")], "token": "one &", "more_messages": True}, {"messages": []})
    async with fetching(tmp_path, application) as (store, _):
        await trio.sleep(61)
        assert [asked.query for asked in application.asked] == [{}, {"token": "one &"}, {}]
        assert "one" not in str(await kinds(store))


async def test_a_batch_offered_again_is_stored_once(tmp_path, autojump_clock):
    offered = {"messages": [message("a"), {"id": "b"}], "token": 7, "more_messages": True}
    for _ in range(2):
        application = Application(offered)
        async with fetching(tmp_path, application) as (store, _):
            await trio.sleep(30)
            # Offered again and again although its token was echoed: it is asked less and less often.
            assert 3 <= len(application.asked) <= 8
            log = await kinds(store)
            assert (log.count("BatchFetched"), log.count("MessageAccepted"), log.count("MessageRejected")) == (1, 1, 1)


async def test_a_large_batch_without_a_token_goes_in_several(tmp_path, autojump_clock):
    application = Application({"messages": [message(f"id {index}") for index in range(25)]}, {})
    async with fetching(tmp_path, application, batch_max=10) as (store, _):
        await trio.sleep(1)
        assert len(await states(store)) == 25


@pytest.mark.parametrize(
    "answer",
    [0, 500, 404, b"<html>busy</html>", b"", b"[]", b'{"messages":5}', b'{"messages":[', b"\xff\xfe", b"[" * 100_000],
)
async def test_whatever_is_no_batch_is_a_line_and_a_longer_wait(tmp_path, autojump_clock, caplog, answer):
    application = Application(answer)
    async with fetching(tmp_path, application) as (store, fetcher):
        await trio.sleep(400)
        times = len(application.asked)
        assert 9 <= times <= 10 and store.last_seq == 1
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1 and lines[0].startswith("http://app.example/fetch-messages: ")
        application.answers = [{"messages": [message("a")]}]
        fetcher.bell.ring()
        await trio.sleep(1)
        assert await states(store) == {"a": "waiting"}


async def test_run_now_asks_at_once_and_forgets_the_back_off(tmp_path, autojump_clock):
    application = Application(0)
    async with fetching(tmp_path, application) as (_, fetcher):
        await trio.sleep(100)
        asked = len(application.asked)
        fetcher.bell.ring()
        await trio.sleep(4)
        assert len(application.asked) == asked + 3


async def test_faulty_messages_are_rejected_and_the_rest_taken(tmp_path, autojump_clock):
    application = Application({"messages": [message("a"), {}, 5, {"id": "c", "to": 5}]}, {})
    async with fetching(tmp_path, application) as (store, _):
        await trio.sleep(1)
        assert await states(store) == {"a": "waiting", "c": "rejected"}


async def test_what_cannot_be_stored_is_not_confirmed(tmp_path, autojump_clock):
    application = Application({"messages": [message("a")], "token": "t"})
    async with fetching(tmp_path, application) as (store, _):
        store.recorder.shut()
        await trio.sleep(30)
        assert len(application.asked) > 3 and not any(asked.query for asked in application.asked)


async def test_it_fetches_from_a_real_server(tmp_path):
    body = json.dumps({"messages": [message("a")], "token": "t"}).encode()
    send, receive = trio.open_memory_channel(1)
    with served(lambda handler: say(handler, 200, body)) as url:
        import httpx

        async with opened(tmp_path) as store, httpx.AsyncClient() as client, trio.open_nursery() as nursery:
            await save_account(store)
            nursery.start_soon(run_ingest, receive, store, Policy())
            fetcher = Fetcher(client, url, send, store.secrets, CHANCE, interval_s=60)
            assert await fetcher.fetch(None) == Fetched(1, token="t")
            assert await fetcher.fetch("t") == Fetched(1, token="t")
            assert await kinds(store, 1) == ["BatchFetched", "MessageAccepted"]
            nursery.cancel_scope.cancel()


async def test_nothing_is_asked_for_while_no_mail_is_taken(tmp_path):
    async with opened(tmp_path) as store, httpx.AsyncClient() as client:
        send, _ = trio.open_memory_channel(1)
        fetcher = Fetcher(
            client, "http://127.0.0.1:1", send, store.secrets, CHANCE, interval_s=60, accepting=lambda: False
        )
        outcome = await fetcher.fetch(None)
        assert isinstance(outcome, Trouble) and "no mail is taken" in outcome.text
