"""Showing a service's facts as they come, until a signal."""

import msgspec
import trio

from .client import Refused, Stream
from .fact_words import line
from .failures import Failure
from .printing import print_fact, print_line
from .signals import STOP_SIGNALS


async def tail_until_signalled(stream: Stream, as_json: bool) -> None:
    """Raises Failure where the service refuses, or is not there."""
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show, stream, as_json)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _show(stream: Stream, as_json: bool) -> None:
    async def put(event: bytes) -> None:
        # Printing is all that this process does, so it may wait for the terminal.
        if as_json:
            print_line(event)
        else:
            print_fact(line(msgspec.json.decode(event)))

    try:
        await stream.follow(put)
    except Refused as refused:
        raise Failure(str(refused)) from refused
