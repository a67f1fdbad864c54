"""Connections against scripted relays in memory, under a clock that jumps, and against real servers on loopback."""

import asyncio
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
import trio
import trio.testing
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from anyio.abc import ByteStream

from actors.connection import Connection, Mail, Relay, RelayTrouble, connect, is_loopback
from actors.network import TrioNetwork, make_context
from actors.smtp.engine import STAGES

CLOSE, HANG, RUDE = object(), object(), object()
"""What a scripted relay may do instead of answering: close, be silent for ever, break the connection."""

GREETING, EHLO, STARTTLS, AUTH = (
    b"220 hi\r\n",
    b"250-x\r\n250 PIPELINING\r\n",
    b"250-x\r\n250 STARTTLS\r\n",
    b"250 AUTH PLAIN\r\n",
)
READY = (GREETING, EHLO)
GO, QUEUED = b"250 ok\r\n250 ok\r\n354 go\r\n", b"250 2.0.0 Ok: queued as AB12\r\n"
PASSWORD = "correct horse"
CONTENT = b"Subject: x\r\n\r\nhello\r\n"


def mail(*recipients: str, content: bytes = CONTENT) -> Mail:
    return Mail("from@example.com", tuple(enumerate(recipients or ("to@example.org",))), content)


class Wire(ByteStream):
    """One end of Trio's stream in memory, as anyio's streams behave."""

    def __init__(self, stream: trio.StapledStream) -> None:
        self.stream = stream

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        try:
            data = await self.stream.receive_some(max_bytes)
        except trio.ClosedResourceError:
            raise anyio.ClosedResourceError from None
        except trio.BrokenResourceError:
            raise anyio.BrokenResourceError from None
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        try:
            await self.stream.send_all(item)
        except trio.ClosedResourceError:
            raise anyio.ClosedResourceError from None
        except trio.BrokenResourceError:
            raise anyio.BrokenResourceError from None

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        self.stream.send_stream.close()
        self.stream.receive_stream.close()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}


class Relays:
    """A network of scripted relays, one script a connection; what was heard and how TLS was done is kept."""

    def __init__(self, nursery: trio.Nursery, *scripts: object, trusted: bool = True) -> None:
        self.nursery = nursery
        self.scripts = list(scripts)
        self.trusted = trusted
        self.heard: list[bytes] = []
        self.handshakes: list[bool] = []
        self.wires: list[Wire] = []

    async def connect(self, host: str, port: int) -> ByteStream:
        await trio.lowlevel.checkpoint()
        script = self.scripts.pop(0)
        if script is HANG:
            await trio.sleep_forever()
        if isinstance(script, BaseException):
            raise script
        ours, theirs = trio.testing.memory_stream_pair()
        self.wires.append(Wire(ours))
        self.nursery.start_soon(self.play, script, theirs)
        return self.wires[-1]

    async def play(self, script: tuple[object, ...], stream: trio.StapledStream) -> None:
        for step in script:
            if step is HANG:
                await trio.sleep_forever()
            if step is CLOSE or not await self.exchange(step, stream):
                break
        await stream.aclose()

    async def exchange(self, step: object, stream: trio.StapledStream) -> bool:
        """Say one step and hear what comes back; False when the client has gone."""
        assert isinstance(step, bytes)
        try:
            await stream.send_all(step)
            heard = bytes(await stream.receive_some())
        except trio.BrokenResourceError:
            return False
        self.heard += [heard] if heard else []
        return bool(heard)

    async def start_tls(self, stream: ByteStream, host: str, context: ssl.SSLContext) -> ByteStream:
        await trio.lowlevel.checkpoint()
        verify = context.verify_mode is ssl.CERT_REQUIRED
        self.handshakes.append(verify)
        if verify and not self.trusted:
            raise ssl.SSLCertVerificationError(1, "self-signed certificate")
        return stream

    def tls_context(self, *, verify: bool, ca_file: str | None) -> ssl.SSLContext:
        return make_context(verify=verify, ca_file=ca_file)

    def close_now(self, stream: ByteStream) -> None:
        assert isinstance(stream, Wire)
        stream.close()

    @property
    def all_closed(self) -> bool:
        return all(wire.stream.receive_stream._closed for wire in self.wires)  # type: ignore[attr-defined]


@asynccontextmanager
async def relays(*scripts: object, **more: bool) -> AsyncIterator[Relays]:
    async with trio.open_nursery() as nursery:
        yield Relays(nursery, *scripts, **more)
        nursery.cancel_scope.cancel()


def relay(**fields: Any) -> Relay:
    return Relay(**({"host": "mx.example", "port": 587, "ehlo_name": "client.example"} | fields))


async def trouble(network: Relays | TrioNetwork, where: Relay) -> RelayTrouble:
    with pytest.raises(RelayTrouble) as caught:
        await connect(network, where)
    if isinstance(network, Relays):
        assert network.all_closed, "whoever opened the socket closes it"
    assert PASSWORD not in caught.value.text
    return caught.value


# Delivering


async def test_a_mail_on_a_quiet_line(autojump_clock):
    async with relays((*READY, GO, QUEUED, b"221 bye\r\n")) as network:
        connection = await connect(network, relay())
        delivery = await connection.deliver(mail())
        assert delivery.outcomes[0].queue_id == "AB12" and delivery.reusable and connection.ready
        assert not connection.tls and not connection.verified
        await connection.aclose()
        assert [line.split(b"\r\n")[0] for line in network.heard] == [
            b"EHLO client.example", b"MAIL FROM:<from@example.com>", b"Subject: x", b"QUIT",
        ]  # fmt: skip
        assert network.all_closed and trio.current_time() == 0


async def test_one_connection_carries_many_mails(autojump_clock):
    async with relays((*READY, *(GO, QUEUED) * 50)) as network:
        connection = await connect(network, relay())
        for _ in range(50):
            assert (await connection.deliver(mail())).outcomes[0].status == "delivered"


@pytest.mark.parametrize(
    ("script", "stage", "status", "seconds"),
    [
        ((HANG,), "mail", "deferred", 300),
        ((b"250 ok\r\n", HANG), "rcpt", "deferred", 300),
        ((b"250 ok\r\n250 ok\r\n", HANG), "data", "deferred", 120),
        ((GO, HANG), "final", "in_doubt", 600),
        ((GO, b"250-", HANG), "final", "in_doubt", 600),
        ((CLOSE,), "mail", "deferred", 0),
        ((GO, CLOSE), "final", "in_doubt", 0),
    ],
)
async def test_silence_and_hanging_up_are_outcomes_not_exceptions(script, stage, status, seconds, autojump_clock):
    async with relays((*READY, *script)) as network:
        connection = await connect(network, relay())
        delivery = await connection.deliver(mail())
        assert (delivery.stage, delivery.outcomes[0].status, delivery.reusable) == (stage, status, False)
        assert delivery.scope == "relay" and STAGES[stage].words in delivery.replies[0][1]
        assert trio.current_time() == seconds and network.all_closed and not connection.ready


async def test_a_relay_that_drips_bytes_does_not_renew_its_deadline(autojump_clock):
    async with trio.open_nursery() as nursery:
        network = Relays(nursery, (*READY, HANG))
        connection = await connect(network, relay())
        network.scripts = []
        ours, theirs = trio.testing.memory_stream_pair()
        connection._stream = Wire(ours)
        nursery.start_soon(drip, theirs)
        delivery = await connection.deliver(mail())
        assert (delivery.stage, delivery.outcomes[0].status, trio.current_time()) == ("mail", "deferred", 300)
        nursery.cancel_scope.cancel()


async def drip(stream: trio.StapledStream) -> None:
    with pytest.raises(trio.BrokenResourceError):
        for octet in b"250-" + b"x" * 2000:
            await stream.send_all(bytes([octet]))
            await trio.sleep(50)


async def test_a_421_in_the_middle_of_a_mail(autojump_clock):
    async with relays((*READY, b"250 ok\r\n421 4.3.2 bye\r\n", CLOSE)) as network:
        connection = await connect(network, relay())
        delivery = await connection.deliver(mail())
        assert delivery.replies == ((0, "421 4.3.2 bye"),) and delivery.mail_accepted and not delivery.reusable


async def test_a_session_that_wants_another_login_is_left(autojump_clock):
    async with relays((*READY, b"530 5.7.0 log in\r\n503 no\r\n503 no\r\n", HANG)) as network:
        connection = await connect(network, relay())
        delivery = await connection.deliver(mail())
        assert (delivery.scope, delivery.outcomes[0].status, delivery.reusable) == ("relay", "deferred", False)
        assert not connection.ready and network.all_closed


async def test_a_refused_recipient_leaves_the_connection_usable(autojump_clock):
    async with relays((*READY, b"250 ok\r\n550 5.1.1 no\r\n554 no\r\n", b"250 reset\r\n" + GO, QUEUED)) as network:
        connection = await connect(network, relay())
        assert (await connection.deliver(mail())).outcomes[0].status == "refused"
        assert (await connection.deliver(mail())).outcomes[0].status == "delivered"
        assert network.heard[2].startswith(b"RSET\r\nMAIL")


async def test_a_relay_that_stops_reading_in_the_content_times_out_by_its_piece(autojump_clock):
    async with relays((*READY, GO, HANG)) as network:
        connection = await connect(network, relay())
        connection._stream = Stuck(connection._stream)
        delivery = await connection.deliver(mail(content=b"x" * 200_000))
        assert (delivery.stage, delivery.outcomes[0].status, trio.current_time()) == ("content", "deferred", 180)


class Stuck(Wire):
    """A stream whose peer takes the envelope and then nothing more."""

    def __init__(self, wire: ByteStream) -> None:
        assert isinstance(wire, Wire)
        super().__init__(wire.stream)

    async def send(self, item: bytes) -> None:
        if not item.startswith(b"MAIL"):
            await trio.sleep_forever()
        await super().send(item)


class Broken(Stuck):
    """A stream whose peer has hung up in the middle of the content, after some last words."""

    async def send(self, item: bytes) -> None:
        if not item.startswith(b"MAIL"):
            raise anyio.BrokenResourceError
        await Wire.send(self, item)


@pytest.mark.parametrize(
    ("script", "status", "code", "text"),
    [
        ((GO + b"552 5.3.4 too much\r\n", CLOSE), "refused", 552, "552 5.3.4 too much"),
        ((GO, CLOSE), "deferred", None, "the relay closed the connection while sending the content"),
        ((GO, HANG), "deferred", None, "the relay closed the connection while sending the content"),
    ],
)
async def test_a_relay_that_hangs_up_has_often_said_why(script, status, code, text, autojump_clock):
    async with relays((*READY, *script)) as network:
        connection = await connect(network, relay())
        connection._stream = Broken(connection._stream)
        delivery = await connection.deliver(mail(content=b"x" * 200_000))
        assert (delivery.outcomes[0].status, delivery.outcomes[0].code) == (status, code)
        assert delivery.replies[0][1].startswith(text) and not delivery.reusable


@pytest.mark.parametrize(
    ("script", "status"),
    [((HANG,), "deferred"), ((b"250 ok\r\n", HANG), "deferred"), ((b"250 ok\r\n" + GO, HANG), "in_doubt")],
)
async def test_a_cancelled_delivery_still_has_an_outcome(script, status, autojump_clock):
    async with relays((*READY, *script)) as network:
        connection = await connect(network, relay())
        with trio.move_on_after(10) as scope:
            await connection.deliver(mail("a@x.org", "b@x.org"))
        delivery = connection.interrupted()
        assert scope.cancelled_caught and network.all_closed
        assert [outcome.status for outcome in delivery.outcomes] == [status] * 2 and not delivery.reusable
        assert trio.current_time() == 10


async def test_interrupted_just_after_the_last_reply_keeps_what_is_known(autojump_clock):
    async with relays((*READY, GO, QUEUED)) as network:
        connection = await connect(network, relay())
        await connection.deliver(mail())
        assert connection.interrupted().outcomes[0].status == "delivered" and not connection.ready


async def test_a_relay_that_ignores_quit_is_left_after_a_moment(autojump_clock):
    async with relays((*READY, HANG)) as network:
        connection = await connect(network, relay())
        await connection.aclose()
        await connection.aclose()
        assert trio.current_time() == STAGES["quit"].timeout_seconds and network.all_closed


async def test_closing_while_cancelled_still_closes(autojump_clock):
    async with relays((*READY, HANG)) as network:
        connection = await connect(network, relay())
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.aclose()
        assert network.all_closed


# Idle connections


@pytest.mark.parametrize(("said", "code"), [(b"421 4.4.2 idle too long\r\n", 421), (b"", None)])
async def test_a_connection_that_ended_while_it_idled_is_found_out_by_the_next_mail(said, code, autojump_clock):
    """Nobody reads meanwhile; that MAIL was never taken is what lets the sender connect anew within the attempt."""
    async with trio.open_nursery() as nursery:
        network = Relays(nursery, READY)
        connection = await connect(network, relay())
        ours, theirs = trio.testing.memory_stream_pair()
        connection._stream = network.wires[0] = Wire(ours)
        await theirs.send_all(said)
        await theirs.send_stream.aclose()
        delivery = await connection.deliver(mail())
        assert (delivery.scope, delivery.mail_accepted, delivery.reusable) == ("relay", False, False)
        assert (delivery.outcomes[0].status, delivery.outcomes[0].code) == ("deferred", code)
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


async def test_a_421_behind_the_reply_to_ehlo_ends_the_session(autojump_clock):
    async with relays((GREETING, EHLO + b"421 idle too long\r\n", HANG)) as network:
        assert (await trouble(network, relay())).code == 421


# Connecting


@pytest.mark.parametrize(
    ("script", "reason", "code", "seconds"),
    [
        (HANG, "connect_timeout", None, 30),
        (socket.gaierror(-2, "Name or service not known"), "dns", None, 0),
        (UnicodeError("label too long"), "dns", None, 0),
        (ConnectionRefusedError(111, "Connection refused"), "connect_refused", None, 0),
        (OSError(113, "No route to host"), "connect_failed", None, 0),
        ((HANG,), "greeting", None, 300),
        ((CLOSE,), "greeting", None, 0),
        ((b"554 no\r\n", CLOSE), "greeting", 554, 0),
        ((b"SSH-2.0\r\n", CLOSE), "greeting", None, 0),
        ((GREETING, HANG), "ehlo", None, 300),
        ((GREETING, b"421 later\r\n", CLOSE), "ehlo", 421, 0),
        ((GREETING, b"502 no\r\n", b"550 no\r\n", CLOSE), "ehlo", 550, 0),
        ((GREETING, STARTTLS, HANG), "starttls", None, 120),
        ((GREETING, STARTTLS, b"220 go\r\n250 fake\r\n", HANG), "injected", None, 0),
    ],
)
async def test_a_relay_in_trouble_says_which(script, reason, code, seconds, autojump_clock):
    async with relays(script) as network:
        caught = await trouble(network, relay())
        assert (caught.reason, caught.code, trio.current_time()) == (reason, code, seconds)


async def test_a_cancelled_connect_closes_its_socket(autojump_clock):
    async with relays((GREETING, HANG)) as network:
        with trio.move_on_after(5) as scope:
            await connect(network, relay())
        assert scope.cancelled_caught and network.all_closed


async def test_the_cause_is_found_below_happy_eyeballs(autojump_clock):
    failed = OSError("All connection attempts failed")
    failed.__cause__ = ExceptionGroup(
        "multiple", [OSError(101, "unreachable"), ConnectionRefusedError(111, "Connection refused")]
    )
    async with relays(failed) as network:
        caught = await trouble(network, relay())
        assert caught.reason == "connect_refused" and "Connection refused" in caught.text


# TLS and credentials: every combination has its row

TLS_SCRIPT = (GREETING, STARTTLS, b"220 go\r\n", EHLO)


@pytest.mark.parametrize(
    ("fields", "trusted", "expected", "handshakes"),
    [
        ({}, True, (True, True), [True]),
        ({}, False, (True, False), [True, False]),
        ({"tls_verify": False}, False, (True, False), [False]),
        ({"tls": "none"}, True, (False, False), []),
        ({"tls": "starttls-required"}, True, (True, True), [True]),
        ({"tls": "starttls-required"}, False, "certificate", [True]),
        ({"tls": "starttls-required", "host": "127.0.0.1"}, False, "certificate", [True]),
        ({"tls": "starttls-required", "tls_verify": False}, False, (True, False), [False]),
    ],
)
async def test_whether_starttls_must_verify(fields, trusted, expected, handshakes, autojump_clock):
    async with relays(TLS_SCRIPT, TLS_SCRIPT, trusted=trusted) as network:
        if isinstance(expected, str):
            assert (await trouble(network, relay(**fields))).reason == expected
        else:
            connection = await connect(network, relay(**fields))
            assert (connection.tls, connection.verified) == expected
        assert network.handshakes == handshakes


@pytest.mark.parametrize(
    ("fields", "trusted", "expected"),
    [
        ({}, True, (True, True)),
        ({}, False, "certificate"),
        ({"tls_verify": False}, False, (True, False)),
        ({"host": "127.0.0.1"}, False, (True, False)),
        ({"tls": "starttls-required", "host": "127.0.0.1"}, False, "certificate"),
    ],
)
async def test_with_a_password_the_certificate_counts(fields, trusted, expected, autojump_clock):
    script = (GREETING, STARTTLS, b"220 go\r\n", b"250-x\r\n250 AUTH PLAIN LOGIN\r\n", b"235 in\r\n")
    async with relays(script, script, trusted=trusted) as network:
        where = relay(user="me", password=PASSWORD, **fields)
        if isinstance(expected, str):
            assert (await trouble(network, where)).reason == expected
            assert not any(b"AUTH" in line for line in network.heard)
        else:
            connection = await connect(network, where)
            assert (connection.tls, connection.verified) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "starttls"),
        ({"tls": "starttls-required"}, "starttls"),
        ({"tls": "none"}, None),
        ({"host": "127.0.0.1"}, None),
        ({"host": "::1"}, None),
        ({"host": "localhost"}, None),
        ({"host": "localhost.example"}, "starttls"),
    ],
)
@pytest.mark.parametrize("declined", [False, True])
async def test_credentials_cross_no_clear_line_unless_it_is_loopback_or_the_account_says_so(
    fields, expected, declined, autojump_clock
):
    ehlo = b"250-x\r\n250-AUTH PLAIN\r\n250 STARTTLS\r\n" if declined else b"250-x\r\n250 AUTH PLAIN\r\n"
    asked = declined and fields.get("tls") != "none"
    script = (GREETING, ehlo, *([b"454 not now\r\n"] if asked else []), b"235 in\r\n", HANG)
    async with relays(script) as network:
        where = relay(user="me", password=PASSWORD, **fields)
        if expected:
            assert (await trouble(network, where)).reason == expected
            assert not any(line.startswith(b"AUTH") for line in network.heard)
        else:
            assert not (await connect(network, where)).tls


@pytest.mark.parametrize("fields", [{"port": 465}, {"tls": "implicit"}])
async def test_implicit_tls_comes_before_the_greeting(fields, autojump_clock):
    async with relays(READY) as network:
        connection = await connect(network, relay(**fields))
        assert connection.tls and connection.verified and network.handshakes == [True]


async def test_port_465_without_a_password_takes_any_certificate_and_explicit_implicit_none(autojump_clock):
    async with relays(READY, READY, trusted=False) as network:
        connection = await connect(network, relay(port=465))
        assert connection.tls and not connection.verified
    async with relays(READY, trusted=False) as network:
        assert (await trouble(network, relay(tls="implicit"))).reason == "certificate"


async def test_a_ca_file_that_cannot_be_read_is_named(autojump_clock, tmp_path):
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for path in (str(tmp_path / "missing.pem"), str(empty)):
        async with relays((GREETING, STARTTLS, b"220 go\r\n", HANG)) as network:
            caught = await trouble(network, relay(tls_ca_file=path))
            assert caught.reason == "ca_file" and path in caught.text


# AUTH


@pytest.mark.parametrize(
    ("offered", "fields", "said"),
    [
        (b"AUTH PLAIN LOGIN CRAM-MD5", {"tls": "none"}, b"AUTH CRAM-MD5"),
        (b"AUTH PLAIN LOGIN", {"tls": "none"}, b"AUTH PLAIN"),
        (b"AUTH LOGIN", {"tls": "none"}, b"AUTH LOGIN"),
        (b"AUTH=LOGIN", {"tls": "none"}, b"AUTH LOGIN"),
        (b"AUTH PLAIN LOGIN CRAM-MD5", {"tls": "implicit"}, b"AUTH PLAIN"),
        (b"AUTH PLAIN LOGIN CRAM-MD5", {"tls": "implicit", "auth": "login"}, b"AUTH LOGIN"),
        (b"AUTH PLAIN LOGIN CRAM-MD5", {"tls": "implicit", "auth": "cram-md5"}, b"AUTH CRAM-MD5"),
    ],
)
async def test_the_mechanism_is_the_best_that_both_know(offered, fields, said, autojump_clock):
    async with relays((GREETING, b"250-x\r\n250 " + offered + b"\r\n", b"235 in\r\n", HANG)) as network:
        await connect(network, relay(user="me", password=PASSWORD, **fields))
        await trio.testing.wait_all_tasks_blocked()
        assert network.heard[1].startswith(said)


@pytest.mark.parametrize(("offered", "auth"), [(b"HELP", "auto"), (b"AUTH GSSAPI", "auto"), (b"AUTH PLAIN", "login")])
async def test_no_mechanism_in_common(offered, auth, autojump_clock):
    async with relays((GREETING, b"250-x\r\n250 " + offered + b"\r\n", HANG)) as network:
        caught = await trouble(network, relay(user="me", password=PASSWORD, tls="none", auth=auth))
        assert caught.reason == "no_auth_offered"


async def test_a_refused_login_names_the_code_and_never_the_password(autojump_clock):
    from base64 import b64encode

    encoded = b64encode(b"\0me\0" + PASSWORD.encode())
    reply = b"535 5.7.8 bad login me " + PASSWORD.encode() + b" in " + encoded + b"\r\n"
    async with relays((GREETING, b"250-x\r\n250 AUTH PLAIN\r\n", reply, HANG)) as network:
        where = relay(user="me", password=PASSWORD, tls="none")
        caught = await trouble(network, where)
        assert (caught.reason, caught.code) == ("auth", 535)
        assert encoded.decode() not in caught.text and PASSWORD not in repr(where) + str(where)
        assert caught.text == "mx.example:587: AUTH PLAIN: 535 5.7.8 bad login *** *** in ***"


def test_loopback_is_judged_without_resolving():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST.")))
    assert not any(map(is_loopback, ("128.0.0.1", "localhost.example", "mail", "::2", "")))


# Real servers


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Capture:
    """An aiosmtpd handler that keeps what it was given."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    async def handle_DATA(self, server, session, envelope) -> str:
        self.contents.append(envelope.content)
        return "250 2.0.0 Ok: queued as REAL1"


class TlsController(Controller):
    """aiosmtpd with STARTTLS and AUTH on a certificate of our own."""

    def __init__(self, handler: Capture, context: ssl.SSLContext, implicit: bool) -> None:
        super().__init__(handler, hostname="127.0.0.1", port=free_port(), ssl_context=context if implicit else None)
        self.context = None if implicit else context
        self.servers: list[SMTP] = []

    def factory(self) -> SMTP:
        self.servers.append(
            SMTP(self.handler, authenticator=authenticate, tls_context=self.context, hostname="relay.test")
        )
        return self.servers[-1]

    def hang_up(self) -> None:
        """Close what clients left open: `stop` alone leaves it to the garbage collector, which complains later."""
        asyncio.run_coroutine_threadsafe(self.abort(), self.loop).result(5)

    async def abort(self) -> None:
        for server in self.servers:
            if server.transport is not None:
                server.transport.abort()
        for _ in range(10):
            await asyncio.sleep(0)


def authenticate(server, session, envelope, mechanism, data) -> AuthResult:
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"me", PASSWORD.encode())
    return AuthResult(success=good, handled=good)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority) -> Iterator[tuple[Controller, Capture]]:
    with running(authority, "localhost", "127.0.0.1") as both:
        yield both


@contextmanager
def running(authority: trustme.CA, *names: str, implicit: bool = False) -> Iterator[tuple[Controller, Capture]]:
    handler = Capture()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    controller = TlsController(handler, context, implicit)
    controller.start()
    try:
        yield controller, handler
    finally:
        controller.hang_up()
        controller.stop()


@pytest.fixture
def ca_file(authority, tmp_path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.mark.parametrize("auth", ["auto", "login"])
async def test_aiosmtpd_with_starttls_and_auth(server, ca_file, auth):
    controller, handler = server
    where = relay(
        host="127.0.0.1",
        port=controller.port,
        user="me",
        password=PASSWORD,
        tls="starttls-required",
        tls_ca_file=ca_file,
        auth=auth,
    )
    connection = await connect(TrioNetwork(), where)
    assert connection.tls and connection.verified
    for _ in range(2):
        delivery = await connection.deliver(
            mail("a@x.org", "b@x.org", content=b"Subject: x\r\n\r\n.\r\n..x\r\nend\r\n" + b"y" * 900)
        )
        assert [outcome.status for outcome in delivery.outcomes] == ["delivered"] * 2
        assert delivery.outcomes[0].queue_id == "REAL1"
    await connection.aclose()
    assert handler.contents == [b"Subject: x\r\n\r\n.\r\n..x\r\nend\r\n" + b"y" * 900 + b"\r\n"] * 2


async def test_aiosmtpd_with_a_wrong_password(server, ca_file):
    controller, _ = server
    caught = await trouble(
        TrioNetwork(), relay(host="localhost", port=controller.port, user="me", password="wrong", tls_ca_file=ca_file)
    )
    assert (caught.reason, caught.code) == ("auth", 535)


async def test_aiosmtpd_whose_certificate_nobody_vouches_for(server):
    controller, _ = server
    where = relay(host="127.0.0.1", port=controller.port)
    connection = await connect(TrioNetwork(), where)
    assert connection.tls and not connection.verified
    assert (await connection.deliver(mail())).outcomes[0].status == "delivered"
    await connection.aclose()
    explicit = relay(host="127.0.0.1", port=controller.port, tls="starttls-required")
    assert (await trouble(TrioNetwork(), explicit)).reason == "certificate"


async def test_aiosmtpd_with_implicit_tls(authority, ca_file):
    with running(authority, "localhost", implicit=True) as (controller, handler):
        where = relay(host="localhost", port=controller.port, tls="implicit", tls_ca_file=ca_file)
        connection = await connect(TrioNetwork(), where)
        assert connection.tls and connection.verified
        content = b"x" * 70 + b"\r\n"
        assert (await connection.deliver(mail(content=content * 20_000))).outcomes[0].status == "delivered"
        await connection.aclose()
        assert handler.contents == [content * 20_000]


async def test_a_certificate_for_another_name_is_none(authority, ca_file):
    with running(authority, "other.example") as (controller, _):
        where = relay(host="127.0.0.1", port=controller.port, tls="starttls-required", tls_ca_file=ca_file)
        assert (await trouble(TrioNetwork(), where)).reason == "certificate"


async def test_a_real_server_that_goes_away_while_idle(authority):
    with running(authority, "localhost") as (controller, _):
        connection = await connect(TrioNetwork(), relay(host="127.0.0.1", port=controller.port))
        assert (await connection.deliver(mail())).outcomes[0].status == "delivered"
    delivery = await connection.deliver(mail())
    assert (delivery.scope, delivery.mail_accepted, delivery.reusable) == ("relay", False, False)
    assert not connection.ready


SINK = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib/postfix/sbin")


@asynccontextmanager
async def sink(*options: str) -> AsyncIterator[Relay]:
    """Postfix's test server: it pipelines, and its options say what it refuses."""
    where = relay(host="127.0.0.1", port=free_port(), tls="none")
    user = ("-u", "nobody") if os.geteuid() == 0 else ()
    command = [SINK or "", *user, *options, f"127.0.0.1:{where.port}", "20"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        with trio.fail_after(10):
            while not await listens(where):
                await trio.lowlevel.checkpoint()
        yield where
    finally:
        process.kill()
        process.wait()


async def listens(where: Relay) -> bool:
    try:
        stream = await trio.open_tcp_stream(where.host, where.port)
    except OSError:
        return False
    await stream.aclose()
    return True


@pytest.mark.skipif(SINK is None, reason="Postfix's smtp-sink is not installed; the scripted relays say the same")
@pytest.mark.parametrize(
    ("options", "status", "stage", "scope"),
    [
        ((), "delivered", "final", None),
        (("-p",), "delivered", "final", None),
        (("-e",), "delivered", "final", None),
        (("-r", "mail"), "deferred", "mail", "message"),
        (("-f", "mail"), "refused", "mail", "message"),
        (("-r", "rcpt"), "deferred", "rcpt", "recipient"),
        (("-f", "rcpt"), "refused", "rcpt", "recipient"),
        (("-f", "rcpt", "-p"), "refused", "rcpt", "recipient"),
        (("-r", "data"), "deferred", "data", "message"),
        (("-f", "data"), "refused", "data", "message"),
        (("-r", "."), "deferred", "final", "message"),
        (("-f", "."), "refused", "final", "message"),
        (("-q", "mail"), "deferred", "mail", "relay"),
        (("-q", "rcpt"), "deferred", "rcpt", "relay"),
        (("-q", "data"), "deferred", "data", "relay"),
        (("-q", "."), "in_doubt", "final", "relay"),
        (("-Q", "rcpt"), "deferred", "rcpt", "relay"),
        (("-Q", "."), "deferred", "final", "relay"),
    ],
)
async def test_postfix_smtp_sink(options, status, stage, scope):
    async with sink(*options) as where:
        connection = await connect(TrioNetwork(), where)
        for _ in range(2):
            delivery = await connection.deliver(mail("a@x.org", "b@x.org"))
            assert [outcome.status for outcome in delivery.outcomes] == [status] * 2
            assert (delivery.stage, delivery.scope) == (stage, scope)
            assert connection.ready is delivery.reusable is (scope != "relay")
            if not delivery.reusable:
                break
        await connection.aclose()


async def test_a_port_where_nobody_listens():
    caught = await trouble(TrioNetwork(), relay(host="127.0.0.1", port=free_port()))
    assert caught.reason == "connect_refused"


async def test_a_real_socket_is_closed_at_once_and_twice(server):
    controller, _ = server
    for tls in ("none", "auto"):
        connection = await connect(TrioNetwork(), relay(host="127.0.0.1", port=controller.port, tls=tls))
        connection.close_now()
        connection.close_now()
        assert not connection.ready and isinstance(connection, Connection)
