"""The upstream is told every result at least once, in the order of the log; what is told again, after a crash or an
answer that was lost, is told again in that order too."""

from collections.abc import Iterator

from events.attempt import AttemptEnded, AttemptInterrupted
from events.lifecycle import FINAL, Refusal
from events.message import MessageAccepted, MessageRejected
from tests.simulation.observed import Observed

from .facts import moves

Told = tuple[str, str]

STATUS = {"sent": "sent", "failed": "error", "rejected": "error"}


def check(observed: Observed) -> Iterator[str]:
    due = list(_due(observed))
    position = 0
    for reported in observed.reported:
        told = (reported.event["id"], reported.event["status"])
        found = _next(due, position, told)
        if found is None and told not in [each for each, _ in due[:position]]:
            yield f"the upstream is told {told} at {reported.at:.3f}, which is not due; next are {due[position:][:3]}"
            return
        if found is not None and reported.acknowledged:
            position = found + 1
    for told, must in due[position:]:
        if must:
            yield f"the upstream was never told {told}"


def _next(due: list[tuple[Told, bool]], position: int, told: Told) -> int | None:
    """Where it stands among what is due, past nothing but deferrals that are told no more."""
    for index in range(position, len(due)):
        each, must = due[index]
        if each == told:
            return index
        if must:
            return None
    return None


def _due(observed: Observed) -> Iterator[tuple[Told, bool]]:
    """((id, status), whether it must be told): a deferral whose message is gone need not be."""
    names: dict[int, str] = {}
    for number, before, after, entry in moves(observed.log):
        fact = entry.fact
        if isinstance(fact, MessageAccepted | MessageRejected):
            names[number] = fact.id
        if isinstance(after, Refusal):
            continue
        if after in FINAL and after != before and after in STATUS:
            yield (names[number], STATUS[after]), True
        elif isinstance(fact, AttemptEnded | AttemptInterrupted) and fact.next == "due" and fact.due_cause != "more":
            yield (names[number], "deferred"), False
