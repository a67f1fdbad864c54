"""Running the service until a signal: SIGTERM or SIGINT drains, a second one cuts the drain short."""

from collections.abc import Callable

import trio

from .config import Config
from .logs import Lines
from .signals import STOP_SIGNALS, heed
from .system import Serving, serve


async def serve_until_signalled(config: Config, ready: Callable[[Serving], None], lines: Lines) -> None:
    """See system.serve; what that raises passes through."""
    stopping, stopping_now = trio.Event(), trio.Event()
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heed, signals, stopping, stopping_now)
            await serve(config, stopping=stopping, stopping_now=stopping_now, ready=ready, lines=lines)
            nursery.cancel_scope.cancel()
