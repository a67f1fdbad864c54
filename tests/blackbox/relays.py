"""Relays that nobody here wrote (aiosmtpd), and one that speaks exactly the bytes it is told to.

The capture relay of the demo is the third kind; it runs in the test's own loop.
"""

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple

import trio
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from letterbook.capture import CaptureRelay

LOOK_S = 0.02


def free_port() -> int:
    """A port for what cannot be told to choose one itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Arrived(NamedTuple):
    """One message as aiosmtpd has taken it."""

    login: str
    sender: str
    recipients: tuple[str, ...]
    content: bytes


class StockRelay:
    """aiosmtpd on a free port, with STARTTLS and AUTH: `logins` are the passwords by user, and may change."""

    def __init__(self, authority: trustme.CA, logins: Mapping[str, str]) -> None:
        self.logins = dict(logins)
        self.arrived: list[Arrived] = []
        self.refused_logins = 0
        self.sessions: set[SMTP] = set()
        self._lock = threading.Lock()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        self.port = free_port()
        self._controller = _Counting(
            self, "127.0.0.1", self.port, tls_context=context, require_starttls=True, auth_required=True,
            authenticator=self._log_in, enable_SMTPUTF8=True, ident="stock relay",
        )  # fmt: skip

    @contextmanager
    def listening(self) -> Iterator["StockRelay"]:
        self._controller.start()
        try:
            yield self
        finally:
            self._controller.stop()

    def _log_in(self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: object) -> AuthResult:
        assert isinstance(data, LoginPassword)
        user, password = data.login.decode(), data.password.decode()
        good = self.logins.get(user) == password
        self.refused_logins += not good
        return AuthResult(success=good, handled=False, auth_data=user)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        with self._lock:
            self.arrived.append(
                Arrived(str(session.auth_data), envelope.mail_from or "", tuple(envelope.rcpt_tos), content)
            )
        return "250 2.0.0 taken by the stock relay"

    async def until_received(self, count: int) -> None:
        """It runs in a thread with a loop of its own, so it can only be looked at."""
        while len(self.arrived) < count:
            await trio.sleep(LOOK_S)

    async def until_left(self) -> None:
        """Wait until no client is connected: aiosmtpd leaves open what is open when it stops."""
        while self.sessions:
            await trio.sleep(LOOK_S)


class _Counting(Controller):
    """Knows who is connected."""

    def factory(self) -> SMTP:
        relay: StockRelay = self.handler

        class Conversation(SMTP):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                relay.sessions.add(self)
                super().connection_made(transport)

            def connection_lost(self, error: Exception | None) -> None:
                relay.sessions.discard(self)
                super().connection_lost(error)

        return Conversation(relay, **self.SMTP_kwargs)


class Line(NamedTuple):
    """What the scripted relay does when a line of the client's matches: these bytes go out as they are, in one write;
    None closes the connection."""

    pattern: str
    answer: bytes | None


class ScriptedRelay:
    """Answers each command by the first row that fits; in the message only the final dot is a line that counts.

    It shows what a wire can carry and a well-behaved server never sends.
    """

    def __init__(self, *rows: Line, greeting: bytes = b"220 scripted\r\n") -> None:
        self._rows = rows
        self._greeting = greeting
        self.port = 0
        self.lines: list[str] = []
        self.after_answer: list[bytes] = []

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["ScriptedRelay"]:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, self._converse, listeners)
            yield self
            nursery.cancel_scope.cancel()

    async def _converse(self, stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(self._greeting)
            await self._answer_lines(stream)
        except trio.BrokenResourceError:
            # The client has hung up, which it may at any time.
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer_lines(self, stream: trio.SocketStream) -> None:
        buffer, in_data = b"", False
        while data := await stream.receive_some(65536):
            buffer += data
            while b"\r\n" in buffer:
                raw, _, buffer = buffer.partition(b"\r\n")
                line = raw.decode("latin-1")
                if in_data and line != ".":
                    continue
                self.lines.append(line)
                answer = self._answer(line)
                if answer is None:
                    return
                in_data = answer.startswith(b"354")
                await stream.send_all(answer)

    def _answer(self, line: str) -> bytes | None:
        for pattern, answer in self._rows:
            if re.match(pattern, line):
                return answer
        return b"250 ok\r\n"


class GatedRelay(CaptureRelay):
    """A capture relay that reads no message to its end before `gate` is set: until then what is sent to it is in
    flight, its final dot out, and not answered. `at_gate` counts those."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.at_gate = 0

    async def converse(self, stream: trio.abc.Stream) -> None:
        await super().converse(_Gated(stream, self))


class _Gated(trio.abc.Stream):
    """A stream whose reader waits at the gate when the end of a message has come."""

    def __init__(self, stream: trio.abc.Stream, relay: GatedRelay) -> None:
        self._stream = stream
        self._relay = relay
        self._tail = b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        self._tail = (self._tail + data)[-5:]
        if self._tail == b"\r\n.\r\n":
            self._relay.at_gate += 1
            await self._relay.gate.wait()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()
