"""The client's side of an SMTP conversation, without I/O and without a clock.

Theory of operation
===================

The engine is fed what the relay sent (`receive`) and gives what is to be sent (`take`). Between the two stand three
tables, and everything else here is a consequence of them:

* `STAGES`: what a reply can be awaited for. A stage's row holds how long its owner may wait for that reply, the
  words in which an operator is told about it, which replies are no failure, and whether a connection that is lost
  there leaves in doubt if the relay has the mail. Only one stage does: after the final dot and before its reply.
* `TRANSITIONS`: the state of the conversation as a whole, by what we did (`HELLO`, `START`, `DOT`, ..) and what the
  relay did (`ACCEPTED`, `DECLINED`, `GO_AHEAD`, ..). A move that has no row is a programmer's error and raises
  MisuseError, which names state and move. Nothing that a relay sends can raise: every state in which a reply is
  awaited has a row for each move such a reply can make, and a test walks them.
* `verdict.TABLE`: what a refusal means. The engine only keeps the transcript (`transaction.Transaction`).

States are few because they do not count replies. What is awaited stands in a queue: one `Expected` (stage and
recipient) for each command that is under way, oldest first, and a reply always answers the oldest. With PIPELINING
(RFC 2920) MAIL, every RCPT and DATA go out in one write and the queue is long; without, each is sent when the one
before was answered and the queue holds one. Nothing else differs, so there is one code path for both. The bound of
the queue is the mail's recipients (100 an attempt) plus RSET, MAIL and DATA.

Ends of a transaction, none of which closes a healthy connection:

* the dot was answered;
* DATA was refused, or nobody's RCPT was accepted and DATA was never sent: MAIL may stand, so the next transaction
  begins with RSET (in the same write where the relay pipelines);
* everybody was refused, but the DATA that was pipelined behind got 354 all the same: a lone dot is sent and its
  reply ignored (RFC 2920 section 3.1); the relay cannot deliver that to anybody;
* nothing could be sent at all (too large, SMTPUTF8 missing): the transaction ends where it started.

And ends of the conversation, all of them `Trouble`: the peer closed, a deadline passed, we were stopped, 421 (at any
moment, RFC 5321 section 3.8), a reply that is none, a reply that nobody asked for. After that the engine is CLOSED:
it takes bytes and ignores them. A reply that comes before the dot was sent is believed if it is a refusal, since
some relays refuse a mail in the middle of its content.

The dot counts as sent from the moment in which `take` gives it away: whether it reached the relay nobody can know.

STARTTLS (RFC 3207 section 4.2): after TLS begins, nothing learnt before it is true. `secured` drops buffers and
capabilities and wants a new EHLO. Bytes that came behind the 220 were not protected by TLS, yet would be read as if
they were (CVE-2011-0411): they end the conversation as "injected".

Who calls owes three things: everything that `take` gives is sent before the next `receive`; `lose` is called when
the stream ends or a deadline passes; `secured` only after a real handshake.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from msgspec import Struct

from .auth import MECHANISMS, Answer, decode, encode
from .reply import GarbageError, Reply, ReplyReader
from .transaction import Capabilities, Delivery, Loss, Mail, MisuseError, Transaction, stuffed

WRITE_OCTETS_MAX = 65_536
"""Content goes out in pieces, so that the deadline of a stage is for a piece and not for 50 MB on a slow line."""

COMMAND_OCTETS_MAX = 512
"""RFC 5321 section 4.5.3.1.4; an AUTH with its initial response must keep to it (RFC 4954 section 4)."""


class Stage(Struct, frozen=True):
    """`wants` are the first digits of replies that are no failure; `timeout_seconds` runs for each reply anew."""

    name: str
    timeout_seconds: float
    words: str
    wants: tuple[int, ...] = (2,)
    in_doubt: bool = False


# The times are those of RFC 5321 section 4.5.3.2 where it gives one, and Postfix's where it gives none.
_STAGE_ROWS = (
    Stage("connect", 30, "connecting"),
    Stage("tls", 30, "in the TLS handshake"),
    Stage("greeting", 300, "waiting for the greeting"),
    Stage("ehlo", 300, "waiting for the reply to EHLO"),
    Stage("helo", 300, "waiting for the reply to HELO"),
    Stage("starttls", 120, "waiting for the reply to STARTTLS"),
    Stage("auth", 120, "waiting for the reply to AUTH", (2, 3)),
    Stage("idle", 300, "idle between two mails"),
    Stage("rset", 20, "waiting for the reply to RSET"),
    Stage("mail", 300, "waiting for the reply to MAIL"),
    Stage("rcpt", 300, "waiting for the reply to RCPT"),
    Stage("data", 120, "waiting for the reply to DATA", (3,)),
    Stage("content", 180, "sending the content"),
    Stage("final", 600, "waiting for the reply to the final dot", in_doubt=True),
    Stage("discard", 20, "waiting for the reply to a lone dot", (2, 3, 4, 5)),
    Stage("quit", 5, "waiting for the reply to QUIT", (2, 3, 4, 5)),
)
STAGES: Mapping[str, Stage] = MappingProxyType({row.name: row for row in _STAGE_ROWS})


class State(Enum):
    """Where the conversation stands."""

    # Members are compared by identity; Enum's own hash is Python code, and every move looks two members up.
    __hash__ = object.__hash__

    CONNECTED = "the greeting is awaited"
    GREETED = "EHLO is due"
    HELLO = "EHLO or HELO is under way"
    READY = "a transaction may begin"
    STARTTLS = "STARTTLS is under way"
    SECURING = "the TLS handshake is under way"
    AUTH = "AUTH is under way"
    ENVELOPE = "MAIL, RCPT or DATA are under way"
    CONTENT = "the content is being sent"
    FINAL = "the final dot is out"
    DISCARD = "a lone dot is out"
    QUITTING = "QUIT is under way"
    CLOSED = "the conversation is over"


class Move(Enum):
    """What can change the state: first what we do, then what the relay does."""

    __hash__ = object.__hash__

    HELLO = "we say EHLO"
    SECURE = "we ask for STARTTLS"
    SECURED = "the TLS handshake is done"
    AUTHENTICATE = "we ask for AUTH"
    START = "we begin a transaction"
    DOT = "we give the final dot away"
    QUIT = "we say QUIT"
    ACCEPTED = "the relay agrees"
    DECLINED = "the relay declines"
    GO_AHEAD = "the relay asks for the content"
    NOBODY = "the relay asks for content that nobody would get"
    ENDED = "the transaction is over"
    LOST = "the conversation breaks off"


def _row(**moves: State) -> Mapping[Move, State]:
    """A state's row; every conversation may break off in every state."""
    return MappingProxyType({Move[name]: state for name, state in moves.items()} | {Move.LOST: State.CLOSED})


TRANSITIONS: Mapping[State, Mapping[Move, State]] = MappingProxyType({
    State.CONNECTED: _row(ACCEPTED=State.GREETED),
    State.GREETED: _row(HELLO=State.HELLO, QUIT=State.QUITTING),
    State.HELLO: _row(ACCEPTED=State.READY, DECLINED=State.HELLO),
    State.READY: _row(SECURE=State.STARTTLS, AUTHENTICATE=State.AUTH, START=State.ENVELOPE, QUIT=State.QUITTING),
    State.STARTTLS: _row(ACCEPTED=State.SECURING, DECLINED=State.READY),
    State.SECURING: _row(SECURED=State.GREETED),
    State.AUTH: _row(ACCEPTED=State.READY, DECLINED=State.READY),
    State.ENVELOPE: _row(GO_AHEAD=State.CONTENT, NOBODY=State.DISCARD, ENDED=State.READY),
    State.CONTENT: _row(DOT=State.FINAL),
    State.FINAL: _row(ENDED=State.READY),
    State.DISCARD: _row(ENDED=State.READY),
    State.QUITTING: _row(),
    State.CLOSED: _row(),
})  # fmt: skip

IN_TRANSACTION = frozenset({State.ENVELOPE, State.CONTENT, State.FINAL})
"""Where a break is the mail's affair. A lone dot is not: every recipient has his verdict by then."""

# The stage in which we are while no reply is awaited.
_RESTING: Mapping[State, Stage] = MappingProxyType({State.SECURING: STAGES["tls"], State.CONTENT: STAGES["content"]})

LOSSES: Mapping[str, str] = MappingProxyType({
    "closed": "the relay closed the connection",
    "timeout": "the relay did not answer in time",
    "interrupted": "we were stopped",
    "closing": "the relay is closing",
    "refused": "the relay refused",
    "garbage": "the relay does not speak SMTP",
    "injected": "bytes came behind the reply to STARTTLS, before TLS began",
})  # fmt: skip


class Trouble(Struct, frozen=True):
    """Why the conversation ended: `reason` is a key of LOSSES, `code` the reply's if a reply ended it."""

    reason: str
    stage: str
    text: str
    code: int | None = None


class Replied(Struct, frozen=True):
    """The relay answered what the stage was waiting for; `position` is the recipient's in the mail, or -1."""

    stage: str
    reply: Reply
    position: int = -1


Event = Replied | Trouble


class Expected(NamedTuple):
    """A command under way; the relay's next reply answers the oldest."""

    stage: Stage
    position: int = -1


class Engine:
    """One conversation, from the greeting to QUIT. It is `waiting` while a reply is owed to us."""

    def __init__(self, ehlo_name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9.:_\[\]-]{1,255}", ehlo_name):
            raise MisuseError(f"the EHLO name {ehlo_name!r} is neither a host name nor an address literal")
        self.state = State.CONNECTED
        self.capabilities = Capabilities()
        self.trouble: Trouble | None = None
        self._name = ehlo_name
        self._reader = ReplyReader()
        self._expected = deque((Expected(STAGES["greeting"]),))
        self._outbox = bytearray()
        self._script: deque[tuple[str, int, bytes]] = deque()
        self._answers: deque[Answer] | None = None
        self._transaction: Transaction | None = None
        self._content = memoryview(b"")
        self._must_reset = False

    @property
    def stage(self) -> Stage:
        """What we are waiting for, or doing while nothing is awaited."""
        return self._expected[0].stage if self._expected else _RESTING.get(self.state, STAGES["idle"])

    @property
    def waiting(self) -> bool:
        return bool(self._expected)

    # What we do

    def hello(self) -> None:
        """Say EHLO; a relay that answers 5xx is greeted with HELO and offers nothing."""
        self._move(Move.HELLO)
        self._say(f"EHLO {self._name}\r\n".encode(), "ehlo")

    def starttls(self) -> None:
        self._move(Move.SECURE)
        self._say(b"STARTTLS\r\n", "starttls")

    def secured(self) -> None:
        """The handshake is done: forget what was learnt in clear; EHLO is due again."""
        self._move(Move.SECURED)
        self._reader = ReplyReader()
        self._outbox.clear()
        self.capabilities = Capabilities()

    def authenticate(self, mechanism: str, user: str, password: str) -> None:
        proof = MECHANISMS[mechanism](user, password)
        self._move(Move.AUTHENTICATE)
        self._answers = deque(proof.answers)
        command = f"AUTH {mechanism}".encode()
        initial = b"" if proof.initial is None else b" " + encode(proof.initial)
        if len(command) + len(initial) + 2 > COMMAND_OCTETS_MAX:
            initial = b""
        self._say(command + initial + b"\r\n", "auth")

    def start_transaction(self, mail: Mail) -> None:
        """Begin with a mail; `delivery` tells its outcome once nothing is awaited any more."""
        if Move.START not in TRANSITIONS[self.state]:
            self._move(Move.START)
        transaction = Transaction(mail, self.capabilities)
        self._move(Move.START)
        self._transaction = transaction
        self._script.extend(transaction.commands(self.capabilities))
        if self._script and self._must_reset:
            self._script.appendleft(("rset", -1, b"RSET\r\n"))
        self._advance()

    def quit(self) -> None:
        self._move(Move.QUIT)
        self._say(b"QUIT\r\n", "quit")

    def take(self) -> bytes:
        """The next bytes to send, or none. The last piece of the content takes the final dot with it."""
        if self._outbox:
            taken = bytes(self._outbox)
            self._outbox.clear()
            return taken
        return self._take_content() if self.state is State.CONTENT else b""

    def _take_content(self) -> bytes:
        piece, self._content = bytes(self._content[:WRITE_OCTETS_MAX]), self._content[WRITE_OCTETS_MAX:]
        if not self._content:
            self._content = memoryview(b"")
            self._move(Move.DOT)
            self._expected.append(Expected(STAGES["final"]))
        return piece

    def delivery(self) -> Delivery:
        """What came of the last transaction, as far as it is known now."""
        if self._transaction is None:
            raise MisuseError("no transaction was begun")
        return self._transaction.delivery(reusable=self.state is State.READY)

    # What the relay does

    def receive(self, data: bytes) -> list[Event]:
        """Take what the relay sent, in pieces of any size."""
        events: list[Event] = []
        try:
            self._reader.push(data if self.state is not State.CLOSED else b"")
            while self.state is not State.CLOSED and (reply := self._reader.pull()):
                events += self._on_reply(reply)
        except GarbageError as fault:
            events.append(self.lose("garbage", str(fault)))
        return events

    def lose(self, reason: str, detail: str = "", code: int | None = None) -> Trouble:
        """The conversation is over, for a reason out of LOSSES; the first reason stands."""
        if self.trouble is None:
            stage = self.stage
            text = f"{LOSSES[reason]} while {stage.words}" + (f": {detail}" if detail else "")
            self.trouble = Trouble(reason, stage.name, text, code)
            if self._transaction and self.state in IN_TRANSACTION:
                words = detail if code else text
                out_of_step = reason == "garbage" and self.state is State.ENVELOPE
                self._transaction.loss = Loss(stage.name, words, stage.in_doubt and code is None, code, out_of_step)
        self._close()
        return self.trouble

    def _close(self) -> None:
        self._move(Move.LOST)
        self._expected.clear()
        self._outbox.clear()
        self._script.clear()
        self._answers = None
        self._reader = ReplyReader()

    def _on_reply(self, reply: Reply) -> list[Event]:
        if not self._expected:
            return [self._unexpected(reply)]
        expected = self._expected[0]
        failed = reply.code >= 400
        if not failed and reply.code // 100 not in expected.stage.wants:
            return [self.lose("garbage", f"a reply out of place: {reply.text}")]
        event = Replied(expected.stage.name, reply, expected.position)
        if self.state in IN_TRANSACTION and self._transaction:
            self._transaction.answered(expected.stage.name, expected.position, reply)
        if reply.code == 421 and self.state is not State.QUITTING:
            return [event, self.lose("closing", reply.text, 421)]
        self._expected.popleft()
        trouble = _ON_REPLY[expected.stage.name](self, reply, failed)
        return [event, trouble] if trouble else [event]

    def _unexpected(self, reply: Reply) -> Trouble:
        """A refusal in the middle of the content is believed; of anything else we know only that we are out of step."""
        if reply.code >= 400 and self.state is State.CONTENT and self._transaction:
            self._transaction.answered("content", -1, reply)
        closing = reply.code == 421 or (reply.code >= 400 and self.state is State.CONTENT)
        return self.lose("closing" if closing else "garbage", reply.text, reply.code if closing else None)

    # One small method a stage: what its reply changes

    def _on_greeting(self, reply: Reply, failed: bool) -> Trouble | None:
        if failed:
            return self._refused("greeting", reply)
        self._move(Move.ACCEPTED)
        return None

    def _on_ehlo(self, reply: Reply, failed: bool) -> Trouble | None:
        if reply.code >= 500:
            self._move(Move.DECLINED)
            self._say(f"HELO {self._name}\r\n".encode(), "helo")
        elif failed:
            return self._refused("ehlo", reply)
        else:
            self.capabilities = parse_capabilities(reply)
            self._move(Move.ACCEPTED)
        return None

    def _on_helo(self, reply: Reply, failed: bool) -> Trouble | None:
        if failed:
            return self._refused("helo", reply)
        self._move(Move.ACCEPTED)
        return None

    def _on_starttls(self, reply: Reply, failed: bool) -> Trouble | None:
        if not failed and self._reader.pending:
            return self.lose("injected")
        self._move(Move.DECLINED if failed else Move.ACCEPTED)
        return None

    def _on_auth(self, reply: Reply, failed: bool) -> Trouble | None:
        if reply.code // 100 != 3:
            self._answers = None
            self._move(Move.DECLINED if failed else Move.ACCEPTED)
            return None
        if self._answers is None:
            return self.lose("garbage", "AUTH was given up, and the relay asks on")
        self._say(self._answer(reply, self._answers) + b"\r\n", "auth")
        return None

    def _answer(self, reply: Reply, answers: deque[Answer]) -> bytes:
        """A challenge that is not base64, or one too many, is answered by giving up (RFC 4954 section 4)."""
        challenge = decode(reply.lines[0])
        if challenge is None or not answers:
            self._answers = None
            return b"*"
        return encode(answers.popleft()(challenge))

    def _on_rset(self, reply: Reply, failed: bool) -> Trouble | None:
        self._must_reset = failed
        self._advance()
        return None

    def _on_mail(self, reply: Reply, failed: bool) -> Trouble | None:
        self._must_reset = not failed
        self._advance()
        return None

    def _on_rcpt(self, reply: Reply, failed: bool) -> Trouble | None:
        self._advance()
        return None

    def _on_data(self, reply: Reply, failed: bool) -> Trouble | None:
        if failed or self._transaction is None:
            self._move(Move.ENDED)
        elif self._transaction.wanted:
            self._content = memoryview(stuffed(self._transaction.content))
            self._transaction.content = b""
            self._move(Move.GO_AHEAD)
        else:
            self._move(Move.NOBODY)
            self._say(b".\r\n", "discard")
        return None

    def _on_final(self, reply: Reply, failed: bool) -> Trouble | None:
        """Whatever the reply, the relay has cleared its buffers (RFC 5321 section 4.1.1.4)."""
        self._must_reset = False
        self._move(Move.ENDED)
        return None

    def _on_quit(self, reply: Reply, failed: bool) -> Trouble | None:
        self._close()
        return None

    # Small parts

    def _advance(self) -> None:
        """Say what comes next of the envelope: all of it where the relay pipelines, else one command."""
        if self._expected:
            return
        if self._hopeless():
            self._script.clear()
            self._move(Move.ENDED)
        for _ in range(len(self._script) if self.capabilities.pipelining else min(1, len(self._script))):
            stage, position, line = self._script.popleft()
            self._outbox += line
            self._expected.append(Expected(STAGES[stage], position))

    def _hopeless(self) -> bool:
        """Whether the rest of the envelope can change nothing: nobody to mail to, MAIL refused, or all RCPT were."""
        if not self._script:
            return True
        transaction = self._transaction
        only_data_left = self._script[0][0] == "data"
        return transaction is not None and (transaction.failed or (only_data_left and not transaction.wanted))

    def _say(self, line: bytes, stage: str) -> None:
        self._outbox += line
        self._expected.append(Expected(STAGES[stage]))

    def _refused(self, stage: str, reply: Reply) -> Trouble:
        self._expected.appendleft(Expected(STAGES[stage]))
        return self.lose("refused", reply.text, reply.code)

    def _move(self, move: Move) -> None:
        try:
            self.state = TRANSITIONS[self.state][move]
        except KeyError:
            here = f"{self.state.name} ({self.state.value})"
            raise MisuseError(f"{here} has no move {move.name} ({move.value})") from None


_ON_REPLY: Mapping[str, Callable[[Engine, Reply, bool], Trouble | None]] = MappingProxyType({
    "greeting": Engine._on_greeting,
    "ehlo": Engine._on_ehlo,
    "helo": Engine._on_helo,
    "starttls": Engine._on_starttls,
    "auth": Engine._on_auth,
    "rset": Engine._on_rset,
    "mail": Engine._on_mail,
    "rcpt": Engine._on_rcpt,
    "data": Engine._on_data,
    "final": Engine._on_final,
    "discard": Engine._on_final,
    "quit": Engine._on_quit,
})  # fmt: skip


def parse_capabilities(reply: Reply) -> Capabilities:
    """What EHLO offered: a keyword a line, in any case, the first line being the relay's name."""
    offered: dict[str, list[str]] = {}
    for line in reply.words[1:]:
        # "AUTH=PLAIN LOGIN" is how servers wrote it before RFC 2554; it is another spelling of the same.
        keyword, *values = line.upper().replace("AUTH=", "AUTH ", 1).split() or [""]
        offered.setdefault(keyword, []).extend(values)
    size = offered.get("SIZE", [])[:1]
    return Capabilities(
        pipelining="PIPELINING" in offered,
        size_offered="SIZE" in offered,
        size=_size(size[0]) if size else None,
        eightbitmime="8BITMIME" in offered,
        smtputf8="SMTPUTF8" in offered,
        starttls="STARTTLS" in offered,
        auth=frozenset(offered.get("AUTH", ())),
    )


def _size(text: str) -> int | None:
    """Zero means that the relay knows no limit (RFC 1870 section 4); twenty digits are that section's bound."""
    return (int(text) or None) if re.fullmatch(r"[0-9]{1,20}", text) else None
