"""Following: every fact after a seq, in order, once, for as long as one likes. How it works:

A follower has one number, its position: the seq of the last fact it was given. It registers with the hub first and
reads afterwards, so no commit can fall between. The hub hands each commit's entries to every follower as one batch.

A batch is given out only if it begins at position + 1 or before (then what is older is trimmed off). In any other
case there are facts that the follower has not seen and does not hold, and it reads a page of the log after its
position. That is the whole switch between catching up and living, and it is checked on every batch.

What waits for a follower is bounded. When more comes than it may hold, everything held is dropped and only the bell
rings: the log has it all, and the follower reads it at its own pace. Nothing is lost, nothing grows, and no writer
ever waits for a reader.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from msgspec import Struct

from events.fact import Entry

FACTS_WAITING_MAX = 10_000
"""Five commits of 2,000 facts: a follower that pauses for a moment need not go back to the log."""

BYTES_WAITING_MAX = 8_000_000
"""Two commits of 4 MB. Facts carry no letters, so it is the count that usually binds."""

PAGE_FACTS = 2_000
"""As many as one commit: a page of the log and a batch from the hub are alike to whoever takes them."""


class Batch(Struct, frozen=True):
    """Entries in log order without gaps; `size` is their data's length in bytes."""

    first: int
    last: int
    entries: tuple[Entry, ...]
    size: int = 0


def batch_of(entries: tuple[Entry, ...], size: int = 0) -> Batch:
    return Batch(entries[0].seq, entries[-1].seq, entries, size)


class LogGap(Exception):
    """A fact that has been committed is not in the log: the file is damaged (`letterbook verify` says where)."""


ReadPage = Callable[[int, int], Awaitable[tuple[Entry, ...]]]
"""(after, limit) -> the entries of the log that follow, at most `limit`."""


class Follower:
    """One reader of the log: iterate it. `follow` makes it and takes it away again."""

    def __init__(self, hub: "Hub", after: int) -> None:
        self._hub = hub
        self._closed = False
        self._bell = trio.Event()
        self._waiting: deque[Batch] = deque()
        self._facts = 0
        self._bytes = 0
        self.position = after

    @property
    def facts_waiting(self) -> int:
        return self._facts

    def give(self, batch: Batch) -> None:
        """Take a commit's batch, or drop everything held when it is too much. Never blocks."""
        self._waiting.append(batch)
        self._facts += len(batch.entries)
        self._bytes += batch.size
        if self._facts > FACTS_WAITING_MAX or self._bytes > BYTES_WAITING_MAX:
            self._waiting.clear()
            self._facts = self._bytes = 0
        self._bell.set()

    def ring(self) -> None:
        self._bell.set()

    def close(self) -> None:
        """Nothing more will be given, so whoever still iterates ends."""
        self._closed = True
        self._waiting.clear()
        self._facts = self._bytes = 0
        self._bell.set()

    def __aiter__(self) -> "Follower":
        return self

    async def __anext__(self) -> Batch:
        """The next batch after the position. Raises StopAsyncIteration when the hub or the follower has closed, and
        LogGap on a damaged log."""
        if self._waiting:
            # Before anything is taken: a batch taken and lost to a cancellation would have to be read again.
            await trio.lowlevel.checkpoint()
        while not self._closed:
            if batch := self._held():
                return self._advance(batch)
            if self.position < self._hub.last_seq:
                return self._advance(await self._read())
            if self._hub.closed:
                break
            self._bell = trio.Event()
            await self._bell.wait()
        raise StopAsyncIteration

    async def _read(self) -> Batch:
        """The page of the log after the position, of which the hub has said that it is there."""
        entries = await self._hub.read_page(self.position, PAGE_FACTS)
        if not entries or entries[0].seq != self.position + 1:
            raise LogGap(f"the log has no fact {self.position + 1}, though it goes to {self._hub.last_seq}")
        return batch_of(entries)

    def _held(self) -> Batch | None:
        """The held batch that goes on from the position, trimmed; None where there is none, or only a gap."""
        while self._waiting:
            batch = self._waiting[0]
            if batch.first > self.position + 1:
                return None
            self._waiting.popleft()
            self._facts -= len(batch.entries)
            self._bytes -= batch.size
            if batch.last > self.position:
                return _after(batch, self.position)
        return None

    def _advance(self, batch: Batch) -> Batch:
        self.position = batch.last
        return batch


def _after(batch: Batch, position: int) -> Batch:
    if batch.first > position:
        return batch
    return batch_of(batch.entries[position + 1 - batch.first :], batch.size)


class Hub:
    """Where commits are published to followers. `last_seq` is the last published fact's."""

    def __init__(self, last_seq: int, read_page: ReadPage) -> None:
        self.last_seq = last_seq
        self.read_page = read_page
        self.closed = False
        self._followers: set[Follower] = set()

    def publish(self, entries: tuple[Entry, ...], size: int) -> None:
        """Give a commit's entries to every follower; never blocks."""
        batch = batch_of(entries, size)
        self.last_seq = batch.last
        for follower in self._followers:
            follower.give(batch)

    def close(self) -> None:
        """No more will come: followers end once they have given out what there is."""
        self.closed = True
        for follower in self._followers:
            follower.ring()

    def lag(self) -> int:
        """How many facts the slowest follower is behind."""
        return max((self.last_seq - follower.position for follower in self._followers), default=0)

    @asynccontextmanager
    async def follow(self, after: int) -> AsyncIterator[Follower]:
        """Every entry with a seq above `after`, from the log first and then as they are committed."""
        follower = Follower(self, after)
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
            follower.close()
