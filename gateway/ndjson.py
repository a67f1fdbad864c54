"""Many messages in one request, a line each (NDJSON), read as a stream. How it works:

Bytes become lines, lines become batches, and each batch is a submission like any other, awaited before the next one is
begun. Meanwhile nothing is read: what the client has sent stands in the server's short queue and in the socket's
buffers, so a client that is faster than the disk is slowed down by TCP, and what a stream holds in memory is one batch
and the line that has begun. It may be of any length, so neither `max_body_mb` nor the time for a body holds; instead a
line has a bound, and IDLE_S_MAX without a byte ends it.

A line's fault is that line's rejection, as an item's is in a batch, and the stream goes on. A batch is handed over when
it is full, and LINGER_S after its first line at the latest: whoever trickles is not kept waiting for company. The same
id in two lines is judged as if they had come in two requests, wherever the batches happen to be cut.

What ends it early (a stop, a full disk, the backlog, the memory of all bodies, silence) is the error that any request
would get, with what had come of the stream beside it: `lines` is how many were decided, so the client goes on behind
them. Lines that were not handed over by then are not taken, and the same holds where the client vanishes. To send a
stream again from its beginning is safe: ids see to that.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio
from msgspec import Struct

from events.commands import Decision

from .bodies import MEMORY, Lease
from .door import Door
from .errors import Answer, Trouble, error, unavailable
from .writing import NOT_JSON, default_priority, rejection

Receive = Callable[[], Awaitable[dict[str, Any]]]

LINE_BYTES_MAX = 32_000_000
"""A message with 23 MB of attachments, as base64."""

BATCH_BYTES_MAX = 4_000_000
"""One turn of the recorder writes no more, so a larger batch would only be held for longer."""

IDLE_S_MAX = 60.0
"""A client that sends nothing for so long is dropped, as one is that takes nothing."""

LINGER_S = 0.2
"""How long a batch waits for more lines: longer than bytes under way take, shorter than anybody waits, and a stream
makes five commits a second at most beside those of full batches."""

REJECTED_SHOWN_MAX = 1_000
"""As many as a whole batch can have; the rest is counted."""

TOO_LONG = "message too large"

IDLE = f"nothing came for {IDLE_S_MAX:.0f} s: send the lines that are left in another request"
STOPPING = "the service is stopping: send the lines that are left in another request"
MEMORY_SHARE = 2
"""A line may take this part of the memory of all bodies: one that never fits is too large, and asking again is vain."""

_BOM = b"\xef\xbb\xbf"
_WHITE = b" \t\r"


class Line(Struct, frozen=True):
    """A line that is not blank, by its number from 1; without `text` it was too long."""

    number: int
    text: bytes | None


class Lines:
    """Cuts bytes into lines, however they come; of a line that is too long nothing is kept.

    A line ends with LF or CRLF, the last one may end with the stream. Blank lines are counted and passed over, and so
    is a byte order mark before the first line (RFC 8259 section 8.1).
    """

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._most = line_bytes_max
        # One piece: a line that comes in parts of two bytes must not take twenty times its memory.
        self._begun = bytearray()
        self._length = 0
        self._number = 0

    @property
    def held(self) -> int:
        """Bytes of the line that has begun."""
        return len(self._begun)

    def feed(self, data: bytes) -> list[Line]:
        """The lines that end in these bytes."""
        *ends, rest = data.split(b"\n")
        lines = [line for part in ends if (line := self._end(part))]
        self._hold(rest)
        return lines

    def end(self) -> list[Line]:
        """The last line, if the stream ended without a line feed."""
        line = self._end(b"") if self._length else None
        return [line] if line else []

    def _hold(self, part: bytes) -> None:
        self._length += len(part)
        if self._length > self._most:
            self._begun.clear()
        else:
            self._begun += part

    def _end(self, part: bytes) -> Line | None:
        self._hold(part)
        text = None if self._length > self._most else bytes(self._begun)
        self._begun, self._length = bytearray(), 0
        self._number += 1
        if text is not None:
            text = (text.removeprefix(_BOM) if self._number == 1 else text).strip(_WHITE)
        return None if text == b"" else Line(self._number, text)


class Taken:
    """What has come of a stream so far."""

    def __init__(self) -> None:
        self.lines = 0
        self.queued = 0
        self.rejected: list[dict[str, Any]] = []
        self.rejected_count = 0

    def decided(self, line: Line, decision: Decision | None) -> None:
        """`decision` is None for a line that was too long to be handed over."""
        self.lines = line.number
        if decision is None:
            self._reject({"reason": f"{TOO_LONG}: line {line.number}"})
        elif decision.reason is None:
            self.queued += 1
        elif decision.reason == NOT_JSON:
            self._reject({"reason": f"{NOT_JSON}: line {line.number}"})
        else:
            self._reject(rejection(decision) | ({} if decision.id is not None else {"line": line.number}))

    def _reject(self, told: dict[str, Any]) -> None:
        self.rejected_count += 1
        if len(self.rejected) < REJECTED_SHOWN_MAX:
            self.rejected.append(told)

    @property
    def told(self) -> dict[str, Any]:
        return {"queued": self.queued, "rejected": self.rejected, "rejected_count": self.rejected_count}


async def add_messages(door: Door, by: str, query: Mapping[str, str], lease: Lease, receive: Receive) -> Answer | None:
    """The answer to a stream; None where its client has gone and nobody would hear it."""
    stream = _Stream(door, by, lease)
    try:
        door.check_accepting()
        stream.priority = default_priority(query.get("default_priority"))
        return Answer({"ok": True, **stream.taken.told}) if await stream.take(receive) else None
    except Trouble as trouble:
        return error(trouble.status, trouble.sentence, **stream.taken.told, lines=stream.taken.lines)


class _Stream:
    """One request's lines on their way to ingest."""

    def __init__(self, door: Door, by: str, lease: Lease) -> None:
        self._door = door
        self._by = by
        self._lease = lease
        self._lines = Lines(min(LINE_BYTES_MAX, door.settings.body_memory_bytes // MEMORY_SHARE))
        self._batch: list[Line] = []
        self._batch_bytes = 0
        self._lingers_until = 0.0
        self.priority: int | None = None
        self.taken = Taken()

    async def take(self, receive: Receive) -> bool:
        """Take all of it; whether it came to its end, and not its client. Raises Trouble."""
        while (message := await self._next(receive))["type"] == "http.request":
            more = message.get("more_body", False)
            data = message.get("body", b"")
            await self._make_room(len(data))
            await self._gather(self._lines.feed(data) + ([] if more else self._lines.end()))
            if not more:
                await self._hand_over()
                return True
            self._lease.shrink(self._lines.held + self._batch_bytes)
            await trio.lowlevel.checkpoint()
        return False

    async def _next(self, receive: Receive) -> dict[str, Any]:
        """The next bytes; a batch that has waited long enough for more is handed over first."""
        if self._batch:
            with trio.move_on_at(self._lingers_until):
                return await receive()
            await self._flush()
        message: dict[str, Any] | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_at, self._door.stopping, nursery.cancel_scope)
            with trio.move_on_after(IDLE_S_MAX) as idle:
                message = await receive()
            nursery.cancel_scope.cancel()
        if message is not None:
            return message
        raise Trouble(408, IDLE) if idle.cancelled_caught else unavailable(STOPPING)

    async def _make_room(self, size: int) -> None:
        """Lease memory for what came, if need be after handing over what is held. Raises Trouble 503."""
        if self._lease.grow(size):
            return
        await self._flush()
        if not self._lease.grow(size):
            raise unavailable(MEMORY)

    async def _flush(self) -> None:
        await self._hand_over()
        self._lease.shrink(self._lines.held)

    async def _gather(self, lines: Sequence[Line]) -> None:
        for line in lines:
            size = len(line.text or b"")
            if len(self._batch) >= self._door.settings.max_batch or self._batch_bytes + size > BATCH_BYTES_MAX:
                await self._hand_over()
            if not self._batch:
                self._lingers_until = trio.current_time() + LINGER_S
            self._batch.append(line)
            self._batch_bytes += size

    async def _hand_over(self) -> None:
        """Have the batch decided. Raises Trouble 503, and then what came of it is not known."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        items = [line.text for line in batch if line.text is not None]
        decisions: Sequence[Decision] = ()
        if items:
            decisions = await self._door.submit(
                items, self._by, self._lease, default_priority=self.priority, apart=True, patient=True
            )
        decided = iter(decisions)
        for line in batch:
            self.taken.decided(line, None if line.text is None else next(decided))


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
