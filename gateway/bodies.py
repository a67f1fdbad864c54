"""Bodies of requests: how large one may be, and how much all of them together may hold in memory.

A request leases memory for its body before it is read, by its Content-Length, or as it comes where it names none.
The lease is given back with the answer; where the client has gone before, when the command that holds the body has
been answered.
"""

from typing import Any

from events.commands import Reply

MEMORY = "the bodies of all requests together are over body_memory_mb: ask again in a moment"


class Bodies:
    """The memory that bodies share, in bytes."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory = memory_bytes
        self._orphans: list[tuple[Reply[Any], int]] = []
        self.held = 0

    def take(self, size: int) -> bool:
        """Whether there was room for so much more."""
        if self.held + size > self._memory:
            self._collect()
        if self.held + size > self._memory:
            return False
        self.held += size
        return True

    def keep_until(self, reply: Reply[Any], size: int) -> None:
        """The body lives on in a command until that is answered."""
        self._orphans.append((reply, size))

    def _collect(self) -> None:
        living = [(reply, size) for reply, size in self._orphans if not reply.answered]
        self.held -= sum(size for _, size in self._orphans) - sum(size for _, size in living)
        self._orphans = living


class Lease:
    """One request's share."""

    __slots__ = ("_bodies", "size")

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size = 0

    def grow(self, by: int) -> bool:
        """Whether there was room."""
        if not self._bodies.take(by):
            return False
        self.size += by
        return True

    def shrink(self, to: int) -> None:
        """Give back what is over so many bytes."""
        self._bodies.held -= max(0, self.size - to)
        self.size = min(self.size, to)

    def keep_until(self, reply: Reply[Any]) -> None:
        """The client has gone, and the command that has the body has not been answered."""
        self._bodies.keep_until(reply, self.size)
        self.size = 0

    def release(self) -> None:
        self._bodies.held -= self.size
        self.size = 0
