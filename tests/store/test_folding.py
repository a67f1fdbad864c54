"""Folding: the live tables are what the log gives, whatever happened and however the turns were cut."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.account import AccountPaused
from events.fact import Draft
from events.lifecycle import OPEN
from events.message import DoubtResolved, MessageFailed, MessageHeld, MessageWithdrawn, RetentionPassed
from events.report import BatchFetched, ResultsReported
from events.wire import encode_data
from store import folding
from store.writer import Declined, Request

from .building import T0_US, accepted, account_saved, database
from .telling import end, revise, start, story
from .test_replay import refolded, views_of
from .walking import Walker

SEEDS = st.integers(0, 2**32)


def about(fact, message: int) -> Draft:
    return Draft(fact, message=message, account=1)


def conserved(totals: dict[str, int], accepted_ever: int) -> bool:
    return accepted_ever == sum(totals.get(state, 0) for state in ("sent", "failed", "withdrawn", *OPEN))


def accepted_ever(log) -> int:
    """Messages that were accepted: at once, elsewhere, or with new content after a rejection."""
    first = {entry.message for entry in log if entry.kind in ("MessageAccepted", "MessageImported")}
    rejected = {entry.message for entry in log if entry.kind == "MessageRejected"}
    return len(first | {entry.message for entry in log if entry.kind == "MessageRevised" and entry.message in rejected})


def mailed_again(log) -> list[tuple[int, str]]:
    """(message, digest) of those for whom an attempt began though they had the message, or might have had it under
    another content, and no person had said otherwise."""
    envelope: dict[int, tuple[str, ...]] = {}
    held_back: dict[tuple[int, str], str] = {}
    faults = []
    for entry in log:
        fact, number = entry.fact, entry.message
        match entry.kind:
            case "MessageAccepted" | "MessageRevised":
                envelope[number] = fact.recipients
                for key, status in held_back.items():
                    if key[0] == number and status == "in_doubt":
                        held_back[key] = "passed by"
            case "MessageRequeued":
                for key, status in held_back.items():
                    if key[0] == number and status == "in_doubt":
                        held_back[key] = "passed by"
            case "AttemptEnded" | "AttemptInterrupted":
                for outcome in fact.outcomes:
                    held_back[number, envelope[number][outcome.recipient]] = outcome.status
            case "DoubtResolved":
                for digest in envelope[number]:
                    if fact.resolution == "sent" and held_back.get((number, digest)) != "refused":
                        held_back[number, digest] = "delivered"
                    elif held_back.get((number, digest)) == "in_doubt":
                        held_back[number, digest] = "resolved"
            case "AttemptStarted":
                keys = [(number, envelope[number][index]) for index in fact.recipients]
                faults += [key for key in keys if held_back.get(key) in ("delivered", "passed by")]
    return faults


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 9))
def test_a_random_history_refolds_to_its_live_views(seed, page):
    with database() as connection:
        walker = Walker(connection, random.Random(seed))
        walker.walk(60)
        assert refolded(connection, page, walker.writer.last_seq) == views_of(connection)


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_a_random_history_conserves_mails_nobody_again_and_keeps_time(seed):
    with database() as connection:
        walker = Walker(connection, random.Random(seed))
        walker.walk(80)
        log = walker.log
        assert [entry.seq for entry in log] == list(range(1, len(log) + 1))
        assert [entry.at_us for entry in log] == sorted(entry.at_us for entry in log)
        totals = dict(connection.execute("select state, sum(n) from totals group by state"))
        assert conserved(totals, accepted_ever(log))
        assert mailed_again(log) == []
        assert connection.execute("select count(*) from due_minutes where n <= 0").fetchone() == (0,)
        waiting = connection.execute("select count(*), (select coalesce(sum(n), 0) from due_minutes) from messages"
                                     " where state = 'waiting'").fetchone()  # fmt: skip
        assert waiting[0] == waiting[1] == totals.get("waiting", 0)


def test_walks_see_all_there_is():
    """The walker is worth what it meets: every kind of fact about a message, and nearly every refusal."""
    kinds, reasons = set(), set()
    for seed in range(30):
        with database() as connection:
            walker = Walker(connection, random.Random(seed))
            walker.walk(80)
            kinds |= {entry.kind for entry in walker.log}
            reasons |= set(walker.refused)
    assert {"RetentionPassed", "DoubtResolved", "MessageRevised", "AttemptInterrupted", "BatchFetched"} <= kinds
    assert {"MessageRequeued", "MessageExpedited", "ContentErased"} <= kinds
    assert {"MessageImported", "AccountSendsImported"} <= kinds
    assert {"reached meanwhile", "other revision", "token seen", "unreported", "account paused", "suspended"} <= reasons
    assert {"content erased", "content needed", "not failed", "not put off"} <= reasons


# Whole or nothing


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_a_request_that_is_not_whole_leaves_no_trace(seed):
    """With and without a whole request that cannot be taken, the same history gives the same tables."""
    tables = []
    for with_it in (False, True):
        with database() as connection:
            chance = random.Random(seed)
            walker = Walker(connection, chance)
            walker.walk(40)
            drafts = [walker._draft() for _ in range(6)]
            poison = Draft(MessageWithdrawn(), message=10**6)
            requests = [Request((draft,), {}) for draft in (walker._draft(), walker._draft())]
            if with_it:
                requests[1:1] = [Request((*drafts, poison), {}, whole=True)]
            walker.writer.turn(requests)
            after = Request((walker._draft(), *drafts), {})
            walker.writer.turn([after])
            log = connection.execute("select * from log order by seq").fetchall()
            ids = connection.execute("select * from ids order by id").fetchall()
            tables.append((log, ids, views_of(connection)))
    assert tables[0] == tables[1]


def test_an_incomplete_request_is_told_what_was_true_before_it():
    with story() as s:
        last = s.writer.last_seq
        recorded = s.together(accepted("a"), accepted("a"), whole=True)
        assert [(answer.reason, answer.seq, answer.row) for answer in recorded.answers] == [
            ("another fact of the same request did not fit", last, None),
            ("known id", last, None),
        ]
        assert isinstance(s.when(accepted("a")).seq, int) and s.writer.last_seq == last + 1


def test_a_batch_that_is_not_whole_brings_back_no_row_that_retention_took():
    with story() as s:
        number = s.given(accepted("a"))
        final = s.given(about(MessageFailed(cause="internal"), number))
        s.given(Draft(ResultsReported(up_to=final)))
        s.given(Draft(RetentionPassed(before=final + 1)))
        assert s.row(number) is None
        s.given(Draft(BatchFetched(token="t", messages=0)))
        again = Draft(BatchFetched(token="t", messages=1))
        assert not s.together(revise(number, "a", ["a:0"], [0]), again, whole=True).complete
        s.given(accepted("b"))
        assert s.row(number) is None and views_of(s.connection) == refolded(s.connection, 3, s.writer.last_seq)


def test_retention_in_a_request_that_is_not_whole_takes_nothing():
    with story() as s:
        number = s.given(accepted("a"))
        final = s.given(about(MessageFailed(cause="internal"), number))
        s.given(Draft(ResultsReported(up_to=final)))
        before = views_of(s.connection)
        refused = s.together(Draft(RetentionPassed(before=final + 1)), Draft(AccountPaused(), account=9), whole=True)
        assert not refused.complete and views_of(s.connection) == before
        s.given(accepted("b"))
        assert s.row(number) is not None


# Retention


def test_retention_in_the_middle_of_a_turn():
    with story() as s:
        number = s.given(accepted("a"))
        attempt = s.given(start(number))
        ended = s.writer.last_seq + 1
        recorded = s.together(
            end(number, attempt, "failed", "refused"),
            Draft(ResultsReported(up_to=ended)),
            Draft(RetentionPassed(before=ended + 1)),
            revise(number, "a", ["a:0", "b"], [0, 1]),
            accepted("z"),
        )
        assert recorded.complete
        assert s.row(number).state == "waiting" and s.connection.execute("select * from results").fetchall() == []
        for page in (1, 2, 100):
            assert refolded(s.connection, page, s.writer.last_seq) == views_of(s.connection)


def test_what_retention_took_is_known_by_its_own_facts():
    with story() as s:
        number = s.given(accepted("a", recipients=2))
        attempt = s.given(start(number, recipients=(0, 1)))
        final = s.given(end(number, attempt, "failed", "delivered", "refused"))
        s.given(Draft(ResultsReported(up_to=final)))
        s.given(Draft(RetentionPassed(before=final + 1)))
        assert s.row(number) is None
        known = s.when(accepted("a"))
        assert isinstance(known, Declined) and known.row.state == "failed"
        assert s.when(revise(number, "a", ["a:0"], [0])).reason == "reached meanwhile"
        s.given(revise(number, "a", ["a:0", "a:1"], [1]))
        assert s.statuses(number) == ["delivered", "open"]
        assert s.totals() == {"waiting": 1}


def test_retention_keeps_what_is_open_and_what_ended_later():
    with story() as s:
        waiting, failed, later = (s.given(accepted(name)) for name in "abc")
        final = s.given(about(MessageFailed(cause="internal"), failed))
        s.given(Draft(ResultsReported(up_to=final)))
        s.given(about(MessageFailed(cause="internal"), later))
        s.given(Draft(RetentionPassed(before=final + 1)))
        assert [number for number in (waiting, failed, later) if s.row(number)] == [waiting, later]
        assert s.connection.execute("select message from results").fetchall() == [(later,)]


def test_what_ends_after_retention_is_kept_however_the_log_is_cut():
    """No admission would take such a retention; a fold must not depend on that."""
    failed = MessageFailed(cause="internal")
    facts = [accepted("a"), accepted("b"), about(failed, 1), Draft(RetentionPassed(before=100)), about(failed, 2)]
    with database() as connection:
        for seq, draft in enumerate(facts, 1):
            fact, message = draft.fact, draft.message or (None if isinstance(draft.fact, RetentionPassed) else seq)
            row = (seq, T0_US, type(fact).__name__, 1, message, 1, encode_data(fact))
            connection.execute("insert into log values (?, ?, ?, ?, ?, ?, ?)", row)
        whole = refolded(connection, 100, 5)
        assert whole == refolded(connection, 1, 5) and [row[0] for row in whole["messages"]] == [2]


# The rows in memory


def test_nothing_depends_on_which_rows_are_in_memory(monkeypatch):
    tables = []
    for kept in (0, 1, 20_000):
        monkeypatch.setattr(folding, "ROWS_KEPT_MAX", kept)
        monkeypatch.setattr(folding, "ATTEMPTS_KEPT_MAX", kept)
        with database() as connection:
            walker = Walker(connection, random.Random(5))
            walker.walk(150)
            tables.append(views_of(connection))
    assert tables[0] == tables[1] == tables[2]


def test_after_a_rollback_the_tables_alone_say_what_is_true():
    with story() as s:
        number = s.given(accepted("a"))
        attempt = s.given(start(number))
        before = views_of(s.connection)
        s.connection.execute("create trigger broken before insert on log begin select raise(abort, 'no'); end")
        with pytest.raises(Exception, match="no"):
            s.together(end(number, attempt, "done", "delivered"), accepted("b"))
        s.connection.execute("drop trigger broken")
        assert views_of(s.connection) == before
        s.given(end(number, attempt, "done", "delivered"))
        assert s.given(accepted("b")) == s.writer.last_seq == attempt + 2
        assert views_of(s.connection) == refolded(s.connection, 2, s.writer.last_seq)


def test_revised_under_another_account_and_priority():
    with story() as s:
        other = s.given(account_saved("other"))
        number = s.given(accepted("a", priority=3, due_us=T0_US))
        s.given(revise(number, "a", ["x"], [0], account=other, due_us=2 * T0_US))
        row = s.row(number)
        assert (row.account, row.priority, row.due_us, row.state) == (other, 1, 2 * T0_US, "waiting")
        assert s.connection.execute("select account, n from totals where n <> 0").fetchall() == [(other, 1)]
        assert [account for account, *_ in s.connection.execute("select * from due_minutes")] == [other]


def test_a_requeue_keeps_the_older_result():
    with story() as s:
        number = s.given(accepted("a"))
        first = s.given(about(MessageFailed(cause="internal"), number))
        revision = s.given(revise(number, "a", ["a:0"], [0]))
        attempt = s.given(start(number, revision))
        second = s.given(end(number, attempt, "done", "delivered"))
        assert s.connection.execute("select seq, status from results order by seq").fetchall() == [
            (first, "error"),
            (second, "sent"),
        ]
        s.given(about(MessageHeld(cause="x"), s.given(accepted("b"))))
        s.given(about(DoubtResolved(resolution="error"), s.writer.last_seq - 1))
        assert s.totals() == {"sent": 1, "failed": 1}
