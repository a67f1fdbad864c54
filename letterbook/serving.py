"""Running the service until a signal: SIGTERM or SIGINT drains, a second one cuts the drain short."""

import signal
from collections.abc import AsyncIterator, Callable

import trio

from .config import Config
from .system import Serving, serve

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve_until_signalled(config: Config, ready: Callable[[Serving], None]) -> None:
    """See system.serve; what that raises passes through."""
    stopping, stopping_now = trio.Event(), trio.Event()
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heed, signals, stopping, stopping_now)
            await serve(config, stopping=stopping, stopping_now=stopping_now, ready=ready)
            nursery.cancel_scope.cancel()


async def heed(signals: AsyncIterator[int], stopping: trio.Event, stopping_now: trio.Event) -> None:
    """Turn the first signal into one event and the second into the other."""
    for event in (stopping, stopping_now):
        await anext(signals)
        event.set()
