"""Views that are counts or lists derived from what happened to a row of `messages`: kept, never scanned.

Each is a pure function of the row before a fact, the row after it, and the fact; a count is a sum of steps, so
the applier adds a whole turn's steps at once.
"""

from collections.abc import Iterator

from msgspec import Struct

from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Entry
from events.lifecycle import FINAL

from .messages import MessageRow

NOBODY = 0
"""The account of messages without one (rejected at the door)."""

MINUTE_US = 60_000_000
DAY_S = 86_400


class TotalRow(Struct, frozen=True):
    """How many messages of an account are in a state. Retention does not count backwards."""

    account: int
    state: str
    n: int


class DueMinuteRow(Struct, frozen=True):
    """How many waiting messages of an account are due within a minute (microseconds since 1970 // 60 s)."""

    account: int
    minute: int
    n: int


class SlotRow(Struct, frozen=True):
    """How many transactions of an account that count against its limits ended within a second.

    A ring: `slot` is the second modulo a day, so that a restart need not scan a day of log.
    """

    account: int
    slot: int
    second: int
    n: int


class ResultRow(Struct, frozen=True):
    """One final outcome, keyed by the seq of its fact: a message queued again keeps its older result."""

    seq: int
    message: int
    account: int | None
    id: str
    status: str
    at_us: int
    attempts: int
    priority: int
    revision: int
    cause: str | None
    detail: str | None
    recipients: str


def total_steps(before: MessageRow | None, after: MessageRow | None) -> Iterator[tuple[tuple[int, str], int]]:
    """((account, state), step) for each count that changed."""
    if before and after and before.state == after.state and before.account == after.account:
        return
    if before:
        yield (before.account or NOBODY, before.state), -1
    if after:
        yield (after.account or NOBODY, after.state), +1


def due_steps(before: MessageRow | None, after: MessageRow | None) -> Iterator[tuple[tuple[int, int], int]]:
    """((account, minute), step) for each minute whose number of waiting messages changed."""
    if before and before.state == "waiting":
        yield (before.account or NOBODY, before.due_us // MINUTE_US), -1
    if after and after.state == "waiting":
        yield (after.account or NOBODY, after.due_us // MINUTE_US), +1


def counts_against_limits(fact: AttemptEnded | AttemptInterrupted) -> bool:
    """Whether the relay counts this transaction: it took the message for somebody, or may have."""
    return any(outcome.status in ("delivered", "in_doubt") for outcome in fact.outcomes)


def slot_steps(entry: Entry) -> Iterator[tuple[tuple[int, int], int]]:
    """((account, second), step) where an attempt that counts has ended."""
    match entry.fact:
        case AttemptEnded() | AttemptInterrupted() as fact if entry.account is not None:
            if counts_against_limits(fact):
                yield (entry.account, entry.at_us // 1_000_000), +1


_STATUS = {"sent": "sent", "failed": "error", "rejected": "error"}


def result_of(before: MessageRow | None, after: MessageRow | None, entry: Entry) -> ResultRow | None:
    """The result that a fact brought, if it ended a message in a way that the application hears of."""
    if after is None or after.state not in FINAL or (before and before.state == after.state):
        return None
    status = _STATUS.get(after.state)
    if status is None:
        return None
    return ResultRow(
        entry.seq,
        after.number,
        after.account,
        after.id,
        status,
        entry.at_us,
        after.attempts,
        after.priority,
        after.revision,
        after.cause,
        after.detail,
        after.recipients,
    )
