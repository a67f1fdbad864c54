"""The HTTP server: Hypercorn's protocol in a nursery of our own, with sends that end.

Hypercorn shields its sends from cancellation, so a client that takes no bytes would hold up the service's end for
ever. Here every send has a deadline and can be cancelled; a connection whose send was cut off is closed, since
nobody knows how much of it arrived.

What is wrong with one connection (a client that speaks no HTTP, or is gone) ends that connection alone. What
Hypercorn answers by itself, where there is no request that could be routed, becomes the JSON error of all others.
HTTP/1.1 only: a proxy that speaks TLS and HTTP/2 to the world stands in front.
"""

import ipaddress
import logging
import math
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import h11
import trio
import wsproto.utilities
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import UnexpectedMessageError, parse_socket_addr

from .app import SENTENCES, make_app
from .door import Door
from .errors import JSON, error
from .settings import (
    CLOSE_S_MAX,
    CONNECTIONS_MAX,
    CONNECTIONS_MIN,
    FILES_KEPT,
    KEEP_ALIVE_S,
    PARTS_AHEAD_MAX,
    SEND_CHUNK_BYTES,
    SEND_S_MAX,
    STREAM_INPUT_BYTES_MAX,
)

log = logging.getLogger("letterbook.gateway")

REQUESTS_A_CONNECTION_MAX = 1_000_000
"""Hypercorn's thousand makes a busy client connect anew every second."""

CLOSE = (b"connection", b"close")

CLOSE_FRAME = b"\x88"
"""The first byte of a close (RFC 6455 section 5.2): what is sent to a stream begins where a frame does."""

EMPTY = (b"content-length", b"0")
"""What Hypercorn's own errors carry; no answer of ours is empty."""

_TROUBLE = (
    OSError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    h11.ProtocolError,
    wsproto.utilities.ProtocolError,
    UnexpectedMessageError,
)
"""What one client can do to its own connection."""


class OpenToAllError(Exception):
    """Without a token everybody who can connect may send mail."""

    def __init__(self, host: str) -> None:
        super().__init__(f"[server] api_token is empty, so host must be a loopback address; it is {host}")


class _Protocol(H11Protocol):
    """HTTP/1.1 without a way to HTTP/2, with errors in the one shape, and an answer's head and body in one send."""

    _head = b""

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        # Compression would let a small frame become a large message before anybody counts its bytes.
        kept = [(name, value) for name, value in request.headers if name != b"sec-websocket-extensions"]
        if len(kept) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=kept, http_version=request.http_version
            )
        await super()._create_stream(request)

    async def stream_send(self, event: StreamEvent) -> None:
        refused_upgrade = isinstance(self.connection, H11WSConnection)
        if isinstance(event, Response) and event.status_code >= 400:
            await self._send_error(event, refused_upgrade)
            return
        await super().stream_send(event)
        if isinstance(event, EndBody) and refused_upgrade:
            # What was going to be a websocket takes no other request, and Hypercorn would leave it open.
            await self.send(Closed())

    async def _send_error(self, event: Response, refused_upgrade: bool) -> None:
        """An error of the application as it is, one of Hypercorn's with the body of all others."""
        if EMPTY not in event.headers:
            headers = [*event.headers, CLOSE] if refused_upgrade else event.headers
            await super().stream_send(Response(event.stream_id, headers, event.status_code))
            return
        data = _error_data(event.status_code)
        await super().stream_send(Response(event.stream_id, _error_headers(data), event.status_code))
        if getattr(self.stream, "scope", {}).get("method") != "HEAD":
            await super().stream_send(Body(event.stream_id, data))

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            # The client broke the protocol first, or has been refused an upgrade that is accepted only now.
            if self.connection.their_state is not h11.ERROR and not isinstance(self.connection, H11WSConnection):
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
        elif data := self._head + data:
            self._head = b""
            await self.send(RawData(data))

    async def _send_error_response(self, status_code: int) -> None:
        data = _error_data(status_code)
        headers = [*_error_headers(data), *self.config.response_headers("h11")]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=data))
        await self._send_h11_event(h11.EndOfMessage())


def _error_data(status: int) -> bytes:
    return error(status, SENTENCES.get(status, SENTENCES[400])).data


def _error_headers(data: bytes) -> list[tuple[bytes, bytes]]:
    length = (b"content-length", b"%d" % len(data))
    return [(b"content-type", JSON.encode()), length, CLOSE]


class Connection(TCPServer):
    """One client's connection."""

    _idle = True

    async def run(self) -> None:
        try:
            await self._converse()
        except* _TROUBLE as trouble:
            log.debug("a connection ended: %s", trouble.exceptions)

    async def _converse(self) -> None:
        raw = self.stream.socket
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(SEND_S_MAX * 1000))
        client = parse_socket_addr(raw.family, raw.getpeername())
        server = parse_socket_addr(raw.family, raw.getsockname())
        self._reading = trio.CancelScope()
        self._wait_for(KEEP_ALIVE_S)
        try:
            async with TaskGroup() as task_group:
                self._protocol = _Protocol(
                    self.app,
                    self.config,
                    self.context,
                    task_group,
                    ConnectionState(self.state),
                    False,
                    client,
                    server,
                    self.protocol_send,
                )
                # In the place of a wrapper that has the same two methods.
                self.protocol = self._protocol  # type: ignore[assignment]
                await self._read_data()
        finally:
            await trio.aclose_forcefully(self.stream)

    async def _read_data(self) -> None:
        """Read until the client is gone, has been idle for KEEP_ALIVE_S, or does not answer a close."""
        data: bytes | bytearray = b"more"
        while data:
            data = b""
            with trio.CancelScope(deadline=self._deadline) as self._reading:
                try:
                    data = await self.stream.receive_some(MAX_RECV)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
            await self.protocol.handle(RawData(bytes(data)))
        await self.protocol.handle(Closed())

    def _wait_for(self, seconds: float) -> None:
        """The client has so long from now on, whatever it sends, to come to something."""
        self._deadline = self._reading.deadline = trio.current_time() + seconds

    def end_if_idle(self) -> None:
        """Close, unless a request or a stream is under way."""
        if self._idle:
            self._reading.cancel()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._idle = event.idle
            self._wait_for(KEEP_ALIVE_S if event.idle else math.inf)
        elif isinstance(event, RawData):
            async with self.send_lock:
                sent = await self._send(event.data)
            if not sent:
                await self.protocol.handle(Closed())
            elif event.data[:1] == CLOSE_FRAME and isinstance(self._protocol.connection, H11WSConnection):
                self._wait_for(CLOSE_S_MAX)
        else:
            await super().protocol_send(event)

    async def _send(self, data: bytes) -> bool:
        """Send, or close the connection: it takes nothing, is gone, or we are cancelled in the middle."""
        sent = False
        try:
            for start in range(0, len(data), SEND_CHUNK_BYTES):
                with trio.fail_after(SEND_S_MAX):
                    await self.stream.send_all(memoryview(data)[start : start + SEND_CHUNK_BYTES])
            sent = True
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass
        finally:
            if not sent:
                await trio.aclose_forcefully(self.stream)
        return sent

    async def _close(self) -> None:
        """Say that nothing more comes, then close; whoever is cancelled meanwhile closes all the same."""
        try:
            await self.stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass
        finally:
            await trio.aclose_forcefully(self.stream)


@asynccontextmanager
async def listening(host: str, port: int) -> AsyncIterator[list[trio.SocketListener]]:
    """The port, had before anything else is; whoever connects early waits. Raises OSError that names it."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as trouble:
        raise OSError(trouble.errno, f"{trouble.strerror or trouble}: {host} port {port}") from trouble
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.socket.close()


async def serve(
    door: Door,
    listeners: "list[trio.SocketListener]",
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one door until `stopping` is set, then at most `drain_seconds` more; started with the port.

    At the stop no connection is taken any more, idle ones are closed, requests under way are answered, streams are
    closed with 1001. Raises OpenToAllError.
    """
    settings = door.settings
    if door.gate.open and not _is_loopback(settings.host):
        raise OpenToAllError(settings.host)
    connections = _Connections(door)
    async with trio.open_nursery() as watching:
        await watching.start(door.watch.run)
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as accepting:
                serving = partial(trio.serve_listeners, connections.handle, listeners, handler_nursery=nursery)
                accepting.start_soon(serving)
                task_status.started(listeners[0].socket.getsockname()[1])
                await door.stopping.wait()
                accepting.cancel_scope.cancel()
            await connections.terminate()
            nursery.cancel_scope.deadline = trio.current_time() + settings.drain_seconds
        watching.cancel_scope.cancel()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _connections_max() -> int:
    """How many connections the files of this process allow, once it may open as many as it can be given."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    return min(CONNECTIONS_MAX, max(CONNECTIONS_MIN, soft - FILES_KEPT))


class _Connections:
    """All connections of one server, at most `_connections_max`."""

    def __init__(self, door: Door) -> None:
        self._config = _hypercorn_config(door)
        self._app = ASGIWrapper(make_app(door))  # type: ignore[arg-type]  # ASGI, typed otherwise
        self._context = WorkerContext(None)
        self._open: set[Connection] = set()
        self._most = _connections_max()

    async def handle(self, stream: trio.SocketStream) -> None:
        if len(self._open) >= self._most:
            await trio.aclose_forcefully(stream)
            return
        state: Any = {}
        connection = Connection(self._app, self._config, self._context, state, stream)  # type: ignore[arg-type]
        self._open.add(connection)
        try:
            await connection.run()
        finally:
            self._open.discard(connection)

    async def terminate(self) -> None:
        """Close what is idle, and whatever becomes so."""
        await self._context.terminated.set()
        for connection in tuple(self._open):
            connection.end_if_idle()


def _hypercorn_config(door: Door) -> Config:
    config = Config()
    config.errorlog = log
    config.accesslog = None
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = REQUESTS_A_CONNECTION_MAX
    config.max_app_queue_size = PARTS_AHEAD_MAX
    config.websocket_max_message_size = STREAM_INPUT_BYTES_MAX
    config.graceful_timeout = door.settings.drain_seconds
    return config
