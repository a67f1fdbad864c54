"""Whatever comes in badly, by HTTP or in a program's call, is answered by the contract's error, and nothing of it is
stored. One table of wrongs, tried on every row of the table of commands, so on those that come later too."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest
import trio

from events.payloads import MessagePayload
from gateway import server
from gateway.commands import COMMANDS, IGNORES_FIELDS, MAY_BE_MISSING, Command, handle_command
from letterbook.config import load
from letterbook.system import Stop, System, real_world, running
from store.opening import page

TOKEN = {"X-API-Token": "a token"}
JSON = {"Content-Type": "application/json"}
BODY_BYTES_MAX = 1_000_000
DEEP = 20_000

RETRIED = "Retry-After"


class Doors:
    """A whole service, and both ways into it."""

    def __init__(self, system: System, client: httpx.AsyncClient) -> None:
        self.system = system
        self.client = client

    async def ask(self, command: Command, **request: Any) -> httpx.Response:
        headers = {**TOKEN, **request.pop("headers", {})}
        return await self.client.request(
            request.pop("method", command.method), path_of(command), headers=headers, **request
        )

    async def call(self, command: Command, payload: Any) -> dict[str, Any]:
        return await handle_command(self.system.door, command.name, payload)

    def seq(self) -> int:
        return self.system.store.last_seq

    async def since(self, seq: int) -> list[str]:
        """The kinds of the facts after a seq, but for those that follow from others by themselves."""
        if self.seq() == seq:
            return []
        entries = await self.system.store.read(page, seq, 1_000)
        return [entry.kind for entry in entries if entry.kind not in ("ResultsReported", "RelayUnreachable")]

    async def until_nothing_is_held(self) -> None:
        """A body's memory is given back behind its answer."""
        with trio.fail_after(30):
            while self.system.door.bodies.held:
                await trio.sleep(0.01)


@asynccontextmanager
async def doors(folder: Any) -> AsyncIterator[Doors]:
    settings = {
        "SERVER_API_TOKEN": TOKEN["X-API-Token"],
        "SERVER_PORT": "0",
        "SERVER_MAX_BODY_MB": "1",
        "SERVER_DRAIN_SECONDS": "1",
        "STORAGE_DB_PATH": f"{folder}/log.db",
        "STORAGE_KEY_FILE": f"{folder}/log.key",
        "STORAGE_MIN_FREE_MB": "1",
        "DELIVERY_SEND_WAIT_SECONDS": "0",
    }
    config = load(None, {f"LETTERBOOK_{name}": value for name, value in settings.items()})
    async with (
        server.listening(config.server.host, config.server.port) as listeners,
        real_world() as world,
        running(config, world, Stop()) as system,
        trio.open_nursery() as nursery,
    ):
        port = await nursery.start(server.serve, system.door, listeners)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield Doors(system, client)
        system.stop.asked.set()


def path_of(command: Command) -> str:
    return command.path.replace("<id>", "unknown")


def fields(command: Command) -> list[str]:
    """What its payload may hold; for those that take a message as it comes, a message's."""
    payload = command.payload
    known = payload if isinstance(payload, type) and issubclass(payload, msgspec.Struct) else MessagePayload
    return [field.encode_name for field in msgspec.structs.fields(known)]


def beside_path(command: Command) -> list[str]:
    """What of it stands in the body or the query of a request."""
    return [name for name in fields(command) if name not in command.path_fields]


def assert_error(answer: httpx.Response, *statuses: int) -> None:
    request = answer.request
    where = (request.method, request.url.path, answer.status_code, answer.text[:300])
    assert answer.status_code in statuses, where
    assert answer.headers["content-type"] == "application/json", where
    body = answer.json()
    assert body["ok"] is False and body["error"] == body["detail"] and isinstance(body["error"], str), where
    assert "Traceback" not in answer.text, where
    assert (RETRIED in answer.headers) == (answer.status_code in (503, 429)), where


def bodies() -> list[Command]:
    return [command for command in COMMANDS if command.source == "body"]


class Wrong(NamedTuple):
    """A request that must be refused, by one of these statuses."""

    request: dict[str, Any]
    statuses: tuple[int, ...] = (400,)


NO_JSON = {
    "words": b"nonsense",
    "half an object": b'{"a": ',
    "two objects": b"{}{}",
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "a text": b'"text"',
    "NUL": b"\0",
    "NUL in a text": b'{"id": "a\0b"}',
    "a line feed in a text": b'{"id": "a\nb"}',
    "no UTF-8": b"\xff\xfe{}",
    "UTF-16": "{}".encode("utf-16"),
    "a name that is no UTF-8": b'{"\xff": 1}',
    "a name that is half of a pair": b'{"\\ud800": 1}',
    "NaN": b'{"id": NaN}',
    "Infinity": b'{"id": Infinity}',
    "-Infinity": b'{"id": -Infinity}',
    "deep lists": b"[" * DEEP,
    "deep lists within": b'{"id": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "deep objects within": b'{"id": ' + b'{"a": ' * DEEP + b"1" + b"}" * DEEP + b"}",
}


def no_json(command: Command) -> Iterator[Wrong]:
    """What stands in fields that are ignored is not looked at."""
    if command.source == "body":
        for content in NO_JSON.values():
            if command.payload not in IGNORES_FIELDS or not content.startswith(b'{"'):
                yield Wrong({"content": content, "headers": JSON})


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 50_000):
        yield content[start : start + 50_000]


def too_large(command: Command) -> Iterator[Wrong]:
    if command.source == "body":
        large = b'{"subject": "' + b"x" * (4 * BODY_BYTES_MAX) + b'"}'
        yield Wrong({"content": large, "headers": JSON}, (413,))
        yield Wrong({"content": chunks(large), "headers": JSON}, (413,))


def other_types(command: Command) -> Iterator[Wrong]:
    if command.source == "body":
        kinds = [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/xml",
        ]
        kinds += [] if command.streamed else ["application/x-ndjson"]
        for kind in kinds:
            yield Wrong({"content": b"{}", "headers": {"Content-Type": kind}}, (415,))


def in_chunks(command: Command) -> Iterator[Wrong]:
    if command.source == "body":
        yield Wrong({"content": chunks(b'{"id": ' + b" " * 200_000 + b"nonsense}"), "headers": JSON})


def other_tokens(command: Command) -> Iterator[Wrong]:
    if not command.open:
        for headers in ({"X-API-Token": "wrong"}, {"X-API-Token": ""}, {"X-API-Token": "ü".encode()}):
            yield Wrong({"content": b"{}", "headers": {**JSON, **headers}}, (401, 429))


def other_methods(command: Command) -> Iterator[Wrong]:
    taken = {each.method for each in COMMANDS if each.path == command.path} | {"HEAD"}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} - taken:
        yield Wrong({"method": method, "content": b"{}", "headers": JSON}, (404, 405))


def wrong_types(command: Command) -> Iterator[Wrong]:
    if command.source == "body" and isinstance(command.payload, type) and issubclass(command.payload, msgspec.Struct):
        for name in beside_path(command):
            yield Wrong({"json": {name: {"a": []}}})


def unknown_fields(command: Command) -> Iterator[Wrong]:
    if command.source == "body" and command.payload not in IGNORES_FIELDS and fields(command) != MESSAGE:
        yield Wrong({"json": {"surprise": 1}})


def missing(command: Command) -> Iterator[Wrong]:
    if command.source == "body" and command.payload not in MAY_BE_MISSING:
        yield Wrong({})


MESSAGE = [field.encode_name for field in msgspec.structs.fields(MessagePayload)]

WRONGS = {
    wrong.__name__: wrong
    for wrong in (
        no_json, too_large, other_types, in_chunks, other_tokens, other_methods, wrong_types, unknown_fields, missing,
    )
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONGS)
async def test_a_wrong_request_is_an_error_and_leaves_no_fact(tmp_path, wrong):
    async with doors(tmp_path) as it:
        before = it.seq()
        tried = 0
        for command in COMMANDS:
            for request, statuses in WRONGS[wrong](command):
                assert_error(await it.ask(command, **request), *statuses)
                tried += 1
        assert tried and await it.since(before) == []
        await it.until_nothing_is_held()
        assert (await it.client.get("/health")).status_code == 200


# What a field may hold: it is an answer, whatever that is; and where it is an error, nothing was stored.

EVIL = ("\r", "\n", "\r\nBcc: mallory@example.org", "\0", "\x7f")
HUGE = 10**400
ODD = (
    None, True, 0, -1, 2**63, 2**64, -(2**63) - 1, 1e308, HUGE, 0.1, "", " ", "x" * 2000, "٣", "\u202e", [], [[]], {},
    ["a", 1], {"a": {"b": [None]}}, *(f"ann{evil}@example.org" for evil in EVIL), *EVIL,
)  # fmt: skip
"""Values that are wrong for nearly every field."""

HALF = "half \ud800 of a pair"
ONLY_PROGRAMS = (HALF, float("nan"), float("inf"), b"\xff", object(), {1, 2}, {"a": object()}, {(1, 2): 3})


def deep() -> Any:
    nested: Any = []
    for _ in range(DEEP):
        nested = [nested]
    return nested


def circular() -> Any:
    nested: list[Any] = []
    nested.append(nested)
    return nested


RIGHT = {"from": "a@example.org", "to": "b@example.org", "subject": "s", "body": "b"}


def payloads(command: Command, values: Any) -> Iterator[dict[str, Any]]:
    """Each value in every field at once, and in each field alone among what is right: of those each field has its
    share, since all of them in all would be thousands. Where there are no fields there is one payload."""
    for value in values if fields(command) else (None,):
        yield dict.fromkeys(fields(command), value)
    for place, name in enumerate(fields(command)):
        for value in values[place % 8 :: 8]:
            yield {**RIGHT, name: value} if fields(command) == MESSAGE else {name: value}


async def test_whatever_the_fields_hold_over_http(tmp_path):
    async with doors(tmp_path) as it:
        for command in COMMANDS:
            tried = []
            for wanted in payloads(command, ODD):
                before = it.seq()
                payload = {name: value for name, value in wanted.items() if name not in command.path_fields}
                if repr(payload) in tried:
                    continue
                tried.append(repr(payload))
                if command.source == "body":
                    answer = await it.ask(command, content=json.dumps(payload).encode(), headers=JSON)
                else:
                    answer = await it.ask(command, params={name: str(value)[:3000] for name, value in payload.items()})
                where = (command.name, str(payload)[:200], answer.status_code, answer.text[:300])
                assert answer.status_code < 500 or command.name == "ready", where
                if answer.status_code >= 400 and command.name != "ready":
                    # Of all fields that are tried, a sync_token alone says who asks.
                    assert_error(answer, 400, 404, 409, *([401] if command.name == "proxySync" else []))
                    assert await it.since(before) == [], where


async def test_whatever_the_fields_hold_in_a_call(tmp_path):
    async with doors(tmp_path) as it:
        for command in COMMANDS:
            for payload in [*payloads(command, (*ODD, *ONLY_PROGRAMS)), *NO_PAYLOADS]:
                before = it.seq()
                answer = await it.call(command, payload)
                where = (command.name, repr(payload)[:200], answer)
                assert isinstance(answer, dict), where
                if answer.get("ok") is False and "detail" in answer:
                    assert isinstance(answer["error"], str) and answer["error"] == answer["detail"], where
                    assert await it.since(before) == [], where
            if command.source == "body":
                for nested in (deep(), circular()):
                    answer = await it.call(command, {fields(command)[0] if fields(command) else "x": nested})
                    assert answer["ok"] is False or command.payload in IGNORES_FIELDS, (command.name, answer)


NO_PAYLOADS: tuple[Any, ...] = (7, "text", [1], [("a", 1)], b"{}", object(), {1: 2}, {None: 1})
"""What is no object of JSON at all."""


# Items: a fault is that item's alone.


def item(name: str, **changed: Any) -> dict[str, Any]:
    return {"id": name, "account_id": "a", **RIGHT, **changed}


def in_bytes(replacement: bytes, **changed: Any) -> bytes:
    return json.dumps(item("x", **changed)).encode().replace(b"?", replacement)


ITEMS: dict[str, tuple[bytes, str | None]] = {
    "half a pair in the subject": (json.dumps(item("x", subject=HALF)).encode(), "invalid field: subject"),
    "half a pair in an address": (json.dumps(item("x", to=["a\udfff@example.org"])).encode(), "invalid field: to"),
    "half a pair behind a backslash": (json.dumps(item("x", subject="\\\udc00")).encode(), "invalid field: subject"),
    "halves the wrong way round": (json.dumps(item("x", subject="\udc00\ud800")).encode(), "invalid field: subject"),
    "half a pair in a header": (json.dumps(item("x", headers={"X": HALF})).encode(), "invalid field: headers"),
    "half a pair where nobody looks": (json.dumps(item("ok-1", unknown=HALF)).encode(), None),
    "a whole pair": (json.dumps(item("ok-2", subject="🎈")).encode(), None),
    "a backslash and then what looks like half": (json.dumps(item("ok-3", subject="\\ud800")).encode(), None),
    "no UTF-8 in the subject": (
        json.dumps(item("x", subject="?")).encode().replace(b"?", b"\xff"),
        "invalid field: subject",
    ),
    "half a pair as bytes": (
        json.dumps(item("x", body="?")).encode().replace(b"?", b"\xed\xa0\x80"),
        "invalid field: body",
    ),
    "a huge number": (json.dumps(item("ok-4", priority=HUGE)).encode(), None),
    "no message": (b"[7]", "missing id"),
    "half a pair in the id": (json.dumps(item(HALF)).encode(), "invalid field: id"),
}


@pytest.mark.parametrize("door", ["http", "lines", "single", "call"])
async def test_a_fault_within_an_item_is_that_items_rejection(tmp_path, door):
    async with doors(tmp_path) as it:
        await it.call(BY_NAME["addAccount"], {"id": "a", "host": "127.0.0.1", "port": 9})
        await it.call(BY_NAME["pauseAccount"], {"id": "a"})
        for name, (content, reason) in ITEMS.items():
            if door == "call" and b"\xff" in content or door == "call" and b"\xed" in content:
                continue  # a program's texts cannot hold bytes
            reasons = await REASONS[door](it, content)
            assert reasons == [reason, None][: len(reasons)], name
        await it.until_nothing_is_held()


BY_NAME = {command.name: command for command in COMMANDS}
AFTER = json.dumps(item("after")).encode()


async def _of_batch(it: Doors, content: bytes) -> list[str | None]:
    body = b'{"messages": [' + content + b"," + AFTER + b"]}"
    answer = await it.ask(BY_NAME["addMessages"], content=body, headers=JSON)
    assert answer.status_code == 200, answer.text
    return _reasons(answer.json())


async def _of_lines(it: Doors, content: bytes) -> list[str | None]:
    headers = {"Content-Type": "application/x-ndjson"}
    answer = await it.ask(BY_NAME["addMessages"], content=content + b"\n" + AFTER, headers=headers)
    assert answer.status_code == 200, answer.text
    return _reasons(answer.json())


async def _of_call(it: Doors, content: bytes) -> list[str | None]:
    return _reasons(await it.call(BY_NAME["addMessages"], {"messages": [json.loads(content), json.loads(AFTER)]}))


async def _of_single(it: Doors, content: bytes) -> list[str | None]:
    """Alone it has no envelope: what is no object at all is a wrong body."""
    answer = await it.ask(BY_NAME["sendMessage"], content=content, headers=JSON)
    if content.startswith(b"["):
        assert_error(answer, 400)
        return []
    return [answer.json().get("error")]


def _reasons(answer: dict[str, Any]) -> list[str | None]:
    """The first one's reason, and then the good one's, which has none."""
    assert answer["ok"] and answer["queued"] + len(answer["rejected"]) == 2, answer
    reasons = [rejected["reason"] for rejected in answer["rejected"]]
    return [*reasons, None] if reasons else [None, None]


REASONS = {"http": _of_batch, "lines": _of_lines, "call": _of_call, "single": _of_single}


# Memory


async def test_many_large_bodies_at_once_are_bounded_together(tmp_path, monkeypatch):
    """What does not fit is told to come again, and what fits is judged; never an error of another kind."""
    async with doors(tmp_path) as it:
        it.system.door.bodies._memory = 4 * BODY_BYTES_MAX
        most = 0
        statuses: list[int] = []
        large = b'{"messages": [{"subject": "' + b"x" * (BODY_BYTES_MAX - 100) + b'"}]}'

        async def send(chunked: bool) -> None:
            nonlocal most
            content = chunks(large) if chunked else large
            answer = await it.ask(BY_NAME["addMessages"], content=content, headers=JSON)
            most = max(most, it.system.door.bodies.held)
            statuses.append(answer.status_code)
            if answer.status_code != 200:
                assert_error(answer, 503)

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(send, number % 2 == 0)
        assert set(statuses) <= {200, 503} and 200 in statuses and most <= 4 * BODY_BYTES_MAX
        await it.until_nothing_is_held()


async def test_a_path_that_is_too_long_is_a_json_error(tmp_path):
    async with doors(tmp_path) as it:
        for path in ("/messages/" + "a" * 60_000, "/results?log=" + "a" * 60_000):
            assert_error(await it.client.get(path, headers={**TOKEN, "X-More": "b" * 60_000}), 431)
        for path in ("/messages/%ff", "/messages/%ed%a0%80", "/messages/%zz", "/messages/%00", "/messages/a%0d%0ab"):
            assert_error(await it.client.get(path, headers=TOKEN), 400, 404)
