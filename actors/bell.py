"""A bell: one task waits for it, anybody rings it, and a moment may ring it too.

It carries nothing; what it is about stands in somebody's state. So two rings are one, and none is lost.
"""

import math

import trio


class Bell:
    """`no_later_than` moves the moment nearer without waking anybody."""

    def __init__(self) -> None:
        self._rung = trio.Event()
        self._moment = math.inf
        self._scope: trio.CancelScope | None = None

    def ring(self) -> None:
        self._rung.set()

    def no_later_than(self, moment: float) -> None:
        """The wait that is under way, or the next one, ends at this moment at the latest (Trio's clock)."""
        self._moment = min(self._moment, moment)
        if self._scope is not None:
            self._scope.deadline = min(self._scope.deadline, moment)

    async def wait(self, until: float = math.inf) -> None:
        """Wait until it rings, or the moment comes (Trio's clock). A ring since the last wait counts."""
        with trio.CancelScope(deadline=min(until, self._moment)) as self._scope:
            await self._rung.wait()
        self._scope = None
        self._moment = math.inf
        self._rung = trio.Event()
