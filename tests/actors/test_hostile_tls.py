"""TLS that fails, each way once, over real sockets: the relay is not used, an operator reads why, and no login has
crossed the line in clear. Without a login, under `auto`, the mail goes all the same, and is known as unverified."""

import logging
import random
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
import trio.testing
import trustme
from anyio.abc import ByteStream

from actors.connection import Mail, Relay, RelayTrouble, TroubleReason, connect
from actors.delivery import Delivery
from actors.network import TrioNetwork
from actors.sender_pool import DeliveryPolicy
from events.account import AccountSaved, TlsMode
from events.fact import OWN

from .delivering import accept, ends, note, opened, until

USER, PASSWORD = "clerk@example.com", "correct horse"
IN_CLEAR = [
    PASSWORD.encode(),
    *(b64encode(raw).rstrip(b"=") for raw in (PASSWORD.encode(), f"\0{USER}\0{PASSWORD}".encode(), USER.encode())),
]
NAME = "mx.example"
OFFER, NO_OFFER = b"250-mx.example\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS\r\n", b"250-mx.example\r\n250 AUTH PLAIN\r\n"


class Local(TrioNetwork):
    """Every name is this machine; certificates are still held against the name."""

    async def connect(self, host: str, port: int) -> ByteStream:
        return await super().connect("127.0.0.1", port)


class Recorded(trio.abc.HalfCloseableStream):
    """A stream that keeps every byte of the client's as it came over the wire."""

    def __init__(self, stream: trio.SocketStream, heard: bytearray) -> None:
        self._stream = stream
        self._heard = heard

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self._stream.receive_some(max_bytes)
        self._heard += data
        return bytes(data)

    async def send_all(self, data: Any) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


Talk = Callable[[Recorded, ssl.SSLContext], Awaitable[None]]


class Listening(NamedTuple):
    port: int
    heard: bytearray


@asynccontextmanager
async def relay(talk: Talk, context: ssl.SSLContext) -> AsyncIterator[Listening]:
    """A relay that talks so on each connection."""
    heard = bytearray()

    async def converse(stream: trio.SocketStream) -> None:
        try:
            await talk(Recorded(stream, heard), context)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The client has hung up, as it should.
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, converse, [listener])
        yield Listening(listener.socket.getsockname()[1], heard)
        nursery.cancel_scope.cancel()


# How a relay talks


async def says(stream: trio.abc.Stream, *replies: bytes) -> None:
    """Each reply, and what the client says to it."""
    for reply in replies:
        await stream.send_all(reply)
        await stream.receive_some()


async def with_starttls(stream: Recorded, context: ssl.SSLContext) -> None:
    await says(stream, b"220 hi\r\n", OFFER)
    await stream.send_all(b"220 go\r\n")
    inside = trio.SSLStream(stream, context, server_side=True)
    await inside.receive_some()
    await takes_mail(inside)


async def takes_mail(stream: trio.abc.Stream) -> None:
    """From EHLO on a session in which all goes well, without a login."""
    await says(stream, NO_OFFER, b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 2.0.0 taken\r\n", b"221 bye\r\n")


async def never_offers(stream: Recorded, context: ssl.SSLContext) -> None:
    await says(stream, b"220 hi\r\n")
    await takes_mail(stream)


def answers_starttls(*replies: bytes) -> Talk:
    async def talk(stream: Recorded, context: ssl.SSLContext) -> None:
        await says(stream, b"220 hi\r\n", OFFER)
        for reply in replies:
            await stream.send_all(reply)
            # The client is to find them in two reads.
            await trio.testing.wait_all_tasks_blocked()
        await stream.receive_some()

    return talk


async def hangs_up(stream: Recorded, context: ssl.SSLContext) -> None:
    await says(stream, b"220 hi\r\n", OFFER)


async def hangs_in_the_handshake(stream: Recorded, context: ssl.SSLContext) -> None:
    await says(stream, b"220 hi\r\n", OFFER, b"220 go\r\n")
    await trio.sleep_forever()


async def leaves_the_handshake(stream: Recorded, context: ssl.SSLContext) -> None:
    await says(stream, b"220 hi\r\n", OFFER, b"220 go\r\n")


async def greets_in_clear(stream: Recorded, context: ssl.SSLContext) -> None:
    await says(stream, b"220 hi\r\n", b"500 what\r\n")
    await trio.sleep_forever()


async def begins_with_tls(stream: Recorded, context: ssl.SSLContext) -> None:
    inside = trio.SSLStream(stream, context, server_side=True)
    await inside.send_all(b"220 hi\r\n")


# Certificates


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="module")
def contexts(authority: trustme.CA) -> dict[str, ssl.SSLContext]:
    """What the relay shows, by what is wrong with it."""
    now = datetime.now(UTC)
    past = {"not_before": now - timedelta(days=20), "not_after": now - timedelta(days=1)}
    future = {"not_before": now + timedelta(days=2), "not_after": now + timedelta(days=20)}
    certificates = {
        "good": authority.issue_cert(NAME),
        "expired": authority.issue_cert(NAME, **past),
        "not valid yet": authority.issue_cert(NAME, **future),
        "another name": authority.issue_cert("other.example"),
        "unknown authority": trustme.CA().issue_cert(NAME),
    }
    made = {}
    for name, certificate in certificates.items():
        made[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(made[name])
    return made


# The table

REQUIRED, IMPLICIT, AUTO = {"tls": "starttls-required"}, {"tls": "implicit"}, {"tls": "auto"}
CERTIFICATE, GARBLED = "the certificate of mx.example:", "what came was not TLS"


class Row(NamedTuple):
    name: str
    talk: Talk
    account: dict[str, Any]
    reason: TroubleReason
    words: str
    shown: str = "good"


def rows_of_certificates() -> list[Row]:
    """A certificate that is not good, where TLS is asked for and where the password alone asks for it."""
    wrong = {
        "expired": "certificate has expired",
        "not valid yet": "certificate is not yet valid",
        "another name": "not valid for 'mx.example'",
        "unknown authority": "unable to get local issuer certificate",
    }
    return [
        Row(f"{shown}, {account['tls']}", talk, account, "certificate", words, shown)
        for shown, words in wrong.items()
        for account, talk in ((REQUIRED, with_starttls), (AUTO, with_starttls), (IMPLICIT, begins_with_tls))
    ]


TABLE = [
    *rows_of_certificates(),
    Row("not offered, required", never_offers, REQUIRED, "starttls", "does not offer STARTTLS, and TLS is required"),
    Row("not offered, a password", never_offers, AUTO, "starttls", "does not offer STARTTLS, and TLS is required"),
    Row("refused", answers_starttls(b"454 4.7.0 not now\r\n"), AUTO, "starttls", "declines STARTTLS"),
    Row("refused for good", answers_starttls(b"502 what\r\n"), REQUIRED, "starttls", "declines STARTTLS"),
    Row("answered with garbage", answers_starttls(b"what?\r\n"), AUTO, "starttls", "the relay does not speak SMTP"),
    Row("not answered", answers_starttls(), AUTO, "starttls", "the relay did not answer in time"),
    Row("hung up on", hangs_up, REQUIRED, "starttls", "the relay closed the connection"),
    Row("bytes behind", answers_starttls(b"220 go\r\n250 AUTH PLAIN\r\n"), AUTO, "injected", "before TLS began"),
    Row("bytes a moment later", answers_starttls(b"220 go\r\n", b"250 AUTH PLAIN\r\n"), AUTO, "tls", GARBLED),
    Row("left in the handshake", leaves_the_handshake, AUTO, "tls", "the relay closed the connection"),
    Row("hangs in the handshake", hangs_in_the_handshake, AUTO, "tls", "did not end the TLS handshake in 30 s"),
    Row("clear where TLS comes first", greets_in_clear, IMPLICIT, "tls", GARBLED),
    Row(
        "TLS first where it does not", begins_with_tls, REQUIRED, "greeting", "if TLS comes first on this port, set tls"
    ),
]


def account(port: int, ca_file: str, **fields: Any) -> Relay:
    return Relay(**({"host": NAME, "port": port, "tls_ca_file": ca_file, "ehlo_name": "client.example"} | fields))


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_tls_that_fails_is_the_relays_trouble_and_shows_nobody_the_login(row, contexts, ca_file):
    async def story() -> None:
        async with relay(row.talk, contexts[row.shown]) as listening:
            where = account(listening.port, ca_file, user=USER, password=PASSWORD, **row.account)
            with pytest.raises(RelayTrouble) as caught:
                await connect(Local(), where)
        assert caught.value.reason == row.reason
        assert row.words in caught.value.text and f"{NAME}:{listening.port}" in caught.value.text
        assert not [secret for secret in IN_CLEAR if secret in listening.heard]
        assert b"AUTH" not in listening.heard and b"MAIL" not in listening.heard

    # The clock jumps over a deadline only after half a second in which nothing at all has happened on the sockets.
    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0.5))


@pytest.mark.parametrize("shown", ["good", "expired", "not valid yet", "another name", "unknown authority"])
async def test_auto_without_a_password_takes_any_certificate_and_knows_it(shown, contexts, ca_file):
    async with relay(with_starttls, contexts[shown]) as listening:
        connection = await connect(Local(), account(listening.port, ca_file))
        assert (connection.tls, connection.verified) == (True, shown == "good")
        mail = Mail("from@example.com", ((0, "to@example.org"),), b"Subject: x\r\n\r\nwords of mine\r\n")
        assert (await connection.deliver(mail)).outcomes[0].status == "delivered"
        await connection.aclose()
    assert b"words of mine" not in listening.heard


async def test_auto_without_a_password_goes_in_clear_where_nothing_else_is_offered(contexts, ca_file):
    async with relay(never_offers, contexts["good"]) as listening:
        connection = await connect(Local(), account(listening.port, ca_file))
        assert (connection.tls, connection.verified) == (False, False)
        await connection.aclose()


async def test_what_was_verified_and_what_was_not_is_in_the_log(
    folder: Path, contexts: dict[str, ssl.SSLContext], ca_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Through the delivery unit: `auto` sends and notes it as unverified; `starttls-required` sends nothing."""
    with caplog.at_level(logging.WARNING):
        async with opened(folder) as store, relay(with_starttls, contexts["expired"]) as listening:
            unit, stopping = Delivery(store, Local(), DeliveryPolicy(), random.Random(1)), trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(unit.run, stopping, 1)

                async def save(name: str, tls: TlsMode) -> int:
                    saved = AccountSaved(
                        id=name, host=NAME, port=listening.port, credentials=name, tls=tls, tls_ca_file=ca_file
                    )
                    return (await note(store, saved, account=OWN)).seq

                await accept(store, await save("taken", "auto"))
                (fact,) = await ends(store)
                refused = await save("refused", "starttls-required")
                await accept(store, refused)
                unreachable = await until(store, lambda entry: entry.kind == "RelayUnreachable")
                stopping.set()
    assert (fact.next, fact.tls, fact.verified) == ("done", True, False)
    assert [(entry.account, entry.fact.reason) for entry in unreachable] == [(refused, "certificate")]
    (line,) = {record.getMessage() for record in caplog.records}
    assert line.startswith(f"relay {NAME}:{listening.port} of account refused: the certificate of {NAME}:")
    assert "certificate has expired; name its authority in tls_ca_file" in line
