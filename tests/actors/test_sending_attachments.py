"""An attempt whose attachments come from elsewhere: each way in which it ends is a fact that says why."""

from base64 import b64decode
from email import message_from_bytes

import msgspec
import pytest
import trio

from events.fact import Draft
from events.letter import Attachment, Envelope, Letter
from events.volume import VolumeSaved
from letterbook.capture import CaptureRelay
from store.beside import LetterRow, Sealed
from store.dispatching import counted
from store.results_text import error_text, states_of
from store.views.messages import MessageRow

from .delivering import accept, delivering, ends, opened, retrying, save, until
from .opened import rows

CONTENT = bytes(range(256)) * 10


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def wanting(*attachments, to=("anna@example.org",)) -> LetterRow:
    letter = Letter(id="m", sender="shop@example.com", to=to, subject="s", body="b", attachments=attachments)
    return LetterRow(msgspec.json.encode(Envelope("shop@example.com", to, "s")), msgspec.json.encode(letter), bytes(16))


def on(path, name="Ann's.pdf") -> Attachment:
    return Attachment(name, storage_path=f"mem:{path}")


async def volume(store, account_id=None):
    fact = VolumeSaved(name="mem", backend="memory", config="d", account_id=account_id)
    await store.record([Draft(fact)], beside={0: Sealed(store.secrets.seal(b"{}"))})


async def row_of(store, number) -> MessageRow:
    fields = ", ".join(MessageRow.__struct_fields__)
    ((columns),) = await rows(store, f"select {fields} from messages where number = {number}")
    return MessageRow(*columns)


async def text_of(store, number) -> str | None:
    row = await row_of(store, number)
    replies = {(e, r): bytes(t).decode() for e, r, t in await rows(store, "select ended, recipient, text from replies")}
    return error_text(row.cause, row.detail, states_of(row.recipients), replies)


async def test_what_was_fetched_arrives_byte_for_byte_and_is_nowhere_stored(folder, autojump_clock):
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, unit, _):
        await volume(store)
        unit.attachments.memory["mem", "x"] = CONTENT
        await accept(store, await save(store, "a"), beside=wanting(on("x")))
        (fact,) = await ends(store)
        assert (fact.next, fact.field, fact.reason) == ("done", None, None)
        ((size,),) = await rows(store, "select length(content) from letters")
        assert size < 300
        assert unit.attachments.room.free == unit.attachments.policy.memory_bytes_max
    (part,) = [part for part in message_from_bytes(relay.messages[0].content).walk() if part.get_filename()]
    assert part.get_filename() == "Ann's.pdf" and b64decode(part.get_payload()) == CONTENT


async def test_what_is_not_there_ends_the_message_and_the_log_has_no_name(folder, autojump_clock):
    to = ("anna@example.org", "bert@example.org")
    async with delivering(folder, {"a": CaptureRelay()}, retry=retrying(60)) as (store, _, _):
        await volume(store)
        account = await save(store, "a", limit_per_minute=1)
        (number,) = await accept(store, account, to=to, beside=wanting(Attachment("own", "QQ=="), on("gone"), to=to))
        (fact,) = await ends(store)
        assert (fact.next, fact.cause, fact.field, fact.reason) == (
            "failed",
            "attachment",
            "attachments[1]",
            "not_found",
        )
        assert [each.status for each in fact.outcomes] == ["refused", "refused"]
        assert await text_of(store, number) == 'attachment "Ann\'s.pdf": not found'
        data = b"".join(data for (data,) in await rows(store, "select data from log"))
        assert b"Ann" not in data and b"gone" not in data
        # It counts against no limit: the next one goes at once.
        now_us = store.clock.now_us()
        assert not (await store.read(counted, [account], now_us))[account].ends_us
        began = trio.current_time()
        await accept(store, account, beside=wanting())
        await until(store, lambda entry: getattr(entry.fact, "next", "") == "done")
        assert trio.current_time() - began < 1


async def test_a_volume_that_has_gone_or_is_anothers_by_now_is_judged_again(folder, autojump_clock):
    async with delivering(folder, {"a": CaptureRelay()}) as (store, unit, _):
        await volume(store, account_id="another")
        unit.attachments.memory["mem", "x"] = CONTENT
        await accept(store, await save(store, "a"), beside=wanting(on("x")))
        (fact,) = await ends(store)
        assert (fact.next, fact.reason) == ("failed", "no_volume")


async def test_what_does_not_come_in_time_is_tried_again_as_after_a_temporary_refusal(folder, autojump_clock):
    to = tuple(f"{n}@example.org" for n in range(150))

    async def resolver(host, port):
        await trio.sleep_forever()

    async with delivering(folder, {"a": CaptureRelay()}, retry=retrying(60, 300, retries=2)) as (store, unit, _):
        unit.attachments._resolver = resolver
        (number,) = await accept(
            store, await save(store, "a"), to=to, beside=wanting(Attachment("x", url="http://files.example/x"), to=to)
        )
        first, second, third = await ends(store, 3)
        for fact in (first, second):
            assert (fact.next, fact.due_cause, fact.cause, fact.charged) == ("due", "retry", "attachment", True)
            assert (fact.field, fact.reason) == ("attachments[0]", "timeout")
        # The next hundred recipients are not asked for at once what just did not come.
        assert third.due_us is None and (third.next, third.cause, third.retries) == ("failed", "retries", 2)
        text = await text_of(store, number)
        assert text.startswith("Max retries (2) exceeded: ") and text.endswith('attachment "x": did not come in time')
    assert 30 * 3 + 360 <= trio.current_time() <= 30 * 3 + 400


async def test_a_stop_while_something_is_fetched_leaves_everybody_as_they_were(folder, autojump_clock):
    asked = trio.Event()

    async def resolver(host, port):
        asked.set()
        await trio.sleep_forever()

    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}, drain_s=3) as (store, unit, _):
        account = await save(store, "a")
        await accept(store, account, beside=wanting())
        await ends(store)
        # The connection has carried a mail: what came of that one is no outcome of the next.
        unit.attachments._resolver = resolver
        await accept(store, account, beside=wanting(Attachment("x", url="http://files.example/x")))
        await asked.wait()
    async with opened(folder) as store:
        _, fact = await ends(store, 2)
        assert [each.status for each in fact.outcomes] == ["deferred"]
        assert (fact.next, fact.charged, fact.due_cause, fact.stage) == ("due", False, "relay", "attachments")
    assert relay.received == 1


async def test_what_makes_a_message_too_large_ends_it(folder, autojump_clock):
    async with delivering(folder, {"a": CaptureRelay()}) as (store, unit, _):
        await volume(store)
        policy = unit.attachments.policy
        unit.attachments.policy = msgspec.structs.replace(policy, message_bytes_max=len(CONTENT))
        unit.attachments.memory["mem", "x"] = CONTENT
        (number,) = await accept(store, await save(store, "a"), beside=wanting(on("x")))
        (fact,) = await ends(store)
        assert (fact.next, fact.cause, fact.reason) == ("failed", "attachment", "too_large")
        assert await text_of(store, number) == 'attachment "Ann\'s.pdf": makes the message too large'
        assert unit.attachments.room.free == policy.memory_bytes_max


async def test_an_unexpected_error_while_fetching_costs_one_attempt(folder, autojump_clock, caplog):
    async def resolver(host, port):
        raise ZeroDivisionError

    async with delivering(folder, {"a": CaptureRelay()}, retry=retrying(60)) as (store, unit, _):
        unit.attachments._resolver = resolver
        account = await save(store, "a")
        await accept(store, account, beside=wanting(Attachment("x", url="http://files.example/x")))
        (fact,) = await ends(store)
        assert (fact.next, fact.cause, fact.reason) == ("due", "internal", None)
        assert unit.attachments.room.free == unit.attachments.policy.memory_bytes_max
        await accept(store, account, beside=wanting())
        await until(store, lambda entry: getattr(entry.fact, "next", "") == "done")
