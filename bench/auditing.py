"""Reading all of a log of a million facts: verified in place, exported as JSON Lines and as CSV, the export verified.

Each is the command itself, a process of its own; CPU seconds are those of that process, and memory is its greatest.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from events.account import AccountSaved
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import OWN, Draft
from events.message import MessageAccepted
from events.values import Outcome
from store.clock import SystemClock
from store.opening import open_alone
from store.writer import Request

A_TURN = 500
"""Messages of one commit of each kind."""


def run(facts: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: what a process has ever used includes what it was forked from.
        made = subprocess.run(
            [sys.executable, "-c", f"from bench.auditing import *; print(fill(Path({name!r}), {facts}))"],
            check=True,
            capture_output=True,
        )
        count = int(made.stdout)
        size = (folder / "log.db").stat().st_size
        yield f"{count:,} facts, {size / 1e6:,.0f} MB"
        export = folder / "log.jsonl"
        for words, to in (
            (("verify",), None),
            (("log", "--json"), export),
            (("log", "--csv"), folder / "log.csv"),
        ):
            yield _timed((*words, "--db", folder / "log.db"), to, count)
        yield _timed(("verify", export), None, count, "verify FILE")


def fill(folder: Path, facts: int) -> int:
    """Messages that went well, three facts each, in commits as under load."""
    with open_alone(folder / "log.db", folder / "log.key", SystemClock()) as alone:
        account = AccountSaved(id="a", host="relay.example", port=25, credentials="c" * 16)
        alone.writer.turns_in_one(_requests(facts, account))
        return alone.writer.last_seq


def _requests(facts: int, account: AccountSaved) -> Iterator[Request]:
    yield Request([Draft(account, account=OWN)], {})
    seq = 1
    while seq < facts:
        accepted = [_accepted(seq + at) for at in range(A_TURN)]
        yield Request(accepted, {})
        numbers = range(seq + 1, seq + 1 + A_TURN)
        starts = range(seq + 1 + A_TURN, seq + 1 + 2 * A_TURN)
        yield Request([Draft(AttemptStarted(revision=n, recipients=(0,)), message=n, account=1) for n in numbers], {})
        yield Request([_ended(n, start) for n, start in zip(numbers, starts, strict=True)], {})
        seq += 3 * A_TURN


def _accepted(number: int) -> Draft:
    now_us = time.time_ns() // 1000
    fact = MessageAccepted(
        id=f"{number:036}",
        priority=2,
        due_us=now_us,
        expires_us=now_us + 432_000_000_000,
        size=1_000,
        recipients=("r" * 16,),
        letter="l" * 16,
        by="api",
    )
    return Draft(fact, message=OWN, account=1)


def _ended(number: int, start: int) -> Draft:
    outcome = Outcome(0, "delivered", 250, "2.0.0", "4FzQ1x2y3z")
    return Draft(AttemptEnded(attempt=start, outcomes=(outcome,), next="done"), message=number, account=1)


def _timed(words: tuple[object, ...], to: Path | None, facts: int, name: str = "") -> str:
    began = time.monotonic()
    with (to or Path(os.devnull)).open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "letterbook", *map(str, words)], stdout=out)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{words} ended with {status}")
    cpu = used.ru_utime + used.ru_stime
    name = name or " ".join(str(word) for word in words[:-2])
    seconds = time.monotonic() - began
    megabytes = used.ru_maxrss // 1000
    return f"{name}: {cpu:.1f} s CPU, {seconds:.1f} s, {cpu / facts * 1e6:.1f} us a fact, {megabytes} MB of memory"
