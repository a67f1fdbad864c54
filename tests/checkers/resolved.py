"""What a person decided holds: whoever was called sent never gets it again, an answer follows what is in the log, and
an action in bulk has changed what it says."""

from collections.abc import Iterator

from events.attempt import AttemptStarted
from events.fact import Entry
from events.message import (
    DoubtResolved,
    MessageExpedited,
    MessageHeld,
    MessageRequeued,
    MessageWithdrawn,
)
from tests.simulation.observed import Asked, Observed

from .facts import Outcomes, ids

MAKES = {
    "withdraw": (MessageWithdrawn,),
    "retry": (MessageExpedited, MessageRequeued),
    "hold": (MessageHeld,),
    "release": (DoubtResolved,),
}
"""The facts that an action makes."""


def check(observed: Observed) -> Iterator[str]:
    yield from _called_sent(observed)
    numbers = ids(observed.log)
    for asked in observed.asked:
        if not asked.ok:
            continue
        since = observed.log[asked.seq_before : asked.seq_after]
        if asked.name == "resolveMessage":
            yield from _resolved(asked, numbers, since)
        elif asked.name == "bulk":
            yield from _changed(asked, since)


def _called_sent(observed: Observed) -> Iterator[str]:
    outcomes = Outcomes()
    for entry in observed.log:
        if isinstance(entry.fact, AttemptStarted):
            words = outcomes.of(entry.message or 0)
            if called := [index for index in entry.fact.recipients if words[index] == "called sent"]:
                yield f"attempt {entry.seq} is for recipients {called}, for whom a person had called it sent"
        outcomes.fold(entry)


def _resolved(asked: Asked, numbers: dict[str, int], since: tuple[Entry, ...]) -> Iterator[str]:
    about, word = asked.payload["id"], asked.payload["as"]
    for entry in since:
        if isinstance(entry.fact, DoubtResolved) and entry.message == numbers[about] and entry.fact.resolution == word:
            return
    yield f"{about} was resolved as {word} by the answer of {asked.answered_at}, and the log did not say so"


def _changed(asked: Asked, since: tuple[Entry, ...]) -> Iterator[str]:
    answer = asked.answer or {}
    made = sum(isinstance(entry.fact, MAKES[asked.payload["action"]]) for entry in since)
    if not answer["changed"] <= min(made, answer["matched"]):
        yield f"{asked.payload} at {asked.answered_at} answered {answer}, and the log has {made} such facts"
    if asked.payload.get("dry_run") and answer["changed"]:
        yield f"{asked.payload} changed something at {asked.answered_at}"
