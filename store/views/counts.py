"""Views that are counts or lists derived from what happened to a row of `messages`: kept, never scanned.

Each is a pure function of the row before a fact, the row after it, and the fact; a count is a sum of steps, so
the applier adds a whole turn's steps at once.
"""

from collections.abc import Sequence
from typing import TypeVar

from msgspec import Struct

from events.account import AccountSendsImported
from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Entry
from events.lifecycle import FINAL
from events.message import MessageImported
from events.values import MICROSECONDS

from .messages import MessageRow

Word = TypeVar("Word", int, str)

NOBODY = 0
"""The account of messages without one (rejected at the door)."""

MINUTE_US = 60_000_000
HOUR_MINUTES, DAY_MINUTES = 60, 1_440
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


class DueHourRow(Struct, frozen=True):
    """The same within an hour: what is due later is counted by days, then hours, then minutes, so in a hundred rows an
    account, however far apart the moments are."""

    account: int
    hour: int
    n: int


class DueDayRow(Struct, frozen=True):
    """The same within a day."""

    account: int
    day: int
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


Steps = Sequence[tuple[tuple[int, Word], int]]


def total_steps(before: MessageRow | None, after: MessageRow | None) -> Steps[str]:
    """((account, state), step) for each count that changed."""
    left, come = _total_of(before), _total_of(after)
    return () if left == come else _steps(left, come)


def due_steps(before: MessageRow | None, after: MessageRow | None) -> Steps[int]:
    """((account, minute), step) for each minute whose number of waiting messages changed."""
    return _steps(_due_minute_of(before), _due_minute_of(after))


def _total_of(row: MessageRow | None) -> tuple[int, str] | None:
    return None if row is None else (row.account or NOBODY, row.state)


def _due_minute_of(row: MessageRow | None) -> tuple[int, int] | None:
    return (row.account or NOBODY, row.due_us // MINUTE_US) if row and row.state == "waiting" else None


def _steps(left: tuple[int, Word] | None, come: tuple[int, Word] | None) -> Steps[Word]:
    if left is None:
        return () if come is None else ((come, +1),)
    return ((left, -1),) if come is None else ((left, -1), (come, +1))


def counts_against_limits(fact: AttemptEnded | AttemptInterrupted) -> bool:
    """Whether the relay counts this transaction: it took the message for somebody, or may have."""
    return any(outcome.status in ("delivered", "in_doubt") for outcome in fact.outcomes)


def slots_of(entry: Entry) -> Sequence[tuple[int, int, int]]:
    """(account, second, how many): the transactions that count, of which the fact tells."""
    fact, account = entry.fact, entry.account
    if account is None:
        return ()
    if isinstance(fact, AttemptEnded | AttemptInterrupted) and counts_against_limits(fact):
        return ((account, entry.at_us // MICROSECONDS, 1),)
    if isinstance(fact, AccountSendsImported):
        return [(account, second, n) for second, n in fact.seconds]
    return ()


STATUS_OF_FINAL = {"sent": "sent", "failed": "error", "rejected": "error"}
"""What the application is told of a final state; of a withdrawal, which it asked for, nothing."""


def result_of(before: MessageRow | None, after: MessageRow | None, entry: Entry) -> ResultRow | None:
    """The result that a fact brought, if it ended a message in a way that the application hears of."""
    if after is None or after.state not in FINAL or (before and before.state == after.state):
        return None
    status, at_us = STATUS_OF_FINAL.get(after.state), entry.at_us
    if isinstance(entry.fact, MessageImported):
        at_us = entry.fact.ended_us
        status = None if entry.fact.reported else status
    if status is None:
        return None
    return ResultRow(
        entry.seq,
        after.number,
        after.account,
        after.id,
        status,
        at_us,
        after.attempts,
        after.priority,
        after.revision,
        after.cause,
        after.detail,
        after.recipients,
    )
