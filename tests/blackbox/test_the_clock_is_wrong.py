"""A real process whose wall clock steps by a year, forwards and back, while it runs and between two runs: nothing
expires, nothing goes early, mail goes on, and a person may end the doubt."""

import sys
import time
from pathlib import Path

from letterbook.capture import CaptureRelay

from .service import mail

SHIFTED = """
import sys, time
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from msgspec.structs import replace

from actors import retention
from letterbook import logs, serving, sources, system
from store.clock import SystemClock

retention.COMPARE_EVERY_S = 0.5  # the real one would only take longer


def wall():
    return time.time_ns() + int(Path("shift").read_text()) * 10**9


@asynccontextmanager
async def shifted():
    async with system.real_world() as world:
        yield replace(world, clock=SystemClock(wall))


with logs.heard("info", "text") as lines:
    trio.run(
        serving.serve_until_signalled,
        sources.configured(None),
        lambda at: print(f"listening on {at.url}", file=sys.stderr, flush=True),
        lines,
        shifted,
    )
"""
YEAR_S = 365 * 86_400


def shift(folder: Path, by_s: int) -> None:
    (folder / "shift.new").write_text(str(by_s))
    (folder / "shift.new").replace(folder / "shift")


async def test_a_clock_that_steps_by_a_year_loses_nothing(service):
    it = await service(started=False)
    it.command = [sys.executable, "-c", SHIFTED]
    shift(it.folder, 0)
    await it.start()
    async with CaptureRelay().listening() as relay:
        await it.account("one", relay.port)
        later = int(time.time()) + 90 * 86_400
        soon = int(time.time()) + 3_000
        await it.add(
            [
                mail("later", account_id="one", deferred_ts=later),
                mail("soon", account_id="one", deferred_ts=soon, expires_ts=soon + 300),
            ]
        )
        shift(it.folder, YEAR_S)
        await it.until("/status", lambda answer: "clock" in answer["reasons"])
        await it.add([mail("now", account_id="one"), mail("asked since", account_id="one", deferred_ts=later)])
        await it.until_results(1)
        for message_id in ("later", "soon", "asked since"):
            found = await it.message(message_id)
            assert (found["status"], found["waiting_for"]["reason"]) == ("deferred", "due_later")
            assert 0 < found["waiting_for"]["until"] - (time.time() + YEAR_S) <= 3_601
        shift(it.folder, 0)
        await it.until("/status", lambda answer: "clock" not in answer["reasons"])
        assert (await it.message("later"))["deferred_ts"] == later
        assert (await it.message("soon"))["deferred_ts"] == soon
        assert await it.stop() == 0

        shift(it.folder, -YEAR_S)
        await it.start()
        assert "before the last fact" in it.lines
        assert "clock" in (await it.status())["reasons"]
        await it.add([mail("a year ago", account_id="one")])
        await it.until_results(2)
        assert (await it.message("later"))["deferred_ts"] == later
        assert (await it.run("activate", "--trust-clock", "--url", it.url)).code == 0
        await it.until("/status", lambda answer: "clock" not in answer["reasons"])
        await it.kill()

        await it.start()
        assert "clock" not in (await it.status())["reasons"], "a stamp that is ahead is no reason to doubt"
        steps = [round(fact["by_us"] / 1e6 / YEAR_S) for fact in await it.events("ClockStepped")]
        assert steps == [1, -1, -1]
        assert relay.received == 2
        assert (await it.run("verify")).code == 0
        assert (await it.run("rebuild", "--check")).code == 0
