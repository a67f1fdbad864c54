"""The signals that end a program of ours."""

import signal
from collections.abc import AsyncIterator

import trio

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def heed(signals: AsyncIterator[int], stopping: trio.Event, stopping_now: trio.Event) -> None:
    """The first signal sets `stopping`, the second `stopping_now`."""
    for event in (stopping, stopping_now):
        await anext(signals)
        event.set()
