"""What stands before Quart, as plain ASGI: who may come in, the path as it came, the memory and the end of bodies.

The path stays percent-encoded until its route is found, so that an id may hold a slash (`%2F`).

A body's memory is leased before it is read, and only by who may come in. An answer that comes before the body's
end (401, 413) is held open until the client has sent the rest, for a bounded time: closing a connection with unread
bytes resets it, and the client would never see the answer.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import trio

from .auth import Gate, deciding_headers, refusal
from .bodies import MEMORY, Bodies, Lease
from .errors import JSON, Answer, error
from .settings import BODY_DRAIN_S_MAX

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LEASE = "letterbook.lease"
"""Under which name a request's scope holds its Lease."""

NDJSON = b"application/x-ndjson"

ENCODED = "Content-Encoding is not taken: send the body as it is, not compressed"
"""A small body that becomes a large one would pass every bound of this module."""

Streamed = Callable[[Mapping[str, str], Lease, Receive], Awaitable[Answer | None]]
"""What takes a body line by line: given the query, a lease for what it holds, and where the bytes come from."""


class Front:
    """The ASGI application that wraps another; requests for `open_paths` need no token.

    A POST of NDJSON to a path of `streamed` never reaches the other one, which would read it whole.
    """

    def __init__(
        self,
        app: App,
        gate: Gate,
        bodies: Bodies,
        max_body_bytes: int,
        open_paths: frozenset[str],
        streamed: Mapping[str, Streamed],
    ) -> None:
        self._app = app
        self._gate = gate
        self._bodies = bodies
        self._max = max_body_bytes
        self._open_paths = open_paths
        self._streamed = streamed

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope["path"] = scope["raw_path"].decode("ascii", "replace") or "/"
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _request(self, scope: Message, receive: Receive, send: Send) -> None:
        lease = Lease(self._bodies)
        streamed = self._streamed.get(scope["path"]) if _is_ndjson(scope) else None
        length = _content_length(scope)
        request = _Request(receive, send, lease, declared=0 if streamed else length)
        try:
            if refused := self._refusal(scope, length, lease, streamed is not None):
                await request.answer(refused)
                return
            if streamed:
                await self._stream(streamed, scope, request, lease)
                return
            scope[LEASE] = lease
            await self._app(scope, request.receive, request.send)
            if request.overfull:
                await request.answer(error(503, MEMORY))
        finally:
            lease.release()

    async def _stream(self, streamed: Streamed, scope: Message, request: "_Request", lease: Lease) -> None:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        answer = await streamed(query, lease, request.receive)
        lease.release()
        if answer:
            await request.answer(answer)

    def _refusal(self, scope: Message, length: int | None, lease: Lease, streamed: bool) -> Answer | None:
        """Why the request is not even read. A body that is too large by its own word is the application's to refuse,
        and one that is streamed leases as it comes."""
        if scope["path"] not in self._open_paths:
            address = (scope.get("client") or ("", 0))[0]
            if answer := refusal(self._gate, deciding_headers(scope["headers"]), address):
                return answer
        if length != 0 and _is_encoded(scope):
            return error(415, ENCODED)
        fits = streamed or length is None or length > self._max or lease.grow(length)
        return None if fits else error(503, MEMORY)


def _is_ndjson(scope: Message) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return scope["method"] == "POST" and len(kinds) == 1 and kinds[0].partition(b";")[0].strip().lower() == NDJSON


def _is_encoded(scope: Message) -> bool:
    encodings = [value for name, value in scope["headers"] if name == b"content-encoding"]
    return any(each.strip().lower() not in (b"", b"identity") for each in encodings)


def _content_length(scope: Message) -> int | None:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value)
        if name == b"transfer-encoding":
            return None
    return 0


class _Request:
    """One request's two directions; `declared` is the length of its body, None where that is not said."""

    def __init__(self, receive: Receive, send: Send, lease: Lease, declared: int | None) -> None:
        self._receive = receive
        self._send = send
        self._lease = lease
        self._ended = trio.Event()
        self.declared = declared
        self.overfull = False

    async def receive(self) -> Message:
        """The next part of the body; where the memory is full, the client counts as gone."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._ended.set()
        elif self.declared is None and not self._lease.grow(len(message["body"])):
            self.overfull = True
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """The last part of an answer waits for the body's end."""
        if message["type"] == "http.response.body" and not message.get("more_body", False) and not self.overfull:
            with trio.move_on_after(BODY_DRAIN_S_MAX):
                await self._ended.wait()
        await self._send(message)

    async def answer(self, answer: Answer) -> None:
        """Answer without the application; what is left of the body is read and dropped meanwhile."""
        headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
        headers += [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(answer.data))]
        async with trio.open_nursery() as nursery:
            if not self._ended.is_set():
                nursery.start_soon(self._drop)
            await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": answer.data, "more_body": True})
            with trio.move_on_after(BODY_DRAIN_S_MAX):
                await self._ended.wait()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()

    async def _drop(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                self._ended.set()
            if message["type"] == "http.disconnect":
                return
