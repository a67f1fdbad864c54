"""The live stream over a real websocket: in order, without gap or repeat, to clients of every manner."""

import json
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
from trio_websocket import ConnectionClosed, open_websocket_url

from events.account import AccountPaused
from events.fact import Draft
from gateway import settings
from gateway.stream import Streams
from gateway.watching import Watch

from .service import TOKEN, running

HEADERS = [("X-API-Token", TOKEN)]


@asynccontextmanager
async def streaming(service, query="", headers=HEADERS):
    """A client's websocket; its `take(n)` gives the next n facts, heartbeats apart."""
    url = f"ws://127.0.0.1:{service.port}/events/stream{query}"
    with trio.fail_after(30):
        async with open_websocket_url(url, extra_headers=headers) as socket:
            try:
                yield socket
            finally:
                if socket.closed:  # then the library leaves its side open
                    await trio.aclose_forcefully(socket._stream)


async def take(socket, count):
    events = []
    while len(events) < count:
        frame = json.loads(await socket.get_message())
        events += frame.get("events", [] if "heartbeat" in frame else [frame])
    assert len(events) == count
    return events


def seqs(events):
    return [event["seq"] for event in events]


async def test_a_heartbeat_at_once_then_every_fact_from_now_on(tmp_path):
    async with running(tmp_path) as service:
        await service.send("before")
        seq = service.store.last_seq
        async with streaming(service) as socket:
            assert json.loads(await socket.get_message()) == {"heartbeat": seq, "log": service.store.log_id}
            await service.send("a")
            events = await take(socket, 3)
        assert seqs(events) == [seq + 1, seq + 2, seq + 3]
        assert [event["kind"] for event in events] == ["MessageAccepted", "AttemptStarted", "AttemptEnded"]
        assert events[0]["message_id"] == "a" and events[0]["account_id"] == "default"


async def test_frames_are_exactly_what_events_gives(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.refuse("a")
        for expand in ("", "&expand=1"):
            async with streaming(service, f"?after=0{expand}") as socket:
                streamed = await take(socket, 4)
            assert streamed == (await client.get(f"/events?after=0{expand}")).json()["events"]


@pytest.mark.parametrize("batch", ["", "&batch=1"])
async def test_a_client_that_comes_back_misses_nothing_and_sees_nothing_twice(tmp_path, batch):
    async with running(tmp_path) as service:
        await service.account("default")
        seen = []

        async def write():
            for index in range(15):
                await service.send(f"m{index}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while len(seen) < 46:
                after = seen[-1] if seen else 0
                async with streaming(service, f"?after={after}{batch}") as socket:
                    for _ in range(4):
                        with trio.move_on_after(1):
                            frame = json.loads(await socket.get_message())
                            seen += seqs(frame.get("events", [] if "heartbeat" in frame else [frame]))
        assert seen == list(range(1, 47))


async def test_batches_are_bounded(tmp_path):
    async with running(tmp_path) as service:
        await service.account("default")
        await service.store.record([Draft(AccountPaused(), account=1)])
        for index in range(0, 600, 100):
            await service.store.record([Draft(type(fact)(), account=1) for fact in _pauses(index)])
        async with streaming(service, "?after=0&batch=1") as socket:
            sizes = []
            while sum(sizes) < service.store.last_seq:
                frame = json.loads(await socket.get_message())
                sizes.append(len(frame.get("events", ())))
        assert max(sizes) <= settings.FRAME_FACTS_MAX and sum(sizes) == service.store.last_seq > 500


def _pauses(index):
    from events.account import AccountResumed

    return [AccountResumed(), AccountPaused()] * 50


async def test_filters_by_kind_account_and_message(tmp_path):
    async with running(tmp_path) as service:
        await service.account("other")
        async with (
            streaming(service, "?after=0&kind=AttemptEnded") as by_kind,
            streaming(service, "?after=0&account_id=other") as by_account,
            streaming(service, "?after=0&message_id=b") as by_message,
        ):
            await service.send("a")
            await service.accept("x", "other")
            await service.send("b")
            assert [event["message_id"] for event in await take(by_kind, 2)] == ["a", "b"]
            assert [event["kind"] for event in await take(by_account, 2)] == ["AccountSaved", "MessageAccepted"]
            assert {event["message_id"] for event in await take(by_message, 3)} == {"b"}
        async with streaming(service, "?after=0&message_id=b") as socket:
            assert len(await take(socket, 3)) == 3


async def test_an_account_that_is_new_is_streamed_though_the_stream_is_first_to_see_it(tmp_path, monkeypatch):
    take_it = Watch._take
    held = []
    monkeypatch.setattr(Watch, "_take", lambda watch, batch: held.append(partial(take_it, watch, batch)))
    async with (
        running(tmp_path) as service,
        streaming(service, "?after=0&account_id=new") as filtered,
        streaming(service, "?after=0") as whole,
    ):
        await service.account("new")
        await trio.sleep(0.1)
        for each in held:
            each()
        for socket in (filtered, whole):
            (event,) = await take(socket, 1)
            assert event["kind"] == "AccountSaved" and event["account_id"] == "new"


async def test_a_message_that_is_accepted_while_its_stream_begins_is_shown(tmp_path, monkeypatch):
    number_of = Streams._number

    async def accepted_meanwhile(streams, message_id):
        number = await number_of(streams, message_id)
        await service.accept("m")
        return number

    monkeypatch.setattr(Streams, "_number", accepted_meanwhile)
    async with running(tmp_path) as service:
        await service.account("default")
        async with streaming(service, "?message_id=m") as socket:
            (event,) = await take(socket, 1)
        assert event["kind"] == "MessageAccepted"


async def test_a_heartbeat_says_how_far_a_filtered_stream_has_come(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.stream.HEARTBEAT_S", 0.05)
    async with running(tmp_path) as service, streaming(service, "?after=0&kind=ClockStepped") as socket:
        await service.send("a")
        beat = 0
        while beat < service.store.last_seq:
            beat = json.loads(await socket.get_message())["heartbeat"]


async def test_what_clients_send_is_ignored_up_to_a_bound(tmp_path):
    async with running(tmp_path) as service:
        await service.account("default")
        async with streaming(service) as socket:
            for _ in range(50):
                await socket.send_message("hello")
            await socket.send_message(b"")
            await service.send("a")
            await take(socket, 3)
            with pytest.raises(ConnectionClosed):
                await socket.send_message("x" * 70_000)
                while True:
                    await socket.get_message()
            assert socket.closed.code == 1009


async def test_a_client_that_does_not_answer_a_close_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr("gateway.server.CLOSE_S_MAX", 0.1)
    async with running(tmp_path) as service:
        await service.account("default")
        got = b""
        async with await trio.open_tcp_stream("127.0.0.1", service.port) as stream:
            await stream.send_all(OPENING % TOKEN.encode())
            assert b" 101 " in await stream.receive_some()
            # A text frame of 2^20 bytes, of which 70,000 come.
            frame = b"\x81\xff\x00\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00"
            await stream.send_all(frame + b"x" * 70_000)
            with trio.fail_after(30), suppress(trio.BrokenResourceError):
                while data := await stream.receive_some():
                    got += data
            with trio.fail_after(30):
                while service.door.streams:
                    await trio.sleep(0.01)
        assert b"\x88\x02\x03\xf1" in got


async def test_a_client_that_sends_before_the_upgrade_is_refused_and_leaves_nothing_behind(tmp_path):
    async with running(tmp_path) as service:
        await service.account("default")
        got = b""
        async with await trio.open_tcp_stream("127.0.0.1", service.port) as stream:
            await stream.send_all(OPENING % TOKEN.encode() + b"\x81\x80\x00\x00\x00\x00")
            with trio.fail_after(30), suppress(trio.BrokenResourceError):
                while data := await stream.receive_some():
                    got += data
            with trio.fail_after(30):
                while service.door.streams:
                    await trio.sleep(0.01)
        assert b" 400 " in got and b'"ok":false' in got


async def test_compression_is_not_offered(tmp_path):
    async with running(tmp_path) as service:
        stream = await trio.open_tcp_stream("127.0.0.1", service.port)
        wish = b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
        await stream.send_all((OPENING % TOKEN.encode()).removesuffix(b"\r\n\r\n") + wish)
        with trio.fail_after(30):
            answer = await stream.receive_some()
        assert b" 101 " in answer and b"extensions" not in answer.lower()
        await trio.aclose_forcefully(stream)


OPENING = (
    b"GET /events/stream?after=0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-API-Token: %s\r\n\r\n"
)


async def test_refusals_before_the_upgrade_are_the_json_error(tmp_path):
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        for query, headers, status in (
            ("", {"X-API-Token": ""}, 401),
            ("", {"X-API-Token": "wrong"}, 401),
            ("?after=99", {}, 409),
            ("?log=other", {}, 409),
            ("?after=x", {}, 400),
            ("?kind=Nothing", {}, 400),
        ):
            answer = await client.get(f"/events/stream{query}", headers=upgrade | headers)
            assert answer.status_code == status and answer.json()["ok"] is False


async def test_a_ticket_opens_one_stream(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        answer = (await client.post("/events/ticket")).json()
        assert answer["ok"] is True and answer["expires_in"] == 30
        async with streaming(service, f"?ticket={answer['ticket']}&after=0", []) as socket:
            assert len(await take(socket, 1)) == 1
        for ticket in (answer["ticket"], "", "made up"):
            async with streaming(service, f"?ticket={ticket.replace(' ', '%20')}", []) as socket:
                with pytest.raises(ConnectionClosed):
                    await socket.get_message()
                assert socket.closed.code == 4401


async def test_the_stop_closes_with_going_away(tmp_path):
    async with running(tmp_path) as service:
        await service.account("default")
        async with streaming(service) as socket:
            await socket.get_message()
            service.door.stopping.set()
            with pytest.raises(ConnectionClosed):
                await socket.get_message()
            assert socket.closed.code == 1001


async def test_a_client_that_vanishes_leaves_nothing_behind(tmp_path):
    async with running(tmp_path) as service:
        await service.account("default")
        for closing in ("close", "abort"):
            async with streaming(service) as socket:
                await socket.get_message()
                assert service.door.streams == 1
                if closing == "abort":
                    await trio.aclose_forcefully(socket._stream)
            await service.send(closing)
            with trio.fail_after(30):
                while service.door.streams:
                    await trio.sleep(0.01)


async def test_a_client_that_takes_nothing_does_not_delay_the_stop(tmp_path):
    async with running(tmp_path) as service:
        await service.account("default")
        stalled = await trio.open_tcp_stream("127.0.0.1", service.port)
        stalled.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        await stalled.send_all(OPENING % TOKEN.encode())
        for _ in range(10):
            await service.store.record([Draft(type(fact)(by="x" * 4000), account=1) for fact in _pauses(0)] * 4)
        async with streaming(service, "?after=0&batch=1") as socket:
            await take_until(socket, service.store.last_seq)
        assert service.door.streams == 1
        started = trio.current_time()
        service.door.stopping.set()
        with trio.fail_after(30):
            while service.door.streams:
                await trio.sleep(0.01)
        assert trio.current_time() - started < settings.CLOSE_S_MAX + 1
        await trio.aclose_forcefully(stalled)


async def take_until(socket, seq):
    last = 0
    while last < seq:
        frame = json.loads(await socket.get_message())
        last = frame["events"][-1]["seq"] if "events" in frame else last
