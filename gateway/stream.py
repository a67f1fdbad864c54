"""The live stream: every fact as a JSON text frame, in the order of the log, from a seq on, for as long as one likes.

A stream is one follower of the log with three tasks beside it: one reads and drops what the client sends, one sends
heartbeats, one waits for the stop. A frame that is being sent holds the lock; at the stop the close takes its turn
after it, for a bounded time, and only a client that takes nothing is cut off.

Hypercorn swallows what is sent after the client's close without reaching a checkpoint, so there is one after every
send; and the reading task is what makes the handler end when the client is gone.
"""

from collections.abc import Iterable, Iterator, Sequence

import trio
from quart import websocket

from events.fact import Entry
from events.message import FirstFact
from store import reading
from store.following import Batch

from . import queries
from .asking import check_cursor, check_kind
from .door import STOPPING, Door
from .errors import Answer, Trouble, convert, encode, unavailable
from .event_json import event_json, expansions
from .settings import CLOSE_S_MAX, FRAME_BYTES_MAX, FRAME_FACTS_MAX, HEARTBEAT_S

GOING_AWAY = 1001
"""RFC 6455 section 7.4.1: the server is going down."""

BAD_TICKET = 4401
"""A private code (RFC 6455 section 7.4.2), after HTTP's 401."""


class Streams:
    """Serves the streams of one door."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def serve(self, fields: dict[str, str]) -> Answer | None:
        """Serve the websocket at hand until it ends; or the answer that refuses it, before the upgrade."""
        door = self._door
        try:
            asked: queries.Stream = convert(fields, queries.Stream)
            if asked.ticket is not None and not door.gate.open and not door.tickets.take(asked.ticket):
                await websocket.accept()
                await websocket.close(BAD_TICKET)
                return None
            check_kind(asked.kind)
            if asked.after is not None or asked.log is not None:
                await check_cursor(door, asked.after or 0, asked.log)
            if door.stopping.is_set():
                raise unavailable(STOPPING)
        except Trouble as trouble:
            return trouble.answer
        # The position first: a message that is accepted from here on is known by a fact that the stream shows.
        position = door.store.last_seq if asked.after is None else asked.after
        number = await self._number(asked.message_id)
        await websocket.accept()
        door.streams += 1
        try:
            await _Stream(door, asked, position, number).run()
        finally:
            door.streams -= 1
        return None

    async def _number(self, message_id: str | None) -> int | None:
        if message_id is None:
            return None
        return await self._door.store.read(reading.message_number, message_id)


class _Stream:
    """One client's stream; `position` is the seq up to which it has been served."""

    def __init__(self, door: Door, asked: queries.Stream, position: int, number: int | None) -> None:
        self._door = door
        self._asked = asked
        self._number = number
        self._sending = trio.Lock()
        self._filtered = bool(asked.kind or asked.account_id or asked.message_id)
        self.position = position

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_drop_input)
            nursery.start_soon(self._beat)
            nursery.start_soon(self._feed)
            await self._door.stopping.wait()
            with trio.move_on_after(CLOSE_S_MAX):
                await self._sending.acquire()
                await websocket.close(GOING_AWAY)
            nursery.cancel_scope.cancel()

    async def _beat(self) -> None:
        while True:
            async with self._sending:
                await self._send(encode({"heartbeat": self.position, "log": self._door.store.log_id}))
            await trio.sleep(HEARTBEAT_S)

    async def _feed(self) -> None:
        async with self._door.store.follow(self.position) as batches:
            async for batch in batches:
                frames = await self._encoded(batch)
                async with self._sending:
                    for frame in frames:
                        await self._send(frame)
                    self.position = batch.last

    async def _send(self, frame: bytes) -> None:
        await websocket.send(frame.decode())
        await trio.lowlevel.checkpoint()

    async def _encoded(self, batch: Batch) -> list[bytes]:
        await self._door.watch.reached(batch.last)  # then it knows the accounts that the batch names
        entries = [entry for entry in batch.entries if self._wants(entry)] if self._filtered else batch.entries
        events = await self._events(entries)
        return list(_frames(events)) if self._asked.batch else events

    async def _events(self, entries: Sequence[Entry]) -> list[bytes]:
        if not entries:
            return []
        watch = self._door.watch
        names = await watch.names_of(entries)
        if not self._asked.expand:
            return watch.events.encode(entries, names)
        beside = await self._door.store.read(expansions, entries)
        return [event_json(entry, names, watch.account_ids, beside.get(entry.seq)) for entry in entries]

    def _wants(self, entry: Entry) -> bool:
        asked = self._asked
        if asked.kind is not None and entry.kind != asked.kind:
            return False
        if asked.account_id is not None and asked.account_id != self._door.watch.account_ids.get(entry.account or 0):
            return False
        return asked.message_id is None or self._is_about(entry, asked.message_id)

    def _is_about(self, entry: Entry, message_id: str) -> bool:
        """Whether the fact is about the message; one that was not known yet is known by its first fact."""
        fact = entry.fact
        if self._number is None and isinstance(fact, FirstFact) and fact.id == message_id:
            self._number = entry.message
        return self._number is not None and entry.message == self._number


def _frames(events: Iterable[bytes]) -> Iterator[bytes]:
    """Facts in frames of a bounded number and size; a fact alone may be larger."""
    waiting: list[bytes] = []
    size = 0
    for event in events:
        if waiting and (len(waiting) == FRAME_FACTS_MAX or size + len(event) > FRAME_BYTES_MAX):
            yield _frame(waiting)
            waiting, size = [], 0
        waiting.append(event)
        size += len(event) + 1
    if waiting:
        yield _frame(waiting)


def _frame(events: Sequence[bytes]) -> bytes:
    return b'{"events":[' + b",".join(events) + b"]}"


async def _drop_input() -> None:
    """Take what the client sends, and forget it."""
    while True:
        await websocket.receive()
