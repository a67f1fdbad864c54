"""A million messages that wait: what a start, the memory, a refill and each list cost with so many.

The log of the first shape is served by the real process, which delivers from it under limits; every shape is then
opened in this process, and its refills and lists are timed. CPU milliseconds of one thread, unless a line says seconds.
"""

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import trio

from actors.scheduler import PRIORITIES, WINDOW_MAX, Scheduler
from gateway import asking, lists
from store import dispatching, reading, worklists
from store.opening import Store

from .filling import SHAPES, Shape, fill, mixed, opened, save_accounts
from .processes import Service, service, sink

ACCOUNTS = 200
OTHER_SHAPES_SHARE = 10
"""The other shapes have a tenth of the messages: what grows with them shows at that size too."""

DELIVERING_SECONDS = 60
PAGE = 1_000
LISTS = (
    "/pending", "/deferred", "/messages", "/messages?status=pending", "/messages?status=sent",
    "/messages?status=held", "/messages?account_id=account-150", "/messages?active_only=true", "/results", "/status",
    "/metrics", "/accounts", "/events?kind=AttemptEnded",
)  # fmt: skip
ROUNDS = 5


def run(messages: int) -> Iterator[str]:
    for shape, throttled in SHAPES.items():
        count = messages if shape is mixed else messages // OTHER_SHAPES_SHARE
        with tempfile.TemporaryDirectory() as folder, sink() as relay:
            began = time.monotonic()
            trio.run(_build, Path(folder), count, shape, relay.port, throttled(ACCOUNTS))
            yield f"{shape.__name__}: {count:,} waiting over {ACCOUNTS} accounts, made in {_since(began):.0f} s"
            yield f"  on disk: {_bytes(Path(folder)) / count:,.0f} bytes a message, of which 1,210 are its letter"
            if shape is mixed:
                yield from _served(Path(folder))
            yield from trio.run(_inside, Path(folder))


async def _build(folder: Path, messages: int, shape: Shape, port: int, throttled: Any) -> None:
    async with opened(folder) as store:
        await fill(store, await save_accounts(store, ACCOUNTS, port, throttled), messages, shape)


def _since(began: float) -> float:
    return time.monotonic() - began


def _bytes(folder: Path) -> int:
    return (folder / "letterbook.db").stat().st_size


# The real process


def _served(folder: Path) -> Iterator[str]:
    began = time.monotonic()
    with service(folder, SERVER_MAX_BACKLOG="10000000") as served:
        ready = _since(began)
        yield f"  from start to ready: {ready:.2f} s, CPU {served.cpu().total:.2f} s; RSS {_rss_mb(served):.0f} MB"
        yield from _lists_over_http(served)
        sent, cpu = _sent(served), served.cpu()
        time.sleep(DELIVERING_SECONDS)
        used = served.cpu() - cpu
        yield (
            f"  {DELIVERING_SECONDS} s of delivering under limits: {_sent(served) - sent:,} sent,"
            f" CPU loop {used.loop:.1f} s, others {used.others:.1f} s; RSS {_rss_mb(served):.0f} MB"
        )


def _rss_mb(served: Service) -> float:
    status = Path(f"/proc/{served.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1000  # type: ignore[index]  # every process has it


def _sent(served: Service) -> int:
    found = re.search(r'letterbook_messages\{state="sent"\} (\S+)', httpx.get(f"{served.url}/metrics", timeout=60).text)
    return int(float(found[1])) if found else 0


def _lists_over_http(served: Service) -> Iterator[str]:
    for path in LISTS:
        cpu, walls = served.cpu(), []
        for _ in range(ROUNDS):
            began = time.monotonic()
            httpx.get(f"{served.url}{path}", timeout=60).raise_for_status()
            walls.append(_since(began) * 1e3)
        used = (served.cpu() - cpu).total / ROUNDS * 1e3
        yield f"  GET {path}: {min(walls):.0f} to {max(walls):.0f} ms; CPU of the process meanwhile {used:.0f} ms"


# In this process


async def _inside(folder: Path) -> Sequence[str]:
    async with opened(folder) as store:
        return [*await _refills(store), *await _plans(store), *await _readings(store)]


async def _refills(store: Store) -> list[str]:
    state = await store.read(dispatching.unit_state)
    each = []
    for row in state.accounts:
        for priority in PRIORITIES:
            began = time.thread_time()
            await store.read(dispatching.queues, [(row.number, priority)], WINDOW_MAX)
            each.append((time.thread_time() - began) * 1e3)
    return [_line("a refill of one window", each)]


async def _plans(store: Store) -> list[str]:
    """The scheduler over all accounts: filling every window at the start, then a plan of what may go."""
    scheduler = Scheduler()
    scheduler.start(await store.read(dispatching.unit_state))
    now_us, reads, takes, plans = store.clock.now_us(), [], [], []
    while refills := scheduler.plan(now_us, lambda account: 0).refills:
        scheduler.refilling(refills)
        began = time.thread_time()
        read = await store.read(dispatching.queues, refills, WINDOW_MAX)
        reads.append((time.thread_time() - began) * 1e3)
        began = time.thread_time()
        scheduler.refilled(read)
        takes.append((time.thread_time() - began) * 1e3)
    for _ in range(100):
        began = time.thread_time()
        scheduler.plan(now_us, lambda account: 1)
        plans.append((time.thread_time() - began) * 1e3)
    return [
        _line("reading the windows of one refill at the start", reads),
        _line("taking them in, which holds the loop", takes),
        _line("a plan, which also says when to wake", plans),
    ]


async def _readings(store: Store) -> list[str]:
    now_us = store.clock.now_us()
    look = lists.Look(now_us, store.log_id)
    readings: dict[str, Callable[[reading.Connection], Any]] = {
        "pending": lambda connection: lists.pending(connection, look, 0, PAGE),
        "deferred": lambda connection: lists.deferred(connection, look, 0, PAGE),
        "messages": lambda connection: lists.messages(connection, look, 0, PAGE, None, False, None),
        "held ones": lambda connection: lists.messages(connection, look, 0, PAGE, "held", False, None),
        "sent ones": lambda connection: lists.messages(connection, look, 0, PAGE, "sent", False, None),
        "of an account": lambda connection: lists.messages(connection, look, 0, PAGE, None, False, "account-150"),
        "status": lambda connection: lists.status(connection, look, (), ""),
        "numbers for metrics": lambda connection: asking._numbers(connection, now_us),
        "expired": lambda connection: worklists.expired(connection, now_us),
        "orphaned": worklists.orphaned,
        "finished": lambda connection: worklists.finished(connection, now_us),
    }
    lines = []
    for name, read in readings.items():
        each = []
        for _ in range(ROUNDS):
            began = time.thread_time()
            await store.read(read)
            each.append((time.thread_time() - began) * 1e3)
        lines.append(_line(f"reading: {name}", each))
    return lines


def _line(what: str, each: Sequence[float]) -> str:
    ordered = sorted(each)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return f"  {what}: {statistics.median(each):.2f} ms median, {p99:.2f} p99, {ordered[-1]:.2f} max"
