"""What each layer costs a message, alone and in one process: CPU microseconds."""

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import trio

from actors.parse import Policy, parse
from actors.smtp.compose import compose
from actors.smtp.engine import Engine
from actors.smtp.transaction import Mail
from events.account import AccountSaved
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import OWN, Draft, Entry
from events.letter import Letter
from events.message import MessageAccepted
from events.values import Outcome
from letterbook.logs import Form, Lines
from letterbook.outcomes import told
from store.beside import LetterRow
from store.clock import SystemClock
from store.endings import endings
from store.opening import Store, open_store

from .endtoend import message

TURN = 500
"""Facts of one kind recorded together, about what a busy service's turns hold."""

NOW_US = 1_800_000_000_000_000
POLICY = Policy()
KNOWN_ACCOUNTS = frozenset({"account-1"})


def _timed(what: str, times: int, run: Callable[[], object]) -> str:
    began = time.process_time()
    for _ in range(times):
        run()
    return _line(what, time.process_time() - began, times)


def _line(what: str, seconds: float, times: int) -> str:
    return f"{what}: {seconds / times * 1e6:.1f} us"


def run(messages: int) -> Iterator[str]:
    item = msgspec.json.encode(message(1))
    yield _timed("parse one message", messages, lambda: _parse(item))
    letter = Letter(id="x", sender="a@b.example", to=("c@d.example",), subject="An order", body="x" * 70 + "\n" * 14)
    yield _timed("compose one message", messages, lambda: _compose(letter))
    content = _compose(letter)
    yield _timed("one pipelined SMTP transaction, without I/O", messages, lambda: _converse(content))
    yield from trio.run(_store, messages)


def _parse(item: bytes) -> None:
    parse(item, policy=POLICY, accounts=KNOWN_ACCOUNTS, now_us=NOW_US)


def _compose(letter: Letter) -> bytes:
    return compose(letter, message_id="<1@b.example>", date_us=NOW_US, boundary_seed=b"1")


def _converse(content: bytes) -> None:
    engine = Engine("client.example")
    engine.receive(b"220 relay.example\r\n")
    engine.hello()
    engine.take()
    engine.receive(b"250-relay.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
    engine.start_transaction(Mail("a@b.example", ((0, "c@d.example"),), content))
    engine.take()
    engine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    engine.take()
    engine.receive(b"250 2.0.0 Ok: queued as AB12\r\n")
    engine.delivery()


async def _store(messages: int) -> Sequence[str]:
    with TemporaryDirectory() as folder:
        path = Path(folder)
        chance = random.Random(1)
        async with open_store(
            path / "l.db", path / "l.key", clock=SystemClock(), entropy=chance.randbytes, threaded=False
        ) as store:
            return [line async for line in _recording(store, messages)]


async def _recording(store: Store, messages: int):  # type: ignore[no-untyped-def]  # an async iterator of lines
    saved = AccountSaved(id="a", host="relay.example", port=25, credentials="c" * 16)
    account = (await store.record([Draft(saved, account=OWN)])).answers[0]
    assert isinstance(account, Entry)
    turns = range(0, messages, TURN)
    began = time.process_time()
    numbers = [number for _ in turns for number in await _accept(store, account.seq)]
    yield _line("record one acceptance", time.process_time() - began, len(numbers))
    began = time.process_time()
    for first in turns:
        await _attempt(store, account.seq, numbers[first : first + TURN])
    yield _line("record one attempt's start and end", time.process_time() - began, len(numbers))
    for form in ("text", "json"):
        seconds = await _tell(store, len(numbers), form)
        yield _line(f"tell one message's end as {form}", seconds, len(numbers))


async def _accept(store: Store, account: int) -> list[int]:
    drafts = [
        Draft(
            MessageAccepted(
                id=str(uuid.uuid4()), priority=2, due_us=NOW_US, expires_us=NOW_US * 2, size=1000,
                recipients=("r" * 16,), letter="l" * 16, by="bench",
            ),
            message=OWN,
            account=account,
        )
        for _ in range(TURN)
    ]  # fmt: skip
    letter = LetterRow(b'{"sender":"a@b.example","recipients":["c@d.example"],"subject":"s"}', b"x" * 1200, bytes(16))
    recorded = await store.record(drafts, beside=dict.fromkeys(range(TURN), letter))
    return [answer.seq for answer in recorded.answers if isinstance(answer, Entry)]


async def _attempt(store: Store, account: int, numbers: Sequence[int]) -> None:
    starts = [
        Draft(AttemptStarted(revision=number, recipients=(0,)), message=number, account=account) for number in numbers
    ]
    recorded = await store.record(starts)
    delivered = (Outcome(0, "delivered", 250, "2.0.0", "AB12"),)
    ends = [
        Draft(AttemptEnded(attempt=start.seq, outcomes=delivered, next="done"), message=number, account=account)
        for start, number in zip(recorded.answers, numbers, strict=True)
    ]
    assert (await store.record(ends)).complete


async def _tell(store: Store, messages: int, form: Form) -> float:
    """CPU seconds for the lines of every end in the log, in pieces as a busy service tells them."""
    with open(os.devnull, "wb") as nowhere:
        lines = Lines(form, nowhere.fileno())
        began = time.process_time()
        for last in range(2 * TURN, 3 * messages + 1, 2 * TURN):
            found = await store.read(endings, last - 2 * TURN, last, {})
            lines.tell("letterbook.outcomes", map(told, found))
        lines.close()
        return time.process_time() - began
