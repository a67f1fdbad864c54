"""Sessions with relays that mean no good, in virtual time: each gives a connection or trouble, each mail an outcome for
everybody, within the deadlines of the stages; nothing is kept of a flood, and no login crosses a clear line."""

import ssl
from collections import deque
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import trio
import trio.testing
from anyio.abc import ByteStream
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.connection import (
    LAST_WORDS_SECONDS,
    OCTETS_A_SECOND_MIN,
    TRANSACTION_SECONDS_MAX,
    Connection,
    Mail,
    Relay,
    RelayTrouble,
    connect,
)
from actors.smtp.engine import STAGES, WRITE_OCTETS_MAX, State
from actors.smtp.reply import LINE_OCTETS_MAX, REPLY_OCTETS_MAX, TEXT_CHARACTERS_MAX

from .smtp.hostile import EHLO, ENVELOPE, FLOODS, GREETING, LOGGED_IN, QUEUED, READY_TLS, Many, Saying, Speech, speeches
from .smtp.test_hostile_replies import UNCLEAN, check_delivery

PIECE_OCTETS = 65_536
PASSWORD = "correct horse"
CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
MAIL = Mail("from@example.com", ((0, "a@example.org"), (1, "b@example.org")), b"Subject: x\r\n\r\n" + b"x" * 150_000)


def seconds(*stages: str) -> float:
    return sum(STAGES[name].timeout_seconds for name in stages)


HELLO = seconds("ehlo", "helo")
SESSION_S_MAX = 2 * seconds("connect", "greeting", "starttls", "tls", *["auth"] * 4) + 4 * HELLO
"""Twice, since a relay whose certificate is not good is connected to once more where it need not be."""

LETTER_S_MAX = TRANSACTION_SECONDS_MAX + len(MAIL.content) / OCTETS_A_SECOND_MIN + seconds("final") + LAST_WORDS_SECONDS


class Line(ByteStream):
    """What a speech says, and what the client says to it, in clear and under TLS."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech
        self.sayings = deque(speech.sayings)
        self.writes = 0
        self.answered = -1
        self.given = 0
        self.tls = False
        self.heard: list[tuple[bool, bytes]] = []
        self.open = True
        self._wrote = trio.Event()

    async def receive(self, max_bytes: int = PIECE_OCTETS) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.open:
            raise anyio.ClosedResourceError
        if not self.sayings:
            return await self._end()
        saying = self.sayings[0]
        while saying.asked and self.writes <= self.answered:
            await self._wrote.wait()
        await trio.sleep(saying.pause)
        self.sayings.popleft()
        data, rest = bytes(saying.data[:max_bytes]), saying.data[max_bytes:]
        if rest:
            self.sayings.appendleft(Saying(rest))
        else:
            self.answered = self.writes
        self.given += len(data)
        return data

    async def _end(self) -> bytes:
        if self.speech.end == "eof":
            raise anyio.EndOfStream
        if self.speech.end == "reset":
            raise anyio.BrokenResourceError
        if self.speech.end in FLOODS:
            self.given += len(FLOODS[self.speech.end])
            return FLOODS[self.speech.end]
        await trio.sleep_forever()
        raise AssertionError

    async def send(self, item: bytes) -> None:
        await trio.lowlevel.checkpoint()
        assert len(item) <= WRITE_OCTETS_MAX
        if not self.open:
            raise anyio.ClosedResourceError
        if self.speech.takes is not None and self.writes >= self.speech.takes:
            if self.speech.stuck:
                await trio.sleep_forever()
            raise anyio.BrokenResourceError
        self.heard.append((self.tls, bytes(item)))
        self.writes += 1
        self._wrote.set()
        self._wrote = trio.Event()

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.open = False


class Fate:
    """A network of one relay, whose connections say the same; `handshake` is how TLS goes."""

    def __init__(self, speech: Speech, handshake: str) -> None:
        self.speech = speech
        self.handshake = handshake
        self.lines: list[Line] = []

    async def connect(self, host: str, port: int) -> ByteStream:
        await trio.lowlevel.checkpoint()
        self.lines.append(Line(self.speech))
        return self.lines[-1]

    async def start_tls(self, stream: ByteStream, host: str, context: ssl.SSLContext) -> ByteStream:
        await trio.lowlevel.checkpoint()
        assert isinstance(stream, Line)
        match self.handshake:
            case "fails":
                raise ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
            case "certificate" if len(self.lines) == 1:
                raise ssl.SSLCertVerificationError(1, "certificate has expired")
            case "hangs":
                await trio.sleep_forever()
            case "ends":
                raise anyio.EndOfStream
        stream.tls = True
        return stream

    def tls_context(self, *, verify: bool, ca_file: str | None) -> ssl.SSLContext:
        return CONTEXT

    def close_now(self, stream: ByteStream) -> None:
        assert isinstance(stream, Line)
        stream.open = False


ACCOUNTS: list[dict[str, Any]] = [
    {},
    {"user": "me", "password": PASSWORD},
    {"user": "me", "password": PASSWORD, "tls": "none", "host": "127.0.0.1"},
    {"tls": "starttls-required"},
    {"tls": "implicit", "user": "me", "password": PASSWORD},
]


def run(speech: Speech, account: dict[str, Any], handshake: str = "good") -> tuple[RelayTrouble | None, Fate, float]:
    """Connect and send two mails; all that must hold whatever the relay does is checked on the way."""
    network = Fate(speech, handshake)
    relay = Relay(**({"host": "mx.example", "port": 587, "ehlo_name": "client.example"} | account))

    async def session() -> tuple[RelayTrouble | None, float]:
        try:
            connection = await connect(network, relay)
        except RelayTrouble as trouble:
            assert trio.current_time() <= SESSION_S_MAX
            return trouble, trio.current_time()
        assert trio.current_time() <= SESSION_S_MAX
        await letters(connection)
        await connection.aclose()
        return None, trio.current_time()

    trouble, took = trio.run(session, clock=trio.testing.MockClock(autojump_threshold=0))
    check(network, relay, trouble)
    return trouble, network, took


async def letters(connection: Connection) -> None:
    for _ in range(2):
        if not connection.ready:
            break
        begun = trio.current_time()
        delivery = await connection.deliver(MAIL)
        assert trio.current_time() - begun <= LETTER_S_MAX
        check_delivery(delivery, 2, connection._engine.state)
        assert not any(PASSWORD in text for _, text in delivery.replies)
        reader = connection._engine._reader
        assert len(reader._buffer) <= LINE_OCTETS_MAX + PIECE_OCTETS and reader._octets <= REPLY_OCTETS_MAX
        assert connection.ready or connection._engine.state is State.CLOSED


def check(network: Fate, relay: Relay, trouble: RelayTrouble | None) -> None:
    assert not any(line.open for line in network.lines), "whoever opened the socket closes it"
    if trouble:
        assert len(trouble.text) <= TEXT_CHARACTERS_MAX and not UNCLEAN.search(trouble.text)
        assert PASSWORD not in trouble.text and str(trouble) == trouble.text
    for line in network.lines:
        said = sum(len(saying.data) for saying in network.speech.sayings)
        assert line.given <= said + 3 * PIECE_OCTETS, "a flood is read no further than the reply that it is"
        if relay.tls != "none":
            assert not any(written.startswith(b"AUTH") for tls, written in line.heard if not tls)


@settings(max_examples=100)
@given(
    speeches(),
    st.sampled_from(ACCOUNTS),
    st.sampled_from(["good", "good", "good", "fails", "certificate", "hangs", "ends"]),
)
def test_whatever_a_relay_does_it_is_an_outcome_in_time(speech, account, handshake):
    run(speech, account, handshake)


STAGES_OF_A_SESSION: list[tuple[str, tuple[bytes, ...]]] = [
    ("greeting", ()),
    ("ehlo", (GREETING,)),
    ("starttls", (GREETING, EHLO)),
    ("ehlo under TLS", (GREETING, EHLO, READY_TLS)),
    ("auth", (GREETING, EHLO, READY_TLS, EHLO)),
    ("mail", (GREETING, EHLO, READY_TLS, EHLO, LOGGED_IN)),
    ("final", (GREETING, EHLO, READY_TLS, EHLO, LOGGED_IN, ENVELOPE)),
    ("second mail", (GREETING, EHLO, READY_TLS, EHLO, LOGGED_IN, ENVELOPE, QUEUED)),
]


@pytest.mark.parametrize(("stage", "said"), STAGES_OF_A_SESSION)
@pytest.mark.parametrize("end", [*FLOODS, "silence", "reset"])
def test_floods_and_silence_at_every_stage(stage, said, end):
    """A flood would go on for ever: that this ends at all, in no time, is that nobody reads on."""
    speech = Speech(tuple(map(Saying, said)), end)
    trouble, _, took = run(speech, ACCOUNTS[1])
    assert (trouble is None) == (stage in ("mail", "final", "second mail"))
    assert (took == 0) == (end != "silence")


def drip(length: int, pause: float) -> tuple[Saying, ...]:
    return tuple(Saying(bytes([octet]), pause, asked=False) for octet in b"250-" + b"x" * length)


@pytest.mark.parametrize(("stage", "said"), STAGES_OF_A_SESSION)
def test_a_drip_of_bytes_renews_no_deadline(stage, said):
    speech = Speech((*map(Saying, said), *drip(300, 17)), "silence")
    _, _, took = run(speech, ACCOUNTS[1])
    name = {"ehlo under TLS": "ehlo", "second mail": "mail"}.get(stage, stage)
    assert took == seconds(name)


def test_a_relay_that_answers_at_the_last_moment_holds_a_connection_for_an_hour_and_not_for_eight():
    async def session() -> float:
        replies = [Saying(b"250 ok\r\n", 299)] * 200
        ehlo = b"250 relay.example\r\n"
        network = Fate(Speech((Saying(GREETING), Saying(ehlo), *replies), "silence"), "good")
        connection = await connect(network, Relay("mx.example", 25))
        many = Mail(MAIL.sender, tuple((n, f"r{n}@example.org") for n in range(100)), MAIL.content)
        delivery = await connection.deliver(many)
        check_delivery(delivery, 100, connection._engine.state)
        assert {outcome.status for outcome in delivery.outcomes} == {"deferred"} and not connection.ready
        return trio.current_time()

    took = trio.run(session, clock=trio.testing.MockClock(autojump_threshold=0))
    assert took == TRANSACTION_SECONDS_MAX + len(MAIL.content) / OCTETS_A_SECOND_MIN


def test_the_final_dot_is_waited_for_however_long_the_envelope_took():
    async def session(pause: float) -> tuple[str, str]:
        said = (Saying(GREETING), Saying(b"250 relay.example\r\n"), *[Saying(b"250 ok\r\n", pause)] * 11)
        network = Fate(Speech((*said, Saying(b"354 go\r\n"), Saying(QUEUED, 599))), "good")
        connection = await connect(network, Relay("mx.example", 25))
        ten = Mail(MAIL.sender, tuple((n, f"r{n}@example.org") for n in range(10)), b"hello\r\n")
        delivery = await connection.deliver(ten)
        return delivery.stage, delivery.outcomes[0].status

    async def both() -> None:
        assert TRANSACTION_SECONDS_MAX - 599 < 11 * 299 < TRANSACTION_SECONDS_MAX
        assert await session(299) == ("final", "delivered")

    trio.run(both, clock=trio.testing.MockClock(autojump_threshold=0))


QUOTES: list[tuple[str, Callable[[str, str], str]]] = [
    ("the password", lambda user, password: f"{password} is wrong"),
    ("the name", lambda user, password: f"no {user.upper()} here"),
    ("the name in brackets", lambda user, password: f"<{user}>: not known"),
]


@pytest.mark.parametrize(("what", "quote"), QUOTES)
def test_what_a_relay_quotes_of_a_login_is_hidden(what, quote):
    user = "clerk@example.com"
    reply = f"535 5.7.8 {quote(user, PASSWORD)}\r\n".encode()
    speech = Speech((Saying(GREETING), Saying(b"250-x\r\n250 AUTH LOGIN\r\n"), Saying(reply)))
    trouble, _, _ = run(speech, {"user": user, "password": PASSWORD, "tls": "none"})
    assert trouble is not None and (trouble.reason, trouble.code) == ("auth", 535)
    assert "***" in trouble.text and user not in trouble.text.lower()


def test_a_password_quoted_at_a_recipient_is_hidden_too():
    unknown = b"550 " + PASSWORD.encode() + b"\r\n"
    replies = (GREETING, b"250-x\r\n250 AUTH PLAIN\r\n", LOGGED_IN, b"250 ok\r\n", unknown, unknown)

    async def session() -> None:
        network = Fate(Speech(tuple(map(Saying, replies))), "good")
        where = Relay("mx.example", 25, user="me", password=PASSWORD, tls="none")
        connection = await connect(network, where)
        delivery = await connection.deliver(MAIL)
        assert [text for _, text in delivery.replies] == ["550 ***"] * 2

    trio.run(session)


def test_an_endless_list_of_mechanisms_is_cut():
    said = (GREETING, Many(b" X", 900, b"250-x\r\n250 AUTH", b"\r\n"), b"x")
    trouble, _, _ = run(Speech(tuple(map(Saying, said))), ACCOUNTS[2])
    assert trouble is not None and trouble.reason == "no_auth_offered"
