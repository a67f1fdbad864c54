"""The batch reporter tells the application's side its final results, many in one request, oldest first.

It promises at least once, in order, and one request at a time: a batch is offered until it is answered with a 2xx, and
only then the cursor, a fact in the log, passes it, together with a fact for each result that the answer names as
`rejected` or `error`. These are offered again, in at most half of a batch: after as long as they have been refused so
far, but a minute at least and a day at most. After GIVEN_UP_S they are given up, with a line and a count. It cannot
promise exactly once: after a crash the last batch is told again.

A result is told within a moment (GATHER_S); where there are none, an empty batch every KEEP_ALIVE_S says that we are
here, and lets the other side say that it has mail for us. In test mode it waits to be rung each time.

Everything is read from the views at each step, so there is nothing to be lost: the state is how many requests have
failed in a row, and when the next one is due.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import msgspec
import trio
from msgspec import Struct

from events.fact import Draft, Entry
from events.report import ReportRefused, ReportSettled, ResultsReported
from events.values import MICROSECONDS
from store.opening import Store
from store.recorder import NotRecorded
from store.results_text import result_error
from store.views.counts import ResultRow
from store.worklists import STEP, Unreported, unreported

from .bell import Bell
from .reporter import GIVEN_UP_S, brings_result
from .upstream import JITTER, Answered, Line, Trouble, back_off_s, call, shown

logger = logging.getLogger("letterbook.reporter")

GATHER_S = 0.5
"""Results of so long go together: as soon as anybody looks, and few requests and facts under load."""

KEEP_ALIVE_S = 300.0

AGAIN_S_MIN = 60.0
AGAIN_S_MAX = 86_400.0

ANSWER_BYTES_MAX = 1_000_000
"""A thousand refused ids of a thousand characters."""

GIVEN_UP_SHOWN = 5

_WHENEVER_US = 2**62
"""Every refused result is due by then: run-now resets back-offs."""


class _Answer(Struct, frozen=True):
    rejected: Any = None
    error: Any = None
    queued: Any = None
    more_messages: Any = None


class Taken(Struct, frozen=True):
    """What a 2xx says: the ids that were not taken, and whether there is mail to be fetched."""

    refused: frozenset[str] = frozenset()
    mail: bool = False


def understood(answer: Answered | Trouble) -> Taken | Trouble:
    """Any 2xx acknowledges, whatever its body says, unless the body is too long to be read."""
    if isinstance(answer, Trouble):
        return answer
    if not answer.whole:
        return Trouble(f"its answer is longer than {ANSWER_BYTES_MAX} bytes: let it name only what it refuses")
    try:
        told = msgspec.json.decode(answer.body, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Taken()
    queued = type(told.queued) is int and told.queued > 0
    return Taken(frozenset([*_ids(told.rejected), *_ids(told.error)]), queued or told.more_messages is True)


def _ids(named: Any) -> Iterator[str]:
    """Where it is a list: its texts, and the ids of its objects. A count names nobody."""
    for each in named if isinstance(named, list) else ():
        identity = each.get("id") if isinstance(each, dict) else each
        if isinstance(identity, str):
            yield identity


def report_of(row: ResultRow, batch: Unreported) -> dict[str, Any]:
    """A result as the contract has it, nulls included."""
    moment = row.at_us // MICROSECONDS
    return {
        "id": row.id,
        "account_id": batch.accounts.get(row.account) if row.account is not None else None,
        "priority": row.priority,
        "sent_ts": moment if row.status == "sent" else None,
        "error_ts": None if row.status == "sent" else moment,
        "error": result_error(row, batch.replies),
        "deferred_ts": None,
    }


def body_of(batch: Unreported) -> bytes:
    return msgspec.json.encode({"delivery_report": [report_of(row, batch) for row in batch.results]})


def settlement(
    batch: Unreported, refused: frozenset[str], now_us: int, chance: random.Random, given_up_s: float
) -> list[Draft]:
    """The facts that a taken batch makes, all in one commit: how far the cursor moves, and what becomes of those that
    were refused, now or before."""
    new = [row for row in batch.results if row.seq not in batch.refused]
    taken = sum(row.id not in refused for row in new)
    drafts = [Draft(ResultsReported(up_to=new[-1].seq, results=taken))] if new else []
    for row in batch.results:
        if row.id in refused:
            since_us = batch.refused.get(row.seq, now_us)
            if now_us - since_us > given_up_s * MICROSECONDS:
                drafts.append(Draft(ReportSettled(result=row.seq, given_up=True), message=row.message))
            else:
                again_us = now_us + again_in_us(now_us - since_us, chance)
                drafts.append(Draft(ReportRefused(result=row.seq, again_us=again_us), message=row.message))
        elif row.seq in batch.refused:
            drafts.append(Draft(ReportSettled(result=row.seq), message=row.message))
    return drafts


def again_in_us(refused_us: int, chance: random.Random) -> int:
    """As long as it has been refused so far, within bounds."""
    full_s = min(max(refused_us / MICROSECONDS, AGAIN_S_MIN), AGAIN_S_MAX)
    return int(full_s * (1 - JITTER * chance.random()) * MICROSECONDS)


class BatchReporter:
    """`url` is called as it is; `mail_waits` is called when the answer says that there is mail to be fetched, `bell` is
    rung by run-now, `line` is where trouble is told and counted."""

    def __init__(
        self,
        store: Store,
        client: httpx.AsyncClient,
        url: str,
        chance: random.Random,
        *,
        line: Line,
        headers: dict[str, str] | None = None,
        batch_max: int = 1_000,
        test_mode: bool = False,
        bell: Bell | None = None,
        mail_waits: Callable[[], None] = lambda: None,
        given_up_s: float = GIVEN_UP_S,
    ) -> None:
        self._store = store
        self._client = client
        self._url = url
        self._chance = chance
        self._line = line
        self._headers = headers or {}
        self._batch_max = batch_max
        self._test_mode = test_mode
        self.bell = bell or Bell()
        self._mail_waits = mail_waits
        self._given_up_s = given_up_s
        self._failures = 0
        self._told_at = -KEEP_ALIVE_S
        self._idle = False
        self._fresh = False

    async def run(self) -> None:
        """Tell what there is to tell, until the log ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell)
            async with self._store.follow(self._store.last_seq) as batches:
                async for batch in batches:
                    if any(brings_result(entry.fact) for entry in batch.entries):
                        self._results_came()
            nursery.cancel_scope.cancel()

    def _results_came(self) -> None:
        """What they are is read when they are told; while the upstream is left alone they wait too."""
        self._fresh = True
        if self._idle:
            self.bell.no_later_than(trio.current_time())

    async def _tell(self) -> None:
        rung = await self._rest(math.inf) if self._test_mode else False
        while True:
            rung = await self._step(rung)

    async def _step(self, rung: bool) -> bool:
        """Tell a batch if there is one, or if one is due, and wait for the next; whether somebody rang meanwhile."""
        self._fresh = False
        moment_us = _WHENEVER_US if rung else self._store.clock.now_us()
        batch = await self._store.read(unreported, moment_us, self._batch_max)
        keep_alive_at = self._told_at + KEEP_ALIVE_S
        if not (batch.results or rung or trio.current_time() >= keep_alive_at):
            return await self._rest(min(keep_alive_at, self._again_at(batch)))
        outcome = await self._offer(batch)
        if isinstance(outcome, Trouble):
            return await self._back_off(outcome)
        self._failures = 0
        self._told_at = trio.current_time()
        self._line.fine(self._url)
        if outcome.mail:
            self._mail_waits()
        if len(batch.results) == self._batch_max:
            return False
        return await (self._rest(math.inf) if self._test_mode else self._wait(self._told_at + GATHER_S))

    def _again_at(self, batch: Unreported) -> float:
        """When a refused result is due again (Trio's clock)."""
        if batch.again_us is None:
            return math.inf
        return trio.current_time() + max(0, batch.again_us - self._store.clock.now_us()) / MICROSECONDS

    async def _rest(self, until: float) -> bool:
        """Wait for the moment, a ring or results, in test mode for a ring alone; whether it was rung."""
        if self._test_mode:
            return await self._wait(math.inf)
        if self._fresh:
            return False
        self._idle = True
        rung = await self._wait(until)
        self._idle = False
        return rung and not self._fresh

    async def _wait(self, until: float) -> bool:
        """Whether it was rung before the moment."""
        await self.bell.wait(until)
        return trio.current_time() < until

    async def _back_off(self, trouble: Trouble) -> bool:
        self._failures += 1
        wait_s = back_off_s(self._failures, self._chance)
        self._line.trouble(self._url, trouble.text, wait_s)
        rung = await self._wait(math.inf if self._test_mode else trio.current_time() + wait_s)
        if rung:
            self._failures = 0
        return rung

    async def _offer(self, batch: Unreported) -> Taken | Trouble:
        """One request, and what was taken of it on disk."""
        answer = understood(
            await call(
                self._client,
                "POST",
                self._url,
                content=body_of(batch),
                headers=self._headers,
                body_bytes_max=ANSWER_BYTES_MAX,
            )
        )
        if isinstance(answer, Trouble):
            return answer
        now_us = self._store.clock.now_us()
        drafts = settlement(batch, answer.refused, now_us, self._chance, self._given_up_s)
        if not drafts:
            return answer
        try:
            await self._store.record(drafts)
        except NotRecorded as error:
            return Trouble(f"what it took cannot be recorded now and is told again: {error}")
        self._say_what_is_given_up(batch, drafts)
        return answer

    def _say_what_is_given_up(self, batch: Unreported, drafts: Sequence[Draft]) -> None:
        seqs = {draft.fact.result for draft in drafts if isinstance(draft.fact, ReportSettled) and draft.fact.given_up}
        if names := [row.id for row in batch.results if row.seq in seqs]:
            self._line.given_up += len(names)
            named = f"{', '.join(names[:GIVEN_UP_SHOWN])}{', ..' if len(names) > GIVEN_UP_SHOWN else ''}"
            logger.error("%s: %d reports are given up, refused for too long: %s", shown(self._url), len(names), named)


async def give_up_refused(store: Store) -> None:
    """What an upstream refused by name, where no batches go to any more: nobody would offer it again, and it would
    stand in retention's way for ever."""
    while refused := (await store.read(unreported, _WHENEVER_US, 2 * STEP)).refused:
        recorded = await store.record([Draft(ReportSettled(result=seq, given_up=True)) for seq in refused])
        logger.error("%d reports are given up: they were refused, and no batches go upstream any more", len(refused))
        if not any(isinstance(answer, Entry) for answer in recorded.answers):
            return
