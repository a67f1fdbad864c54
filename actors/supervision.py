"""Supervision: what crashes is a bug; it is started again a few times, and then the service stops with a clear line.

It promises that a crash is never silent and never spins. It cannot tell one bug from another. Operating errors
(time-outs, refusals, a full disk) are values where they happen and never come here.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import trio
from msgspec import Struct

logger = logging.getLogger("letterbook.supervision")


class Budget(Struct, frozen=True):
    """How many crashes within how many seconds are borne; each restart comes `pause_s` after its crash."""

    crashes: int = 5
    within_s: float = 60.0
    pause_s: float = 0.1


class GivenUp(Exception):
    """Something crashed more often than its budget allows; the last crash is the cause."""

    def __init__(self, name: str, budget: Budget) -> None:
        super().__init__(
            f"{name} crashed more than {budget.crashes} times within {budget.within_s:g} s, so the service stops:"
            " the lines before this one say where"
        )
        self.name = name


DEFAULT_BUDGET = Budget()


async def keep(name: str, start: Callable[[], Awaitable[None]], budget: Budget = DEFAULT_BUDGET) -> None:
    """Run `start()` until it returns; start it again when it crashes. Raises GivenUp.

    Cancellation, and a group that holds one, is no crash and passes.
    """
    crashed: deque[float] = deque()
    while True:
        try:
            await start()
        except Exception as error:  # a crash is what this is for
            now = trio.current_time()
            crashed.append(now)
            while crashed[0] <= now - budget.within_s:
                crashed.popleft()
            if len(crashed) > budget.crashes:
                raise GivenUp(name, budget) from error
            logger.exception("%s crashed and is started again (%d of %d)", name, len(crashed), budget.crashes)
        else:
            return
        await trio.sleep(budget.pause_s)
