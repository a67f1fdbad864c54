"""The fetcher asks the upstream for messages and hands them to ingest, every interval and whenever it is rung.

It promises that a batch with a token is stored once, however often it is offered, and that its token is echoed only
after it is on disk. It cannot save a batch without a token from a crash between the upstream's answer and our commit:
such a batch was given to us once and nowhere else says so.

Where rules are in force, it asks at their ticks (`timetable.py`), and goes on within one while there is more.

An outage costs nothing but time: it waits longer each time, five minutes at most. What is no batch of messages is one
line in the log and a wait, never a crash; and an upstream that offers the same batch again right after its token was
echoed is waited for too, for asking again at once would never end. In test mode it waits to be rung.
"""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import httpx
import msgspec
import trio
from msgspec import Struct

from events.commands import Decision, Dropped, Reply, Submission
from store.secrets import Secrets

from .bell import Bell
from .timetable import Timetable
from .upstream import Answered, Line, Trouble, back_off_s, call, shown

logger = logging.getLogger("letterbook.fetcher")

BODY_BYTES_MAX = 64_000_000
"""As much as the door takes in one request by default."""

TOKEN_CHARACTERS_MAX = 2_000
"""It comes back in the address of a request, and longer ones are refused by many servers."""

UPSTREAM = "upstream"


class _Answer(Struct, frozen=True):
    messages: tuple[msgspec.Raw, ...] = ()
    more_messages: bool | None = None
    token: str | int | None = None


class Fetched(Struct, frozen=True):
    """What an answer brought, once it is stored."""

    messages: int
    more: bool = False
    token: str | None = None


class State(Struct, frozen=True):
    """The token to be echoed, and how many fetches have failed in a row."""

    token: str | None = None
    failures: int = 0


class Next(NamedTuple):
    state: State
    wait_s: float


_decode = msgspec.json.Decoder(_Answer).decode
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def understood(answer: Answered | Trouble) -> _Answer | Trouble:
    """The batch that an answer holds, or why it holds none."""
    if isinstance(answer, Trouble):
        return answer
    if not answer.whole:
        return Trouble(f"its answer is longer than {BODY_BYTES_MAX} bytes: let it give fewer messages at a time")
    try:
        batch = _decode(answer.body)
    except _UNDECODABLE as error:
        return Trouble(f'its answer is not {{"messages":[..]}}: {error}')
    if len(str(batch.token or "")) > TOKEN_CHARACTERS_MAX:
        return Trouble(f"its token is longer than {TOKEN_CHARACTERS_MAX} characters")
    return batch


def follow_up(state: State, outcome: Fetched | Trouble, interval_s: float, chance: random.Random) -> Next:
    """What is known after a fetch, and how long to wait for the next one."""
    if isinstance(outcome, Trouble) or (outcome.messages and outcome.token and outcome.token == state.token):
        failures = state.failures + 1
        return Next(State(state.token, failures), back_off_s(failures, chance))
    again = outcome.more and outcome.messages > 0
    return Next(State(outcome.token), 0 if again else interval_s)


def submissions_of(batch: Sequence[msgspec.Raw], token: str | None, batch_max: int) -> Iterator[Submission]:
    """With a token one submission, all or nothing; without, several of at most `batch_max`."""
    size = len(batch) if token else batch_max
    for start in range(0, len(batch), max(1, size)):
        items = [bytes(raw) for raw in batch[start : start + size]]
        yield Submission(items=items, by=UPSTREAM, reply=Reply(), token=token)


_now = trio.current_time


class Fetcher:
    """`url` is the one below which /fetch-messages stands; `bell` is rung by run-now,
    `accepting` says whether mail is taken at all, and by the `timetable` it is fetched when mail goes."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        submissions: trio.MemorySendChannel[Submission],
        secrets: Secrets,
        chance: random.Random,
        *,
        interval_s: float,
        batch_max: int = 1_000,
        test_mode: bool = False,
        bell: Bell | None = None,
        line: Line | None = None,
        accepting: Callable[[], bool] = lambda: True,
        timetable: Timetable | None = None,
    ) -> None:
        self._client = client
        self._url = f"{url.rstrip('/')}/fetch-messages"
        self._submissions = submissions
        self._secrets = secrets
        self._chance = chance
        self._interval_s = interval_s
        self._batch_max = batch_max
        self._test_mode = test_mode
        self.bell = bell or Bell()
        self._line = line or Line()
        self._failing = False
        self._accepting = accepting
        self._timetable = timetable

    async def run(self) -> None:
        """Fetch until cancelled, or until ingest takes nothing any more."""
        state = State()
        await self._rest(math.inf if self._test_mode else 0)
        while True:
            try:
                outcome = await self.fetch(state.token)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
            state, wait_s = follow_up(state, outcome, self._interval_s, self._chance)
            self._failing = state.failures > 0
            if self._failing:
                text = outcome.text if isinstance(outcome, Trouble) else "it offers again what it was told is stored"
                self._line.trouble(self._url, text, self._moment(wait_s, at_once=False) - _now())
            else:
                self._line.fine(self._url)
            rung = await self._rest(math.inf if self._test_mode and wait_s else wait_s)
            if rung and state.failures:
                state = State(state.token)

    def mail_waits(self) -> None:
        """The upstream has said so: fetch at once, unless it is being left alone for a while or by the rules."""
        if not self._failing and self._moment(0, at_once=True) <= _now():
            self.bell.ring()

    def _moment(self, wait_s: float, at_once: bool) -> float:
        """When to fetch, where that would be in so many seconds without rules (Trio's clock)."""
        moment = _now() + wait_s
        if self._timetable is None or moment == math.inf:
            return moment
        return self._timetable.fetch_at(moment, at_once=at_once)

    async def _rest(self, wait_s: float) -> bool:
        """Until the next fetch is due; True where run-now rang before. Where the rules change, it is due otherwise."""
        began = _now()
        while True:
            changes = self._timetable.changes if self._timetable else 0
            moment = self._moment(max(0, wait_s - (_now() - began)), wait_s == 0)
            await self.bell.wait(moment)
            if self._timetable is None or changes == self._timetable.changes:
                return _now() < moment

    async def fetch(self, token: str | None) -> Fetched | Trouble:
        """One request, with the token of the batch before, and everything it brought stored."""
        if not self._accepting():
            return Trouble("nothing is fetched while no mail is taken: little disk is free, or max_backlog is reached")
        params = {"token": token} if token else None
        batch = understood(await call(self._client, "GET", self._url, params=params, body_bytes_max=BODY_BYTES_MAX))
        if isinstance(batch, Trouble):
            return batch
        given = None if batch.token is None else str(batch.token) or None
        try:
            decisions = await self._store_all(batch.messages, given)
        except Dropped:
            return Trouble("its messages cannot be stored now, and are asked for again")
        if rejected := sum(decision.reason is not None for decision in decisions):
            logger.warning("%s: %d of %d messages were rejected", shown(self._url), rejected, len(decisions))
        return Fetched(len(batch.messages), bool(batch.more_messages), given)

    async def _store_all(self, batch: Sequence[msgspec.Raw], token: str | None) -> list[Decision]:
        """Raises Dropped where ingest could not store them."""
        digest = self._secrets.token_digest(token) if token else None
        decisions: list[Decision] = []
        for submission in submissions_of(batch, digest, self._batch_max):
            await self._submissions.send(submission)
            decisions += await submission.reply.get()
        return decisions
