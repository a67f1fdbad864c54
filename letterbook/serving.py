"""Running the service until a signal: SIGTERM or SIGINT drains, a second one cuts the drain short."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from .config import Config
from .logs import Lines
from .signals import STOP_SIGNALS, heed
from .supervised import READY, STOPPING, tell_manager
from .system import Serving, World, real_world, serve


async def serve_until_signalled(
    config: Config,
    ready: Callable[[Serving], None],
    lines: Lines,
    outside: Callable[[], AbstractAsyncContextManager[World]] = real_world,
) -> None:
    """See system.serve; what that raises passes through."""
    stopping, stopping_now = trio.Event(), trio.Event()

    def listening(serving: Serving) -> None:
        ready(serving)
        tell_manager(READY)

    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(heed, signals, stopping, stopping_now)
            nursery.start_soon(_tell_of_stop, stopping)
            await serve(
                config, stopping=stopping, stopping_now=stopping_now, ready=listening, lines=lines, outside=outside
            )
            nursery.cancel_scope.cancel()


async def _tell_of_stop(stopping: trio.Event) -> None:
    await stopping.wait()
    tell_manager(STOPPING)
