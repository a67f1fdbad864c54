"""What stands before Quart, as plain ASGI: the path as it came, and the memory and the end of bodies.

The path stays percent-encoded until its route is found, so that an id may hold a slash (`%2F`).

A body's memory is leased before it is read. An answer that comes before the body's end (401, 413) is held open
until the client has sent the rest, for a bounded time: closing a connection with unread bytes resets it, and the
client would never see the answer.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from .bodies import Bodies, Lease
from .errors import JSON, error
from .settings import BODY_DRAIN_S_MAX

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LEASE = "letterbook.lease"
"""Under which name a request's scope holds its Lease."""

MEMORY = "the bodies of all requests together are over body_memory_mb: ask again in a moment"


class Front:
    """The ASGI application that wraps another."""

    def __init__(self, app: App, bodies: Bodies, max_body_bytes: int) -> None:
        self._app = app
        self._bodies = bodies
        self._max = max_body_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            scope["path"] = scope["raw_path"].decode("ascii", "replace") or "/"
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lease = Lease(self._bodies)
        request = _Request(receive, send, lease, declared=_content_length(scope))
        try:
            # A body that is too large by its own word is refused by the application, which keeps nothing of it.
            if request.declared is not None and request.declared <= self._max and not lease.grow(request.declared):
                await request.refuse()
                return
            scope[LEASE] = lease
            await self._app(scope, request.receive, request.send)
            if request.refused:
                await request.refuse()
        finally:
            lease.release()


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
        self.refused = False

    async def receive(self) -> Message:
        """The next part of the body; where the memory is full, the client counts as gone."""
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._ended.set()
        elif self.declared is None and not self._lease.grow(len(message["body"])):
            self.refused = True
            return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """The last part of an answer waits for the body's end."""
        if message["type"] == "http.response.body" and not message.get("more_body", False) and not self.refused:
            with trio.move_on_after(BODY_DRAIN_S_MAX):
                await self._ended.wait()
        await self._send(message)

    async def refuse(self) -> None:
        """503, for want of memory; the rest of the body is read and dropped meanwhile."""
        answer = error(503, MEMORY)
        headers = [(name.lower().encode(), value.encode()) for name, value in answer.headers]
        headers += [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(answer.data))]
        async with trio.open_nursery() as nursery:
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
