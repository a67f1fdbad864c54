"""One line a message, when it has come to its end: for whoever reads logs and asks what became of it.

It follows the log like everyone else and holds nobody up: ends are gathered while the last lines are being written,
looked up together in one reading, and given away as one piece. It promises a line for every end that happens while the
service runs, those of the drain included. It cannot promise one for the ends of the last moment before a crash, nor on
a standard error that nobody reads (`line_writer.py`); the log has them all.

A line says nothing that erasing would have to find again: no address, no subject, no word of a relay.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio

from actors.reporter import brings_result, matters
from actors.supervision import keep
from events.fact import Entry
from events.message import MessageWithdrawn
from events.values import MICROSECONDS
from store.endings import Ending, endings
from store.opening import Store
from store.results_text import first_failure
from store.views.messages import OPEN_RECIPIENT

from .logs import Fields, Lines

logger = logging.getLogger("letterbook.outcomes")

GATHER_S = 0.25
"""A reading costs some 200 us, whether for one message or for hundreds: at most four a second."""

GATHERED_MAX = 1_000
"""Ends in one reading and one piece of lines, some 300 KB: while it is busy it tells so many at once."""

ID_CHARACTERS_MAX = 200
"""As much of a client's id as a line shows; nearly all are UUIDs."""

SENTENCES = {
    "sent": "a message was sent",
    "error": "a message ended as an error",
    "withdrawn": "a message was withdrawn",
}

KEYS: dict[str, str] = {
    "id": "the client's id, its first 200 characters",
    "number": "the message's number in the log",
    "seq": "the fact that ended it",
    "account": "the account's id; absent where it had none",
    "status": "`sent`, `error` or `withdrawn`",
    "cause": "why it was not sent: a code, as in [events.md](events.md); absent where it was",
    "recipients": "how many it had; absent where it was rejected at the door",
    "delivered": "how many of them a relay took it for",
    "code": "the SMTP code: of the first failure, else of the first delivery",
    "enhanced": "the enhanced code beside it",
    "attempts": "SMTP transactions, since it was last accepted",
    "seconds": "from acceptance to the end",
    "relay": "host and port of the account as it is now; absent where it was never tried",
    "queue_id": "the relay's, of the first delivery",
}
"""The keys of a line, in their order."""


def told(ending: Ending) -> tuple[str, Fields]:
    """(sentence, fields) of one end; what is not known is None."""
    states = ending.states()
    delivered = [state for state in states if state.status == "delivered"]
    speaking = delivered[0] if delivered else OPEN_RECIPIENT
    if len(delivered) < len(states) and (index := first_failure(states)) is not None:
        speaking = states[index]
    fields: dict[str, Any] = {
        "id": ending.id[:ID_CHARACTERS_MAX],
        "number": ending.message,
        "seq": ending.seq,
        "account": ending.account_id,
        "status": ending.status,
        "cause": None if ending.status == "sent" else ending.cause,
        "recipients": len(states) or None,
        "delivered": len(delivered) if states else None,
        "code": speaking.code,
        "enhanced": speaking.enhanced,
        "attempts": ending.attempts,
        "seconds": _seconds(ending),
        "relay": f"{ending.host}:{ending.port}" if ending.attempts and ending.host else None,
        "queue_id": delivered[0].queue_id if delivered else None,
    }
    return SENTENCES[ending.status], fields


def _seconds(ending: Ending) -> float | None:
    return None if ending.created_us is None else round((ending.at_us - ending.created_us) / MICROSECONDS, 3)


def _surely_ends(entry: Entry) -> bool:
    """Whether the fact says itself that it ends its message. What is withdrawn in flight ends with any attempt's end,
    and only the views know."""
    return brings_result(entry.fact) or isinstance(entry.fact, MessageWithdrawn)


class Outcomes:
    """Tells the ends that follow the moment at which it was made. `tell` takes (sentence, fields) of many at once."""

    def __init__(self, store: Store, tell: Callable[[Iterable[tuple[str, Fields]]], None]) -> None:
        self._store = store
        self._tell = tell
        self._told = store.last_seq

    async def run(self) -> None:
        """Until the log ends. Started again after a crash, it goes on where it was."""
        gathered: list[Entry] = []
        async with self._store.follow(self._told) as batches:
            async for batch in batches:
                gathered += [entry for entry in batch.entries if matters(entry.fact)]
                behind = batch.last < self._store.last_seq
                if behind and len(gathered) < GATHERED_MAX:
                    continue
                await self._tell_up_to(batch.last, gathered)
                gathered = []
                if not behind:
                    await trio.sleep(GATHER_S)

    async def finish(self) -> None:
        """Tell what the log has by now, once `run` has been cancelled."""
        last = self._store.last_seq
        async with self._store.follow(self._told) as batches:
            while self._told < last:
                batch = await anext(batches)
                await self._tell_up_to(batch.last, [entry for entry in batch.entries if matters(entry.fact)])

    async def _tell_up_to(self, last: int, gathered: Sequence[Entry]) -> None:
        if gathered:
            sure = {entry.seq: entry.message or entry.seq for entry in gathered if _surely_ends(entry)}
            self._tell(map(told, await self._store.read(endings, self._told + 1, last, sure)))
        self._told = last


@asynccontextmanager
async def telling(store: Store, lines: Lines | None, wanted: bool) -> AsyncIterator[None]:
    """While the block lasts, and for what has happened in it. Where nobody wants lines nothing follows the log, and a
    message costs nothing."""
    if lines is None or not wanted or not logger.isEnabledFor(logging.INFO):
        yield
        return
    outcomes = Outcomes(store, partial(lines.tell, logger.name))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, "outcomes", outcomes.run)
        yield
        nursery.cancel_scope.cancel()
    await outcomes.finish()
