"""Retention: what waited too long fails, removed accounts are swept, and nothing goes before it was reported."""

from contextlib import asynccontextmanager

import pytest
import trio

from actors.reporter import count_as_reported
from actors.retention import REFUSED_STEPS_MAX, RETAIN_EVERY_S, TOKENS_KEPT_S, Retention, expiries, lettings
from events.account import AccountRemoved
from events.attempt import AttemptEnded
from events.fact import OWN, Draft
from events.message import (
    ContentErased,
    MessageAccepted,
    MessageFailed,
    MessageHeld,
    MessageRejected,
    MessageRequeued,
    MessageRevised,
    MessageWithdrawn,
    RetentionPassed,
)
from events.report import BatchFetched, ResultsReported
from events.service import ClockStepped, ClockTrusted
from events.values import Outcome
from store import erasing
from store.beside import LetterRow, Replies
from store.clock import STEP_US
from store.views.clock import LARGE_US
from store.worklists import STEP, Expired, Finished

from .opened import T0_US, end, facts, kinds, opened, rows, save_account, start, states

S = 1_000_000
HOUR_US = 3_600 * S
DAY_US, YEAR_US = 24 * HOUR_US, 365 * 24 * HOUR_US


async def accept(store, *ids: str, expires_us: int = 2 * T0_US) -> list[int]:
    drafts = [
        Draft(
            MessageAccepted(
                id=each, priority=2, due_us=0, expires_us=expires_us, size=1, recipients=("d",), letter="d"
            ),
            message=OWN,
            account=1,
        )
        for each in ids
    ]
    beside = {index: LetterRow(b"{}", b"{}", b"salt") for index in range(len(ids))}
    return [entry.message for entry in (await store.record(drafts, beside=beside)).answers]


@asynccontextmanager
async def retaining(folder, keep_s=100.0):
    async with opened(folder) as store, trio.open_nursery() as nursery:
        await save_account(store)
        retention = Retention(store, keep_s)
        nursery.start_soon(retention.run)
        yield store, retention
        nursery.cancel_scope.cancel()


# Pure: given a state, at a moment, then.


def test_the_age_is_in_the_fact_and_never_negative():
    drafts = expiries([Expired(7, 1, 100 * S), Expired(8, None, 999 * S)], 160 * S)
    assert [(draft.message, draft.fact.cause, draft.fact.after_s) for draft in drafts] == [
        (7, "expired", 60),
        (8, "expired", 0),
    ]


def test_contents_go_before_rows():
    assert [type(draft.fact) for draft in lettings(Finished(((1, 1),), 9), "me")] == [ContentErased, RetentionPassed]
    assert [type(draft.fact) for draft in lettings(Finished((), 9), "me")] == [RetentionPassed]


# Against a real store.


async def test_waiting_mail_past_its_time_fails_and_other_mail_does_not(tmp_path, autojump_clock):
    async with retaining(tmp_path) as (store, _):
        [old, held, flying] = await accept(store, "old", "held", "flying", expires_us=T0_US + 30 * S)
        await accept(store, "young")
        await store.record([Draft(MessageHeld(cause="x"), message=held)])
        attempt = await start(store, flying, 1)
        await trio.sleep(29)
        assert (await states(store))["old"] == "waiting"
        await trio.sleep(3)
        assert await states(store) == {"old": "failed", "held": "held", "flying": "in_flight", "young": "waiting"}
        assert [each.fact.after_s for each in await facts(store) if isinstance(each.fact, MessageFailed)] == [30]
        await end(store, flying, 1, attempt, "due", "deferred", due_us=T0_US)
        await trio.sleep(2)
        assert (await states(store))["flying"] == "failed" and old


async def test_thousands_expire_in_steps(tmp_path, autojump_clock):
    async with retaining(tmp_path) as (store, _):
        await accept(store, *[f"id {index}" for index in range(STEP + 3)], expires_us=T0_US)
        commits = len(await rows(store, "select 1 from commits"))
        await trio.sleep(2)
        assert set((await states(store)).values()) == {"failed"}
        assert len(await rows(store, "select 1 from commits")) == commits + 2


async def test_a_clock_ahead_expires_nothing_for_an_hour_and_is_written_down_once(tmp_path, autojump_clock):
    by_us = YEAR_US
    async with retaining(tmp_path) as (store, retention):
        await accept(store, "a", expires_us=T0_US + 1000 * S)
        await trio.sleep(5)
        store.clock.jump(by_us)
        await trio.sleep(3590)
        assert await stepped(store) == [by_us]
        assert await states(store) == {"a": "waiting"} and retention.doubted
        await trio.sleep(30)
        assert await states(store) == {"a": "failed"} and not retention.doubted
        assert await stepped(store) == [by_us]


async def test_a_step_that_is_taken_back_ends_the_doubt_and_has_expired_nothing(tmp_path, autojump_clock):
    async with retaining(tmp_path) as (store, retention):
        await accept(store, "a", expires_us=T0_US + 400 * S)
        store.clock.jump(YEAR_US)
        await trio.sleep(60)
        assert retention.doubted
        store.clock.jump(-YEAR_US)
        await trio.sleep(60)
        assert not retention.doubted and await stepped(store) == [YEAR_US, -YEAR_US]
        await trio.sleep(250)
        assert await states(store) == {"a": "waiting"}
        await trio.sleep(60)
        assert await states(store) == {"a": "failed"}


async def test_small_steps_are_written_down_and_doubted_by_nobody(tmp_path, autojump_clock):
    async with retaining(tmp_path) as (store, retention):
        await accept(store, "a", expires_us=T0_US + 100 * S)
        for by_us in (STEP_US, -STEP_US, STEP_US + 1, LARGE_US):
            store.clock.jump(by_us)
            await trio.sleep(11)
        assert await stepped(store) == [STEP_US + 1, LARGE_US] and not retention.doubted
        assert await states(store) == {"a": "failed"}


async def test_the_doubt_outlives_a_restart_and_ends_when_a_person_says_so(tmp_path, autojump_clock):
    async with retaining(tmp_path) as (store, _):
        await accept(store, "a", expires_us=T0_US + 1000 * S)
        store.clock.jump(YEAR_US)
        await trio.sleep(20)
    async with opened(tmp_path, T0_US + YEAR_US + 30 * S) as store, trio.open_nursery() as nursery:
        retention = Retention(store, 100)
        nursery.start_soon(retention.run)
        await trio.sleep(60)
        assert retention.doubted and await states(store) == {"a": "waiting"}
        await store.record([Draft(ClockTrusted(by="cli"))])
        await trio.sleep(3)
        assert await states(store) == {"a": "failed"} and not retention.doubted
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("by_us", [5 * DAY_US, YEAR_US, -HOUR_US, -5 * DAY_US, -YEAR_US])
async def test_a_start_by_another_clock_is_a_step_too(tmp_path, autojump_clock, by_us):
    async with retaining(tmp_path) as (store, _):
        await accept(store, "a", expires_us=T0_US + 100 * S)
    for later_us in (0, 100 * S):
        async with opened(tmp_path, T0_US + by_us + later_us) as store, trio.open_nursery() as nursery:
            retention = Retention(store, 100)
            nursery.start_soon(retention.run)
            await trio.sleep(50)
            assert await stepped(store) == [by_us]
            assert retention.doubted and await states(store) == {"a": "waiting"}
            nursery.cancel_scope.cancel()


async def stepped(store) -> list[int]:
    return [each.fact.by_us for each in await facts(store) if isinstance(each.fact, ClockStepped)]


async def test_a_removed_account_is_swept_what_flies_after_its_attempt_and_after_a_restart(tmp_path, autojump_clock):
    async with opened(tmp_path) as store:
        await save_account(store)
        waiting, held, flying = await accept(store, "waiting", "held", "flying")
        await store.record([Draft(MessageHeld(cause="x"), message=held)])
        attempt = await start(store, flying, 1)
        await store.record([Draft(AccountRemoved(), account=1)])
    async with opened(tmp_path, T0_US + YEAR_US) as store, trio.open_nursery() as nursery:
        # A doubted clock is no reason to leave them.
        nursery.start_soon(Retention(store, 100).run)
        await trio.sleep(3)
        assert await states(store) == {"waiting": "failed", "held": "failed", "flying": "in_flight"}
        await end(store, flying, 1, attempt, "due", "deferred", due_us=2 * T0_US)
        await trio.sleep(3)
        assert (await states(store))["flying"] == "failed"
        failed = [each for each in await facts(store) if isinstance(each.fact, MessageFailed)]
        assert {each.fact.cause for each in failed} == {"account_removed"} and len(failed) == 3 and waiting
        nursery.cancel_scope.cancel()


async def finish(store, *ids: str) -> None:
    for number in await accept(store, *ids):
        attempt = await start(store, number, 1)
        await end(store, number, 1, attempt, "done", "delivered")


async def test_what_was_reported_long_ago_is_erased_and_leaves_but_never_what_was_not(tmp_path, autojump_clock):
    async with retaining(tmp_path, keep_s=100) as (store, _):
        await finish(store, "reported")
        [gone] = await accept(store, "withdrawn")
        await store.record([Draft(MessageWithdrawn(), message=gone)])
        await store.record([Draft(ResultsReported(up_to=store.last_seq, results=1))])
        await finish(store, "unreported")
        await trio.sleep(90)
        assert set(await states(store)) == {"reported", "withdrawn", "unreported"}
        await trio.sleep(20 + RETAIN_EVERY_S)
        assert await states(store) == {"unreported": "sent"}
        assert await rows(store, "select id from results") == [("unreported",)]
        erased = [each.fact.letters for each in await facts(store) if isinstance(each.fact, ContentErased)]
        assert erased == [((2, 2), (gone, gone))]
        passed = [each.fact for each in await facts(store) if isinstance(each.fact, RetentionPassed)]
        assert len(passed) == 1
        await trio.sleep(10 * RETAIN_EVERY_S)
        assert (await kinds(store)).count("RetentionPassed") == 1


@pytest.mark.parametrize(("age_s", "left"), [(None, "all"), (50, "all"), (5, "young"), (0, "none"), (1e300, "all")])
async def test_letting_go_may_be_asked_for_with_another_age(tmp_path, autojump_clock, age_s, left):
    async with retaining(tmp_path, keep_s=1000) as (store, retention):
        for name in ("old", "young"):
            await finish(store, name)
            await store.record([Draft(ResultsReported(up_to=store.last_seq, results=1))])
            await trio.sleep(10 if name == "old" else 0)
        await finish(store, "unreported")
        kept = {"all": {"old", "young"}, "young": {"young"}, "none": set()}[left]
        assert await retention.let_go(age_s, "me") == 2 - len(kept)
        assert set(await states(store)) == kept | {"unreported"}
        facts_of_it = [
            each.fact for each in await facts(store) if isinstance(each.fact, ContentErased | RetentionPassed)
        ]
        assert {fact.by for fact in facts_of_it} <= {"me"} and bool(facts_of_it) == (left != "all")
        assert await retention.let_go(age_s, "me") == 0


async def test_asked_for_twice_at_once_each_message_is_counted_once(tmp_path, autojump_clock):
    async with retaining(tmp_path, keep_s=1000) as (store, retention), trio.open_nursery() as nursery:
        numbers = await accept(store, *[f"id {index}" for index in range(2 * STEP + 2)])
        await store.record([Draft(MessageFailed(cause="internal"), message=number, account=1) for number in numbers])
        await store.record([Draft(ResultsReported(up_to=store.last_seq, results=len(numbers)))])
        counts = []

        async def ask():
            counts.append(await retention.let_go(0, "me"))

        for _ in range(3):
            nursery.start_soon(ask)
    assert sorted(counts) == [0, 0, len(numbers)]


async def test_a_message_queued_again_meanwhile_stays(tmp_path, autojump_clock):
    async with retaining(tmp_path, keep_s=10) as (store, _):
        await finish(store, *[f"id {index}" for index in range(STEP // 20)])
        await store.record([Draft(ResultsReported(up_to=store.last_seq, results=50))])
        [again] = await accept(store, "again")
        await trio.sleep(80)
        assert await states(store) == {"again": "waiting"} and again


async def test_without_upstream_results_are_reported_kept_and_let_go_in_steps(tmp_path, autojump_clock):
    async with retaining(tmp_path, keep_s=50) as (store, _), trio.open_nursery() as nursery:
        nursery.start_soon(count_as_reported, store)
        numbers = await accept(store, *[f"id {index}" for index in range(STEP + 2)])
        await store.record([Draft(MessageFailed(cause="internal"), message=number, account=1) for number in numbers])
        await trio.sleep(40)
        assert len(await states(store)) == STEP + 2
        await trio.sleep(2 * RETAIN_EVERY_S)
        assert await states(store) == {} and await rows(store, "select * from results") == []
        assert (await kinds(store)).count("RetentionPassed") == 2
        erased = [each.fact for each in await facts(store) if isinstance(each.fact, ContentErased)]
        assert [len(each.letters) for each in erased] == [STEP, 2]
        nursery.cancel_scope.cancel()


async def test_a_step_of_retention_leaves_a_message_alone_that_was_queued_again_meanwhile(
    tmp_path, autojump_clock, monkeypatch
):
    """Between its look and its facts somebody has failed mail tried again: nothing of the step is written, and it is
    read again without that message."""
    async with opened(tmp_path) as store:
        await save_account(store)
        again, gone = await accept(store, "again", "gone")
        for number in (again, gone):
            await end(store, number, 1, await start(store, number, 1), "failed", "refused")
        await store.record([Draft(ResultsReported(up_to=store.last_seq))])
        record = store.record

        async def overtaken(drafts, **fields):
            monkeypatch.setattr(store, "record", record)
            requeued = MessageRequeued(due_us=T0_US, expires_us=2 * T0_US)
            assert (await record([Draft(requeued, message=again, account=1)])).complete
            return await record(drafts, **fields)

        monkeypatch.setattr(store, "record", overtaken)
        retention = Retention(store, 0)
        assert await retention.let_go(0, "me") == 1
        assert await states(store) == {"again": "waiting"}
        erased = [entry.fact.letters for entry in await facts(store) if isinstance(entry.fact, ContentErased)]
        assert erased == [((gone, gone),)]


async def test_a_step_that_is_refused_again_and_again_is_left_for_the_next_time(tmp_path, autojump_clock, monkeypatch):
    async with opened(tmp_path) as store:
        await save_account(store)
        await finish(store, "gone")
        await store.record([Draft(ResultsReported(up_to=store.last_seq))])
        record, asked = store.record, []

        async def refused(drafts, **fields):
            asked.append(drafts)
            return await record([*drafts, Draft(RetentionPassed(before=store.last_seq + 9))], **fields)

        monkeypatch.setattr(store, "record", refused)
        assert await Retention(store, 0).let_go(0, "me") == 0 and len(asked) == REFUSED_STEPS_MAX


async def test_while_much_is_let_go_of_mail_still_expires_and_clocks_are_compared(
    tmp_path, autojump_clock, monkeypatch
):
    """Letting go may take minutes, by itself or because somebody asked for it."""
    async with retaining(tmp_path, keep_s=0) as (store, retention), trio.open_nursery() as nursery:
        await finish(store, "gone")
        await accept(store, "waiting", expires_us=T0_US + 100 * S)
        await store.record([Draft(ResultsReported(up_to=store.last_seq))])
        record = store.record

        async def slow(drafts, **fields):
            if any(isinstance(draft.fact, RetentionPassed) for draft in drafts):
                await trio.sleep(1000)
            return await record(drafts, **fields)

        monkeypatch.setattr(store, "record", slow)
        nursery.start_soon(retention.let_go, 0, "me")
        await trio.sleep(10 + RETAIN_EVERY_S)
        store.clock.jump(10 * S)
        await trio.sleep(40)
        assert await stepped(store) == [10 * S]
        assert await states(store) == {"gone": "sent", "waiting": "failed"}
        nursery.cancel_scope.cancel()


# For days


async def fates(store, nth: int) -> None:
    """A message of each kind of life: sent, put off and then sent, failed, withdrawn, rejected, come again."""
    sent, late, failed, gone, again = await accept(store, *[f"{nth} {each}" for each in range(5)])
    await end(store, sent, 1, await start(store, sent, 1), "done", "delivered")
    first = await start(store, late, 1)
    off = AttemptEnded(attempt=first, outcomes=(Outcome(0, "deferred", 450),), next="due", due_us=T0_US)
    await store.record([Draft(off, message=late, account=1)], beside={0: Replies(((0, "come later"),))})
    await end(store, late, 1, await start(store, late, 1), "done", "delivered")
    await store.record([Draft(MessageFailed(cause="internal"), message=failed, account=1)])
    await store.record([Draft(MessageWithdrawn(), message=gone)])
    await store.record([Draft(MessageRejected(id=f"{nth} rejected", reason="x"), message=OWN)])
    await store.record([Draft(MessageFailed(cause="internal"), message=again, account=1)])
    revised = MessageRevised(
        id=f"{nth} 4", priority=2, due_us=0, expires_us=2 * T0_US, size=1, recipients=("d",), reach=(0,), letter="d"
    )
    letter = LetterRow(b"{}", b"{}", b"salt")
    (came,) = (await store.record([Draft(revised, message=again, account=1)], beside={0: letter})).answers
    await end(store, again, 1, await start(store, again, 1, came.seq), "done", "delivered")


async def counted(store) -> dict[str, int]:
    tables = [name for (name,) in await rows(store, "select name from sqlite_master where type = 'table'")]
    return {name: (await rows(store, f"select count(*) from {name}"))[0][0] for name in tables}


KEPT_FOR_EVER = {"log", "commits", "ids"}


async def test_without_upstream_nothing_but_the_log_grows_past_retention(tmp_path, autojump_clock, monkeypatch):
    # Rows that stay empty beside living letters, fewer than in service: so that many come and go in this test.
    monkeypatch.setattr(erasing, "MARGIN", 20)
    monkeypatch.setattr(erasing, "WALKED_MAX", 4 * 20 + erasing.LETTERS_PER_STEP)
    async with retaining(tmp_path, keep_s=100) as (store, _), trio.open_nursery() as nursery:
        nursery.start_soon(count_as_reported, store)
        seen = []
        for nth in range(60):
            await fates(store, nth)
            await trio.sleep(5)
            if nth in (29, 59):
                await trio.sleep(100 + 2 * RETAIN_EVERY_S)
                seen.append(await counted(store))
        early, late = seen
        for name in late.keys() - KEPT_FOR_EVER - {"replies", "slots"}:
            assert late[name] <= early[name], (name, early, late)
        for name in KEPT_FOR_EVER:
            assert late[name] > early[name] * 1.5
        # A ring of a day's seconds.
        assert late["slots"] <= 60 * 3
        # What was said is gone; a few bytes of its place stay.
        assert (await rows(store, "select count(*) from replies where text <> x''"))[0][0] == 0
        nursery.cancel_scope.cancel()


async def test_with_a_dead_upstream_nothing_unreported_goes(tmp_path, autojump_clock):
    """Nobody moves the cursor: results, contents and words stay, however long ago they were; then they go at once."""
    async with retaining(tmp_path, keep_s=10) as (store, _):
        for nth in range(5):
            await fates(store, nth)
            await trio.sleep(200)
        found = await counted(store)
        assert found["messages"] == 30 and found["results"] == 30 and found["replies"] == 5
        assert await rows(store, "select count(*) from letters where length(content) = 0") == [(0,)]
        await store.record([Draft(ResultsReported(up_to=store.last_seq, results=30))])
        await trio.sleep(3 * RETAIN_EVERY_S)
        found = await counted(store)
        assert found["messages"] == found["results"] == 0
        assert await rows(store, "select count(*) from letters where length(content) > 0") == [(0,)]


async def test_the_tokens_of_batches_are_kept_for_a_month(tmp_path, autojump_clock):
    assert TOKENS_KEPT_S == 30 * 86_400
    async with retaining(tmp_path) as (store, _):
        await store.record([Draft(BatchFetched(token=f"t{n}", messages=0)) for n in range(STEP + 5)])
        seen_us = store.clock.now_us()
        store.clock.now_us = lambda: seen_us + int((TOKENS_KEPT_S - 1) * S)
        await trio.sleep(RETAIN_EVERY_S + 2)
        assert len(await rows(store, "select token from tokens")) == STEP + 5
        store.clock.now_us = lambda: seen_us + int((TOKENS_KEPT_S + 1) * S)
        await trio.sleep(RETAIN_EVERY_S + 2)
        assert await rows(store, "select token from tokens") == []
        assert (await kinds(store)).count("TokensForgotten") == 2
