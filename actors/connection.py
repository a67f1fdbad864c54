"""One connection to a relay: the async shell around the SMTP engine.

It promises that an operating error is a value: `connect` raises RelayTrouble and nothing else, `deliver` returns a
Delivery whatever the relay does. It can't know whether a relay took a mail whose final dot was sent and never
answered: that is in doubt, and said so.

Deadlines are Trio's, one for each reply that is awaited and each piece that is sent; a relay that drips bytes does not
renew them, only whole replies do. A mail has a deadline as a whole as well, up to its final dot; after the dot the
stage's own counts alone, for to give up there is to be in doubt.

TLS: whether the certificate must be good is decided before anything is sent (`_policy`). Where it need not be, it is
checked all the same, and after a failure the relay is connected to once more without the check: only so is
"verified" true when we say it, and the ssl module can't verify a chain after a handshake that did not.
"""

import math
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from types import MappingProxyType
from typing import Literal

import anyio
import trio
from anyio.abc import ByteStream
from msgspec import Struct, structs

from events.account import IMPLICIT_TLS_PORT, TlsMode

from .network import Network, ca_file_fault
from .smtp.auth import CLEAR_PREFERENCE, ENCRYPTED_PREFERENCE, redacted
from .smtp.engine import STAGES, Engine, Event, Replied, Stage, State
from .smtp.reply import TEXT_CHARACTERS_MAX, Reply
from .smtp.transaction import Delivery, Mail

__all__ = ["Connection", "Delivery", "Mail", "Relay", "RelayTrouble", "TroubleReason", "connect"]

LAST_WORDS_SECONDS = 2.0
"""After a failed write, how long to read on: a relay that hangs up has usually said why just before."""

TRANSACTION_SECONDS_MAX = 3600.0
"""What one mail may take up to its final dot, whatever the stages still allow: a hundred recipients each answered
after 299 s would hold a connection for eight hours, and 36 s each is more than any tarpit asks for."""

OCTETS_A_SECOND_MIN = 4_000
"""And so much more time as the content needs at this speed, which is a modem's: 50 MB have 3.5 hours."""

TroubleReason = Literal[
    "dns", "connect_refused", "connect_timeout", "connect_failed",
    "greeting", "ehlo", "starttls", "injected", "tls", "ca_file", "certificate", "auth", "no_auth_offered",
]  # fmt: skip
"""Why a relay can't be used, in the order in which it is found out."""


class Relay(Struct, frozen=True):
    """Where to and as whom; what an account says, with nothing left open."""

    host: str
    port: int
    user: str | None = None
    password: str | None = None
    tls: TlsMode = "auto"
    tls_verify: bool = True
    tls_ca_file: str | None = None
    auth: str = "auto"
    ehlo_name: str = "localhost"

    def __repr__(self) -> str:
        """Without the password: a relay is named in log lines and tracebacks."""
        return f"Relay({self.host}:{self.port}, tls={self.tls}, user={self.user!r})"


class RelayTrouble(Exception):
    """The relay can't be used now; nothing is wrong with any message. Its text is one line without user or password."""

    def __init__(self, reason: TroubleReason, text: str, code: int | None = None) -> None:
        self.reason: TroubleReason = reason
        self.code = code
        self.text = text[:TEXT_CHARACTERS_MAX]
        super().__init__(self.text)


class _Policy(Struct, frozen=True):
    """What TLS must be for this relay: `implicit` from the first byte, `required` at all, `strict` verified."""

    implicit: bool
    wanted: bool
    required: bool
    strict: bool
    check: bool


def _policy(relay: Relay) -> _Policy:
    """Credentials make TLS required and its certificate strict, except on loopback; explicit modes always do."""
    explicit = relay.tls in ("starttls-required", "implicit")
    guarded = bool(relay.password) and not is_loopback(relay.host)
    implicit = relay.tls == "implicit" or (relay.tls == "auto" and relay.port == IMPLICIT_TLS_PORT)
    return _Policy(
        implicit=implicit,
        wanted=relay.tls != "none",
        required=explicit or implicit or (guarded and relay.tls == "auto"),
        strict=(explicit or guarded) and relay.tls_verify,
        check=relay.tls_verify,
    )


def is_loopback(host: str) -> bool:
    """By address, or by the one name that RFC 6761 section 6.3 reserves; no name is resolved to find out."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


async def connect(network: Network, relay: Relay) -> "Connection":
    """TCP, TLS, greeting, EHLO and AUTH: a connection that is ready for mail, or RelayTrouble."""
    policy = _policy(relay)
    try:
        return await _open(network, relay, policy, check=policy.check)
    except RelayTrouble as trouble:
        if trouble.reason != "certificate" or policy.strict:
            raise
    return await _open(network, relay, policy, check=False)


async def _open(network: Network, relay: Relay, policy: _Policy, *, check: bool) -> "Connection":
    engine = Engine(relay.ehlo_name)
    connection = Connection(network, relay, await _dial(network, relay), engine)
    with ExitStack() as closing:
        # Whoever opened the socket closes it, also when cancelled.
        closing.callback(connection.close_now)
        await connection._establish(policy, check)
        closing.pop_all()
    return connection


async def _dial(network: Network, relay: Relay) -> ByteStream:
    where = f"{relay.host}:{relay.port}"
    seconds = STAGES["connect"].timeout_seconds
    try:
        with trio.fail_after(seconds):
            return await network.connect(relay.host, relay.port)
    except trio.TooSlowError:
        raise RelayTrouble("connect_timeout", f"{where} did not answer in {seconds:g} s") from None
    except (socket.gaierror, UnicodeError) as error:
        raise RelayTrouble("dns", f"the name {relay.host} was not found: {error}") from error
    except OSError as error:
        refused = any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))
        reason: TroubleReason = "connect_refused" if refused else "connect_failed"
        raise RelayTrouble(reason, f"{where}: {_innermost(error)}") from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and the members of groups: one for each address that was tried."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                yield from _causes(member)
        error = error.__cause__


def _why(error: ssl.SSLCertVerificationError) -> str:
    """OpenSSL's sentence alone, where the error came from OpenSSL."""
    return getattr(error, "verify_message", "") or str(error)


def _tls_words(error: BaseException) -> str:
    """OpenSSL's name of what went wrong; a relay that speaks no TLS here is told apart from one that hangs up."""
    if not isinstance(error, ssl.SSLError):
        return "the relay closed the connection"
    reason: str = getattr(error, "reason", None) or str(error)
    if reason in _NOT_TLS:
        return "what came was not TLS; if TLS begins with STARTTLS on this port, set tls to starttls-required"
    return reason.lower().replace("_", " ")


def _innermost(error: BaseException) -> BaseException:
    return [cause for cause in _causes(error) if not isinstance(cause, BaseExceptionGroup)][-1]


class Connection:
    """A conversation with a relay that has been greeted, secured and told who we are."""

    def __init__(self, network: Network, relay: Relay, stream: ByteStream, engine: Engine) -> None:
        self.tls = False
        self.verified = False
        self._network = network
        self._relay = relay
        self._stream = stream
        self._engine = engine

    @property
    def ready(self) -> bool:
        """Whether it may serve another mail, as far as we have heard."""
        return self._engine.state is State.READY

    # A mail

    async def deliver(self, mail: Mail) -> Delivery:
        """Send a mail and say what came of it; afterwards the connection is ready again, or closed."""
        self._engine.start_transaction(mail)
        seconds = TRANSACTION_SECONDS_MAX + len(mail.content) / OCTETS_A_SECOND_MIN
        await self._converse(trio.current_time() + seconds)
        delivery = self._delivery()
        if not delivery.reusable:
            self.close_now()
        return delivery

    def interrupted(self) -> Delivery:
        """The outcome of a `deliver` that was cancelled, by how far it had come; the connection is closed."""
        self.close_now()
        return structs.replace(self._delivery(), reusable=False)

    def _delivery(self) -> Delivery:
        """As the engine has it, but for a password that a relay quotes; the user's name is often an address in it."""
        delivery, password = self._engine.delivery(), self._relay.password
        if not delivery.replies or not password:
            return delivery
        replies = tuple((recipient, redacted(text, "", password)) for recipient, text in delivery.replies)
        return structs.replace(delivery, replies=replies)

    # The end

    def close_now(self) -> None:
        """Close the socket without waiting; it may be called twice, and from a task that is being cancelled."""
        self._engine.lose("interrupted")
        self._network.close_now(self._stream)

    async def aclose(self) -> None:
        """Say QUIT and wait a moment for the answer (RFC 5321 section 4.1.1.10); close in any case."""
        try:
            if self.ready:
                self._engine.quit()
                with trio.move_on_after(STAGES["quit"].timeout_seconds):
                    await self._converse()
        finally:
            self.close_now()

    # The beginning

    async def _establish(self, policy: _Policy, check: bool) -> None:
        if policy.implicit:
            await self._secure(check)
        await self._step()
        await self._hello()
        if policy.wanted and not self.tls:
            await self._starttls(policy, check)
        if self._relay.password:
            await self._authenticate()

    async def _hello(self) -> None:
        self._engine.hello()
        await self._step()

    async def _starttls(self, policy: _Policy, check: bool) -> None:
        """Optional TLS that is not offered, or declined (454), leaves us in clear; TLS that is begun must succeed."""
        offered = self._engine.capabilities.starttls
        if offered:
            self._engine.starttls()
            await self._step()
        if self._engine.state is State.SECURING:
            await self._secure(check)
            self._engine.secured()
            await self._hello()
        elif policy.required:
            did = "declines STARTTLS" if offered else "does not offer STARTTLS"
            raise RelayTrouble("starttls", f"{self._where} {did}, and TLS is required; tls = none would send in clear")

    async def _secure(self, check: bool) -> None:
        relay = self._relay
        context = self._context(check)
        with self._tls_errors(), trio.fail_after(STAGES["tls"].timeout_seconds):
            self._stream = await self._network.start_tls(self._stream, relay.host, context)
        self.tls, self.verified = True, check

    def _context(self, check: bool) -> ssl.SSLContext:
        ca_file = self._relay.tls_ca_file
        try:
            return self._network.tls_context(verify=check, ca_file=ca_file)
        except (OSError, ValueError) as error:
            fault = ca_file_fault(ca_file) if ca_file else None
            raise RelayTrouble("ca_file", f"tls_ca_file {ca_file} cannot be used: {fault or error}") from error

    @contextmanager
    def _tls_errors(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            words = f"the certificate of {self._where} is not good: {_why(error)}; {_CERTIFICATE_HINT}"
            raise RelayTrouble("certificate", words) from error
        except _STREAM_ENDS as error:
            raise RelayTrouble("tls", f"{self._where}: the TLS handshake failed: {_tls_words(error)}") from error
        except trio.TooSlowError:
            seconds = STAGES["tls"].timeout_seconds
            raise RelayTrouble("tls", f"{self._where} did not end the TLS handshake in {seconds:g} s") from None

    async def _authenticate(self) -> None:
        mechanism = self._mechanism()
        self._engine.authenticate(mechanism, self._relay.user or "", self._relay.password or "")
        reply = await self._step()
        if reply.code >= 400:
            raise RelayTrouble("auth", self._redact(f"{self._where}: AUTH {mechanism}: {reply.text}"), reply.code)

    def _mechanism(self) -> str:
        """The first that both sides know. An explicit mode is a wish of the operator's, yet it must be offered too."""
        relay, offered = self._relay, self._engine.capabilities.auth
        known = ENCRYPTED_PREFERENCE if self.tls else CLEAR_PREFERENCE
        wished = known if relay.auth == "auto" else (relay.auth.upper(),)
        for mechanism in wished:
            if mechanism in offered:
                return mechanism
        names = ", ".join(sorted(offered)) or "none"
        raise RelayTrouble("no_auth_offered", f"{self._where} offers AUTH {names}; wanted is {' or '.join(wished)}")

    async def _step(self) -> Reply:
        """One reply of the session's beginning; its trouble is the relay's."""
        reply = await self._converse()
        trouble = self._engine.trouble
        if trouble is not None or reply is None:
            assert trouble is not None, "the engine ended without trouble and without a reply"
            reason = "injected" if trouble.reason == "injected" else _REASONS[trouble.stage]
            hint = _GREETING_HINT if reason == "greeting" and trouble.code is None and not self.tls else ""
            raise RelayTrouble(reason, self._redact(f"{self._where}: {trouble.text}") + hint, trouble.code)
        return reply

    def _redact(self, text: str) -> str:
        return redacted(text, self._relay.user or "", self._relay.password or "")

    @property
    def _where(self) -> str:
        return f"{self._relay.host}:{self._relay.port}"

    # Bytes

    async def _converse(self, until: float = math.inf) -> Reply | None:
        """Send and receive until no reply is owed to us, before the dot not beyond `until`; the last one is returned.

        One scope serves the whole conversation and its deadline is moved: to open one for each wait would cost a
        fifth of the time that a mail takes.
        """
        engine, reply = self._engine, None
        with trio.CancelScope() as deadline:
            await self._send(deadline, until)
            while engine.waiting:
                _restart(deadline, engine.stage, until)
                reply = await self._receive() or reply
                await self._send(deadline, until)
        if deadline.cancelled_caught:
            engine.lose("timeout")
        return reply

    async def _send(self, deadline: trio.CancelScope, until: float) -> None:
        engine = self._engine
        stage = engine.stage
        while data := engine.take():
            _restart(deadline, stage, until)
            try:
                await self._stream.send(data)
            except _STREAM_ENDS:
                await self._last_words()

    async def _last_words(self) -> None:
        """The write failed, so the connection is over; a reply that arrived before still counts."""
        with trio.move_on_after(LAST_WORDS_SECONDS):
            while self._engine.waiting or self._engine.state is State.CONTENT:
                await self._receive()
        self._engine.lose("closed")

    async def _receive(self) -> Reply | None:
        """Read until one reply is whole; several may have come at once, of which the last is returned."""
        engine = self._engine
        events: list[Event] = []
        try:
            while not events and engine.state is not State.CLOSED:
                events = engine.receive(await self._stream.receive())
        except _STREAM_ENDS:
            engine.lose("closed")
        replies = [event.reply for event in events if isinstance(event, Replied)]
        return replies[-1] if replies else None


def _restart(deadline: trio.CancelScope, stage: Stage, until: float) -> None:
    moment = trio.current_time() + stage.timeout_seconds
    deadline.deadline = moment if stage.in_doubt else min(moment, until)


_STREAM_ENDS = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)
"""By the peer, by the network, by ourselves; ssl.SSLError is an OSError."""

_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})
"""What OpenSSL calls bytes that are no TLS record."""

_CERTIFICATE_HINT = "name its authority in tls_ca_file, or take any certificate with tls_verify = false"
_GREETING_HINT = "; if TLS comes first on this port, set tls to implicit"

_REASONS: Mapping[str, TroubleReason] = MappingProxyType({
    "greeting": "greeting", "ehlo": "ehlo", "helo": "ehlo", "starttls": "starttls", "tls": "tls", "auth": "auth",
    "idle": "ehlo",
})  # fmt: skip
"""The trouble's name by the stage in which the engine met it."""
