"""The hand-off with confirmation tokens, as far as it acts: what is told and acknowledged, in both directions, and the
side that starts. The protocol itself, and why it loses nothing, stands in `events/exchange.py`.

`Reports` is the stream of reports. An upstream may start exchanges while we start some too, so there is one for both:
whichever hears an acknowledgement moves the one cursor, and admission refuses to move it down.

`Syncer` starts exchanges: soon after there are results, every interval, when it is rung, and at once while the last one
brought messages or left reports over; in test mode only when it is rung. Trouble is a value, one line and a wait, as in
the fetcher. What it cannot store now it does not confirm, and it is offered again; reports go on meanwhile, for the two
streams know nothing of each other.
"""

import logging
import math
import random
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import trio
from msgspec import Struct

from events.commands import Dropped, Reply, Submission
from events.exchange import (
    Acknowledged,
    Confirmed,
    Heard,
    Offered,
    State,
    Stored,
    Token,
    decide,
    evolve,
    fault,
    say,
)
from events.fact import Draft
from events.report import ResultsReported
from store.opening import Store
from store.recorder import NotRecorded
from store.worklists import reported_up_to, results_between, unacknowledged

from .batch_reporter import GATHER_S, report_of
from .bell import Bell
from .fetcher import BODY_BYTES_MAX, UPSTREAM
from .reporter import brings_result
from .upstream import Answered, Line, Trouble, back_off_s, call, shown

logger = logging.getLogger("letterbook.sync")

PROXY_SYNC = "proxySync"


class Said(Struct, frozen=True):
    """Reports that were put into an exchange; `more` where there are others behind them."""

    reports: list[dict[str, Any]]
    cursor: int
    more: bool


class Reports:
    """The stream of reports of one log, for whoever exchanges."""

    def __init__(self, store: Store, batch_max: int) -> None:
        self._store = store
        self._batch_max = batch_max
        self.state = State(store.log_id)

    async def hear(self, heard: Heard) -> None:
        """Move the cursor as far as this acknowledges; where that cannot be recorded, the reports come again."""
        await self._look()
        up_to = decide(self.state, heard).acknowledge
        if up_to is None:
            return
        results = await self._store.read(results_between, self.state.acknowledged, up_to)
        try:
            await self._store.record([Draft(ResultsReported(up_to=up_to, results=results, by=PROXY_SYNC))])
        except NotRecorded as error:
            logger.info("what was acknowledged is told again: %s", error)
            return
        self.state = evolve(self.state, Acknowledged(up_to))

    async def tell(self) -> Said:
        """The reports after the cursor."""
        await self._look()
        batch = await self._store.read(unacknowledged, self.state.acknowledged, self._batch_max)
        cursor = batch.results[-1].seq if batch.results else self.state.acknowledged
        self.state = evolve(self.state, Offered(cursor))
        return Said([report_of(row, batch) for row in batch.results], cursor, len(batch.results) == self._batch_max)

    async def _look(self) -> None:
        self.state = evolve(self.state, Acknowledged(await self._store.read(reported_up_to)))

    async def exchange(self, heard: Heard) -> dict[str, Any]:
        """Our half of an exchange that the other side has started, but for what becomes of its messages."""
        await self.hear(heard)
        said = await self.tell()
        return say(self.state, said.reports, said.cursor, None)


def understood(answer: Answered | Trouble, batch_max: int) -> Heard | Trouble:
    """The other side's half, or why it is none."""
    if isinstance(answer, Trouble):
        return answer
    if not answer.whole:
        return Trouble(f"its answer is longer than {BODY_BYTES_MAX} bytes: let it give fewer messages at a time")
    try:
        heard = _decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Trouble(f"its answer is no exchange: {error}")
    sentence = fault(heard, batch_max)
    return Trouble(f"its answer cannot be taken: {sentence}") if sentence else heard


_decode = msgspec.json.Decoder(Heard).decode


class Exchanged(Struct, frozen=True):
    """What an exchange came to; `again` where the next one has something to do at once."""

    again: bool = False


class Syncer:
    """`sync_token` is shown in the body; `accepting` says whether mail is taken at all, `bell` is rung by run-now."""

    def __init__(
        self,
        store: Store,
        client: httpx.AsyncClient,
        url: str,
        submissions: trio.MemorySendChannel[Submission],
        reports: Reports,
        chance: random.Random,
        *,
        line: Line,
        interval_s: float,
        sync_token: str = "",
        headers: dict[str, str] | None = None,
        batch_max: int = 1_000,
        test_mode: bool = False,
        bell: Bell | None = None,
        accepting: Callable[[], bool] = lambda: True,
    ) -> None:
        self._store = store
        self._client = client
        self._url = url
        self._submissions = submissions
        self._reports = reports
        self._chance = chance
        self._line = line
        self._interval_s = interval_s
        self._sync_token = sync_token
        self._headers = headers or {}
        self._batch_max = batch_max
        self._test_mode = test_mode
        self.bell = bell or Bell()
        self._accepting = accepting
        self._confirm = State(store.log_id)
        self._idle = False
        self._fresh = False

    async def run(self) -> None:
        """Exchange until the log ends, or ingest takes nothing any more."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._exchange_for_ever, nursery.cancel_scope)
            async with self._store.follow(self._store.last_seq) as batches:
                async for batch in batches:
                    if any(brings_result(entry.fact) for entry in batch.entries):
                        self._results_came()
            nursery.cancel_scope.cancel()

    def _results_came(self) -> None:
        self._fresh = True
        if self._idle:
            self.bell.no_later_than(trio.current_time() + GATHER_S)

    async def _exchange_for_ever(self, scope: trio.CancelScope) -> None:
        failures = 0
        if self._test_mode:
            await self.bell.wait()
        while True:
            self._fresh = False
            try:
                outcome = await self.exchange()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                scope.cancel()
                return
            if isinstance(outcome, Trouble):
                failures += 1
                wait_s = back_off_s(failures, self._chance)
                self._line.trouble(self._url, outcome.text, wait_s)
                until = math.inf if self._test_mode else trio.current_time() + wait_s
                await self.bell.wait(until)
                failures = 0 if trio.current_time() < until else failures
                continue
            failures = 0
            self._line.fine(self._url)
            if not outcome.again:
                await self._rest()

    async def _rest(self) -> None:
        """Until the interval is over, somebody rings, or there are results."""
        if self._test_mode:
            await self.bell.wait()
            return
        wait_s = min(GATHER_S, self._interval_s) if self._fresh else self._interval_s
        self._idle = True
        await self.bell.wait(trio.current_time() + wait_s)
        self._idle = False

    async def exchange(self) -> Exchanged | Trouble:
        """One exchange, and whatever it brought stored."""
        said = await self._reports.tell()
        confirm = self._confirm.confirm
        heard = understood(await self._call(said, confirm), self._batch_max)
        if isinstance(heard, Trouble):
            return heard
        before = self._reports.state.acknowledged
        self._confirm = evolve(self._confirm, Confirmed(confirm))
        await self._reports.hear(heard)
        token = decide(self._reports.state, heard).store
        if token is not None:
            if trouble := await self._store_batch(token, heard):
                return trouble
            if token == confirm:
                return Trouble("it offers again what it was told is stored")
        moved = self._reports.state.acknowledged > before
        return Exchanged(again=token is not None or (said.more and moved))

    async def _call(self, said: Said, confirm: Token | None) -> Answered | Trouble:
        body = say(self._reports.state, said.reports, said.cursor, confirm)
        if self._sync_token:
            body["sync_token"] = self._sync_token
        return await call(
            self._client,
            "POST",
            self._url,
            content=msgspec.json.encode(body),
            headers=self._headers,
            body_bytes_max=BODY_BYTES_MAX,
        )

    async def _store_batch(self, token: Token, heard: Heard) -> Trouble | None:
        """Stored with its token, and so to be confirmed; or why it is not, and will be offered again."""
        if not self._accepting():
            return Trouble(
                "no mail is taken now, so it is not confirmed: little disk is free, or max_backlog is reached"
            )
        items = [bytes(raw) for raw in heard.messages or ()]
        digest = self._store.secrets.token_digest(str(token))
        submission = Submission(items=items, by=UPSTREAM, reply=Reply(), token=digest)
        await self._submissions.send(submission)
        try:
            decisions = await submission.reply.get()
        except Dropped:
            return Trouble("its messages cannot be stored now, and are offered again")
        self._confirm = evolve(self._confirm, Stored(token))
        if rejected := sum(decision.reason is not None for decision in decisions):
            logger.warning("%s: %d of %d messages were rejected", shown(self._url), rejected, len(decisions))
        return None
