"""The server and its bounds: what it refuses when something is full, and how it ends."""

import json
import resource

import msgspec
import pytest
import trio

from events.account import AccountPaused, AccountResumed
from events.commands import Unavailable
from events.fact import Draft
from gateway import server
from gateway.server import OpenToAllError, serve

from .service import TOKEN, running
from .test_bad_input import assert_error
from .test_stream import OPENING

ONE = {"messages": [{"id": "a", "from": "a@example.org", "to": "b@example.org"}]}


async def assert_refused(client, body=ONE):
    for path in ("/commands/add-messages", "/commands/send-message"):
        answer = await client.post(path, json=body if "add" in path else {})
        assert_error(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
    return answer


async def test_over_the_backlog_nothing_is_taken(tmp_path):
    async with running(tmp_path, max_backlog=2) as service, service.client() as client:
        await service.account("default")
        for name in ("a", "b"):
            body = {"messages": [{**ONE["messages"][0], "id": name}]}
            assert (await client.post("/commands/add-messages", json=body)).json()["queued"] == 1
        answer = await assert_refused(client)
        assert "max_backlog" in answer.json()["error"]
        assert (await client.get("/ready")).json() == {"ready": False, "reasons": ["backlog"]}
        assert (await client.get("/pending")).status_code == 200


async def test_the_backlog_is_counted_anew_as_mail_goes(tmp_path):
    async with running(tmp_path, max_backlog=1) as service, service.client() as client:
        number = await service.accept("a")
        await service.end(number, await service.start(number))
        service.door.watch.backlog = 1
        assert (await client.get("/ready")).status_code == 503
        with trio.fail_after(30):
            while (await client.get("/ready")).status_code == 503:
                await trio.sleep(0.05)


async def test_while_the_disk_is_low_nothing_is_taken(tmp_path):
    async with running(tmp_path, disk_low=True) as service, service.client() as client:
        answer = await assert_refused(client)
        assert "min_free_mb" in answer.json()["error"]
        assert (await client.get("/ready")).json()["reasons"] == ["disk"]


async def test_a_full_channel_is_told_and_not_waited_for(tmp_path):
    async with running(tmp_path, scripted=False) as service, service.client() as client, trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(_post_and_forget, service)
        with trio.fail_after(60):
            while service.submissions.statistics().current_buffer_used < 64:
                await trio.sleep(0.01)
        await assert_refused(client)
        nursery.cancel_scope.cancel()


async def _post_and_forget(service):
    async with service.client() as client:
        await client.post("/commands/add-messages", json=ONE)


async def test_a_dropped_command_is_answered_503(tmp_path):
    async with running(tmp_path, scripted=False) as service, service.client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(_drop_all, service.submissions)
        nursery.start_soon(_drop_all, service.controls)
        await assert_refused(client)
        assert_error(await client.post("/commands/run-now"), 503)
        nursery.cancel_scope.cancel()


async def _drop_all(channel):
    async for command in channel:
        command.reply.drop()


async def test_what_control_cannot_do_now_is_503(tmp_path):
    async with running(tmp_path, scripted=False) as service, service.client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(_answer, service.controls, Unavailable("the disk is full"))
        assert assert_error(await client.post("/commands/run-now"), 503)["error"] == "the disk is full"


async def _answer(channel, answer):
    (await channel.receive()).reply.put(answer)


async def test_all_bodies_together_are_bounded(tmp_path):
    async with (
        running(tmp_path, body_memory_bytes=100_000, max_body_bytes=90_000) as service,
        service.client() as client,
    ):
        service.holding = trio.Event()
        body = {"messages": [{"id": "a", "body": "x" * 60_000}]}
        answers = []

        async def post():
            answers.append(await client.post("/commands/add-messages", json=body))

        async def chunks():
            for _ in range(8):
                yield b"x" * 10_000

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post)
            with trio.fail_after(30):
                while not service.submitted:
                    await trio.sleep(0.01)
            assert 60_000 < service.door.bodies.held < 61_000
            for content in (json.dumps(body).encode(), chunks()):
                answer = await client.post(
                    "/commands/add-messages", content=content, headers={"Content-Type": "application/json"}
                )
                assert "body_memory_mb" in assert_error(answer, 503)["error"]
            assert (await client.get("/health")).status_code == 200
            service.holding.set()
        assert answers[0].status_code == 200
        with trio.fail_after(30):
            while service.door.bodies.held:
                await trio.sleep(0.01)
        assert (await client.post("/commands/add-messages", json=body)).status_code == 200


async def test_connections_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 2)
    async with running(tmp_path) as service:
        streams = [await trio.open_tcp_stream("127.0.0.1", service.port) for _ in range(3)]
        with trio.fail_after(30):
            assert await streams[2].receive_some() == b""
        await streams[0].send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await streams[0].receive_some()
        for stream in streams:
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "most"),
    [
        (1024, 524_288, True, 1000),
        (1024, 524_288, False, 624),
        (1024, 1024, True, 624),
        (256, 256, True, 16),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, True, 1000),
    ],
)
def test_connections_leave_files_for_everything_else(monkeypatch, soft, hard, raised, most):
    def setrlimit(_, limits):
        assert limits == (hard, hard)
        if not raised:
            raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(server.resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(server.resource, "setrlimit", setrlimit)
    assert server._connections_max() == most


def test_a_name_that_looks_like_an_address_of_this_machine_is_none():
    assert all(map(server._is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "localhost", "LOCALHOST")))
    assert not any(map(server._is_loopback, ("127.evil.example", "0.0.0.0", "::", "")))


async def test_a_stop_closes_what_is_idle_and_answers_what_is_under_way(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        idle = await trio.open_tcp_stream("127.0.0.1", service.port)
        answers = []
        service.holding = trio.Event()

        async def post():
            answers.append(await client.post("/commands/add-messages", json=ONE))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post)
                while not service.submitted:
                    await trio.sleep(0.01)
                service.door.stopping.set()
                assert await idle.receive_some() == b""
                service.holding.set()
        assert answers[0].json()["queued"] == 1
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", service.port)
        await idle.aclose()


async def test_a_stalled_reader_does_not_hold_up_the_stop(tmp_path):
    async with running(tmp_path, drain_seconds=0.5) as service:
        await service.account("default")
        for _ in range(10):
            pauses = [AccountPaused(by="x" * 4000), AccountResumed(by="x" * 4000)] * 200
            await service.store.record([Draft(fact, account=1) for fact in pauses])
        stalled = await trio.open_tcp_stream("127.0.0.1", service.port)
        stalled.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        request = f"GET /events?limit=10000 HTTP/1.1\r\nHost: x\r\nX-API-Token: {TOKEN}\r\n\r\n"
        await stalled.send_all(request.encode() * 3)
        await stalled.receive_some(10)
        half = await trio.open_tcp_stream("127.0.0.1", service.port)
        await half.send_all(
            b"POST /account HTTP/1.1\r\nHost: x\r\nX-API-Token: a token\r\nContent-Length: 100\r\n\r\n{"
        )
        await trio.sleep(0.1)
        started = trio.current_time()
        service.door.stopping.set()
        await service.door.closed.wait()
        assert trio.current_time() - started < 1.5
        await trio.aclose_forcefully(stalled)
        await trio.aclose_forcefully(half)


async def test_without_a_token_only_this_machine_is_served(tmp_path):
    async with running(tmp_path, api_token="") as service:
        door = service.door
        door.settings = msgspec.structs.replace(door.settings, host="0.0.0.0")
        with pytest.raises(OpenToAllError, match="api_token"):
            await serve(door, [])


async def test_a_client_that_is_refused_early_still_sees_the_answer(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        client.headers["X-API-Token"] = "wrong"
        for _ in range(5):
            answer = await client.post("/commands/add-messages", content=b"x" * 2_000_000)
            assert_error(answer, 401)


async def test_a_client_that_takes_no_bytes_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "SEND_S_MAX", 0.3)
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        for _ in range(10):
            pauses = [AccountPaused(by="x" * 4000), AccountResumed(by="x" * 4000)] * 200
            await service.store.record([Draft(fact, account=1) for fact in pauses])
        stalled = await trio.open_tcp_stream("127.0.0.1", service.port)
        stalled.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
        await stalled.send_all(OPENING % TOKEN.encode())
        with trio.fail_after(30):
            while not service.door.streams:
                await trio.sleep(0.01)
            while service.door.streams:
                await trio.sleep(0.01)
        assert (await client.get("/health")).status_code == 200
        await trio.aclose_forcefully(stalled)


async def test_an_idle_connection_is_closed_after_a_while_also_one_that_never_finishes_its_head(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 0.2)
    async with running(tmp_path) as service:
        for opening in (b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
            async with await trio.open_tcp_stream("127.0.0.1", service.port) as stream:
                await stream.send_all(opening)
                with trio.fail_after(30):
                    while await stream.receive_some():
                        pass


async def test_http_1_0_and_pipelined_requests_are_answered(tmp_path):
    async with running(tmp_path) as service:
        for request, answers in (
            (b"GET /health HTTP/1.0\r\n\r\n", 1),
            (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 3, 3),
            (b"POST /nowhere HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", 1),
        ):
            got = b""
            async with await trio.open_tcp_stream("127.0.0.1", service.port) as stream:
                await stream.send_all(request)
                with trio.fail_after(30):
                    while got.count(b'"}') < answers:
                        got += await stream.receive_some()
            assert got.count(b"content-type: application/json") == answers


async def test_who_may_not_come_in_holds_no_memory(tmp_path):
    async with (
        running(tmp_path, body_memory_bytes=100_000, max_body_bytes=90_000) as service,
        service.client() as client,
    ):
        strangers = []
        for _ in range(3):
            stream = await trio.open_tcp_stream("127.0.0.1", service.port)
            await stream.send_all(b"POST /account HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n{")
            assert b" 401 " in await stream.receive_some()
            strangers.append(stream)
        assert service.door.bodies.held == 0
        assert (await client.post("/commands/add-messages", json=ONE)).status_code == 200
        for stream in strangers:
            await trio.aclose_forcefully(stream)
