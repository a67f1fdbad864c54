"""Whatever comes in badly is answered by the JSON error of the contract, which names what is wrong.

That every row of the table of commands refuses the same wrongs is tried in tests/letterbook/test_both_doors.py.
"""

import gzip
import json
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
import trio

from gateway.commands import COMMANDS

from .service import AUTH, running

SECURED = [command for command in COMMANDS if not command.open]
BODIES = [command for command in COMMANDS if command.source == "body"]
QUERIES = [command for command in COMMANDS if command.source == "query"]


def path_of(command):
    return command.path.replace("<id>", "some-id").replace("<name>", "some-name")


def in_the_body(command) -> list[str]:
    """The fields of a body, by their names in JSON."""
    return [name for name in command.payload.__struct_encode_fields__ if name not in command.path_fields]


def assert_error(answer: httpx.Response, *statuses: int) -> dict:
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["ok"] is False and body["error"] == body["detail"] and isinstance(body["error"], str)
    assert "Traceback" not in answer.text and "<html" not in answer.text.lower()
    return body


def of(commands):
    return pytest.mark.parametrize("command", commands, ids=lambda command: command.name)


@asynccontextmanager
async def asking(tmp_path, command):
    """Ask one command badly, many times; nothing of it may reach those who decide."""
    async with running(tmp_path, max_body_bytes=100_000) as service, service.client() as client:

        async def ask(content=None, headers=None, query=""):
            headers = {"Content-Type": "application/json", **(headers or {})}
            return await client.request(command.method, path_of(command) + query, content=content, headers=headers)

        yield ask
        assert service.submitted == []


@of(SECURED)
async def test_a_wrong_or_missing_token(tmp_path, command):
    async with running(tmp_path) as service, httpx.AsyncClient(base_url=service.url) as client:
        for headers in ({}, {"X-API-Token": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
            answer = await client.request(command.method, path_of(command), headers=headers, content=b"{}")
            body = assert_error(answer, 401)
            assert body["error"] == "Invalid or missing API token"


REQUIRED = {
    "messages": [],
    "ids": [],
    "id": "a",
    "host": "h",
    "name": "v",
    "backend": "memory",
    "config": {},
    "port": 25,
    "as": "sent",
    "action": "hold",
    "where": {"status": "held"},
    "interval_minutes": 1,
}


@of([command for command in BODIES if hasattr(command.payload, "__struct_fields__")])
async def test_fields_of_the_wrong_type_are_named(tmp_path, command):
    fields = in_the_body(command)
    async with asking(tmp_path, command) as ask:
        for name in fields:
            body = {field: REQUIRED.get(field) for field in fields} | {name: {"wrong": []}}
            assert name in assert_error(await ask(json.dumps(body).encode()), 400)["error"]


@of(
    [c for c in BODIES if hasattr(c.payload, "__struct_fields__") and c.payload.__struct_config__.forbid_unknown_fields]
)
async def test_unknown_and_missing_fields_are_named(tmp_path, command):
    required = {field.encode_name for field in msgspec.structs.fields(command.payload) if field.required}
    known = {name: REQUIRED[name] for name in in_the_body(command) if name in required}
    async with asking(tmp_path, command) as ask:
        assert "surprise" in assert_error(await ask(json.dumps({**known, "surprise": 1}).encode()), 400)["error"]
        for name in known:
            body = {other: value for other, value in known.items() if other != name}
            assert name in assert_error(await ask(json.dumps(body).encode()), 400)["error"]


@of([command for command in QUERIES if command.payload.__struct_fields__])
async def test_parameters_that_do_not_fit_are_named(tmp_path, command):
    async with asking(tmp_path, command) as ask:
        for name in set(command.payload.__struct_fields__) - {"kind", "id", "name", "account_id", "message_id", "log"}:
            assert name in assert_error(await ask(query=f"?{name}=nonsense"), 400)["error"]


OUT_OF_RANGE = [
    "/results?after=-1",
    "/results?limit=0",
    "/results?limit=10001",
    "/pending?after=99999999999999999999",
    "/events?wait=31",
    "/events?kind=Nothing",
    "/messages?status=lost",
    "/audit/at?time=nan&view=pending",
    "/audit/at?time=inf&view=pending",
]


WRONG_WORDS = [
    ("POST", "/account", {"id": "a", "host": "h", "port": 25, "tls": "ssl"}, "tls", "starttls-required"),
    ("POST", "/account", {"id": "a", "host": "h", "port": 25, "auth": "digest"}, "auth", "cram-md5"),
    ("POST", "/account", {"id": "a", "host": "h", "port": 25, "limit_behavior": "drop"}, "limit_behavior", "reject"),
    ("POST", "/volume", {"name": "v", "backend": "ftp", "config": {}}, "backend", "webdav"),
    ("POST", "/commands/activate", {"restored": "maybe"}, "restored", "hold"),
    ("GET", "/messages?status=lost", None, "status", "in_flight"),
    ("GET", "/audit/at?seq=1&view=all", None, "view", "deferred"),
]


@pytest.mark.parametrize(("method", "path", "body", "field", "word"), WRONG_WORDS)
async def test_a_word_that_is_not_on_the_list_is_answered_with_the_list(tmp_path, method, path, body, field, word):
    async with running(tmp_path) as service, service.client() as client:
        sentence = assert_error(await client.request(method, path, json=body), 400)["error"]
        assert f" {field} is none of " in sentence and word in sentence.split(" is none of ")[1].split(", ")


async def test_parameters_out_of_range(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for query in OUT_OF_RANGE:
            assert_error(await client.get(query), 400)


async def test_a_batch_with_a_bad_default_priority(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for priority in ("soon", "", "1.5", "--1", "-", "9" * 5000):
            body = {"messages": [], "default_priority": priority}
            answer = await client.post("/commands/add-messages", json=body)
            assert "default_priority" in assert_error(answer, 400)["error"]
        for priority in (9, -3, "0", "LOW", 1.2, 1e300, None):
            body = {"messages": [], "default_priority": priority}
            assert (await client.post("/commands/add-messages", json=body)).status_code == 200


async def test_routes_and_methods_that_do_not_exist(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for path in ("/", "/nowhere", "/messages/", "/messages/a/b", "//health", "/health/", "/%2e%2e/x", "/account"):
            assert_error(await client.get(path), 404, 405)
        answer = await client.post("/results")
        assert_error(answer, 405)
        assert "GET" in answer.headers["allow"]
        for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "BREW"):
            assert_error(await client.request(method, "/status"), 405)
        client.headers.pop("X-API-Token")
        assert_error(await client.get("/nowhere"), 401)


async def test_head_is_get_without_a_body(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        answer = await client.head("/health")
        assert answer.status_code == 200 and answer.content == b""


async def test_the_stream_without_an_upgrade(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        assert_error(await client.get("/events/stream"), 426)
        assert_error(await client.post("/events/stream"), 405)


async def test_repeated_wrong_tokens_are_told_to_wait_and_the_right_one_still_works(tmp_path):
    async with running(tmp_path) as service, httpx.AsyncClient(base_url=service.url) as client:
        statuses = [(await client.get("/status", headers={"X-API-Token": "no"})).status_code for _ in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert_error(await client.get("/status", headers={"X-API-Token": "no"}), 429)
        assert_error(await client.get("/status"), 401)
        assert (await client.get("/status", headers=AUTH)).status_code == 200


UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n%s\r\n"
)
SHOWN = b"X-API-Token: a token\r\n"
RAW = [
    b"nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    b"POST /account HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /account HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    b"POST /account HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n\r\nzzz\r\n" % SHOWN,
    b"GET /events/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    UPGRADE % (b"/nowhere", SHOWN),
    UPGRADE % (b"/events/stream", b""),
    UPGRADE % (b"/events/stream?after=99", SHOWN),
    UPGRADE % (b"/events/stream?after=x", SHOWN),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


async def test_what_is_hardly_http_ends_its_own_connection_alone(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for data in RAW:
            head, _, body = (await _talk(service.port, data)).partition(b"\r\n\r\n")
            assert not head or 400 <= int(head.split()[1]) < 500, (data, head)
            assert not body or b'{"ok":false,"error":"' in body, (data, body)
            assert (await client.get("/health")).status_code == 200


async def _talk(port, data):
    got = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(data)
        with trio.move_on_after(0.3):
            while part := await stream.receive_some():
                got += part
    return got


async def test_an_upgrade_with_h2c_is_answered_as_http_1(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        headers = {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABk"}
        assert (await client.get("/health", headers=headers)).json() == {"status": "ok"}


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
async def test_a_body_that_is_compressed_is_refused_before_it_is_read(tmp_path, kind):
    async with running(tmp_path) as service, service.client() as client:
        path, content = "/commands/add-messages", gzip.compress(b'{"messages": []}')
        for encoding in ("gzip", "Identity, br", "zstd"):
            headers = {"Content-Type": kind, "Content-Encoding": encoding}
            sentence = assert_error(await client.post(path, content=content, headers=headers), 415)["error"]
            assert sentence.startswith("Content-Encoding is not taken: ")
        headers = {"Content-Type": kind, "Content-Encoding": "identity"}
        assert (await client.post(path, content=b'{"messages": []}', headers=headers)).status_code == 200
        assert (await client.get("/status", headers={"Content-Encoding": "gzip"})).status_code == 200
        assert service.door.bodies.held == 0
