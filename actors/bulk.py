"""What an operator does to many messages at once: which of the chosen ones an action is for, and the facts it makes.

Pure. `store/choosing.py` finds the messages a step at a time, control records the facts a step at a time, and what
moved between the two is refused by admission and not counted. So an action that breaks off has done what the log says,
and to ask for it again is harmless: what is done is not done twice.

| action | is for | makes |
|---|---|---|
| withdraw | whatever is open, and not withdrawn already | MessageWithdrawn |
| retry | what waits for another try or for its relay | MessageExpedited: it is due at once |
| | what has failed, with somebody left who was not reached | MessageRequeued |
| hold | what waits | MessageHeld |
| release | what is held | DoubtResolved, as `resend`; a later due that it had stays |

A retry leaves alone what its sender asked to be sent later, and what its account's limits keep: neither is a trouble
that has passed.
"""

from collections.abc import Callable

from msgspec import Struct

from events.fact import Draft, Fact
from events.lifecycle import State
from events.message import DoubtResolved, MessageExpedited, MessageHeld, MessageRequeued, MessageWithdrawn, Resolution
from events.payloads import Action
from store.choosing import Chosen
from store.views.messages import IN_DOUBT, PUT_OFF, REACHED, MessageRow

STATES: dict[Action, frozenset[State]] = {
    "withdraw": frozenset({"waiting", "held", "in_flight"}),
    "retry": frozenset({"waiting", "failed"}),
    "hold": frozenset({"waiting"}),
    "release": frozenset({"held"}),
}
"""The states that an action is for."""

BY_OPERATOR = "operator"
"""The cause of what was put aside by hand."""


class Moment(Struct, frozen=True):
    """When it is asked for, by whom, and how long mail waits at most."""

    now_us: int
    max_age_us: int
    by: str


class Decided(Struct, frozen=True):
    """A step: how many messages the action is for, the facts that do it, and of those messages, how many have no
    content any more, and how many may arrive twice."""

    matched: int
    drafts: tuple[Draft, ...]
    without_content: int = 0
    in_doubt: int = 0


def decide(action: Action, chosen: Chosen, at: Moment) -> Decided:
    """The facts for the chosen messages that the action is for."""
    is_for, fact_of = _ACTIONS[action]
    rows = [row for row in chosen.rows if is_for(row, at)]
    able = [row for row in rows if row.state != "failed" or row.revision in chosen.letters]
    return Decided(
        len(rows),
        tuple([Draft(fact_of(row, at), message=row.number, account=row.account) for row in able]),
        len(rows) - len(able),
        sum(any(state.status in IN_DOUBT for state in row.states()) for row in rows) if action == "release" else 0,
    )


def resolved(row: MessageRow, resolution: Resolution, at: Moment, due_us: int | None = None) -> DoubtResolved:
    """A person's word about a held message; sent again, it is due at once or at `due_us`."""
    expires_us = None
    if resolution == "resend":
        # A moment and not the fact's stamp, which may be ahead of a clock that was set back.
        due_us = at.now_us if due_us is None else due_us
        expires_us = lived_on(row, at) if row.expires_us <= at.now_us else None
    return DoubtResolved(resolution=resolution, due_us=due_us, by=at.by, expires_us=expires_us)


def lived_on(row: MessageRow, at: Moment) -> int:
    """The end of a message that is to be sent after all: its own if that is still to come, else a whole age from now.

    Whoever asks for mail to be sent wants it sent, not ended as expired in the next moment.
    """
    return row.expires_us if row.expires_us > at.now_us else at.now_us + at.max_age_us


def _open(row: MessageRow, at: Moment) -> bool:
    return not row.withdrawing


def _put_off_or_failed(row: MessageRow, at: Moment) -> bool:
    if row.state == "failed":
        return any(state.status not in REACHED for state in row.states())
    return row.due_us > at.now_us and row.due_cause in PUT_OFF


def _any(row: MessageRow, at: Moment) -> bool:
    return True


def _withdrawn(row: MessageRow, at: Moment) -> Fact:
    return MessageWithdrawn(by=at.by)


def _tried_again(row: MessageRow, at: Moment) -> Fact:
    if row.state == "failed":
        return MessageRequeued(due_us=at.now_us, expires_us=lived_on(row, at), by=at.by)
    return MessageExpedited(due_us=at.now_us, by=at.by)


def _put_aside(row: MessageRow, at: Moment) -> Fact:
    return MessageHeld(cause=BY_OPERATOR, by=at.by)


def _let_go(row: MessageRow, at: Moment) -> Fact:
    return resolved(row, "resend", at, row.due_us if row.due_us > at.now_us else None)


_ACTIONS: dict[Action, tuple[Callable[[MessageRow, Moment], bool], Callable[[MessageRow, Moment], Fact]]] = {
    "withdraw": (_open, _withdrawn),
    "retry": (_put_off_or_failed, _tried_again),
    "hold": (_any, _put_aside),
    "release": (_any, _let_go),
}
"""For which of the messages in its states an action is, and the fact it makes of one."""
