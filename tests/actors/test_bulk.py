"""Operations in bulk: for which messages an action is, what it makes of them, and what else may happen meanwhile."""

import msgspec
import pytest
import trio

from actors.bulk import STATES, Moment, decide
from actors.control import STEP
from events.commands import Bulk, DeleteMessages, Refused, Suspend, Unavailable, Where
from events.fact import OWN, Draft
from events.message import (
    DoubtResolved,
    MessageExpedited,
    MessageHeld,
    MessageRejected,
    MessageRequeued,
    MessageWithdrawn,
)
from store import reading
from store.choosing import Chosen, chosen
from store.views.clock import step as clock_step
from store.views.messages import MessageRow, RecipientState
from store.worklists import clock_row, expired

from .opened import T0_US, end, facts, kinds, opened, rows, save_account, start, states
from .test_control import HOUR_US, accept, controlling, in_doubt

AT = Moment(T0_US, HOUR_US, "me")
LATER_US = T0_US + 60_000_000
YEAR_US = 365 * 86_400_000_000


def row(state: str, *statuses: str, **fields) -> MessageRow:
    recipients = msgspec.json.encode([RecipientState(status) for status in statuses or ("open",)]).decode()
    known = {"due_us": T0_US, "due_cause": None, "expires_us": LATER_US, **fields}
    return MessageRow(
        number=7, id="m", account=1, state=state, priority=2, created_us=0, updated_us=0, revision=7, size=1,
        digests="d", recipients=recipients, **known,
    )  # fmt: skip


def decided(action: str, one: MessageRow, letters=frozenset({7})):
    return decide(action, Chosen((one,), letters), AT)


RETRY = {"due_us": LATER_US, "due_cause": "retry"}
PAST = {"expires_us": T0_US - 1}


@pytest.mark.parametrize(
    ("action", "one", "fact"),
    [
        ("withdraw", row("waiting"), MessageWithdrawn(by="me")),
        ("withdraw", row("held"), MessageWithdrawn(by="me")),
        ("withdraw", row("in_flight"), MessageWithdrawn(by="me")),
        ("withdraw", row("in_flight", withdrawing=True), None),
        ("hold", row("waiting"), MessageHeld(cause="operator", by="me")),
        ("hold", row("waiting", **RETRY), MessageHeld(cause="operator", by="me")),
        ("retry", row("waiting", **RETRY), MessageExpedited(due_us=T0_US, by="me")),
        ("retry", row("waiting", due_us=LATER_US, due_cause="relay"), MessageExpedited(due_us=T0_US, by="me")),
        ("retry", row("waiting", due_us=LATER_US, due_cause="asked"), None),
        ("retry", row("waiting", due_cause="retry"), None),
        ("retry", row("waiting"), None),
        ("retry", row("failed", "refused"), MessageRequeued(due_us=T0_US, expires_us=LATER_US, by="me")),
        ("retry", row("failed", "expired", **PAST), MessageRequeued(T0_US, T0_US + HOUR_US, "me")),
        ("retry", row("failed", "delivered", "in_doubt"), None),
        ("release", row("held"), DoubtResolved(resolution="resend", due_us=T0_US, by="me")),
        ("release", row("held", **RETRY), DoubtResolved(resolution="resend", due_us=LATER_US, by="me")),
        ("release", row("held", **PAST), DoubtResolved("resend", due_us=T0_US, by="me", expires_us=T0_US + HOUR_US)),
    ],
)
def test_an_action_is_for_some_messages_and_makes_one_fact_of_each(action, one, fact):
    found = decided(action, one)
    assert found.matched == len(found.drafts) == (fact is not None)
    assert [draft.fact for draft in found.drafts] == ([fact] if fact else [])
    assert one.state in STATES[action]


def test_what_failed_and_has_no_content_any_more_is_counted_and_left_alone():
    found = decided("retry", row("failed", "refused"), letters=frozenset())
    assert (found.matched, found.drafts, found.without_content) == (1, (), 1)


def test_a_release_counts_what_may_arrive_twice():
    assert decided("release", row("held", "in_doubt", "delivered")).in_doubt == 1
    assert decided("release", row("held", "open")).in_doubt == 0
    assert decided("withdraw", row("held", "in_doubt")).in_doubt == 0


# Through a real store


def step(action: str, after: int = 0, up_to: int = 10**9, dry_run: bool = False, **where) -> Bulk:
    return Bulk(action, Where(**(where or {"account_id": "main"})), after, up_to, dry_run)


async def every_step(ask, action: str, **fields) -> tuple[int, int]:
    """(matched, changed) over all steps."""
    matched = changed = after = 0
    while after is not None:
        answer = await ask(step(action, after, **fields))
        matched, changed, after = matched + answer["matched"], changed + answer["changed"], answer["next"]
    return matched, changed


async def test_hold_release_and_withdraw_what_waits(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await save_account(store, "main")
        await accept(store, "a", "b")
        assert await every_step(ask, "hold", dry_run=True) == (2, 0)
        assert await every_step(ask, "hold") == (2, 2)
        assert await states(store) == {"a": "held", "b": "held"}
        assert [row.cause for row in (await store.read(reading.held, 0, 9)).rows] == ["operator"] * 2
        assert await every_step(ask, "hold") == (0, 0), "to ask again is harmless"
        assert await every_step(ask, "release") == (2, 2)
        assert await every_step(ask, "withdraw") == (2, 2)
        assert await every_step(ask, "withdraw") == (0, 0)
        assert {entry.fact.by for entry in (await facts(store))[3:]} == {"tester"}


async def test_retry_makes_due_what_waits_for_a_retry_and_queues_afresh_what_failed(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await save_account(store, "main")
        later, failed, gone, sent = await accept(store, "later", "failed", "gone", "sent")
        far = {"due_us": 2 * T0_US, "due_cause": "retry"}
        await end(store, later, 1, await start(store, later, 1), "due", "deferred", **far)
        for number in (failed, gone):
            await end(store, number, 1, await start(store, number, 1), "failed", "refused", cause="refused")
        await end(store, sent, 1, await start(store, sent, 1), "done", "delivered")
        await store.record([Draft(MessageRejected(id="rejected", reason="missing to"), message=OWN)])
        await ask(DeleteMessages(("gone",)))
        answer = await ask(step("retry"))
        assert (answer["matched"], answer["changed"], answer["without_content"]) == (3, 2, 1)
        assert await states(store) == {
            "later": "waiting",
            "failed": "waiting",
            "gone": "failed",
            "sent": "sent",
            "rejected": "rejected",
        }
        now_us = store.clock.now_us()
        assert [row.id for row in (await store.read(reading.pending, now_us, 0, 9)).rows] == ["later", "failed"]
        recorded = await start(store, failed, 1, failed)
        await end(store, failed, 1, recorded, "done", "delivered")
        assert await rows(store, "select status from results where id = 'failed'") == [("error",), ("sent",)]


async def test_all_mail_held_after_a_restore_is_released_in_bulk_and_lives_on(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await save_account(store, "main")
        await accept(store, "young")
        await accept(store, "old", expires_us=T0_US + 60_000_000)
        await in_doubt(store, "doubt")
        await ask(step("hold"))
        await trio.sleep(120)
        answer = await ask(step("release", status="held"))
        assert (answer["matched"], answer["changed"], answer["in_doubt"]) == (3, 3, 1)
        assert set((await states(store)).values()) == {"waiting"}
        assert await store.read(expired, store.clock.now_us()) == []


async def stepped(store, by_us: int) -> None:
    store.clock.jump(by_us)
    moved_us = store.clock.step()
    await store.record_step(Draft(clock_step(await store.read(clock_row), moved_us, store.clock.now_us())))


async def test_mail_that_was_held_over_a_step_waits_as_if_the_clock_had_been_right(tmp_path, autojump_clock):
    """What waited goes at once after a year backwards; what was asked for is not early after a year forwards."""
    async with controlling(tmp_path) as (store, ask):
        await save_account(store, "main")
        waits, asked = (
            await accept(store, "waits", due_us=T0_US),
            await accept(store, "asked", due_us=T0_US + HOUR_US // 2, asked_us=T0_US + HOUR_US // 2),
        )
        await ask(step("hold"))
        await stepped(store, -YEAR_US)
        await ask(step("release"))
        dues = dict(await rows(store, "select number, due_us from messages"))
        assert dues == {waits[0]: store.clock.now_us(), asked[0]: T0_US + HOUR_US // 2}
        await ask(step("hold"))
        await stepped(store, 2 * YEAR_US)
        await ask(step("release"))
        dues = dict(await rows(store, "select number, due_us from messages"))
        assert dues == {waits[0]: store.clock.now_us(), asked[0]: store.clock.now_us() + HOUR_US // 2}


async def test_the_clock_may_step_between_the_look_and_the_fact(tmp_path, autojump_clock, monkeypatch):
    async with controlling(tmp_path) as (store, ask):
        await save_account(store, "main")
        (number,) = await accept(store, "held")
        await ask(step("hold"))
        read = store.read

        async def read_slowly(reading, *values):
            found = await read(reading, *values)
            if reading is chosen:
                await stepped(store, -YEAR_US)
            return found

        monkeypatch.setattr(store, "read", read_slowly)
        await ask(step("release"))
        assert (await read(reading.message, number)).due_us == store.clock.now_us()


async def test_thousands_go_in_steps_of_one_commit_each_and_other_commands_between(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await save_account(store, "main")
        await accept(store, *[f"m{index}" for index in range(2 * STEP + 1)])
        up_to = store.last_seq
        await accept(store, "came in later")
        commits = len(await rows(store, "select 1 from commits"))
        first = await ask(step("hold", up_to=up_to))
        assert (first["matched"], first["changed"]) == (STEP, STEP)
        assert (await ask(Suspend()))["active"] is False
        after, changed = first["next"], STEP
        while after is not None:
            answer = await ask(step("hold", after, up_to))
            after, changed = answer["next"], changed + answer["changed"]
        assert changed == 2 * STEP + 1
        assert len(await rows(store, "select 1 from commits")) == commits + 4
        assert (await states(store))["came in later"] == "waiting"


async def test_what_moved_between_the_look_and_the_fact_is_not_counted(tmp_path, autojump_clock, monkeypatch):
    async with controlling(tmp_path) as (store, ask):
        await save_account(store, "main")
        one, _ = await accept(store, "one", "two")
        record = store.record

        async def overtaken(drafts, **fields):
            monkeypatch.setattr(store, "record", record)
            await start(store, one, 1)
            return await record(drafts, **fields)

        monkeypatch.setattr(store, "record", overtaken)
        answer = await ask(step("hold"))
        assert (answer["matched"], answer["changed"]) == (2, 1)
        assert await states(store) == {"one": "in_flight", "two": "held"}


async def test_a_step_that_cannot_be_recorded_is_unavailable_and_done_the_next_time(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await save_account(store, "main")
        await accept(store, "a")
        seq = store.last_seq
        store.recorder.shut()
        assert isinstance(await ask(step("hold")), Unavailable)
    async with opened(tmp_path) as store:
        assert await kinds(store, seq) == [] and await states(store) == {"a": "waiting"}
    async with controlling(tmp_path) as (store, ask):
        assert await every_step(ask, "hold") == (1, 1)
        assert not isinstance(await ask(step("hold")), Refused)
