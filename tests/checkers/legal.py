"""Every fact in the log was possible when it was written: messages move by the table of the lifecycle, and no attempt
starts while dispatch is suspended, or its account is paused or removed."""

from collections.abc import Iterator

from events.account import AccountPaused, AccountRemoved, AccountResumed, AccountSaved
from events.attempt import AttemptStarted
from events.lifecycle import Refusal
from events.message import MessageAccepted, MessageRequeued, MessageRevised
from events.schedule import DispatchActivated, DispatchSuspended
from tests.simulation.observed import Asked, Observed

from .facts import moves

STOPS = {"suspend": DispatchSuspended, "pauseAccount": AccountPaused, "deleteAccount": AccountRemoved}


def check(observed: Observed) -> Iterator[str]:
    for number, before, after, entry in moves(observed.log):
        if isinstance(after, Refusal):
            yield f"fact {entry.seq}: {entry.kind} of message {number}, which was {before}: {after}"
    yield from _starts(observed)
    yield from _stamps(observed)
    for asked in observed.asked:
        if asked.name in STOPS and asked.ok:
            yield from _answered(observed, asked)


def _starts(observed: Observed) -> Iterator[str]:
    active, living, paused = True, set(), set()
    for entry in observed.log:
        match entry.fact:
            case DispatchSuspended():
                active = False
            case DispatchActivated():
                active = True
            case AccountSaved():
                living.add(entry.account)
            case AccountRemoved():
                living.discard(entry.account)
            case AccountPaused():
                paused.add(entry.account)
            case AccountResumed():
                paused.discard(entry.account)
            case AttemptStarted() if not active:
                yield f"attempt {entry.seq} started while dispatch was suspended"
            case AttemptStarted() if entry.account in paused:
                yield f"attempt {entry.seq} started while its account {entry.account} was paused"
            case AttemptStarted() | MessageAccepted() | MessageRevised() | MessageRequeued() if (
                entry.account not in living
            ):
                yield f"{entry.kind} {entry.seq} is for account {entry.account}, which does not live"


def _stamps(observed: Observed) -> Iterator[str]:
    for index, entry in enumerate(observed.log):
        if entry.seq != index + 1:
            yield f"the log's fact number {index + 1} has the seq {entry.seq}"
        if index and entry.at_us < observed.log[index - 1].at_us:
            yield f"fact {entry.seq} is stamped before the one before it"


def _answered(observed: Observed, asked: Asked) -> Iterator[str]:
    """What was answered is in the log by then, or was so already."""
    kind = STOPS[asked.name]
    name = asked.payload.get("id")
    numbers = {
        entry.account for entry in observed.log if isinstance(entry.fact, AccountSaved) and entry.fact.id == name
    }
    for entry in observed.log[: asked.seq_after]:
        if isinstance(entry.fact, kind) and (name is None or entry.account in numbers):
            return
    yield f"{asked.name} {name or ''} was answered at {asked.answered_at}, and the log did not say so"
