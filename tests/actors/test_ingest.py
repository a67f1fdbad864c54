"""Ingest: an id is accepted once, whoever asks how often; an item's fault is its own."""

import random
import re
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio

from actors.ingest import Ingest, Known, Proposal, judge, run_ingest, superseded
from actors.parse import Policy
from events.account import AccountRemoved
from events.attempt import AttemptEnded, AttemptStarted
from events.commands import Decision, Dropped
from events.fact import Draft
from events.message import MessageAccepted, MessageRejected, MessageRevised
from events.values import Outcome
from events.volume import VolumeRemoved, VolumeSaved
from store.recorder import FACTS_A_TURN_MAX
from store.secrets import Secrets
from store.sql import columns
from store.views.messages import RETRIABLE, MessageRow, RecipientState
from store.writer import Declined

from .opened import T0_US, end, facts, kinds, message, opened, rows, save_account, start, states, submission, submit

KNOWN = Known(Policy(), {"default": 1, "other": 2}, Secrets(b"k" * 32, lambda n: b"s" * n), T0_US)


@asynccontextmanager
async def ingesting(folder, *accounts, capacity=64, judge=judge):
    """A store with these accounts and an ingest actor in front of it: (store, where submissions go)."""
    send, receive = trio.open_memory_channel(capacity)
    async with opened(folder) as store:
        for account in accounts:
            await save_account(store, account)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run_ingest, receive, store, Policy(), judge=judge))
            async with send:
                yield store, send


def row(state: str, *statuses: str, message_id: str = "a") -> MessageRow:
    to = [f"{index}@example.org" for index in range(len(statuses))]
    digests = " ".join(KNOWN.secrets.recipient_digest(message_id, address) for address in to)
    recipients = msgspec.json.encode([RecipientState(status) for status in statuses]).decode()
    return MessageRow(9, message_id, 1, state, 2, 0, None, 0, 0, 0, 9, 1, digests, recipients)


def judged(sent, row=None):
    asked = submission(sent)
    return judge(asked.items[0], asked, row, KNOWN)


# The pure decision: given a row, when an item comes, then.


def test_an_unknown_id_is_accepted_with_a_digest_a_recipient_and_its_letter_beside():
    decided = judged(message("a", ["Anna <a@x.org>", "a@X.ORG", "b@x.org"]))
    fact = decided.draft.fact
    assert isinstance(fact, MessageAccepted) and decided.draft.account == 1
    assert fact.recipients == tuple(KNOWN.secrets.recipient_digest("a", each) for each in ("a@x.org", "b@x.org"))
    assert fact.letter == KNOWN.secrets.letter_digest(decided.letter.salt, decided.letter.content)
    assert b"a@x.org" not in str(fact).encode()


@pytest.mark.parametrize(
    ("state", "reason"),
    [("sent", "already sent"), ("in_flight", "in flight"), ("held", "in flight")],
)
def test_what_is_sent_or_on_its_way_stands_whatever_comes(state, reason):
    for sent in (message("a"), {"id": "a"}, {"id": "a", "from": 5}):
        assert judged(sent, row(state, "open")) == Decision("a", reason=reason, recorded=False)


@pytest.mark.parametrize("state", ["waiting", "failed", "withdrawn", "rejected"])
def test_what_was_not_sent_takes_the_new_content_but_a_faulty_one_leaves_it_alone(state):
    decided = judged(message("a", ["0@example.org"]), row(state, "refused"))
    assert isinstance(decided.draft.fact, MessageRevised) and decided.draft.message == 9
    assert judged({"id": "a"}, row(state, "refused")) == Decision("a", reason="missing from", recorded=False)


def test_the_same_id_again_goes_only_to_whom_it_has_not_reached():
    known = row("failed", "delivered", "refused", "in_doubt")
    to = [f"{index}@example.org" for index in (3, 2, 1, 0)]
    assert judged(message("a", to), known).draft.fact.reach == (0, 2)
    assert judged(message("a", ["0@example.org"]), known).reason == "already sent"


def test_a_rejection_is_recorded_with_paths_and_told_with_words():
    sent = message("a", attachments=[{"filename": "f", "storage_path": "vol:secret/path"}])
    decided = judged(sent)
    assert isinstance(decided, Proposal) and isinstance(decided.draft.fact, MessageRejected)
    assert "secret" not in decided.draft.fact.reason and "vol:secret/path" in decided.words


def test_the_last_of_an_id_counts():
    assert superseded(["a", None, "b", "a", None]) == {0}


# Against a real store.


async def test_a_batch_is_answered_item_by_item_in_order(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to):
        decisions = await submit(to, message("a"), {"id": "b"}, {}, b"nothing", message("c", account_id="gone"))
        assert [(each.id, each.reason) for each in decisions] == [
            ("a", None),
            ("b", "missing from"),
            (None, "missing id"),
            (None, "not JSON"),
            ("c", "account not found"),
        ]
        assert await states(store) == {"a": "waiting", "b": "rejected", "c": "rejected"}
        assert decisions[0].number == decisions[0].seq == 2


async def test_an_empty_batch_is_answered(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (_, to):
        assert await submit(to) == ()


async def test_twice_in_one_batch_the_last_wins_and_counts_once(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to):
        first, second = await submit(to, message("a", subject="one"), message("a", subject="two"))
        assert first == Decision("a", recorded=False) and second.number is not None
        assert await kinds(store, 1) == ["MessageAccepted"]
        assert b"two" in (await rows(store, "select content from letters"))[0][0]


async def test_twice_in_a_cut_of_a_stream_is_as_if_it_had_come_in_two_batches(tmp_path, autojump_clock):
    """A faulty line leaves the good one before it standing, wherever the stream happens to be cut."""
    async with ingesting(tmp_path, "default") as (store, to):
        lines = [message("a", subject="one"), {"id": "a"}, message("a", subject="two"), {"id": "b"}, message("b")]
        decisions = await submit(to, *lines, message("a", subject="three"), {"id": "a", "to": 5}, apart=True)
        assert [each.reason for each in decisions] == [
            None, "missing from", None, "missing from", None, None, "missing from",
        ]  # fmt: skip
        assert all(each.recorded for each in decisions if each.reason is None)
        assert await states(store) == {"a": "waiting", "b": "waiting"}
        [(revision,)] = await rows(store, "select revision from messages where id = 'a'")
        [(content,)] = await rows(store, "select content from letters where letter = ?", revision)
        assert b"three" in content


async def test_one_id_from_many_sides_at_once_is_one_message_with_the_last_content(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to):
        asked = [submission(message("a", subject=f"number {index}")) for index in range(8)]
        for each in asked:
            to.send_nowait(each)
        decisions = [(await each.reply.get())[0] for each in asked]
        assert {each.number for each in decisions} == {2} and all(each.reason is None for each in decisions)
        [(revision,)] = await rows(store, "select revision from messages")
        [(content,)] = await rows(store, "select content from letters where letter = ?", revision)
        assert b"number 7" in content


async def test_every_post_repeated_two_to_four_times_is_accepted_once(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to), trio.open_nursery() as nursery:
        for index in range(300):
            for _ in range(2 + index % 3):
                nursery.start_soon(submit, to, message(f"id {index % 100}"))
    async with opened(tmp_path) as store:
        log = await facts(store)
        accepted = [entry.fact.id for entry in log if isinstance(entry.fact, MessageAccepted)]
        assert sorted(accepted) == sorted({f"id {index}" for index in range(100)})
        assert set((await states(store)).values()) == {"waiting"}


async def test_a_repetition_is_answered_by_how_far_the_message_is(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to):
        [taken] = await submit(to, message("a"))
        attempt = await start(store, taken.number, 1)
        [again] = await submit(to, message("a"))
        assert again.reason == "in flight"
        await end(store, taken.number, 1, attempt, "done", "delivered")
        for sent in (message("a"), {"id": "a"}, message("a", account_id="gone")):
            assert (await submit(to, sent))[0].reason == "already sent"


async def test_partly_delivered_and_failed_is_queued_again_for_the_rest(tmp_path, autojump_clock):
    both = ["a@example.org", "b@example.org"]
    async with ingesting(tmp_path, "default") as (store, to):
        [taken] = await submit(to, message("a", both))
        attempt = await start(store, taken.number, 1, count=2)
        await end(store, taken.number, 1, attempt, "failed", "delivered", "refused", cause="refused")
        [again] = await submit(to, message("a", both))
        assert again.number == taken.number
        assert (await facts(store))[-1].fact.reach == (1,)


async def deliver(store, chance: random.Random) -> None:
    """Attempts at whatever waits, each of which reaches some recipients and puts the others off."""
    while True:
        waiting = await rows(store, f"select {columns(MessageRow, 'm')} from messages m where state = 'waiting'")
        for row in (MessageRow(*found) for found in waiting):
            indexes = tuple(index for index, each in enumerate(row.states()) if each.status in RETRIABLE)
            fact = AttemptStarted(revision=row.revision, recipients=indexes)
            [started] = (await store.record([Draft(fact, message=row.number, account=row.account)])).answers
            if isinstance(started, Declined):
                continue
            await trio.sleep(chance.random() / 100)
            outcomes = tuple(Outcome(index, chance.choice(("delivered", "deferred"))) for index in indexes)
            done = all(outcome.status == "delivered" for outcome in outcomes)
            ended = AttemptEnded(attempt=started.seq, outcomes=outcomes, next="done" if done else "due", due_us=0)
            await store.record([Draft(ended, message=row.number, account=row.account)])
        await trio.sleep(0.001)


@pytest.mark.parametrize("seed", range(5))
async def test_posts_repeated_while_attempts_run_reach_nobody_twice(tmp_path, autojump_clock, seed):
    chance = random.Random(seed)

    async def client(index: int) -> None:
        for _ in range(2 + index % 3):
            await trio.sleep(chance.random() / 20)
            people = chance.sample(("a@x.org", "b@x.org", "c@x.org"), chance.randint(1, 3))
            await submit(to, message(f"id {index % 20}", people))

    async with ingesting(tmp_path, "default") as (store, to), trio.open_nursery() as nursery:
        nursery.start_soon(deliver, store, chance)
        async with trio.open_nursery() as clients:
            for index in range(60):
                clients.start_soon(client, index)
        await trio.sleep(1)
        log = await facts(store)
        nursery.cancel_scope.cancel()
    contents = {entry.seq: entry.fact for entry in log if isinstance(entry.fact, MessageAccepted | MessageRevised)}
    begun = {entry.seq: contents[entry.fact.revision] for entry in log if isinstance(entry.fact, AttemptStarted)}
    reached = [
        begun[entry.fact.attempt].recipients[outcome.recipient]
        for entry in log
        if isinstance(entry.fact, AttemptEnded)
        for outcome in entry.fact.outcomes
        if outcome.status == "delivered"
    ]
    assert len(reached) == len(set(reached)) >= 20 and sum(
        isinstance(each, MessageRevised) for each in contents.values()
    )


async def test_an_account_made_a_moment_ago_is_known_and_one_removed_is_not(tmp_path, autojump_clock):
    async with ingesting(tmp_path) as (store, to):
        assert (await submit(to, message("a")))[0].reason == "missing account configuration"
        number = await save_account(store, "default")
        assert (await submit(to, message("a")))[0].reason is None
        await store.record([Draft(AccountRemoved(), account=number)])
        assert (await submit(to, message("b", account_id="default")))[0].reason == "account not found"
        again = await save_account(store, "default")
        [taken] = await submit(to, message("b"))
        assert (await rows(store, "select account from messages where id = 'b'")) == [(again,)] and taken.reason is None


async def test_a_token_stores_its_batch_once(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to):
        batch = [message("a"), {"id": "b"}, message("c")]
        first = await submit(to, *batch, token="t")
        assert [each.reason for each in first] == [None, "missing from", None]
        assert await kinds(store, 1) == ["BatchFetched", "MessageAccepted", "MessageRejected", "MessageAccepted"]
        seq = store.last_seq
        again = await submit(to, *batch, token="t")
        assert all(each.reason is None and not each.recorded for each in again) and store.last_seq == seq


async def test_a_token_with_known_ids_is_still_one_record(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to):
        [old] = await submit(to, message("a"))
        decisions = await submit(to, message("a", subject="new"), message("b"), {}, token="t")
        assert [each.number for each in decisions[:1]] == [old.number] and decisions[2].reason == "missing id"
        assert await kinds(store, 2) == ["BatchFetched", "MessageRevised", "MessageAccepted"]
        assert await submit(to, token="empty") == ()
        assert (await kinds(store))[-1] == "BatchFetched"


async def test_a_large_batch_is_recorded_in_bounded_commits(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to):
        decisions = await submit(to, *[message(f"id {index}") for index in range(FACTS_A_TURN_MAX + 10)])
        assert len(decisions) == FACTS_A_TURN_MAX + 10 and all(each.number for each in decisions)
        assert await rows(store, "select last_seq from commits") == [
            (1,),
            (FACTS_A_TURN_MAX + 1,),
            (FACTS_A_TURN_MAX + 11,),
        ]


class Poisoned(Secrets):
    """Secrets with a bug for one id."""

    def recipient_digest(self, message_id: str, canonical: str) -> str:
        if message_id == "poison":
            raise ZeroDivisionError("a bug")
        return super().recipient_digest(message_id, canonical)


async def test_a_bug_in_one_item_is_that_items_rejection(tmp_path, autojump_clock, caplog):
    async with ingesting(tmp_path, "default") as (store, to):
        store.secrets = Poisoned(b"k" * 32, lambda n: b"s" * n)
        decisions = await submit(to, message("a"), message("poison"), message("c"))
        assert [each.reason for each in decisions] == [None, "internal error", None]
        assert await states(store) == {"a": "waiting", "poison": "rejected", "c": "waiting"}
        assert [record.getMessage()[:44] for record in caplog.records] == [
            "an item could not be judged, incident 737373"
        ]


@pytest.mark.parametrize("fields", [{}, {"urgent": True}, {"apart": True}, {"token": "t"}])
async def test_a_judge_with_a_bug_costs_the_one_item_and_says_where_to_look(tmp_path, autojump_clock, caplog, fields):
    def planted(raw, submission, row, known):
        if b"poison" in bytes(raw):
            raise ZeroDivisionError("planted")
        return judge(raw, submission, row, known)

    async with ingesting(tmp_path, "default", judge=planted) as (store, to):
        await submit(to, message("known"))
        before = await facts(store)
        again, *decisions = await submit(
            to, message("known", subject="poison"), message("a"), message("poison"), {"id": "poison too"}, message("b"),
            b'{"poison"', **fields,
        )  # fmt: skip
        assert (again.reason, again.recorded) == ("internal error", False), "a known message stands untouched"
        assert [each.reason for each in decisions] == [
            None, "internal error", "internal error", None, "internal error",
        ]  # fmt: skip
        assert await states(store) == {
            "known": "waiting", "a": "waiting", "poison": "rejected", "poison too": "rejected", "b": "waiting",
        }  # fmt: skip
        added = [each.fact for each in (await facts(store))[len(before) :]]
        assert [fact.reason for fact in added if isinstance(fact, MessageRejected)] == ["internal error"] * 2
        assert (await submit(to, message("c")))[0].reason is None
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 4 and all(
        re.fullmatch(r"an item could not be judged, incident [0-9a-f]{8}", one) for one in lines
    )
    assert len(set(lines)) == len(lines), "each incident can be told from the others"
    assert all(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in caplog.records)


class Contested:
    """A store in which the account goes away and comes back just before every commit."""

    def __init__(self, store) -> None:
        self._store = store
        self.clock, self.secrets, self.read = store.clock, store.secrets, store.read
        self.commits = 0

    async def record(self, drafts, **fields):
        self.commits += 1
        [(number,)] = await rows(self._store, "select number from accounts where removed = 0")
        await self._store.record([Draft(AccountRemoved(), account=number)])
        await save_account(self._store)
        return await self._store.record(drafts, **fields)


@pytest.mark.parametrize("token", [None, "t"])
async def test_who_loses_the_race_three_times_is_dropped_and_nobody_spins(tmp_path, autojump_clock, token):
    async with opened(tmp_path) as store:
        await save_account(store)
        contested = Contested(store)
        asked = submission(message("a"), token=token)
        await Ingest(contested, Policy()).take([asked])
        with pytest.raises(Dropped):
            await asked.reply.get()
        assert contested.commits == 3 and await states(store) == {}


class Overtaken:
    """A store in which a whole attempt at message 2 happens between ingest's first look and its second commit."""

    def __init__(self, store) -> None:
        self._store = store
        self.clock, self.secrets, self.read = store.clock, store.secrets, store.read
        self.commits = 0

    async def record(self, drafts, **fields):
        self.commits += 1
        if self.commits == 2:
            attempt = await start(self._store, 2, 1, count=2)
            await end(self._store, 2, 1, attempt, "due", "delivered", "deferred", due_us=2 * T0_US)
        return await self._store.record(drafts, **fields)


async def test_whom_an_attempt_reached_between_look_and_commit_is_passed_by(tmp_path, autojump_clock):
    both = ["a@example.org", "b@example.org"]
    async with opened(tmp_path) as store:
        await save_account(store)
        first, again = submission(message("a", both)), submission(message("a", both))
        await Ingest(store, Policy()).take([first])
        overtaken = Overtaken(store)
        await Ingest(overtaken, Policy()).take([again])
        assert (await again.reply.get())[0].number == 2 and overtaken.commits == 3
        assert (await facts(store))[-1].fact.reach == (1,)


async def test_a_store_that_closes_leaves_nobody_waiting(tmp_path, autojump_clock):
    async with opened(tmp_path) as store:
        await save_account(store)
        send, receive = trio.open_memory_channel(2)
        asked = submission(message("a"))
        send.send_nowait(asked)
        send.close()
        store.recorder.shut()
        with trio.move_on_after(1):
            await run_ingest(receive, store, Policy())
        with pytest.raises(Dropped):
            await asked.reply.get()


async def test_volumes_are_those_of_the_moment(tmp_path, autojump_clock):
    async with ingesting(tmp_path, "default") as (store, to):

        async def reason(name, volume="files"):
            wanted = message(name, attachments=[{"filename": "f", "storage_path": f"{volume}:x"}])
            return (await submit(to, wanted))[0].reason

        refused = "Invalid/unauthorized storage volumes: files:x"
        assert await reason("a") == refused
        await store.record([Draft(VolumeSaved(name="files", backend="memory", config="d"))])
        assert await reason("a") is None
        await store.record([Draft(VolumeSaved(name="files", backend="memory", config="d", account_id="other"))])
        assert await reason("b") == refused
        await store.record([Draft(VolumeSaved(name="files", backend="memory", config="d", account_id="default"))])
        assert await reason("b") is None
        await store.record([Draft(VolumeRemoved(name="files"))])
        assert await reason("c") == refused
        ((data,),) = await rows(store, "select data from log where kind = 'MessageRejected' order by seq limit 1")
        assert b"files:x" not in data
