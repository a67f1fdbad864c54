"""What follows from an attempt: for its message, by policy, as fields of the fact that ends it.

Pure: the message's row as the attempt began, what came of each recipient, the policy, the moment and a draw go in,
an AttemptEnded (or, for one found open at a start, an AttemptInterrupted) comes out. A fold never decides again.

In this order: nobody is open any more (sent if everybody was delivered, else failed); somebody is in doubt too often,
or doubt is to be held; the trouble was the relay's and the message is not charged, twice in a row (unless somebody is
in doubt: a second copy waits a retry's delay); recipients are left whose turn has not come yet, and they have it at
once, which is no retry; retries are exhausted; another retry.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import asdict

from events.attempt import AttachmentReason, AttemptEnded, AttemptInterrupted, DueCause, EndCause, Next
from events.values import MICROSECONDS, Outcome
from store.views.messages import RETRIABLE, MessageRow

from .smtp.retry import delay_seconds

UNCHARGED_IN_A_ROW_MAX = 2
"""The third end in a row for which only the relay was to blame is charged: perhaps it is the message after all."""

FAULTS_MAX = 2
"""The third unexpected error of ours with the same message ends it: a fourth would say nothing new."""


class RetryPolicy(Struct, frozen=True):
    """What config.ini says about trying again; delays in seconds."""

    max_retries: int = 5
    retry_delays: tuple[float, ...] = (60.0, 300.0, 900.0, 3600.0, 7200.0)
    hold_in_doubt: bool = False
    in_doubt_max: int = 2


class Following(Struct, frozen=True):
    """The part of an ending fact that is decided here."""

    next: Next
    charged: bool = False
    due_us: int | None = None
    due_cause: DueCause | None = None
    cause: EndCause | None = None
    retries: int | None = None


def what_follows(
    row: MessageRow,
    outcomes: Sequence[Outcome],
    policy: RetryPolicy,
    now_us: int,
    draw: float,
    *,
    relay_until_us: int | None = None,
    ours: Literal["internal", "attachment"] | None = None,
) -> Following:
    """What becomes of the message. `relay_until_us` is set where the relay was in trouble before it took MAIL, and
    says until when it is left alone; `ours` where the attempt ended before a relay was asked, by an unexpected error or
    because an attachment could not be had for now."""
    statuses = _statuses_after(row, outcomes)
    open_statuses = [status for status in statuses if status in RETRIABLE]
    if not open_statuses:
        delivered = all(status == "delivered" for status in statuses)
        return Following("done") if delivered else Following("failed", charged=True, cause="refused")
    if ours == "internal" and row.faults >= FAULTS_MAX:
        return Following("failed", charged=True, cause="internal")
    tried = {outcome.status for outcome in outcomes}
    if "in_doubt" in tried and (policy.hold_in_doubt or row.doubts + 1 >= policy.in_doubt_max):
        return Following("held", charged=True, cause="in_doubt")
    if relay_until_us is not None and row.uncharged < UNCHARGED_IN_A_ROW_MAX and "in_doubt" not in tried:
        return Following("due", due_us=max(relay_until_us, now_us), due_cause="relay")
    if "open" in open_statuses and ours is None:
        return Following("due", due_us=now_us, due_cause="more")
    return _retry(row, policy, now_us, draw, ours)


def _retry(row: MessageRow, policy: RetryPolicy, now_us: int, draw: float, cause: EndCause | None) -> Following:
    number = row.retries + 1
    if number > policy.max_retries:
        return Following("failed", charged=True, cause="retries", retries=policy.max_retries)
    due_us = now_us + int(delay_seconds(number, policy.retry_delays, draw) * MICROSECONDS)
    return Following("due", charged=True, due_us=due_us, due_cause="retry", cause=cause)


def _statuses_after(row: MessageRow, outcomes: Sequence[Outcome]) -> list[str]:
    statuses = [state.status for state in row.states()]
    for outcome in outcomes:
        statuses[outcome.recipient] = outcome.status
    return statuses


def interrupted(
    row: MessageRow, attempt: int, recipients: Sequence[int], policy: RetryPolicy, now_us: int, draw: float
) -> AttemptInterrupted:
    """The end of an attempt that was found open: nobody knows, so every recipient is in doubt."""
    outcomes = tuple(Outcome(recipient, "in_doubt") for recipient in recipients)
    after = what_follows(row, outcomes, policy, now_us, draw)
    return AttemptInterrupted(
        attempt=attempt,
        outcomes=outcomes,
        **asdict(after),
    )


def ended(
    after: Following,
    attempt: int,
    outcomes: tuple[Outcome, ...],
    *,
    stage: str,
    tls: bool = False,
    verified: bool = False,
    took_us: int = 0,
    field: str | None = None,
    reason: AttachmentReason | None = None,
) -> AttemptEnded:
    """The fact that ends an attempt."""
    return AttemptEnded(
        attempt=attempt,
        outcomes=outcomes,
        **asdict(after),
        stage=stage,
        tls=tls,
        verified=verified,
        took_us=took_us,
        field=field,
        reason=reason,
    )
