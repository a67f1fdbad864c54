"""The life of a message: (state, step) -> state, or the reason why that cannot happen.

What changes a message's state is in this table and nowhere else. Admission refuses by it inside the very
transaction that would write the fact, the view `messages` folds by it, and the diagram in the docs is drawn
from it. A pair that is absent is a programmer's error and refused as "impossible".

A *step* is a fact's kind, and where one kind can lead to different states, the word in the fact that decides. Two
steps depend on what the message has been through as well, and have a second form for it: `in_the_case_of` chooses.
"""

import typing
from typing import Literal

from .attempt import AttemptEnded, AttemptInterrupted, AttemptStarted, Next
from .fact import Fact
from .message import (
    DoubtResolved,
    Ended,
    MessageAccepted,
    MessageExpedited,
    MessageFailed,
    MessageHeld,
    MessageImported,
    MessageRejected,
    MessageRequeued,
    MessageRevised,
    MessageWithdrawn,
    Resolution,
)

State = Literal["waiting", "in_flight", "held", "sent", "failed", "withdrawn", "rejected"]

STATES: tuple[State, ...] = ("waiting", "in_flight", "held", "sent", "failed", "withdrawn", "rejected")
OPEN: frozenset[State] = frozenset({"waiting", "in_flight", "held"})
FINAL: frozenset[State] = frozenset({"sent", "failed", "withdrawn", "rejected"})

STEPS = (
    "MessageAccepted",
    "MessageRejected",
    "MessageImported sent",
    "MessageImported failed",
    "MessageRevised",
    "MessageRequeued",
    "MessageExpedited",
    "MessageWithdrawn",
    "MessageHeld",
    "MessageFailed",
    "DoubtResolved resend",
    "DoubtResolved sent",
    "DoubtResolved sent, some refused",
    "DoubtResolved error",
    "AttemptStarted",
    "AttemptEnded due",
    "AttemptEnded due, withdrawn meanwhile",
    "AttemptEnded held",
    "AttemptEnded held, withdrawn meanwhile",
    "AttemptEnded failed",
    "AttemptEnded done",
)
"""AttemptInterrupted takes the steps of AttemptEnded: for the message it is an end like any other."""

_WITHDRAWN_MEANWHILE = {step: f"{step}, withdrawn meanwhile" for step in ("AttemptEnded due", "AttemptEnded held")}
_SOME_REFUSED = {"DoubtResolved sent": "DoubtResolved sent, some refused"}


class Refusal(str):
    """Why a step cannot happen in a state: the words that a client gets, where a client asked."""


ALREADY_SENT = Refusal("already sent")
IN_FLIGHT = Refusal("in flight")
KNOWN = Refusal("known id")
UNKNOWN = Refusal("unknown message")
NOT_WAITING = Refusal("not waiting")
NOT_HELD = Refusal("not held")
NOT_FAILED = Refusal("not failed")
ENDED = Refusal("already ended")
NO_ATTEMPT = Refusal("no such attempt")
IMPOSSIBLE = Refusal("impossible")

_FIRST_FACTS = ("MessageAccepted", "MessageRejected", "MessageImported sent", "MessageImported failed")
_ENDS = tuple(step for step in STEPS if step.startswith("AttemptEnded"))
_RESOLUTIONS = tuple(step for step in STEPS if step.startswith("DoubtResolved"))

LIFECYCLE: dict[tuple[State | None, str], State | Refusal] = {
    # A number begins with one of three facts, and only there.
    (None, "MessageAccepted"): "waiting",
    (None, "MessageRejected"): "rejected",
    (None, "MessageImported sent"): "sent",
    (None, "MessageImported failed"): "failed",
    **{(None, step): UNKNOWN for step in STEPS if step not in _FIRST_FACTS},
    **{(state, step): KNOWN for state in STATES for step in _FIRST_FACTS},
    # The same id again: it takes the place of what has not been sent.
    ("waiting", "MessageRevised"): "waiting",
    ("failed", "MessageRevised"): "waiting",
    ("withdrawn", "MessageRevised"): "waiting",
    ("rejected", "MessageRevised"): "waiting",
    ("in_flight", "MessageRevised"): IN_FLIGHT,
    ("held", "MessageRevised"): IN_FLIGHT,
    ("sent", "MessageRevised"): ALREADY_SENT,
    # Trying again what is known already: once more after a failure, or sooner than at its turn.
    ("failed", "MessageRequeued"): "waiting",
    **{(state, "MessageRequeued"): NOT_FAILED for state in STATES if state != "failed"},
    ("waiting", "MessageExpedited"): "waiting",
    **{(state, "MessageExpedited"): NOT_WAITING for state in STATES if state != "waiting"},
    # Taking back: in flight it only marks, for the bytes may be out already.
    ("waiting", "MessageWithdrawn"): "withdrawn",
    ("held", "MessageWithdrawn"): "withdrawn",
    ("in_flight", "MessageWithdrawn"): "in_flight",
    **{(state, "MessageWithdrawn"): ENDED for state in STATES if state in FINAL},
    ("waiting", "MessageHeld"): "held",
    **{(state, "MessageHeld"): NOT_WAITING for state in STATES if state != "waiting"},
    ("waiting", "MessageFailed"): "failed",
    ("held", "MessageFailed"): "failed",
    ("in_flight", "MessageFailed"): IN_FLIGHT,
    **{(state, "MessageFailed"): ENDED for state in STATES if state in FINAL},
    # Only a person ends a doubt.
    ("held", "DoubtResolved resend"): "waiting",
    ("held", "DoubtResolved sent"): "sent",
    # A message is sent only if every recipient was, whatever a person says about the others.
    ("held", "DoubtResolved sent, some refused"): "failed",
    ("held", "DoubtResolved error"): "failed",
    **{(state, step): NOT_HELD for state in STATES if state != "held" for step in _RESOLUTIONS},
    # Attempts: one at a time, and each ends once.
    ("waiting", "AttemptStarted"): "in_flight",
    **{(state, "AttemptStarted"): NOT_WAITING for state in STATES if state != "waiting"},
    ("in_flight", "AttemptEnded due"): "waiting",
    ("in_flight", "AttemptEnded due, withdrawn meanwhile"): "withdrawn",
    ("in_flight", "AttemptEnded held"): "held",
    ("in_flight", "AttemptEnded held, withdrawn meanwhile"): "withdrawn",
    ("in_flight", "AttemptEnded failed"): "failed",
    ("in_flight", "AttemptEnded done"): "sent",
    **{(state, step): NO_ATTEMPT for state in STATES if state != "in_flight" for step in _ENDS},
}


_STEPS_OF_KINDS: dict[type[Fact], str] = {
    kind: kind.__name__
    for kind in (
        MessageAccepted,
        MessageRejected,
        MessageRevised,
        MessageRequeued,
        MessageExpedited,
        MessageWithdrawn,
        MessageHeld,
        MessageFailed,
        AttemptStarted,
    )
}
_END_STEPS = {word: f"AttemptEnded {word}" for word in typing.get_args(Next)}
_IMPORT_STEPS = {word: f"MessageImported {word}" for word in typing.get_args(Ended)}
_RESOLUTION_STEPS = {word: f"DoubtResolved {word}" for word in typing.get_args(Resolution)}


def step_of(fact: Fact) -> str | None:
    """The step that a fact is, or None for a fact that changes no message's state."""
    step = _STEPS_OF_KINDS.get(type(fact))
    if step is None:
        if isinstance(fact, AttemptEnded | AttemptInterrupted):
            return _END_STEPS[fact.next]
        if isinstance(fact, DoubtResolved):
            return _RESOLUTION_STEPS[fact.resolution]
        if isinstance(fact, MessageImported):
            return _IMPORT_STEPS[fact.ended]
    return step


def in_the_case_of(step: str, *, withdrawing: bool = False, some_refused: bool = False) -> str:
    """The form of a step for a message that was taken back in flight, or that some relay refused for somebody.

    Both forms fit the same states, so whether a step is refused does not depend on the case.
    """
    if withdrawing:
        step = _WITHDRAWN_MEANWHILE.get(step, step)
    if some_refused:
        step = _SOME_REFUSED.get(step, step)
    return step


def follow(state: State | None, step: str) -> State | Refusal:
    """The state after `step`, or the Refusal that says why it cannot happen."""
    return LIFECYCLE.get((state, step), IMPOSSIBLE)
