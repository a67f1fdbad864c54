"""The table walked whole: each state and step is decided on purpose."""

import typing

import pytest

from events.attempt import AttemptEnded, AttemptInterrupted, AttemptStarted, Next
from events.lifecycle import FINAL, IMPOSSIBLE, LIFECYCLE, OPEN, STATES, STEPS, Refusal, follow, in_the_case_of, step_of
from events.message import DoubtResolved, MessageAccepted, MessageHeld, Resolution
from events.service import ServiceStopped
from events.wire import KINDS

# One letter a state, in the order of STATES, and "." where the step is refused.
LETTERS = dict(zip(STATES, "wihsfxr", strict=True))
EXPECTED = {
    #                                         none  w i h s f x r
    "MessageAccepted": ("w", ". . . . . . ."),
    "MessageRejected": ("r", ". . . . . . ."),
    "MessageImported sent": ("s", ". . . . . . ."),
    "MessageImported failed": ("f", ". . . . . . ."),
    "MessageRevised": (".", "w . . . w w w"),
    "MessageRequeued": (".", ". . . . w . ."),
    "MessageExpedited": (".", "w . . . . . ."),
    "MessageWithdrawn": (".", "x i x . . . ."),
    "MessageHeld": (".", "h . . . . . ."),
    "MessageFailed": (".", "f . f . . . ."),
    "DoubtResolved resend": (".", ". . w . . . ."),
    "DoubtResolved sent": (".", ". . s . . . ."),
    "DoubtResolved sent, some refused": (".", ". . f . . . ."),
    "DoubtResolved error": (".", ". . f . . . ."),
    "AttemptStarted": (".", "i . . . . . ."),
    "AttemptEnded due": (".", ". w . . . . ."),
    "AttemptEnded due, withdrawn meanwhile": (".", ". x . . . . ."),
    "AttemptEnded held": (".", ". h . . . . ."),
    "AttemptEnded held, withdrawn meanwhile": (".", ". x . . . . ."),
    "AttemptEnded failed": (".", ". f . . . . ."),
    "AttemptEnded done": (".", ". s . . . . ."),
}


def letter(after: str) -> str:
    return "." if isinstance(after, Refusal) else LETTERS[after]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_leads_where_it_should_or_is_refused(step):
    assert (letter(follow(None, step)), " ".join(letter(follow(state, step)) for state in STATES)) == EXPECTED[step]


def test_no_pair_is_absent():
    assert set(LIFECYCLE) == {(state, step) for state in (None, *STATES) for step in STEPS}
    assert set(EXPECTED) == set(STEPS)


@pytest.mark.parametrize(
    ("state", "step", "reason"),
    [
        ("sent", "MessageRevised", "already sent"),
        ("in_flight", "MessageRevised", "in flight"),
        ("held", "MessageRevised", "in flight"),
        ("waiting", "MessageAccepted", "known id"),
        ("sent", "MessageWithdrawn", "already ended"),
        ("in_flight", "AttemptStarted", "not waiting"),
        ("waiting", "AttemptEnded done", "no such attempt"),
        ("waiting", "DoubtResolved sent", "not held"),
        (None, "AttemptStarted", "unknown message"),
        ("waiting", "no such step", IMPOSSIBLE),
    ],
)
def test_a_refusal_says_why_in_the_words_that_a_client_gets(state, step, reason):
    assert follow(state, step) == reason


def test_states_are_open_or_final():
    assert set(STATES) == OPEN | FINAL and not OPEN & FINAL


def test_only_a_new_content_leaves_a_final_state():
    leaving = {step for state in FINAL for step in STEPS if not isinstance(follow(state, step), Refusal)}
    assert leaving == {"MessageRevised", "MessageRequeued"}


def test_every_kind_and_word_has_a_step_or_changes_no_state():
    ends = [
        kind(attempt=1, outcomes=(), next=word)
        for kind in (AttemptEnded, AttemptInterrupted)
        for word in typing.get_args(Next)
    ]
    resolutions = [DoubtResolved(resolution=word) for word in typing.get_args(Resolution)]
    assert {step_of(fact) for fact in (*ends, *resolutions)} <= set(STEPS)
    assert step_of(MessageHeld(cause="x")) == "MessageHeld"
    assert step_of(AttemptStarted(revision=1, recipients=())) == "AttemptStarted"
    assert step_of(ServiceStopped()) is None
    plain = {step for step in STEPS if " " not in step}
    assert plain <= set(KINDS) and MessageAccepted.__name__ in plain


def test_the_case_matters_for_two_marked_ends_and_one_resolution():
    changed = {step: in_the_case_of(step, withdrawing=True, some_refused=True) for step in STEPS}
    assert {step: case for step, case in changed.items() if step != case} == {
        "AttemptEnded due": "AttemptEnded due, withdrawn meanwhile",
        "AttemptEnded held": "AttemptEnded held, withdrawn meanwhile",
        "DoubtResolved sent": "DoubtResolved sent, some refused",
    }
    assert all(in_the_case_of(step) == step for step in STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_whether_a_step_is_refused_does_not_depend_on_the_case(step):
    """Admission looks at the step alone."""
    case = in_the_case_of(step, withdrawing=True, some_refused=True)
    for state in (None, *STATES):
        assert isinstance(follow(state, step), Refusal) == isinstance(follow(state, case), Refusal)
