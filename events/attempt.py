"""Facts about attempts: one attempt is one SMTP transaction for at most 100 recipients of one message."""

from typing import Literal

from .fact import Fact
from .values import Outcome

RECIPIENTS_PER_ATTEMPT_MAX = 100
"""RFC 5321 section 4.5.3.1.8: every server takes 100 recipients in one transaction; more may be refused."""

Next = Literal["due", "held", "failed", "done"]
"""What becomes of the message: due again at `due_us`, put aside, ended as failed, or ended as sent."""

DueCause = Literal["retry", "relay", "more"]
"""Why it is due again: it is tried again, its relay is in trouble, or more recipients have their turn."""

EndCause = Literal["refused", "retries", "in_doubt", "content_missing", "internal", "attachment"]
"""Why it failed or is held; `internal` and `attachment` also where an unexpected error, or an attachment that could not
be had, made the attempt end as deferred."""

AttachmentReason = Literal[
    "not_found",
    "no_volume",
    "not_allowed",
    "refused",
    "too_large",
    "redirects",
    "encoding",
    "unreachable",
    "unavailable",
    "broken",
    "timeout",
    "busy",
]
"""Why an attachment could not be had when its message was to be sent."""


class AttemptStarted(Fact):
    """The bytes may go out from now on: on disk before the first of them does."""

    revision: int
    recipients: tuple[int, ...]


class AttemptEnded(Fact):
    """What came of an attempt, for each of its recipients, and what follows for the message.

    `charged` says whether it counts as one of the message's retries; `due_cause` is why it waits again;
    `cause` why it failed or is held; `retries` how many were allowed where these are exhausted.
    `field` and `reason` say which attachment could not be had and why, where that is the cause; its name stands with
    the words beside the log. Timings are microseconds on the monotonic clock.
    """

    attempt: int
    outcomes: tuple[Outcome, ...]
    next: Next
    charged: bool = False
    due_us: int | None = None
    due_cause: DueCause | None = None
    cause: EndCause | None = None
    retries: int | None = None
    stage: str | None = None
    tls: bool = False
    verified: bool = False
    took_us: int = 0
    field: str | None = None
    reason: AttachmentReason | None = None


class AttemptInterrupted(Fact):
    """An attempt was found open at a start: nobody knows whether the relay took the message."""

    attempt: int
    outcomes: tuple[Outcome, ...]
    next: Next
    charged: bool = True
    due_us: int | None = None
    due_cause: DueCause | None = None
    cause: EndCause | None = None
    retries: int | None = None
