"""One line a message when it ends: what stands in it, that none is missing, and that nobody waits for it."""

import json
import logging
import os

import pytest
import trio

from letterbook import outcomes
from letterbook.config import load
from letterbook.line_writer import BUFFER_BYTES_MAX
from letterbook.logs import JsonLines, Lines, TextLines
from letterbook.outcomes import GATHERED_MAX, KEYS, Outcomes, telling, told
from store.clock import SystemClock
from store.endings import Ending
from store.following import PAGE_FACTS
from store.opening import open_store
from tests.store.building import accepted, account_saved, ended, started

ENDING = Ending(
    seq=9,
    message=7,
    id="m",
    account_id="news",
    host="relay.example",
    port=25,
    status="sent",
    attempts=1,
    cause=None,
    recipients='[["delivered",250,"2.0.0","AB12",9]]',
    at_us=3_500_000,
    created_us=1_000_000,
)


ONE_OF_TWO = '[["delivered",250,"2.0.0","Q",9],["refused",550,"5.1.1",null,9]]'


def test_a_line_has_the_documented_keys_in_their_order():
    sentence, fields = told(ENDING)
    assert sentence == "a message was sent" and tuple(fields) == tuple(KEYS)
    assert {name: value for name, value in fields.items() if value is not None} == {
        "id": "m", "number": 7, "seq": 9, "account": "news", "status": "sent", "recipients": 1, "delivered": 1,
        "code": 250, "enhanced": "2.0.0", "attempts": 1, "seconds": 2.5, "relay": "relay.example:25",
        "queue_id": "AB12",
    }  # fmt: skip


def change(**fields) -> Ending:
    return Ending(**{name: getattr(ENDING, name) for name in Ending.__struct_fields__} | fields)


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (
            change(status="error", cause="refused", recipients=ONE_OF_TWO),
            {"recipients": 2, "delivered": 1, "code": 550, "enhanced": "5.1.1", "queue_id": "Q", "cause": "refused"},
        ),
        (
            change(status="error", cause="expired", recipients="", attempts=0),
            {"recipients": None, "delivered": None, "code": None, "relay": None, "queue_id": None, "cause": "expired"},
        ),
        (change(status="withdrawn", cause="withdrawn", created_us=None), {"seconds": None, "status": "withdrawn"}),
        (change(id="i" * 1000), {"id": "i" * 200}),
    ],
)  # fmt: skip
def test_what_is_not_known_is_left_out_and_the_first_failure_speaks(ending, expected):
    _, fields = told(ending)
    assert {name: fields[name] for name in expected} == expected


async def test_every_end_is_told_once_in_order_through_crashes_and_the_stop(tmp_path, autojump_clock, monkeypatch):
    monkeypatch.setattr(outcomes, "GATHERED_MAX", 3)
    found: list[int] = []
    ends: list[int] = []
    async with open_store(tmp_path / "l.db", tmp_path / "l.key", clock=SystemClock(), threaded=False) as store:
        await store.record([account_saved("a")])
        telling_ = Outcomes(store, lambda told: found.extend(fields["seq"] for _, fields in told))

        async def deliver(count: int) -> None:
            for index in range(count):
                (number,) = (await store.record([accepted(f"m{len(ends)}-{index}")])).answers
                (attempt,) = (await store.record([started(number.seq)])).answers
                (end,) = (await store.record([ended(number.seq, attempt.seq)])).answers
                ends.append(end.seq)

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(telling_.run)
                await deliver(10)
                await trio.sleep(1)
                assert found == ends
                await deliver(5)
                nursery.cancel_scope.cancel()
        await telling_.finish()
        assert found == ends and len(ends) == 30


@pytest.mark.parametrize("sign", ["\U0001f4d6", "\x01", "\u202a"])
@pytest.mark.parametrize("form", [TextLines(), JsonLines()])
def test_the_ends_of_one_reading_have_room_in_the_buffer_of_lines(sign, form):
    names = {"id": sign * 200, "account_id": "a" * 200, "host": "h" * 253}
    line = form.line("t" * 24, "info", "letterbook.outcomes", *told(change(**names, cause="content_missing")))
    assert (GATHERED_MAX + PAGE_FACTS) * len(line) < BUFFER_BYTES_MAX


@pytest.fixture
def level():
    ours = logging.getLogger("letterbook")
    before = ours.level
    yield ours.setLevel
    ours.setLevel(before)


@pytest.mark.parametrize(("weight", "wanted"), [("WARNING", True), ("INFO", False)])
async def test_where_nobody_wants_lines_nothing_follows(tmp_path, level, weight, wanted):
    level(weight)
    with open(os.devnull, "wb") as nowhere:
        lines = Lines("text", nowhere.fileno())
        async with open_store(tmp_path / "l.db", tmp_path / "l.key", clock=SystemClock(), threaded=False) as store:
            await store.record([account_saved("a")])
            async with telling(store, lines, wanted):
                await trio.testing.wait_all_tasks_blocked()
                assert store.lag == 0 and not store._hub._followers
        lines.close()


def test_the_switch_is_delivery_activity():
    assert load(None, {}).logging.delivery_activity
    assert not load(None, {"LETTERBOOK_LOGGING_DELIVERY_ACTIVITY": "off"}).logging.delivery_activity


async def test_lines_of_a_service_are_json_with_nothing_secret(tmp_path, level):
    level("INFO")
    read, write = os.pipe()
    lines = Lines("json", write)
    async with open_store(tmp_path / "l.db", tmp_path / "l.key", clock=SystemClock(), threaded=False) as store:
        await store.record([account_saved("a")])
        async with telling(store, lines, True):
            (number,) = (await store.record([accepted("m")])).answers
            (attempt,) = (await store.record([started(number.seq)])).answers
            await store.record([ended(number.seq, attempt.seq)])
    lines.close()
    os.close(write)
    with os.fdopen(read, "rb") as file:
        (line,) = map(json.loads, file)
    assert (line["logger"], line["level"], line["id"], line["status"]) == ("letterbook.outcomes", "info", "m", "sent")
    assert set(line) <= {"time", "level", "logger", "message", *KEYS}
