"""A relay that keeps what it is given: for the demo, the benches and the tests, never for the service.

A conversation is a `Session`, which has no I/O: bytes go in, steps come out (say, wait, keep, drop), and the shell
below carries them out over any stream. It promises to be a strict peer: it refuses what is out of order, what is
too long, and a non-ASCII mailbox without SMTPUTF8 (RFC 5321, 1870, 2034, 2920, 6152, 6531). It offers neither TLS
nor AUTH.

What it answers can be written into the recipient's local part, so that a test shows its relay's behaviour in the
very address (a `+tag` behind it makes addresses different):

    550@, 451@, any 4xx or 5xx      refused so at RCPT
    451-at-dot@                     the message is refused so after the final dot
    drop-after-dot@                 the connection ends after the final dot, without a reply; the message is kept
    slow-5@, slow-0.2@              so many seconds pass before the final reply
    451-then-250@, drop-after-dot-then-250@, 451-at-dot-then-250@     the first time so, afterwards taken

What happens before a recipient is known (greeting, MAIL, a peer that never answers) is an argument of CaptureRelay.
"""

import re
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import trio
from msgspec import Struct

READ_BYTES = 65536
"""One read takes a whole pipelined transaction of ordinary mail, and is one trip through the loop."""

COMMAND_BYTES_MAX = 4096
"""RFC 5321 wants 512 for a command line; long mailboxes with SMTPUTF8 and parameters need some more."""

MESSAGE_BYTES_MAX = 64 * 1024 * 1024
"""Above the largest message that the service composes by default (50 MB), so that its own limit is what tests meet."""

MEMORY_BYTES_MAX = 64 * 1024 * 1024
"""Kept messages together; the oldest go first. A bench of an hour must not eat the machine that it measures."""

ADDRESSES_REMEMBERED_MAX = 100_000
"""Addresses with `-then-250` whose first time is remembered."""

PARTING_SECONDS = 1.0
"""How long the other side may take to hang up: closing with unread bytes would reset, and could swallow our reply."""

KEYWORDS = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES")

_PATH = re.compile(r'(?:FROM|TO):\s*<((?:"(?:[^"\\]|\\.)*"|[^>"])*)>(.*)\Z', re.IGNORECASE)
_CODE = re.compile(r"([45]\d\d)(-at-dot)?\Z")
_SLOW = re.compile(r"slow-(\d+(?:\.\d+)?)\Z")
_ENHANCED = {"450": "4.2.1", "451": "4.3.0", "452": "4.2.2", "550": "5.1.1", "552": "5.2.2", "554": "5.7.1"}


class Captured(Struct, frozen=True):
    """One message as it came, dot-stuffing undone; `acknowledged` is False where the connection was dropped instead.

    `at` is the moment on Trio's clock.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    acknowledged: bool
    at: float


class Script(Struct, frozen=True, kw_only=True):
    """How the relay behaves whoever the recipient is. A reply is its code and text; a line feed makes it multi-line."""

    greeting: str = "220 capture.localhost ESMTP"
    keywords: tuple[str, ...] = KEYWORDS
    mail_reply: str | None = None
    rcpt_reply: str | None = None
    data_reply: str | None = None
    dot_reply: str | None = None
    message_bytes_max: int = MESSAGE_BYTES_MAX
    multi_line: bool = False
    split_bytes: int = 0
    hang: bool = False


class Say(NamedTuple):
    """Send these bytes."""

    data: bytes


class Wait(NamedTuple):
    """Let so many seconds pass."""

    seconds: float


class Keep(NamedTuple):
    """The message has arrived."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    acknowledged: bool


class Drop(NamedTuple):
    """End the connection here and now."""


Step = Say | Wait | Keep | Drop


class FirstTimes:
    """Which addresses have been seen before: what `-then-250` turns on. Shared by all conversations of a relay."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, None] = OrderedDict()

    def is_first(self, address: str) -> bool:
        if address in self._seen:
            return False
        self._seen[address] = None
        if len(self._seen) > ADDRESSES_REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return True


def reply(text: str, multi_line: bool = False) -> bytes:
    """`250 one<LF>two` as the two lines of one reply (RFC 5321 section 4.2.1)."""
    code, _, words = text.partition(" ")
    lines = words.split("\n")
    if multi_line:
        lines = ["more than", "one line:", *lines]
    marked = [f"{code}-{line}" for line in lines[:-1]] + [f"{code} {lines[-1]}"]
    return "".join(f"{line}\r\n" for line in marked).encode()


def scripted_reply(code: str) -> str:
    return f"{code} {_ENHANCED.get(code, code[0] + '.0.0')} as the address asks"


class Session:
    """One conversation: `receive` takes what came and returns what to do, in order; once `closing`, nothing more."""

    def __init__(self, script: Script, first_times: FirstTimes) -> None:
        self._script = script
        self._first_times = first_times
        self._buffer = bytearray()
        self._searched = 0
        self._in_data = False
        self._too_big = False
        self._greeted = False
        self._sender: str | None = None
        self._utf8 = False
        self._recipients: list[str] = []
        self._at_dot: list[str] = []
        self.closing = False
        self._commands: dict[str, Callable[[str], str]] = {
            "EHLO": self._ehlo,
            "HELO": self._helo,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "NOOP": lambda _: "250 2.0.0 ok",
            "VRFY": lambda _: "252 2.5.2 send and see",
            "QUIT": lambda _: "221 2.0.0 bye",
        }

    def greet(self) -> list[Step]:
        self.closing = not self._script.greeting.startswith("220")
        return [self._say(self._script.greeting)]

    def receive(self, data: bytes | bytearray) -> list[Step]:
        self._buffer += data
        steps: list[Step] = []
        while not self.closing:
            more = self._message() if self._in_data else self._command()
            if not more:
                break
            steps += more
        return steps

    def _say(self, text: str) -> Say:
        """After 221 (the answer to QUIT) and 421 (anywhere) a relay hangs up."""
        if text.startswith(("221", "421")):
            self.closing = True
        return Say(reply(text, self._script.multi_line))

    # Commands.

    def _command(self) -> list[Step]:
        end = self._buffer.find(b"\r\n", self._searched)
        if end < 0:
            return self._unfinished_command()
        line = bytes(self._buffer[:end])
        self._forget(end + 2)
        if b"\n" in line or b"\r" in line:
            return [self._say("500 5.5.2 a line ends with CR LF")]
        verb, _, rest = line.decode("utf-8", "surrogateescape").partition(" ")
        command = self._commands.get(verb.upper())
        return [self._say(command(rest.strip()) if command else "500 5.5.1 no such command")]

    def _unfinished_command(self) -> list[Step]:
        if len(self._buffer) <= COMMAND_BYTES_MAX:
            self._searched = max(0, len(self._buffer) - 1)
            return []
        self._buffer.clear()
        return [self._say("421 4.5.2 line too long")]

    def _forget(self, count: int) -> None:
        del self._buffer[:count]
        self._searched = 0

    def _ehlo(self, name: str) -> str:
        if not name:
            return "501 5.5.4 EHLO needs a name"
        self._greeted = True
        self._reset()
        return "\n".join(("250 capture.localhost", *self._script.keywords, f"SIZE {self._script.message_bytes_max}"))

    def _helo(self, name: str) -> str:
        return self._ehlo(name).partition("\n")[0]

    def _rset(self, _: str) -> str:
        self._reset()
        return "250 2.0.0 ok"

    def _reset(self) -> None:
        self._sender = None
        self._recipients = []
        self._at_dot = []

    def _mail(self, rest: str) -> str:
        if not self._greeted or self._sender is not None:
            return "503 5.5.1 MAIL is out of order"
        if not (match := _PATH.match(rest)):
            return "501 5.5.4 write MAIL FROM:<address>"
        address, parameters = match[1], match[2].upper().split()
        if fault := self._parameter_fault(parameters):
            return fault
        if not address.isascii() and "SMTPUTF8" not in parameters:
            return "553 5.6.7 this address needs SMTPUTF8"
        if self._script.mail_reply and not self._script.mail_reply.startswith("2"):
            return self._script.mail_reply
        self._sender, self._utf8 = address, "SMTPUTF8" in parameters
        return self._script.mail_reply or "250 2.1.0 ok"

    def _parameter_fault(self, parameters: list[str]) -> str | None:
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name == "SIZE" and value.isdigit():
                if int(value) > self._script.message_bytes_max:
                    return "552 5.3.4 message too big"
            elif parameter not in ("BODY=7BIT", "BODY=8BITMIME", "SMTPUTF8"):
                return "555 5.5.4 no such parameter"
        return None

    def _rcpt(self, rest: str) -> str:
        if self._sender is None:
            return "503 5.5.1 RCPT is out of order"
        if not (match := _PATH.match(rest)) or not match[1]:
            return "501 5.5.4 write RCPT TO:<address>"
        address = match[1]
        if not address.isascii() and not self._utf8:
            return "553 5.6.7 this address needs SMTPUTF8"
        answer = self._script.rcpt_reply or self._recipient_reply(address)
        if answer.startswith("2"):
            self._recipients.append(address)
        return answer

    def _recipient_reply(self, address: str) -> str:
        """What the local part asks for at RCPT; what it asks for after the dot is put aside until then."""
        asked = address.rpartition("@")[0].lower().partition("+")[0]
        behaviour = asked.removesuffix("-then-250")
        code = _CODE.match(behaviour)
        if not code and behaviour != "drop-after-dot" and not _SLOW.match(behaviour):
            return "250 2.1.5 ok"
        if behaviour != asked and not self._first_times.is_first(address):
            return "250 2.1.5 ok"
        if code and not code[2]:
            return scripted_reply(code[1])
        self._at_dot.append(behaviour)
        return "250 2.1.5 ok"

    def _data(self, _: str) -> str:
        wanted = self._script.data_reply
        if wanted is None and not self._recipients:
            return "503 5.5.1 DATA without a recipient"
        answer = wanted or "354 end with a dot alone on a line"
        self._in_data = answer.startswith("354")
        return answer

    # The message.

    def _message(self) -> list[Step]:
        """Take the message once its end is there; what has been searched is not searched again."""
        if self._buffer.startswith(b".\r\n") and not self._too_big:
            content, length = b"", 3
        else:
            end = self._buffer.find(b"\r\n.\r\n", self._searched)
            if end < 0:
                return self._unfinished_message()
            content, length = bytes(self._buffer[: end + 2]), end + 5
        self._forget(length)
        steps = self._judge(content)
        self._in_data = self._too_big = False
        self._reset()
        return steps

    def _unfinished_message(self) -> list[Step]:
        # The four bytes that may be the beginning of the end are looked at once more.
        if len(self._buffer) > self._script.message_bytes_max:
            self._too_big = True
            del self._buffer[:-4]
        self._searched = max(0, len(self._buffer) - 4)
        return []

    def _judge(self, content: bytes) -> list[Step]:
        if self._too_big or len(content) > self._script.message_bytes_max:
            return [self._say("552 5.3.4 message too big")]
        if not self._recipients:
            return [self._say("554 5.5.1 no valid recipient")]
        steps: list[Step] = [Wait(float(slow[1])) for asked in self._at_dot if (slow := _SLOW.match(asked))]
        if "drop-after-dot" in self._at_dot:
            self.closing = True
            return [*steps, self._keep(content, acknowledged=False), Drop()]
        refusals = [code[1] for asked in self._at_dot if (code := _CODE.match(asked))]
        if refusals:
            return [*steps, self._say(scripted_reply(refusals[0]))]
        answer = self._script.dot_reply or "250 2.0.0 taken"
        kept: list[Step] = [self._keep(content, acknowledged=True)] if answer.startswith("2") else []
        return [*steps, *kept, self._say(answer)]

    def _keep(self, content: bytes, *, acknowledged: bool) -> Keep:
        """Undo dot-stuffing (RFC 5321 section 4.5.2)."""
        if content.startswith(b"."):
            content = content[1:]
        return Keep(self._sender or "", tuple(self._recipients), content.replace(b"\r\n.", b"\r\n"), acknowledged)


class CaptureRelay:
    """The relay: `await nursery.start(relay.serve)`, or `async with relay.listening()`, or `converse` over a stream.

    `messages` holds what was kept, as far as memory allows; `received` counts all of it. `on_message` is awaited
    before the reply: a slow one is a slow relay. The other arguments are the fields of Script.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        on_message: Callable[[Captured], Awaitable[None]] | None = None,
        memory_bytes_max: int = MEMORY_BYTES_MAX,
        **script: Any,
    ) -> None:
        self.script = Script(**script)
        self.host = host
        self.port = port
        self.messages: deque[Captured] = deque()
        self.received = 0
        self.connections = 0
        self.connections_max = 0
        self.connections_total = 0
        self._on_message = on_message
        self._memory_bytes_max = memory_bytes_max
        self._memory_bytes = 0
        self._first_times = FirstTimes()
        self._arrivals = trio.lowlevel.ParkingLot()

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; the port is known, here and as `port`, once started."""
        listeners = await trio.open_tcp_listeners(self.port, host=self.host)
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started(self.port)
        await trio.serve_listeners(self.converse, listeners)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator["CaptureRelay"]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve)
            yield self
            nursery.cancel_scope.cancel()

    async def until_received(self, count: int) -> None:
        """Wait until `count` messages have come since the beginning."""
        while self.received < count:
            await self._arrivals.park()

    async def converse(self, stream: trio.abc.Stream) -> None:
        """Hold one conversation over any stream, and close it."""
        self.connections += 1
        self.connections_total += 1
        self.connections_max = max(self.connections_max, self.connections)
        try:
            await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The other side is gone; there is nobody to tell.
            pass
        finally:
            self.connections -= 1
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.abc.Stream) -> None:
        if self.script.hang:
            await trio.sleep_forever()
        session = Session(self.script, self._first_times)
        alive = await self._carry_out(session.greet(), stream)
        while alive and not session.closing:
            data = await stream.receive_some(READ_BYTES)
            if not data:
                return
            alive = await self._carry_out(session.receive(data), stream)
        if alive:
            await part(stream)

    async def _carry_out(self, steps: list[Step], stream: trio.abc.Stream) -> bool:
        """Do the steps, with all that is said in a row in one write; False once the connection is to be dropped."""
        said = bytearray()
        for step in steps:
            match step:
                case Say(data):
                    said += data
                case Keep():
                    await self._keep(step)
                case Wait(seconds):
                    await self._send(said, stream)
                    await trio.sleep(seconds)
                case Drop():
                    await self._send(said, stream)
                    return False
        await self._send(said, stream)
        return True

    async def _send(self, said: bytearray, stream: trio.abc.Stream) -> None:
        size = self.script.split_bytes or len(said) or 1
        data = bytes(said)
        said.clear()
        for start in range(0, len(data), size):
            await stream.send_all(data[start : start + size])

    async def _keep(self, step: Keep) -> None:
        message = Captured(*step, at=trio.current_time())
        self.messages.append(message)
        self.received += 1
        self._memory_bytes += len(message.content)
        while self._memory_bytes > self._memory_bytes_max and len(self.messages) > 1:
            self._memory_bytes -= len(self.messages.popleft().content)
        self._arrivals.unpark_all()
        if self._on_message:
            await self._on_message(message)


async def part(stream: trio.abc.Stream) -> None:
    """Say that no more will come, and let the other side hang up first."""
    if isinstance(stream, trio.abc.HalfCloseableStream):
        with trio.move_on_after(PARTING_SECONDS):
            await stream.send_eof()
            while await stream.receive_some(READ_BYTES):
                pass
