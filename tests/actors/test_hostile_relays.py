"""Relays that mean no good, at the delivery unit whole: every attempt ends as a fact, and the other accounts go on."""

import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from letterbook.capture import CaptureRelay
from store.opening import Store

from .conftest import MEMORY
from .delivering import accept, of_kind, opened, retrying, running, save
from .opened import rows
from .smtp.hostile import FLOODS, GREETING, QUEUED, Saying, Speech, speeches
from .smtp.test_hostile_replies import UNCLEAN, clean
from .world import Conversation, Relay

Clock = trio.testing.MockClock
LONG_S = 1500
"""Enough for every stage to time out once, and for a retry."""
EHLO, GO = b"250-relay.example\r\n250 PIPELINING\r\n", b"250 ok\r\n250 ok\r\n354 go\r\n"
READY = (Saying(GREETING, asked=False), Saying(EHLO))


def speaks(speech: Speech) -> Conversation:
    """The relay that says this on each connection."""

    async def converse(stream: trio.StapledStream) -> None:
        try:
            for number, saying in enumerate(speech.sayings):
                if saying.asked and number and not await stream.receive_some(65_536):
                    break
                await trio.sleep(saying.pause)
                await stream.send_all(saying.data)
            await end(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The client has had enough of it.
            pass
        await trio.aclose_forcefully(stream)

    async def end(stream: trio.StapledStream) -> None:
        # A stream in memory takes everything; TCP stops a flood at some megabytes that nobody reads, while we idle.
        for _ in range(32 if speech.end in FLOODS else 0):
            await stream.send_all(FLOODS[speech.end])
        if speech.end == "silence" or speech.end in FLOODS:
            await trio.sleep_forever()

    return converse


def after(*said: bytes, end: str = "eof") -> Conversation:
    return speaks(Speech((*READY, *map(Saying, said)), end))


def at_once(data: bytes, end: str = "eof") -> Conversation:
    return speaks(Speech((Saying(data, asked=False),), end))


DRIP = tuple(Saying(bytes([octet]), 17, asked=False) for octet in b"250-" + b"x" * 2000)

HOSTILE: dict[str, Relay] = {
    "hangs up": at_once(b""),
    "speaks HTTP": at_once(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "speaks TLS": at_once(b"\x15\x03\x03\x00\x02\x02\x28", "silence"),
    "says all before it is asked": at_once(b"220 hi\r\n250 x\r\n" + GO + QUEUED, "silence"),
    "is silent": at_once(b"", "silence"),
    "drips its greeting": speaks(Speech(DRIP, "silence")),
    "drips its answer to MAIL": speaks(Speech((*READY, Saying(b"2"), *DRIP), "silence")),
    "closes at MAIL": after(b"421 4.3.2 closing\r\n"),
    "asks for content at MAIL": after(b"354 go\r\n", end="silence"),
    "is out of step": after(b"250 ok\r\n" + GO),
    "answers MAIL without end": after(b"250-x\r\n" * 20, end="silence"),
    "answers with control characters": after(b"250 ok\r\n550 5.1.1 \x1b[2J\x00\xe2\x80\xae\xff\x85\r\n503 no\r\n"),
    "answers with codes that are none": after(b"250 ok\r\n999 what\r\n"),
    "refuses in the content and hangs up": after(GO + b"552 5.3.4 enough\r\n"),
    "never answers the dot": after(GO, end="silence"),
    "answers the dot with garbage": after(GO, b"\0\0\0\r\n"),
    "asks for more after the dot": after(GO, b"354 more\r\n", end="silence"),
    **{f"floods with {name} at once": at_once(b"", name) for name in FLOODS},
    **{f"floods with {name} at MAIL": after(b"25", end=name) for name in FLOODS},
    **{f"floods with {name} after the dot": after(GO, b"2", end=name) for name in FLOODS},
}


async def all_ends_well(folder: Path, hostile: Mapping[str, Relay], caplog: pytest.LogCaptureFixture) -> Counter[str]:
    """Two mails to each relay, and forty beside them that must not wait; what became of those of the hostile ones."""
    good = {"good": CaptureRelay(), "better": CaptureRelay()}
    caplog.clear()
    async with opened(folder) as store:
        async with running(store, {**hostile, **good}, retry=retrying(60, retries=1), drain_s=0):
            await accept(store, [await save(store, host) for host in hostile] * 2)
            accounts = [await save(store, host) for host in good]
            await accept(store, accounts * 20)
            with trio.fail_after(5):
                for relay in good.values():
                    await relay.until_received(20)
            await trio.sleep(LONG_S)
            await accept(store, accounts)
            with trio.fail_after(5):
                await good["better"].until_received(21)
        return await what_came(store, accounts, caplog)


async def what_came(store: Store, good: Sequence[int], caplog: pytest.LogCaptureFixture) -> Counter[str]:
    ended = await of_kind(store, "AttemptEnded")
    assert len(ended) == len(await of_kind(store, "AttemptStarted"))
    assert all(entry.fact.cause != "internal" for entry in ended), "a bug of ours ended an attempt"
    assert all(clean(bytes(text).decode()) for (text,) in await rows(store, "select text from replies"))
    for record in caplog.records:
        assert record.levelno < logging.ERROR, record.getMessage()
        assert len(record.getMessage()) < 1000 and not UNCLEAN.search(record.getMessage())
    return Counter(outcome.status for entry in ended if entry.account not in good for outcome in entry.fact.outcomes)


async def test_every_attempt_at_a_hostile_relay_ends_as_a_fact_and_nobody_else_waits(
    folder: Path, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    came = await all_ends_well(folder, HOSTILE, caplog)
    assert came.keys() == {"deferred", "refused", "in_doubt"}


@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(speeches(), min_size=6, max_size=6))
def test_whatever_relays_say_every_attempt_ends(caplog, said):
    async def story() -> None:
        with tempfile.TemporaryDirectory(prefix="letterbook-", dir=MEMORY if MEMORY.exists() else None) as name:
            await all_ends_well(Path(name), {f"relay{n}": speaks(each) for n, each in enumerate(said)}, caplog)

    trio.run(story, clock=trio.testing.MockClock(autojump_threshold=0))
