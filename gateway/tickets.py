"""Tickets: browsers cannot show a token when they open a websocket, so they fetch a ticket and name it in the URL.

A ticket is for one use within EXPIRES_S, so that one seen in a proxy's log opens nothing.
"""

from collections.abc import Callable

EXPIRES_S = 30
OUTSTANDING_MAX = 1_000
"""Tickets not used yet; the oldest is dropped when one more is asked for."""

TICKET_BYTES = 24


class Tickets:
    """`entropy(n)` gives n random bytes, `monotonic_us` a clock that never jumps."""

    def __init__(self, entropy: Callable[[int], bytes], monotonic_us: Callable[[], int]) -> None:
        self._entropy = entropy
        self._now_us = monotonic_us
        self._until_us: dict[str, int] = {}

    def give(self) -> str:
        """A new ticket."""
        ticket = self._entropy(TICKET_BYTES).hex()
        self._until_us[ticket] = self._now_us() + EXPIRES_S * 1_000_000
        while len(self._until_us) > OUTSTANDING_MAX:
            self._until_us.pop(next(iter(self._until_us)))
        return ticket

    def take(self, ticket: str) -> bool:
        """Whether the ticket was good; it is used up now."""
        until_us = self._until_us.pop(ticket, None)
        return until_us is not None and until_us >= self._now_us()
