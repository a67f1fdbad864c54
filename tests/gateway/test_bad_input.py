"""Whatever comes in badly is answered by the JSON error of the contract: the table of commands is walked whole."""

import json

import httpx
import pytest
import trio

from gateway.commands import COMMANDS, IGNORES_FIELDS

from .service import AUTH, running

SECURED = [command for command in COMMANDS if not command.open]
BODIES = [command for command in COMMANDS if command.source == "body"]
QUERIES = [command for command in COMMANDS if command.source == "query"]


def path_of(command):
    return command.path.replace("<id>", "some-id")


def assert_error(answer: httpx.Response, *statuses: int) -> dict:
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["ok"] is False and body["error"] == body["detail"] and isinstance(body["error"], str)
    assert "Traceback" not in answer.text and "<html" not in answer.text.lower()
    return body


def of(commands):
    return pytest.mark.parametrize("command", commands, ids=lambda command: command.name)


async def ask(tmp_path, command, content=None, headers=None, query=""):
    async with running(tmp_path, max_body_bytes=100_000) as service, service.client() as client:
        headers = {"Content-Type": "application/json", **(headers or {})}
        answer = await client.request(command.method, path_of(command) + query, content=content, headers=headers)
        assert service.submitted == []
        return answer


@of(SECURED)
async def test_a_wrong_or_missing_token(tmp_path, command):
    async with running(tmp_path) as service, httpx.AsyncClient(base_url=service.url) as client:
        for headers in ({}, {"X-API-Token": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
            answer = await client.request(command.method, path_of(command), headers=headers, content=b"{}")
            body = assert_error(answer, 401)
            assert body["error"] == "Invalid or missing API token"


@of(BODIES)
@pytest.mark.parametrize(
    "content",
    [
        b"nonsense",
        b"{",
        b'{"messages": [',
        b'{"a": "\xff\xfe"}',
        b"[" * 100_000,
        b'{"ids":' + b"[" * 50_000,
        b"\x00",
        b"[]",
        b"null",
        b'"text"',
        b"7",
    ],
    ids=["words", "cut", "cut list", "not UTF-8", "deep", "deep field", "nul", "list", "null", "string", "number"],
)
async def test_a_body_that_is_no_json_object(tmp_path, command, content):
    assert_error(await ask(tmp_path, command, content), 400)


@of([command for command in BODIES if command.payload not in IGNORES_FIELDS])
async def test_a_body_that_is_missing(tmp_path, command):
    assert_error(await ask(tmp_path, command), 400)


@of([command for command in BODIES if hasattr(command.payload, "__struct_fields__")])
async def test_fields_of_the_wrong_type_are_named(tmp_path, command):
    fields = command.payload.__struct_encode_fields__
    for name in fields:
        body = {field: _fitting(command.payload, field) for field in fields} | {name: {"wrong": []}}
        answer = await ask(tmp_path, command, json.dumps(body).encode())
        assert name in assert_error(answer, 400)["error"]


def _fitting(payload, name):
    kinds = {"messages": [], "ids": [], "id": "a", "host": "h", "port": 25}
    return kinds.get(name)


@of([c for c in BODIES if c.payload not in IGNORES_FIELDS and hasattr(c.payload, "__struct_fields__")])
async def test_unknown_fields_are_named(tmp_path, command):
    answer = await ask(tmp_path, command, b'{"surprise": 1}')
    error = assert_error(answer, 400)["error"]
    assert "surprise" in error or "missing required field" in error
    required = {name: _fitting(command.payload, name) for name in ("messages", "ids", "id", "host", "port")}
    known = {name: value for name, value in required.items() if name in command.payload.__struct_fields__}
    answer = await ask(tmp_path, command, json.dumps({**known, "surprise": 1}).encode())
    assert "surprise" in assert_error(answer, 400)["error"]


@of(BODIES)
async def test_a_body_over_the_limit(tmp_path, command):
    async with running(tmp_path, max_body_bytes=100_000) as service, service.client() as client:
        content = b'{"x":"' + b"y" * 3_000_000 + b'"}'
        for kwargs in ({"content": content}, {"content": _chunks(content)}):
            answer = await client.post(path_of(command), headers={"Content-Type": "application/json"}, **kwargs)
            assert_error(answer, 413)


async def _chunks(content):
    for start in range(0, len(content), 10_000):
        yield content[start : start + 10_000]


@of(BODIES)
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/x-ndjson"])
async def test_a_body_of_another_type(tmp_path, command, kind):
    assert_error(await ask(tmp_path, command, b"a=b", {"Content-Type": kind}), 415)


@of(QUERIES)
async def test_parameters_that_do_not_fit_are_named(tmp_path, command):
    for name in command.payload.__struct_fields__:
        if name in ("kind", "id", "account_id", "message_id", "log"):
            continue
        answer = await ask(tmp_path, command, query=f"?{name}=nonsense")
        assert name in assert_error(answer, 400)["error"]


@pytest.mark.parametrize(
    "query",
    [
        "/results?after=-1",
        "/results?limit=0",
        "/results?limit=10001",
        "/pending?after=99999999999999999999",
        "/events?wait=31",
        "/events?kind=Nothing",
        "/messages?status=lost",
        "/audit/at?time=nan&view=pending",
        "/audit/at?time=inf&view=pending",
    ],
)
async def test_parameters_out_of_range(tmp_path, query):
    async with running(tmp_path) as service, service.client() as client:
        assert_error(await client.get(query), 400)


async def test_a_batch_with_a_bad_default_priority(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for priority in ("soon", "", "1.5"):
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


RAW = [
    b"nonsense\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    b"POST /account HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
    b"POST /account HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    b"POST /account HTTP/1.1\r\nHost: x\r\nX-API-Token: a token\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
    b"GET /events/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET /nowhere HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nX-API-Token: a token\r\n\r\n",
    b"GET /events/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


@pytest.mark.parametrize("data", RAW, ids=range(len(RAW)))
async def test_what_is_hardly_http_ends_its_own_connection_alone(tmp_path, data):
    async with running(tmp_path) as service:
        stream = await trio.open_tcp_stream("127.0.0.1", service.port)
        async with stream:
            await stream.send_all(data)
            got = b""
            with trio.move_on_after(1):
                while part := await stream.receive_some():
                    got += part
        head, _, body = got.partition(b"\r\n\r\n")
        if body:
            assert json.loads(body.split(b"\r\n")[0] if b"chunked" in head else body)["ok"] is False
        async with service.client() as client:
            assert (await client.get("/health")).status_code == 200


async def test_an_upgrade_with_h2c_is_answered_as_http_1(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        headers = {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AAMAAABk"}
        assert (await client.get("/health", headers=headers)).json() == {"status": "ok"}
