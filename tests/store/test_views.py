"""The views' folds, one by one: what a fact makes of a row."""

import pytest
from hypothesis import given, settings

from events.account import AccountPaused, AccountRemoved, AccountThrottled, RelayReached, RelayUnreachable
from events.attempt import AttemptEnded
from events.fact import Draft, Entry
from events.message import (
    DoubtResolved,
    MessageExpedited,
    MessageFailed,
    MessageHeld,
    MessageRequeued,
    MessageRevised,
    MessageWithdrawn,
)
from events.schedule import DispatchActivated, DispatchSuspended, RuleRemoved
from events.service import ClockStepped, ClockTrusted
from events.values import Outcome
from store.folding import _MOVED
from store.views import MESSAGES, RELAYS
from store.views.counts import DAY_S
from store.views.rules import RulesRow

from .building import T0_US, accepted, account_saved, letter, rule_saved
from .random_facts import LOGS
from .telling import Story, end, revise, start, story


def about(fact, message: int | None = None) -> Draft:
    return Draft(fact, message=message, account=1)


def tried(s: Story, then: str, *statuses: str, **fields) -> int:
    """A message of that many recipients after one attempt at all of them."""
    number = s.given(accepted("a", recipients=len(statuses)))
    s.given(end(number, s.given(start(number, recipients=range(len(statuses)))), then, *statuses, **fields))
    return number


# Messages


def test_an_attempt_leaves_each_recipient_its_own_word():
    with story() as s:
        number = tried(
            s, "due", "delivered", "deferred", "refused", "in_doubt", due_us=5, due_cause="retry", charged=True
        )
        row = s.row(number)
        assert s.statuses(number) == ["delivered", "deferred", "refused", "in_doubt"]
        assert (row.state, row.attempts, row.retries, row.doubts, row.due_us, row.due_cause) == (
            "waiting",
            1,
            1,
            1,
            5,
            "retry",
        )
        assert [state.ended for state in row.states()] == [s.writer.last_seq] * 4


def test_ends_for_which_only_the_relay_was_to_blame_are_counted_in_a_row():
    with story() as s:
        number = s.given(accepted("a"))
        counts = []
        for cause in ("relay", "relay", "retry", "relay"):
            s.given(end(number, s.given(start(number)), "due", "deferred", due_cause=cause))
            counts.append(s.row(number).uncharged)
        assert counts == [1, 2, 0, 1]


@pytest.mark.parametrize(
    ("then", "state", "statuses"),
    [
        ("due", "withdrawn", ["delivered", "withdrawn", "in_doubt", "withdrawn"]),
        ("held", "withdrawn", ["delivered", "withdrawn", "in_doubt", "withdrawn"]),
        ("failed", "failed", ["delivered", "deferred", "in_doubt", "open"]),
        ("done", "sent", ["delivered", "deferred", "in_doubt", "open"]),
    ],
)
def test_taken_back_in_flight_what_is_still_open_is_withdrawn_when_the_attempt_ends(then, state, statuses):
    with story() as s:
        number = s.given(accepted("a", recipients=4))
        attempt = s.given(start(number, recipients=(0, 1, 2)))
        s.given(about(MessageWithdrawn(), number))
        assert (s.row(number).state, s.row(number).withdrawing) == ("in_flight", 1)
        final = s.given(end(number, attempt, then, "delivered", "deferred", "in_doubt"))
        row = s.row(number)
        assert (row.state, row.withdrawing, row.final_seq) == (state, 0, final)
        assert s.statuses(number) == statuses and s.totals() == {state: 1}


def test_an_expired_message_says_so_for_whoever_was_not_reached():
    with story() as s:
        number = tried(s, "due", "delivered", "deferred", "refused")
        s.writer._now_us = lambda: 2 * T0_US
        s.given(about(MessageFailed(cause="expired", after_s=60), number))
        assert s.statuses(number) == ["delivered", "expired", "refused"]
        assert (s.row(number).cause, s.row(number).detail) == ("expired", "60")


@pytest.mark.parametrize(
    ("resolution", "state", "cause", "statuses"),
    [
        ("resend", "waiting", "resolved_resend", ["delivered", "open", "deferred"]),
        ("sent", "sent", "resolved_sent", ["delivered", "delivered", "delivered"]),
        ("error", "failed", "resolved_error", ["delivered", "refused", "deferred"]),
    ],
)
def test_a_resolution_is_the_last_word_about_who_was_in_doubt(resolution, state, cause, statuses):
    with story() as s:
        number = tried(s, "held", "delivered", "in_doubt", "deferred", cause="in_doubt")
        s.given(about(DoubtResolved(resolution=resolution), number))
        row = s.row(number)
        assert (row.state, row.cause, row.doubts) == (state, cause, 0)
        assert s.statuses(number) == statuses


def test_a_message_that_a_relay_refused_for_somebody_is_not_sent_by_a_persons_word():
    with story() as s:
        number = tried(s, "held", "refused", "in_doubt")
        s.given(about(DoubtResolved(resolution="sent"), number))
        assert (s.row(number).state, s.row(number).cause) == ("failed", "refused")
        assert s.statuses(number) == ["refused", "delivered"]
        assert s.connection.execute("select status, cause from results").fetchall() == [("error", "refused")]


def test_sent_again_for_later_it_is_due_because_somebody_asked():
    with story() as s:
        number = tried(s, "held", "in_doubt")
        s.given(about(DoubtResolved(resolution="resend", due_us=2 * T0_US), number))
        assert (s.row(number).due_us, s.row(number).due_cause) == (2 * T0_US, "asked")


def test_what_failed_is_tried_again_for_whoever_was_not_reached_with_retries_and_attempts_anew():
    with story() as s:
        number = s.given(accepted("a", recipients=4), letter("x"))
        attempt = s.given(start(number, recipients=range(4)))
        fields = {"cause": "retries", "retries": 5, "charged": True}
        s.given(end(number, attempt, "failed", "delivered", "refused", "deferred", "in_doubt", **fields))
        s.given(about(MessageRequeued(due_us=T0_US, expires_us=9 * T0_US), number))
        row = s.row(number)
        assert (row.state, row.due_us, row.due_cause, row.expires_us) == ("waiting", T0_US, None, 9 * T0_US)
        assert (row.attempts, row.retries, row.doubts, row.final_seq, row.cause, row.revision) == (
            *(0, 0, 0, None, None),
            number,
        )
        assert s.statuses(number) == ["delivered", "open", "open", "passed_by"]
        assert s.totals() == {"waiting": 1}
        assert s.connection.execute("select status from results").fetchall() == [("error",)], "the old result stays"
        again = s.given(start(number, recipients=[1, 2]))
        s.given(end(number, again, "failed", cause="refused"))
        assert s.statuses(number)[-1] == "in_doubt", "a doubt is not forgotten"
        assert len(s.connection.execute("select status from results").fetchall()) == 2


def test_queued_again_it_is_due_whatever_moment_was_asked_for_before():
    """Also after a step of the clock, which moves what was asked for by the moment that was asked for."""
    with story() as s:
        number = s.given(accepted("a", due_us=2 * T0_US), letter("x"))
        s.given(about(MessageFailed(cause="internal"), number))
        s.given(about(MessageRequeued(due_us=T0_US, expires_us=9 * T0_US), number))
        assert (s.row(number).due_us, s.row(number).asked_us) == (T0_US, None)
        s.given(Draft(ClockTrusted()))
        s.given(Draft(ClockStepped(by_us=5, to_us=T0_US + 5, waits_us=5)))
        assert s.row(number).due_us == T0_US + 5


def test_expedited_it_is_due_at_once_and_nobody_asked_for_later():
    with story() as s:
        number = tried(s, "due", "deferred", due_us=2 * T0_US, due_cause="retry", charged=True)
        s.given(about(MessageExpedited(due_us=T0_US), number))
        row = s.row(number)
        assert (row.state, row.due_us, row.due_cause, row.retries) == ("waiting", T0_US, None, 1)
        minutes = s.connection.execute("select minute, n from due_minutes").fetchall()
        assert minutes == [(T0_US // 60_000_000, 1)]


def test_let_go_with_the_due_that_it_had_it_waits_for_the_old_reason_and_with_the_new_end():
    with story() as s:
        number = tried(s, "due", "deferred", due_us=2 * T0_US, due_cause="retry")
        s.given(about(MessageHeld(cause="operator"), number))
        s.given(about(DoubtResolved(resolution="resend", due_us=2 * T0_US, expires_us=9 * T0_US), number))
        row = s.row(number)
        assert (row.state, row.due_us, row.due_cause, row.expires_us) == ("waiting", 2 * T0_US, "retry", 9 * T0_US)


def test_held_untried_and_called_sent():
    with story() as s:
        number = s.given(accepted("a", recipients=2))
        s.given(about(MessageHeld(cause="x"), number))
        s.given(about(DoubtResolved(resolution="sent"), number))
        assert s.statuses(number) == ["delivered", "delivered"]


def test_new_content_after_a_partial_delivery():
    """Who has it keeps it, who was refused is tried again, who is no longer named is remembered."""
    with story() as s:
        number = tried(s, "due", "delivered", "refused", "deferred", charged=True)
        s.given(revise(number, "a", ["new", "a:1", "a:0"], [0, 1], due_us=2 * T0_US))
        row = s.row(number)
        assert s.statuses(number) == ["open", "open", "delivered"] and row.reached == ""
        assert (row.attempts, row.retries, row.due_cause, row.revision) == (0, 0, "asked", s.writer.last_seq)
        s.given(revise(number, "a", ["new"], [0]))
        assert s.statuses(number) == ["open"] and list(s.row(number).reached_digests()) == ["a:0"]
        s.given(revise(number, "a", ["a:0", "b"], [1]))
        assert s.statuses(number) == ["delivered", "open"]


def test_new_content_passes_by_who_was_in_doubt_until_the_end():
    with story() as s:
        number = tried(s, "due", "in_doubt", "deferred")
        revision = s.given(revise(number, "a", ["a:0", "a:1"], [1]))
        assert s.statuses(number) == ["passed_by", "open"]
        attempt = s.given(start(number, revision, recipients=(1,)))
        outcome = AttemptEnded(attempt=attempt, outcomes=(Outcome(1, "delivered"),), next="failed", cause="refused")
        s.given(about(outcome, number))
        assert s.statuses(number) == ["in_doubt", "delivered"]
        assert list(s.row(number).reached_digests()) == ["a:0", "a:1"]
        s.given(revise(number, "a", ["a:0", "c"], [1]))
        assert s.statuses(number) == ["passed_by", "open"]


def test_rejected_and_then_revised_counts_as_accepted():
    from .test_admission import REJECTED

    with story() as s:
        number = s.given(REJECTED)
        assert s.totals() == {"rejected": 1} and s.row(number).account is None
        s.given(revise(number, "a", ["x"], [0]))
        assert s.totals() == {"waiting": 1} and s.row(number).account == 1
        assert s.connection.execute("select seq, status from results").fetchall() == [(number, "error")]


def test_withdrawn_has_no_result():
    with story() as s:
        s.given(about(MessageWithdrawn(), s.given(accepted("a"))))
        assert s.totals() == {"withdrawn": 1}
        assert s.connection.execute("select * from results").fetchall() == []


@pytest.mark.parametrize("index", [-(10**6), -1, 1, 10**6])
def test_an_outcome_for_a_recipient_that_is_not_there_is_passed_over(index):
    with story() as s:
        number = s.given(accepted("a"))
        attempt = s.given(start(number))
        ended = AttemptEnded(attempt=attempt, outcomes=(Outcome(index, "delivered"),), next="due")
        s.given(about(ended, number))
        assert s.statuses(number) == ["open"]


@settings(deadline=None, max_examples=60)
@given(LOGS)
def test_only_new_content_changes_what_is_not_written_again(log):
    """A stored row's update writes the columns of _MOVED alone, unless its revision is another."""
    rows = {}
    for entry in log:
        for key in MESSAGES.keys(entry) if type(entry.fact) in MESSAGES.facts else ():
            before = rows.get(key)
            after = rows[key] = MESSAGES.evolve(before, entry)
            if before and after and not isinstance(entry.fact, MessageRevised):
                names = MESSAGES.row.__struct_fields__
                changed = {name for name in names if getattr(before, name) != getattr(after, name)}
                assert changed <= set(_MOVED) and before.revision == after.revision


# Counts


def test_due_minutes_hold_who_waits_and_no_empty_minute():
    with story() as s:
        minute = 60_000_000
        first, second = s.given(accepted("a", due_us=minute)), s.given(accepted("b", due_us=minute + 1))
        assert s.connection.execute("select * from due_minutes").fetchall() == [(1, 1, 2)]
        attempt = s.given(start(first))
        assert s.connection.execute("select * from due_minutes").fetchall() == [(1, 1, 1)]
        s.given(end(first, attempt, "due", "deferred", due_us=3 * minute))
        s.given(about(MessageWithdrawn(), second))
        assert s.connection.execute("select * from due_minutes").fetchall() == [(1, 3, 1)]


def test_slots_count_what_a_relay_counts_in_a_ring_of_a_day():
    with story() as s:
        step = iter([T0_US, T0_US + 1, T0_US + 10, T0_US + DAY_S * 1_000_000])
        for name, status in (("a", "delivered"), ("b", "in_doubt"), ("c", "refused"), ("d", "delivered")):
            number = s.given(accepted(name))
            attempt = s.given(start(number))
            s.writer._now_us = lambda: next(step)
            s.given(end(number, attempt, "failed" if status == "refused" else "due", status))
            s.writer._now_us = lambda: 0
            counted = s.connection.execute("select slot, second, n from slots").fetchall()
            second = T0_US // 1_000_000
            if name == "d":
                assert counted == [(second % DAY_S, second + DAY_S, 1)]
        assert len(counted) == 1


# The other views


def test_new_limits_open_what_the_old_ones_had_closed():
    with story() as s:
        s.given(about(account_saved(limit_per_minute=2).fact))
        s.given(about(AccountThrottled(until_us=9, window_s=60, limit=2)))
        until = "select throttled_until_us, paused, removed from accounts"
        assert s.connection.execute(until).fetchall() == [(9, 0, 0)]
        s.given(about(account_saved(limit_per_minute=3).fact))
        s.given(about(AccountPaused()))
        assert s.connection.execute(until).fetchall() == [(None, 1, 0)]
        s.given(about(AccountRemoved()))
        assert s.connection.execute(until).fetchall() == [(None, 1, 1)]


def test_a_relay_that_is_reached_has_no_row():
    down = RelayUnreachable(host="R.example", port=25, credentials="c", reason="timeout", until_us=5, failures=1)
    up = RelayReached(host="r.example", port=25, credentials="c")
    key = "r.example:25 c"
    first = RELAYS.evolve(None, Entry(1, 10, None, None, down))
    assert RELAYS.keys(Entry(1, 10, None, None, down)) == RELAYS.keys(Entry(2, 11, None, None, up)) == (key,)
    assert RELAYS.evolve(first, Entry(2, 20, None, None, down)).since_us == 10
    assert RELAYS.evolve(first, Entry(2, 20, None, None, up)) is None


def test_a_rule_is_known_by_its_first_fact_and_the_row_stays_when_all_are_gone():
    with story() as s:

        def rules() -> list[tuple[int, str]]:
            ((text,),) = s.connection.execute("select rules from rules")
            return [(rule.id, rule.name) for rule in RulesRow(0, text).all()]

        first, second = s.given(rule_saved(name="a")), s.given(rule_saved(name="b"))
        s.given(rule_saved(rule=first, name="c"))
        assert rules() == [(first, "c"), (second, "b")]
        s.given(Draft(RuleRemoved(rule=first)))
        s.given(Draft(RuleRemoved(rule=second)))
        assert rules() == []


def test_a_restored_backup_stays_restored_until_it_is_activated():
    with story() as s:
        states = []
        for fact in (DispatchSuspended(restored=True), DispatchSuspended(), DispatchActivated(), DispatchSuspended()):
            s.given(Draft(fact))
            states += s.connection.execute("select active, restored from dispatch").fetchall()
        assert states == [(0, 1), (0, 1), (1, 0), (0, 0)]
