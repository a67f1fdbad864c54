"""What follows from an attempt: every branch, and that nobody is lost between recipients and message."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.judgement import RetryPolicy, ended, interrupted, what_follows
from events.values import MICROSECONDS, Outcome
from store.views.messages import MessageRow, RecipientState

NOW_US = 1_700_000_000_000_000
POLICY = RetryPolicy()
HOLD = RetryPolicy(hold_in_doubt=True)
STATUSES = ("open", "delivered", "deferred", "refused", "in_doubt")


def row(*statuses: str, **fields: Any) -> MessageRow:
    """A message whose recipients have these statuses as its attempt begins."""
    recipients = (
        "" if set(statuses) == {"open"} else msgspec.json.encode([RecipientState(s) for s in statuses]).decode()
    )
    given = {
        "number": 1, "id": "m", "account": 1, "state": "in_flight", "priority": 2, "due_us": NOW_US, "due_cause": None,
        "expires_us": NOW_US * 2, "created_us": NOW_US, "updated_us": NOW_US, "revision": 1, "size": 1,
        "digests": " ".join("d" * len(statuses)), "recipients": recipients,
    }  # fmt: skip
    return MessageRow(**given | fields)


def outcomes(*statuses: str, first: int = 0) -> tuple[Outcome, ...]:
    return tuple(Outcome(first + index, status) for index, status in enumerate(statuses))  # type: ignore[arg-type]


def after(message: MessageRow, came: tuple[Outcome, ...], policy: RetryPolicy = POLICY, **why: Any):
    return what_follows(message, came, policy, NOW_US, 0.0, **why)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("delivered", "delivered"), ("done", False, None)),
        (("delivered", "refused"), ("failed", True, "refused")),
        (("refused", "refused"), ("failed", True, "refused")),
        (("delivered", "deferred"), ("due", True, None)),
        (("refused", "in_doubt"), ("due", True, None)),
    ],
)
def test_the_recipients_decide_what_becomes_of_the_message(statuses, expected):
    follows = after(row("open", "open"), outcomes(*statuses))
    assert (follows.next, follows.charged, follows.cause) == expected


def test_earlier_recipients_count_too():
    assert after(row("refused", "deferred"), outcomes("delivered", first=1)).next == "failed"
    assert after(row("delivered", "deferred"), outcomes("delivered", first=1)).next == "done"


@pytest.mark.parametrize(("retries", "delay_s"), [(0, 60), (1, 300), (2, 900), (3, 3600), (4, 7200)])
def test_a_retry_waits_its_delay(retries, delay_s):
    follows = after(row("open", retries=retries), outcomes("deferred"))
    assert (follows.next, follows.due_cause, follows.charged) == ("due", "retry", True)
    assert follows.due_us == NOW_US + delay_s * MICROSECONDS


def test_jitter_makes_a_retry_a_tenth_later_at_most():
    follows = what_follows(row("open"), outcomes("deferred"), POLICY, NOW_US, 0.5)
    assert follows.due_us == NOW_US + 63 * MICROSECONDS


def test_retries_are_exhausted():
    follows = after(row("open", retries=5), outcomes("deferred"))
    assert (follows.next, follows.cause, follows.retries, follows.charged) == ("failed", "retries", 5, True)


def test_doubt_is_sent_again_until_it_has_been_twice_and_is_then_held():
    assert after(row("open"), outcomes("in_doubt")).next == "due"
    follows = after(row("in_doubt", doubts=1), outcomes("in_doubt"))
    assert (follows.next, follows.cause) == ("held", "in_doubt")


def test_doubt_is_held_at_once_where_the_policy_says_so():
    assert after(row("open"), outcomes("in_doubt"), HOLD).next == "held"
    # Trouble after the dot is the relay's, and doubt all the same.
    assert after(row("open"), outcomes("in_doubt"), HOLD, relay_until_us=NOW_US).next == "held"


def test_trouble_of_the_relay_is_not_charged_twice_and_charged_the_third_time():
    until_us = NOW_US + 8 * MICROSECONDS
    for uncharged in (0, 1):
        follows = after(row("open", uncharged=uncharged), outcomes("deferred"), relay_until_us=until_us)
        assert (follows.next, follows.due_us, follows.due_cause, follows.charged) == ("due", until_us, "relay", False)
    follows = after(row("open", uncharged=2), outcomes("deferred"), relay_until_us=until_us)
    assert (follows.due_cause, follows.charged) == ("retry", True)


def test_a_relay_whose_moment_has_passed_makes_a_message_due_now():
    assert after(row("open"), outcomes("deferred"), relay_until_us=NOW_US - 5).due_us == NOW_US


def test_a_sender_that_was_cancelled_after_the_dot_leaves_a_doubt_that_waits():
    follows = after(row("open"), outcomes("in_doubt"), relay_until_us=NOW_US)
    assert (follows.due_cause, follows.charged, follows.due_us) == ("retry", True, NOW_US + 60 * MICROSECONDS)


@pytest.mark.parametrize("status", ["delivered", "deferred", "refused", "in_doubt"])
def test_the_next_recipients_have_their_turn_at_once_and_that_is_no_retry(status):
    follows = after(row("open", "open", retries=5), outcomes(status))
    assert (follows.next, follows.due_cause, follows.due_us, follows.charged) == ("due", "more", NOW_US, False)


def test_recipients_deferred_in_an_earlier_turn_are_a_retry_after_the_last():
    follows = after(row("deferred", "open"), outcomes("delivered", first=1))
    assert (follows.due_cause, follows.charged) == ("retry", True)


def test_the_third_unexpected_error_ends_the_message():
    for faults in (0, 1):
        follows = after(row("open", "open", faults=faults), outcomes("deferred"), ours="internal")
        assert (follows.next, follows.cause, follows.due_cause) == ("due", "internal", "retry")
    follows = after(row("open", faults=2), outcomes("deferred"), ours="internal")
    assert (follows.next, follows.cause) == ("failed", "internal")


def test_an_attempt_found_open_is_in_doubt_for_all_its_recipients():
    fact = interrupted(row("delivered", "open", "open"), 7, (1, 2), POLICY, NOW_US, 0.0)
    assert [(each.recipient, each.status) for each in fact.outcomes] == [(1, "in_doubt"), (2, "in_doubt")]
    assert (fact.attempt, fact.next, fact.charged, fact.due_us) == (7, "due", True, NOW_US + 60 * MICROSECONDS)
    assert interrupted(row("open"), 7, (0,), HOLD, NOW_US, 0.0).next == "held"


def test_the_fact_says_what_follows():
    came = outcomes("deferred")
    fact = ended(after(row("open", retries=5), came), 7, came, stage="rcpt", tls=True, verified=True, took_us=5)
    assert (fact.attempt, fact.outcomes, fact.next, fact.cause, fact.retries) == (7, came, "failed", "retries", 5)
    assert (fact.stage, fact.tls, fact.verified, fact.took_us) == ("rcpt", True, True, 5)


@given(st.data())
def test_a_message_is_open_exactly_while_a_recipient_is_or_its_policy_gave_it_up(data):
    statuses = data.draw(st.lists(st.sampled_from(STATUSES), min_size=1, max_size=6))
    tried = [index for index, status in enumerate(statuses) if status in ("open", "deferred", "in_doubt")] or [0]
    came = tuple(Outcome(index, data.draw(st.sampled_from(STATUSES[1:]))) for index in tried)
    counts = {name: data.draw(st.integers(0, 6)) for name in ("retries", "uncharged", "doubts", "faults")}
    policy = data.draw(st.sampled_from([POLICY, HOLD]))
    until_us = data.draw(st.none() | st.integers(NOW_US - 10, NOW_US + 10))
    ours = data.draw(st.sampled_from((None, "internal", "attachment")))
    follows = after(row(*statuses, **counts), came, policy, relay_until_us=until_us, ours=ours)
    result = dict(enumerate(statuses)) | {each.recipient: each.status for each in came}
    still_open = set(result.values()) & {"open", "deferred", "in_doubt"}
    if follows.next == "done":
        assert set(result.values()) == {"delivered"}
    elif not still_open:
        assert (follows.next, follows.cause) == ("failed", "refused")
    elif follows.next == "failed":
        assert follows.cause in ("retries", "internal")
    elif follows.next == "held":
        assert follows.cause == "in_doubt"
    else:
        assert follows.next == "due"
        assert follows.due_us is not None and follows.due_us >= NOW_US


def test_an_attachment_that_could_not_be_had_is_a_retry_however_often_and_for_nobody_else_at_once():
    follows = after(row("open", "open", faults=2), outcomes("deferred"), ours="attachment")
    assert (follows.next, follows.charged, follows.due_cause, follows.cause) == ("due", True, "retry", "attachment")
