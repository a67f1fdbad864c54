"""A relay that does to a conversation whatever relays and networks do, by chance, and keeps account of the truth.

It takes a message in one single moment, when the final dot has arrived and before a byte of its answer leaves; that
moment is `took_at`, and whatever happens afterwards, the message is then delivered.
"""

import random
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import anyio
import trio

from .eye import Eye
from .network import Connection
from .observed import Observed, Transaction


@dataclass(frozen=True)
class Temper:
    """How bad a relay is: chances of a fault a stage, of a cut a connection, and what it offers."""

    fault: float
    cut: float
    latency_s: float
    pipelining: bool


@dataclass(frozen=True)
class Fault:
    """`stall`: no answer ever; `slow`: one after seconds; `drop`: the connection ends; else a reply's code."""

    kind: str
    seconds: float = 0


class SimulatedBug(Exception):
    """An error of ours that nobody expects, in the middle of the delivery unit: supervision starts it again."""


HEALTHY = "healthy"
WEATHERS = (HEALTHY, "refused", "dns", "hang", "greeting 421", "greeting 554", "greeting stall", "ehlo 451")
STALL_S = 3_600

_MAIL = re.compile(rb"(?:\A|\r\n)MAIL FROM:<([^>]*)>")
"""Nothing but a command can look so here: no letter of these scenarios holds such a line."""

_CODES = {
    "mail": ("421", "450", "451", "550", "530"),
    "rcpt": ("421", "450", "452", "550"),
    "data": ("421", "451", "554"),
    "final": ("421", "451", "452", "550", "554"),
}


class Relay:
    """One host. `weather` is what befalls everybody who connects; `calm` ends all faults."""

    def __init__(
        self,
        host: str,
        temper: Temper,
        chance: random.Random,
        observed: Observed,
        eye: Callable[[], Eye],
        mail_leaves: Callable[[str], None],
    ) -> None:
        self.host = host
        self.chance = chance
        self.weather = HEALTHY
        self.calm = False
        self.bug = False
        self._temper = temper
        self._observed = observed
        self._eye = eye
        self._mail_leaves = mail_leaves
        self._mails: dict[Connection, deque[Transaction]] = {}
        self._greylisted: set[str] = set()

    def clear_up(self) -> None:
        self.calm = True
        self.weather = HEALTHY

    # The network's side

    async def arrive(self) -> None:
        self._observed.connects.append((trio.current_time(), self.host))
        await trio.sleep(self._latency())
        if self.bug:
            self.bug = False
            raise SimulatedBug
        match self.weather:
            case "refused":
                raise ConnectionRefusedError(self.host)
            case "dns":
                raise OSError(f"the name {self.host} was not found")
            case "hang":
                await trio.sleep(STALL_S)
                raise TimeoutError

    def cuts(self) -> tuple[int | None, int | None]:
        """After how many bytes the connection is cut, up and down."""
        if self.calm or self.chance.random() >= self._temper.cut:
            return None, None
        after = self.chance.randint(1, 1_500)
        return (after, None) if self.chance.random() < 0.5 else (None, after // 2)

    def _latency(self) -> float:
        return self.chance.random() * self._temper.latency_s

    def sending(self, data: bytes, connection: Connection, life: int) -> None:
        """The service is about to send: if this is MAIL, the log must hold the start by now."""
        found = _MAIL.search(data)
        if found is None:
            return
        sender = found[1].decode()
        self._mail_leaves(sender.partition("@")[0])
        made = Transaction(life, self.host, sender, trio.current_time())
        self._observed.transactions.append(made)
        self._mails.setdefault(connection, deque()).append(made)
        seen = self._eye().message(made.id)
        if seen is None or seen.state != "in_flight" or not seen.started:
            self._observed.surprise(f"MAIL of {made.id} leaves without a start on disk: {seen}")
            return
        made.number, made.state, made.attempt, made.revision = seen.number, seen.state, seen.attempt, seen.revision
        made.letter = seen.letter
        self._observed.tell(self.host, f"MAIL of {made.id}, attempt {made.attempt}")

    # The conversation

    async def converse(self, connection: Connection, life: int) -> None:
        session = _Session(self, connection)
        try:
            await session.run()
        except (anyio.BrokenResourceError, _Over):
            pass
        finally:
            connection.close()
            session.over()
            self._mails.pop(connection, None)

    def fault(self, stage: str) -> Fault | None:
        chance = self.chance
        if self.calm or chance.random() >= self._temper.fault:
            return None
        drawn = chance.random()
        if drawn < 0.45:
            return Fault(chance.choice(_CODES[stage]))
        if drawn < 0.65:
            return Fault("slow", chance.choice((0.5, 3, 20, 90)))
        return Fault("drop") if drawn < 0.85 else Fault("stall")

    def greeting(self) -> Fault | None:
        match self.weather:
            case "greeting 421" | "greeting 554":
                return Fault(self.weather[-3:])
            case "greeting stall":
                return Fault("stall")
        return None

    def idle_s(self) -> float:
        """How long it bears an idle connection."""
        return 3_600.0 if self.calm else self.chance.choice((5.0, 60.0, 400.0))

    async def pause(self) -> None:
        await trio.sleep(self._latency() * 0.2)

    def recipient(self, address: str) -> str | None:
        """What the address itself asks for: none there, or greylisted the first time."""
        if address.startswith("nobody"):
            return "550 5.1.1 no such user"
        if address.startswith("grey") and address not in self._greylisted:
            self._greylisted.add(address)
            return "451 4.7.1 come again"
        return None

    @property
    def keywords(self) -> str:
        names = ["8BITMIME", "ENHANCEDSTATUSCODES", "AUTH PLAIN", *(["PIPELINING"] if self._temper.pipelining else [])]
        return "".join(f"250-{name}\r\n" for name in names)

    def next_mail(self, connection: Connection) -> Transaction:
        return self._mails[connection].popleft()

    def took(self, mail: Transaction, subject: str, late: bool) -> None:
        mail.took_at, mail.subject, mail.late = trio.current_time(), subject, late
        self._observed.tell(self.host, f"takes {subject!r} for {', '.join(mail.accepted)}")


class _Over(Exception):
    """The relay ends the conversation."""


class _Session:
    """One conversation as the relay has it."""

    def __init__(self, relay: Relay, connection: Connection) -> None:
        self._relay = relay
        self._connection = connection
        self._buffer = b""
        self._mail: Transaction | None = None

    async def run(self) -> None:
        await self._say("220 sim ESMTP", self._relay.greeting())
        while True:
            line = await self._line()
            await self._relay.pause()
            await self._command(line)

    def over(self) -> None:
        if self._mail is not None:
            # What a relay does once the connection is gone, nobody waits for.
            self._mail.over_at = min(trio.current_time(), self._connection.closed_at)
            self._mail = None

    async def _line(self) -> bytes:
        return await self._until(b"\r\n", self._relay.idle_s() if self._mail is None else STALL_S)

    async def _until(self, end: bytes, patience_s: float = STALL_S) -> bytes:
        while end not in self._buffer:
            data = b""
            with trio.move_on_after(patience_s) as scope:
                data = await self._connection.up.receive()
            if scope.cancelled_caught:
                await self._send("421 4.4.2 idle for too long")
                raise _Over
            if not data:
                raise _Over
            self._buffer += data
        found, _, self._buffer = self._buffer.partition(end)
        return found

    async def _send(self, text: str) -> None:
        await self._connection.down.send(text.encode() + b"\r\n")

    async def _say(self, text: str, fault: Fault | None = None) -> bool:
        """Answer, or do what the fault says; whether the answer was `text`."""
        if fault is None:
            await self._send(text)
            return True
        match fault.kind:
            case "slow":
                await trio.sleep(fault.seconds)
                await self._send(text)
                return True
            case "stall":
                with trio.move_on_after(STALL_S):
                    while await self._connection.up.receive():
                        pass
                raise _Over
            case "drop":
                raise _Over
        await self._send(f"{fault.kind} {fault.kind[0]}.3.0 by chance")
        if fault.kind == "421":
            raise _Over
        return False

    async def _command(self, line: bytes) -> None:
        verb = line[:4].upper()
        match verb:
            case b"EHLO":
                if self._relay.weather == "ehlo 451":
                    await self._send("451 4.3.0 not now")
                else:
                    await self._send(f"250-sim\r\n{self._relay.keywords}250 SIZE 1000000")
            case b"HELO":
                await self._send("451 4.3.0 not now" if self._relay.weather == "ehlo 451" else "250 sim")
            case b"AUTH":
                await self._send("235 2.7.0 ok")
            case b"MAIL":
                await self._take_mail()
            case b"RCPT":
                await self._take_recipient(line)
            case b"DATA":
                await self._take_data()
            case b"RSET":
                self.over()
                await self._send("250 2.0.0 ok")
            case b"QUIT":
                await self._send("221 2.0.0 bye")
                raise _Over
            case _:
                await self._send("500 5.5.1 no such command")

    async def _take_mail(self) -> None:
        self.over()
        mail = self._relay.next_mail(self._connection)
        self._mail = mail
        if not await self._say("250 2.1.0 ok", self._relay.fault("mail")):
            self.over()

    async def _take_recipient(self, line: bytes) -> None:
        if self._mail is None:
            await self._send("503 5.5.1 no MAIL")
            return
        address = line[line.index(b"<") + 1 : line.index(b">")].decode()
        if refusal := self._relay.recipient(address):
            await self._send(refusal)
        elif await self._say("250 2.1.5 ok", self._relay.fault("rcpt")):
            self._mail.accepted.append(address)

    async def _take_data(self) -> None:
        if self._mail is None or not self._mail.accepted:
            await self._send("503 5.5.1 nobody to send it to")
            return
        if not await self._say("354 go on", self._relay.fault("data")):
            self.over()
            return
        content = await self._content()
        fault = self._relay.fault("final")
        if (
            fault is None
            or fault.kind == "slow"
            or (fault.kind in ("stall", "drop") and self._relay.chance.random() < 0.5)
        ):
            await self._take(content, fault)
        else:
            await self._say("", fault)
        self.over()

    async def _take(self, content: bytes, fault: Fault | None) -> None:
        """Taken before the answer leaves; a slow relay may take it before it is slow or after."""
        assert self._mail is not None
        if fault and fault.kind == "slow" and self._relay.chance.random() < 0.5:
            await trio.sleep(fault.seconds)
            fault = None
        self._relay.took(self._mail, _subject(content), self._connection.up.closed)
        await self._say("250 2.0.0 taken", fault)

    async def _content(self) -> bytes:
        if self._buffer.startswith(b".\r\n"):
            self._buffer = self._buffer[3:]
            return b""
        content = await self._until(b"\r\n.\r\n")
        assert self._mail is not None
        self._mail.content_at = trio.current_time()
        return content


def _subject(content: bytes) -> str:
    for line in content.split(b"\r\n"):
        if line.startswith(b"Subject: "):
            return line[9:].decode()
    return ""
