"""Retention of a million results while attempts go on: how long the start or end of an attempt waits for its commit.

First without retention, which is what the disk costs; then until all results are gone and all letters erased.
"""

import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import trio

from actors.retention import Retention
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import Draft, Entry
from events.values import Outcome
from store.opening import Store
from store.reading import Connection

from .filling import deliver, fill, one_account, opened, report_all, save_accounts

BASELINE_SECONDS = 10.0
ATTEMPT_EVERY_S = 0.01
LIVE_MESSAGES = 100_000
PATIENCE_SECONDS = 1_200.0

_RESULTS_LEFT = "select exists (select 1 from results where seq <= (select seq from cursors))"
_ERASURES_LEFT = "select exists (select 1 from erasures)"


def run(messages: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        account, live = trio.run(_build, Path(folder), messages)
        yield f"{messages:,} results with their letters, made in {time.monotonic() - began:.0f} s"
        yield from trio.run(_let_go, Path(folder), account, live)


async def _build(folder: Path, messages: int) -> tuple[int, Sequence[int]]:
    async with opened(folder) as store:
        done, busy = await save_accounts(store, 2, 25)
        await deliver(store, done, await fill(store, [done], messages, one_account))
        await report_all(store)
        return busy, await fill(store, [busy], LIVE_MESSAGES, one_account)


async def _let_go(folder: Path, account: int, live: Sequence[int]) -> Sequence[str]:
    async with opened(folder, threaded=True) as store:
        waiting = iter(live)
        until = trio.current_time() + BASELINE_SECONDS

        async def over() -> bool:
            return trio.current_time() > until

        before = await _attempts(store, account, waiting, over)
        began, cpu = time.monotonic(), time.process_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Retention(store, 0).run)
            during = await _attempts(store, account, waiting, lambda: _is_over(store, began))
            nursery.cancel_scope.cancel()
        took, used = time.monotonic() - began, time.process_time() - cpu
        return [
            _line("a commit without retention", before),
            _line("a commit while retention works", during),
            f"  letting go and erasing took {took:.0f} s, CPU {used:.0f} s; left: {await store.read(_left)}",
        ]


async def _attempts(
    store: Store, account: int, waiting: Iterator[int], over: Callable[[], Awaitable[bool]]
) -> list[float]:
    """One attempt after the other, with a pause; how long each of their commits was waited for, in milliseconds."""
    waits: list[float] = []
    look = 0.0
    while True:
        if trio.current_time() > look:
            if await over():
                return waits
            look = trio.current_time() + 0.5
        number = next(waiting)
        start = Draft(AttemptStarted(revision=number, recipients=(0,)), message=number, account=account)
        attempt = await _timed(store, start, waits)
        end = AttemptEnded(attempt=attempt, outcomes=(Outcome(0, "delivered", 250),), next="done")
        await _timed(store, Draft(end, message=number, account=account), waits)
        await trio.sleep(ATTEMPT_EVERY_S)


async def _timed(store: Store, draft: Draft, waits: list[float]) -> int:
    began = time.perf_counter()
    recorded = await store.record([draft], urgent=True)
    waits.append((time.perf_counter() - began) * 1e3)
    (answer,) = recorded.answers
    assert isinstance(answer, Entry), answer
    return answer.seq


async def _is_over(store: Store, began: float) -> bool:
    return time.monotonic() - began > PATIENCE_SECONDS or not any(await store.read(_left))


def _left(connection: Connection) -> tuple[int, int]:
    """Whether there are results still to go, and letters still to be erased."""
    return connection.execute(_RESULTS_LEFT).fetchone()[0], connection.execute(_ERASURES_LEFT).fetchone()[0]


def _line(what: str, waits: Sequence[float]) -> str:
    ordered = sorted(waits)
    share = {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in PARTS.items()}
    return f"  {what}: " + ", ".join(f"{value:.1f} ms {name}" for name, value in share.items()) + f" of {len(waits):,}"


PARTS = {"median": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
