"""Why a message has not gone: the reasons walked whole, each with a sentence, and which of two is spoken first."""

import typing
from itertools import combinations

import pytest
from msgspec import Struct

from events.rules import Release
from events.waiting import SENTENCES, Reason, WaitingFor, why, why_account

NOW = 1_000


class Message(Struct, frozen=True):
    state: str = "waiting"
    due_us: int = NOW
    due_cause: str | None = None
    priority: int = 2


class Account(Struct, frozen=True):
    paused: bool = False
    throttled_until_us: int | None = None


class Relay(Struct, frozen=True):
    until_us: int | None = None


class Dispatch(Struct, frozen=True):
    active: bool = True
    restored: bool = False


CLOSED = Release(NOW - 1, NOW + 9)
DOWN = Relay(NOW - 1)
THROTTLED = Account(throttled_until_us=NOW + 5)

# In the order in which they are spoken: (what is so, what is said).
CASES: list[tuple[dict, WaitingFor]] = [
    ({"message": Message("held")}, WaitingFor("held")),
    ({"message": Message(due_us=NOW + 1, due_cause="asked")}, WaitingFor("due_later", NOW + 1)),
    ({"message": Message(due_us=NOW + 1)}, WaitingFor("due_later", NOW + 1)),
    ({"message": Message(due_us=NOW + 1, due_cause="more")}, WaitingFor("due_later", NOW + 1)),
    ({"message": Message(due_us=NOW + 2, due_cause="retry")}, WaitingFor("retry", NOW + 2)),
    ({"message": Message(due_us=NOW + 3, due_cause="relay")}, WaitingFor("relay_unreachable", NOW + 3)),
    ({"dispatch": Dispatch(active=False, restored=True)}, WaitingFor("restored")),
    ({"dispatch": Dispatch(active=False)}, WaitingFor("suspended")),
    ({"disk_low": True}, WaitingFor("disk")),
    ({"account": Account(paused=True)}, WaitingFor("account_paused")),
    ({"account": THROTTLED}, WaitingFor("quota", NOW + 5)),
    ({"release": CLOSED}, WaitingFor("outside_rules", NOW + 9)),
    ({"relay": DOWN}, WaitingFor("relay_unreachable", NOW - 1)),
    ({}, WaitingFor("no_free_connection")),
]


def ask(message=Message(), account=Account(), relay=None, dispatch=Dispatch(), **rest):  # noqa: B008  # frozen
    return why(message, account, relay, dispatch, NOW, **rest)


@pytest.mark.parametrize(("so", "said"), CASES)
def test_a_reason_is_given_with_its_moment(so, said):
    assert ask(**so) == said


def test_of_two_reasons_the_earlier_in_the_list_is_given():
    for (first, said), (second, _) in combinations(CASES, 2):
        if not first.keys() & second.keys():
            assert ask(**second | first) == said, (first, second)


def test_every_reason_is_given_and_has_a_sentence():
    reasons = set(typing.get_args(Reason))
    assert {said.reason for _, said in CASES} == reasons == set(SENTENCES)
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in SENTENCES.values())
    assert len(set(SENTENCES.values())) == len(SENTENCES)


@pytest.mark.parametrize("state", ["in_flight", "sent", "failed", "withdrawn", "rejected"])
def test_what_is_in_flight_or_has_ended_waits_for_nothing(state):
    assert ask(message=Message(state, due_us=NOW + 9), account=Account(paused=True)) is None


def test_a_caller_that_knows_better_names_what_is_left():
    assert ask(or_else=None) is None
    assert ask(account=Account(paused=True), or_else=None) == WaitingFor("account_paused")


def test_immediate_mail_and_what_a_tick_let_go_do_not_wait_for_rules():
    assert ask(release=CLOSED, message=Message(priority=0), or_else=None) is None
    assert ask(release=CLOSED, message=Message(due_us=NOW - 1), or_else=None) is None


def test_what_keeps_an_account_is_known_without_a_message():
    assert why_account(Account(), None, Dispatch(), NOW) is None
    assert why_account(THROTTLED, None, Dispatch(), NOW + 5) is None
    assert why_account(Account(), Relay(None), Dispatch(), NOW) is None
