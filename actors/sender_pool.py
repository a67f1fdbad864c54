"""The sender pool: warm connections to the relays, each with one task that carries mail over it. How it works:

The planner (`pool_plan.py`) says which connections to open and to give up, whenever the demand bell rings, an account
changes, a connection is made or ends, or a moment comes at which a relay is probed. A sender connects, greets, does
TLS and AUTH *before* it asks for work, so a dead relay costs no message, no slot and no credit. Then it waits in
`receive` on its account's work channel, which has capacity 0: a sender that waits there is the credit that the
scheduler counts, so there is no counter that could go stale and no grant that could get old in a queue.

An attempt goes: grant; AttemptStarted on disk; fetch attachments, if there are any elsewhere (`attachments.py`);
compose; converse; judge; AttemptEnded. The sender does not wait for the end to be on disk before it asks for more: the
recorder takes urgent facts in their order, so the end is on disk before, or together with, the start of the sender's
next attempt, and no connection ever has more than one mail that was sent and is not recorded. (It halves the commits
that a mail has to wait for.) A connection that fails at once, before its first 250 to MAIL, is replaced once within the
same attempt, since a relay may have closed an idle connection a moment before. Trouble that is the relay's alone is
recorded as RelayUnreachable, with back-off, in the same commit as the attempt's end; of many connections that fail
together one records it, so the back-off doubles once. Whatever the relay then answers, a probe or a mail, is recorded
as RelayReached. What this pool has seen of a relay it knows at once, before the follower has come to the fact.

A sender that is cancelled in the middle closes its socket at once and still records the end, by how far the
conversation had come. An unexpected error while composing or sending ends that attempt as deferred, cause internal;
it is logged, and a third one for the same message fails it. That is the one place here that catches everything.
"""

import logging
import math
import random
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import msgspec
import trio
from cryptography.exceptions import InvalidTag
from msgspec import Struct

from events.account import RelayReached, RelayUnreachable
from events.attempt import AttemptStarted
from events.fact import Draft, Fact
from events.letter import Envelope, Letter
from events.values import MICROSECONDS, Outcome, OutcomeStatus, parse_address
from store.beside import Credentials, LetterRow, Replies
from store.dispatching import sealed_credentials
from store.opening import Store
from store.recorder import NotRecorded
from store.views.accounts import AccountRow, RelayRow
from store.writer import Declined, Started

from .attachments import Attachments, AttachmentTrouble, Filled, is_remote
from .bell import Bell
from .connection import Connection, Delivery, Mail, Relay, RelayTrouble, connect
from .judgement import Following, RetryPolicy, ended, what_follows
from .network import Network
from .pool_plan import HANGS_US, Place, PoolPlan
from .scheduler import Candidate, Wanted
from .smtp.compose import compose, needs_smtputf8
from .smtp.retry import backoff_seconds

logger = logging.getLogger("letterbook.delivery")

MESSAGES_PER_CONNECTION = 1000
"""A relay that counts messages a connection says so in its own way; this bounds what one sender holds on to."""

DIED_IDLE_US = 5_000_000
"""A connection that was closed while it idled fails at the next write; what hangs for longer than this is alive."""

NOTE_AGAIN_S = 1.0
"""As often as the recorder looks whether there is room again."""

HUNG = f"not ready for mail after {HANGS_US // MICROSECONDS} s, while other relays waited to be tried"

IDLE_S_MIN = 1.0
"""With a ttl of 0 a connection would end before it could be given any work, and the next one be opened at once."""


class DeliveryPolicy(Struct, frozen=True):
    """What config.ini says about delivering."""

    retry: RetryPolicy = RetryPolicy()
    connections_max: int = 32
    ehlo_name: str = "localhost"
    message_id_domain: str | None = None


class Books(Protocol):
    """What a sender asks of the scheduler's state; plain functions that never block."""

    def account(self, number: int) -> AccountRow | None: ...
    def relay(self, key: str) -> RelayRow | None: ...
    def relays(self) -> Iterable[str]: ...


class Desk(Protocol):
    """The calls upward: `ready` when a sender is about to wait for work, `release` when a grant comes to nothing."""

    def ready(self, account: int) -> None: ...
    def release(self, number: int, seq: int) -> None: ...


class _Work(Struct, frozen=True, eq=False):
    """An account's work channel: both ends, of capacity 0."""

    send: trio.MemorySendChannel[Candidate]
    receive: trio.MemoryReceiveChannel[Candidate]


class _Came(Struct, frozen=True):
    """What came of an attempt's conversation. `spoken`: the relay answered; `ours`: it ended before a relay was
    asked; `attachment`: the one that could not be had."""

    outcomes: tuple[Outcome, ...]
    replies: tuple[tuple[int, str], ...] = ()
    stage: str = "compose"
    tls: bool = False
    verified: bool = False
    trouble: tuple[str, int | None] | None = None
    uncharged: bool = False
    following: Following | None = None
    spoken: bool = False
    ours: Literal["internal", "attachment"] | None = None
    attachment: AttachmentTrouble | None = None


class _Hand(Struct, eq=False):
    """What a sender holds during an attempt: a connection, which may be replaced, and what it has fetched; `speaking`
    from the moment at which the relay may have heard of the mail."""

    connection: Connection
    filled: Filled | None = None
    speaking: bool = False


class SenderPool:
    """See the module's text. `demand()` gives what the scheduler wants now: account -> Wanted."""

    def __init__(
        self,
        store: Store,
        network: Network,
        policy: DeliveryPolicy,
        chance: random.Random,
        books: Books,
        desk: Desk,
        demand: Callable[[], dict[int, Wanted]],
        attachments: Attachments,
    ) -> None:
        self._store = store
        self._network = network
        self._policy = policy
        self._chance = chance
        self._books = books
        self._desk = desk
        self._demand = demand
        self._attachments = attachments
        self._plan = PoolPlan(policy.connections_max)
        self._work: dict[int, _Work] = {}
        self._scopes: dict[Place, trio.CancelScope] = {}
        self._relays: dict[str, RelayRow | None] = {}
        self._hung: set[Place] = set()
        self._stopping = False
        self.bell = Bell()

    # What others ask

    def credit(self, account: int) -> int:
        """How many connected senders of an account wait for work."""
        work = self._work.get(account)
        return work.send.statistics().tasks_waiting_receive if work else 0

    def grant(self, candidate: Candidate) -> bool:
        """Hand a message to a waiting sender of its account; False where none waits."""
        work = self._work.get(candidate.account)
        if work is None:
            return False
        try:
            work.send.send_nowait(candidate)
        except trio.WouldBlock:
            return False
        return True

    def connections(self) -> dict[str, int]:
        """How many connections are in each phase."""
        counts = {"connecting": 0, "idle": 0, "busy": 0}
        for place in self._plan.places():
            counts[place.phase] += 1
        return counts

    @property
    def contended(self) -> bool:
        """Whether an account waits for a connection that another one has."""
        return self._plan.contended

    def accounts_changed(self) -> None:
        """Nobody whose account was removed or says something else is given work from here on."""
        self._close(self._plan.outdated(self._books.account, self._relay))
        self.bell.ring()

    def probe_now(self) -> None:
        """Run-now, or a clock that has stepped: the moments of all relays known unreachable are here, and their
        failures forgotten. That is so of those too which nobody wants now: they are probed once somebody does."""
        for key in (*self._books.relays(), *self._relays):
            if row := self._relay(key):
                self._relays[key] = msgspec.structs.replace(row, until_us=0, failures=0)
        self.bell.ring()

    # The planner's loop

    async def run(self) -> None:
        """Open and close connections as the plan says, until cancelled; `stop` lets them end first."""
        async with trio.open_nursery() as senders:
            while not self._stopping:
                wake = self._carry_out(senders)
                await self.bell.wait(wake)
            self._close_idle()

    def stop(self) -> None:
        """Take no more work: idle senders leave now, busy ones when their attempt has ended."""
        self._stopping = True
        self.bell.ring()

    def _close_idle(self) -> None:
        for place in self._plan.places():
            place.leaving = True
            if place.phase != "busy":
                self._scopes[place].cancel()

    def _carry_out(self, senders: trio.Nursery) -> float:
        now_us = self._store.clock.monotonic_us()
        ahead_us = self._store.clock.ahead_us()
        plan = self._plan.plan(self._demand(), self._books.account, self._relay, now_us, ahead_us)
        self._hung.update(plan.hung)
        self._close(plan.close)
        for place in plan.connect:
            self._scopes[place] = trio.CancelScope()
            senders.start_soon(self._serve, place)
        if plan.wake_us is None:
            return math.inf
        return trio.current_time() + max(plan.wake_us - now_us, 0) / MICROSECONDS

    def _close(self, places: Iterable[Place]) -> None:
        for place in places:
            self._scopes[place].cancel()

    def _relay(self, key: str) -> RelayRow | None:
        """What is known of a relay in trouble: what this pool has seen, or what the log says from before."""
        return self._relays[key] if key in self._relays else self._books.relay(key)

    # A sender

    async def _serve(self, place: Place) -> None:
        """A connection's life. Its scope is cancelled only while it carries no mail."""
        connection: Connection | None = None
        account = self._books.account(place.account)
        try:
            if account is not None:
                with self._scopes[place]:
                    connection = await self._open(place, account)
                if connection is None and place in self._hung:
                    await self._failed(place, account, RelayTrouble("connect_timeout", HUNG))
            if account is not None and connection is not None:
                connection = await self._carry(place, account, connection)
            place.leaving = True
            if connection is not None:
                await connection.aclose()
        finally:
            self._plan.left(place)
            self._hung.discard(place)
            del self._scopes[place]
            self.bell.ring()

    async def _open(self, place: Place, account: AccountRow) -> Connection | None:
        """Connect, and note whether the relay answered."""
        clock = self._store.clock
        try:
            connection = await self._connect(account)
        except RelayTrouble as trouble:
            await self._failed(place, account, trouble)
            return None
        self._plan.answered(place, clock.monotonic_us())
        self.bell.ring()
        try:
            await self._note_reached(account)
        except BaseException:
            connection.close_now()
            raise
        return connection

    async def _failed(self, place: Place, account: AccountRow, trouble: RelayTrouble) -> None:
        if self._plan.refused(place, self._store.clock.monotonic_us()):
            await self._note_unreachable(account, trouble.reason, trouble.code, trouble.text)
        elif not self._plan.serves(place):
            # Other accounts are at this relay, so it is no trouble of the relay's: nothing else would say it.
            _say_trouble(account, trouble.reason, trouble.text)

    async def _connect(self, account: AccountRow) -> Connection:
        sealed = await self._store.read(sealed_credentials, account.number)
        try:
            opened = self._store.secrets.unseal(sealed) if sealed else b"{}"
        except InvalidTag:
            sentence = "the stored password cannot be opened with this key: save the account again"
            raise RelayTrouble("auth", sentence) from None
        credentials = msgspec.json.decode(opened, type=Credentials)
        digest = self._store.secrets.credentials_digest(credentials.user, credentials.password)
        if (sealed and digest != account.credentials) or (sealed is None and account.has_password):
            # The account was saved anew a moment ago: what is sealed now is not for the relay of this row.
            raise RelayTrouble("auth", "the account has changed: its new relay is connected to instead")
        relay = Relay(
            host=account.host,
            port=account.port,
            user=credentials.user,
            password=credentials.password,
            tls=account.tls,  # type: ignore[arg-type]  # the fact's own type allowed nothing else
            tls_verify=bool(account.tls_verify),
            tls_ca_file=account.tls_ca_file,
            auth=account.auth,
            ehlo_name=self._policy.ehlo_name,
        )
        return await connect(self._network, relay)

    async def _carry(self, place: Place, account: AccountRow, connection: Connection) -> Connection | None:
        """Carry mail until the connection ends, has carried enough, idles too long, or its place is wanted."""
        carried = 0
        while connection.ready and not place.leaving and not self._stopping:
            account = self._books.account(place.account) or account
            if carried >= (account.max_messages_per_connection or MESSAGES_PER_CONNECTION):
                break
            try:
                candidate = await self._next(place, account)
            except trio.Cancelled:
                connection.close_now()
                raise
            if candidate is None:
                break
            place.phase = "busy"
            kept = await self._attempt(account, connection, candidate)
            if kept is None:
                return None
            connection = kept
            carried += 1
            place.phase = "idle"
            place.leaving |= self._plan.yields(place, self._store.clock.monotonic_us())
        return connection

    async def _next(self, place: Place, account: AccountRow) -> Candidate | None:
        """Wait for work. A grant that came together with the end of waiting is taken: the value decides."""
        work = self._work.get(place.account)
        if work is None:
            work = self._work[place.account] = _Work(*trio.open_memory_channel[Candidate](0))
        candidate = None
        scope = self._scopes[place] = trio.CancelScope(deadline=trio.current_time() + max(account.ttl, IDLE_S_MIN))
        self._desk.ready(place.account)
        with scope:
            candidate = await work.receive.receive()
        return candidate  # noqa: RET504 - a value may have come although the scope was cancelled

    # An attempt

    async def _attempt(self, account: AccountRow, connection: Connection, candidate: Candidate) -> Connection | None:
        """One attempt; the connection that may carry the next mail, or None."""
        begun = await self._start(candidate)
        if begun is None:
            return connection
        attempt, started = begun
        from_us = self._store.clock.monotonic_us()
        hand = _Hand(connection)
        came = None
        try:
            came = await self._converse(account, hand, candidate, started)
        finally:
            # However the conversation was left, its end is recorded.
            came = _interrupted(hand, candidate) if came is None else came
            self._end(account, candidate, attempt, started, came, from_us)
            if hand.filled is not None:
                hand.filled.release()
        return hand.connection if hand.connection.ready else None

    async def _start(self, candidate: Candidate) -> tuple[int, Started] | None:
        """The attempt is on disk, or it may not be: then the grant goes back."""
        fact = AttemptStarted(revision=candidate.revision, recipients=candidate.recipients)
        draft = Draft(fact, message=candidate.number, account=candidate.account)
        try:
            recorded = await self._store.record((draft,), urgent=True)
        except NotRecorded:
            self._desk.release(candidate.number, -1)
            return None
        answer = recorded.answers[0]
        if isinstance(answer, Declined):
            self._desk.release(candidate.number, answer.seq)
            return None
        return answer.seq, recorded.started[0]

    async def _converse(self, account: AccountRow, hand: _Hand, candidate: Candidate, started: Started) -> _Came:
        """Compose and deliver; the connection in hand may be replaced once."""
        if started.letter is None:
            return _Came(_deferred(candidate), following=Following("failed", charged=True, cause="content_missing"))
        try:
            mail = await self._mail(account, hand, candidate, started, started.letter)
            from_us = self._store.clock.monotonic_us()
            hand.speaking = True
            delivery = await hand.connection.deliver(mail)
            if _died_idle(delivery) and self._store.clock.monotonic_us() - from_us < DIED_IDLE_US:
                hand.connection = await self._connect(account)
                delivery = await hand.connection.deliver(mail)
        except RelayTrouble as trouble:
            return self._relay_trouble(candidate, trouble)
        except AttachmentTrouble as trouble:
            return _without(candidate, trouble)
        except Exception:  # a bug of ours must cost one attempt, not the other senders'
            logger.exception("an unexpected error ended an attempt at message %s", candidate.number)
            hand.connection.close_now()
            return _Came(_deferred(candidate), ours="internal")
        return _came(delivery, hand.connection)

    def _relay_trouble(self, candidate: Candidate, trouble: RelayTrouble) -> _Came:
        outcomes = tuple(Outcome(recipient, "deferred", trouble.code) for recipient in candidate.recipients)
        replies = tuple((recipient, trouble.text) for recipient in candidate.recipients)
        return _Came(outcomes, replies, trouble.reason, trouble=(trouble.reason, trouble.code), uncharged=True)

    async def _mail(
        self, account: AccountRow, hand: _Hand, candidate: Candidate, started: Started, row: LetterRow
    ) -> Mail:
        """The mail as it goes out. Raises AttachmentTrouble."""
        letter = _decode_letter(row.content)
        if letter.attachments and is_remote(letter):
            hand.filled = await self._attachments.fill(letter, account.id)
            letter = hand.filled.letter
        envelope = _decode_envelope(row.envelope)
        message_id = letter.message_id or self._message_id(started, row.salt, envelope.sender)
        content = compose(letter, message_id=message_id, date_us=started.row.created_us, boundary_seed=row.salt)
        if hand.filled is not None:
            self._attachments.check_composed(hand.filled, len(content))
        recipients = tuple((index, envelope.recipients[index]) for index in candidate.recipients)
        return Mail(envelope.sender, recipients, content, smtputf8=needs_smtputf8(letter))

    def _message_id(self, started: Started, salt: bytes, sender: str) -> str:
        """The same for every attempt at this content; the salt makes it one that nobody else makes."""
        address = parse_address(sender)
        domain = self._policy.message_id_domain or (address.domain if address else self._policy.ehlo_name)
        return f"<{started.row.number}.{salt[:8].hex()}@{domain}>"

    def _end(
        self,
        account: AccountRow,
        candidate: Candidate,
        attempt: int,
        started: Started,
        came: _Came,
        from_us: int,
    ) -> None:
        """Put what came of it on disk, with the relay's trouble where there was any, or that it is over."""
        clock = self._store.clock
        about_relay = self._about_relay(account, came)
        row = self._relay(account.relay)
        until_us = row.until_us if row else clock.now_us()
        after = came.following or what_follows(
            started.row,
            came.outcomes,
            self._policy.retry,
            clock.now_us(),
            self._chance.random(),
            relay_until_us=until_us if came.uncharged else None,
            ours=came.ours,
        )
        fact = ended(
            after,
            attempt,
            came.outcomes,
            stage=came.stage,
            tls=came.tls,
            verified=came.verified,
            took_us=clock.monotonic_us() - from_us,
            field=came.attachment.field if came.attachment else None,
            reason=came.attachment.reason if came.attachment else None,
        )
        drafts = [Draft(fact, message=candidate.number, account=candidate.account)]
        drafts += [Draft(each, account=account.number) for each in (about_relay,) if each]
        beside = {0: Replies(came.replies)} if came.replies else None
        self._store.post(drafts, beside=beside)

    # Relays

    def _about_relay(self, account: AccountRow, came: _Came) -> RelayUnreachable | RelayReached | None:
        if came.trouble:
            return self._unreachable(account, *came.trouble)
        return self._reached(account) if came.spoken else None

    def _unreachable(self, account: AccountRow, reason: str, code: int | None) -> RelayUnreachable | None:
        """The next fact about a relay in trouble: its back-off doubles with each failure. None while the one before
        holds, for then this is the same trouble, met on another connection."""
        row = self._relay(account.relay)
        now_us = self._store.clock.now_us()
        if row is not None and row.until_us > now_us:
            return None
        failures = (row.failures if row else 0) + 1
        until_us = now_us + int(backoff_seconds(failures, self._chance.random()) * MICROSECONDS)
        since_us = row.since_us if row else now_us
        self._relays[account.relay] = RelayRow(account.relay, until_us, reason, code, failures, since_us)
        self.bell.ring()
        return RelayUnreachable(
            host=account.host,
            port=account.port,
            credentials=account.credentials,
            reason=reason,
            code=code,
            until_us=until_us,
            failures=failures,
        )

    def _reached(self, account: AccountRow) -> RelayReached | None:
        """The relay has answered: a fact where it was known unreachable."""
        if self._relay(account.relay) is None:
            return None
        self._relays[account.relay] = None
        self.bell.ring()
        logger.info("relay %s:%s of account %s answers again", account.host, account.port, account.id)
        return RelayReached(host=account.host, port=account.port, credentials=account.credentials)

    async def _note_unreachable(self, account: AccountRow, reason: str, code: int | None, text: str) -> None:
        if fact := self._unreachable(account, reason, code):
            _say_trouble(account, reason, text)
            await self._note(fact, account)

    async def _note_reached(self, account: AccountRow) -> None:
        """Until it is in the log: as long as it is not, the scheduler takes the relay for unreachable."""
        while (fact := self._reached(account)) and not await self._note(fact, account):
            self._relays.pop(account.relay, None)
            await trio.sleep(NOTE_AGAIN_S)

    async def _note(self, fact: Fact, account: AccountRow) -> bool:
        """Whether the log took it."""
        try:
            await self._store.record((Draft(fact, account=account.number),), urgent=True)
        except NotRecorded:
            logger.warning("the state of relay %s:%s is not in the log now", account.host, account.port)
            return False
        return True


def _say_trouble(account: AccountRow, reason: str, text: str) -> None:
    logger.warning("relay %s:%s of account %s: %s (%s)", account.host, account.port, account.id, text, reason)


def _deferred(candidate: Candidate) -> tuple[Outcome, ...]:
    return tuple(Outcome(recipient, "deferred") for recipient in candidate.recipients)


def _without(candidate: Candidate, trouble: AttachmentTrouble) -> _Came:
    """An attachment cannot be had: for now, and the message is tried again, or ever, and that is its end."""
    status: OutcomeStatus = "deferred" if trouble.again else "refused"
    outcomes = tuple(Outcome(recipient, status) for recipient in candidate.recipients)
    replies = tuple((recipient, trouble.text) for recipient in candidate.recipients)
    following = None if trouble.again else Following("failed", charged=True, cause="attachment")
    return _Came(outcomes, replies, "attachments", following=following, ours="attachment", attachment=trouble)


def _interrupted(hand: _Hand, candidate: Candidate) -> _Came:
    """The sender was cancelled: neither the message nor the relay is to blame. Before the relay has heard a word of it,
    everybody stays as they were."""
    connection = hand.connection
    if not hand.speaking:
        connection.close_now()
        return _Came(_deferred(candidate), stage="attachments", uncharged=True)
    delivery = connection.interrupted()
    outcomes, replies = delivery.outcomes, delivery.replies
    return _Came(outcomes, replies, delivery.stage, connection.tls, connection.verified, uncharged=True)


_decode_letter = msgspec.json.Decoder(Letter).decode
_decode_envelope = msgspec.json.Decoder(Envelope).decode


def _died_idle(delivery: Delivery) -> bool:
    """Whether the connection ended before the relay had taken MAIL: it may have been closed while it idled."""
    return delivery.scope == "relay" and not delivery.mail_accepted and not delivery.reusable


def _came(delivery: Delivery, connection: Connection) -> _Came:
    """A delivery as its attempt sees it: trouble of the relay's own is charged only once MAIL was taken."""
    trouble = None
    if delivery.scope == "relay":
        code = next((outcome.code for outcome in delivery.outcomes if outcome.code), None)
        trouble = (delivery.stage, code)
    return _Came(
        delivery.outcomes,
        delivery.replies,
        delivery.stage,
        connection.tls,
        connection.verified,
        trouble,
        uncharged=trouble is not None and not delivery.mail_accepted,
        spoken=delivery.stage != "own",
    )
