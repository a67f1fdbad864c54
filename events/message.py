"""Facts about a message that are not about one attempt at it."""

from typing import Literal

from .fact import Fact

FailureCause = Literal["expired", "quota", "account_removed", "content_missing", "internal"]
Resolution = Literal["resend", "sent", "error"]
Ended = Literal["sent", "failed"]


class MessageAccepted(Fact):
    """A message was taken: from here on it is ours to deliver or to explain.

    `recipients` are digests, one for each place in the envelope: a MAC of (id, canonical address).
    `expires_us` is the moment at which it is given up if it still waits; `letter` is a MAC of its content. `asked_us`
    is the later moment that the client asked for; `due_us` can be later still, while the clock is doubted.
    `created_us` is when another service took it, for one that was taken over from there.
    """

    id: str
    priority: int
    due_us: int
    expires_us: int
    size: int
    recipients: tuple[str, ...]
    letter: str
    by: str = ""
    asked_us: int | None = None
    created_us: int | None = None


class MessageRevised(Fact):
    """The same id came again before it was sent: new content, the same number, attempts and age anew.

    `reach` are the indexes of the recipients still to be reached; the others were reached, or may have been.
    """

    id: str
    priority: int
    due_us: int
    expires_us: int
    size: int
    recipients: tuple[str, ...]
    reach: tuple[int, ...]
    letter: str
    by: str = ""
    asked_us: int | None = None


class MessageRejected(Fact):
    """A message with an id that the log did not know was refused at the door, with the reason the client got."""

    id: str
    reason: str
    field: str | None = None
    by: str = ""


class MessageImported(Fact):
    """A message that another service had taken and ended: its id is known from here on, and nothing of it is sent.

    `reported` is whether that service had told the application; if not, it is a result of ours, of the moment
    `ended_us`. The words of its error stand beside the log, as a relay's do.
    """

    id: str
    ended: Ended
    ended_us: int
    created_us: int
    priority: int = 2
    reported: bool = False
    by: str = ""


class MessageWithdrawn(Fact):
    """A client took a message back. In flight it is a mark: what is still open when the attempt ends is withdrawn."""

    by: str = ""


class MessageHeld(Fact):
    """A message was put aside for a person to decide."""

    cause: str
    by: str = ""


class MessageFailed(Fact):
    """A message ended without reaching everybody, for a reason that no relay gave.

    `revision` is the content that had no slot, where the cause is `quota`: newer content is judged anew.
    """

    cause: FailureCause
    after_s: int | None = None
    by: str = ""
    revision: int | None = None


class DoubtResolved(Fact):
    """A person decided about a held message: send it again, or call it sent, or call it failed.

    Sent again, it is due at once or at `due_us`; `expires_us` is its new end where the old one had passed.
    """

    resolution: Resolution
    due_us: int | None = None
    by: str = ""
    expires_us: int | None = None


class MessageExpedited(Fact):
    """Somebody had no patience: a message that waited for another try, or for its relay, is due at once."""

    due_us: int
    by: str = ""


class MessageRequeued(Fact):
    """A message that had failed is tried again with the content it has: attempts and retries anew, for whoever was
    neither reached nor may have been. `expires_us` is its end from now on."""

    due_us: int
    expires_us: int
    by: str = ""


class ContentErased(Fact):
    """The letters of these messages, up to and including these revisions, are to be erased: at most 1,000 pairs."""

    letters: tuple[tuple[int, int], ...]
    by: str = ""


class RetentionPassed(Fact):
    """Finished messages and results whose final fact has a seq below `before` left the views."""

    before: int
    by: str = "retention"


FirstFact = MessageAccepted | MessageRejected | MessageImported
"""With one of these a message's number begins, and its id is known."""
