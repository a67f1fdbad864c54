"""What a relay's refusal means: one look-up by stage, code and enhanced code, never by the words of the reply.

The table is read from the top and the first row that fits decides. Each row says what becomes of the recipient,
whose trouble it is (the relay's, this message's, this recipient's) and what follows. What the relay accepted needs
no row: `judge` is asked about failures only.

The words of a reply are for people. Relays translate and rewrite them, and a rule that searches them turns a
temporary refusal into a lost letter on the day somebody edits a template.
"""

import re
from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

Scope = Literal["relay", "message", "recipient"]

WIDENING: tuple[Scope, ...] = ("recipient", "message", "relay")
"""From narrow to wide: the scope of a whole delivery is the widest of its failures."""


class Verdict(Struct, frozen=True):
    """What becomes of a recipient, whose trouble it is, and what follows from that."""

    status: Literal["deferred", "refused", "in_doubt"]
    scope: Scope
    follows: str


class Row(Struct, frozen=True):
    """`stages` empty means any; in `codes` an x stands for any digit; an enhanced code of "none" wants that the
    relay gave none, and None does not look."""

    codes: tuple[str, ...]
    verdict: Verdict
    why: str
    stages: tuple[str, ...] = ()
    enhanced: str | None = None


RELAY_TROUBLE = Verdict("deferred", "relay", "the relay is left alone for a while, the message is not charged")
CLOSING = Verdict("deferred", "relay", "the connection ends, what is open waits for another")
LATER_MESSAGE = Verdict("deferred", "message", "the message is retried, the connection goes on")
LATER_RECIPIENT = Verdict("deferred", "recipient", "this recipient is retried, the others go on")
NEVER_MESSAGE = Verdict("refused", "message", "the message fails for these recipients, the connection goes on")
NEVER_RECIPIENT = Verdict("refused", "recipient", "this recipient fails, the others go on")
DOUBT = Verdict("in_doubt", "relay", "the connection ends, nobody can know whether the relay has the message")

SESSION = ("greeting", "ehlo", "helo", "starttls", "tls", "auth", "rset")

TABLE: tuple[Row, ...] = (
    Row(("421",), CLOSING, "RFC 5321 section 3.8: the service closes, whatever was asked"),
    Row(("4xx", "5xx"), RELAY_TROUBLE, "before MAIL nothing was said about a message", SESSION),
    Row(("530", "534", "535", "538"), RELAY_TROUBLE, "RFC 4954 section 6, RFC 3207 section 4: who we are, not what we "
        "send; another login or TLS mends it", ("mail", "rcpt", "data")),
    Row(("503",), RELAY_TROUBLE, "RFC 5321 section 4.1.4: MAIL out of sequence is about the session", ("mail",)),
    Row(("552",), LATER_RECIPIENT, "RFC 5321 section 4.5.3.1.10: too many recipients, said with the older code",
        ("rcpt",), "none"),
    Row(("5xx",), LATER_RECIPIENT, "RFC 3463 section 3.6: X.5.3 is too many recipients", ("rcpt",), "5.5.3"),
    Row(("4xx",), LATER_RECIPIENT, "RFC 5321 section 4.2.1: transient", ("rcpt",)),
    Row(("5xx",), NEVER_RECIPIENT, "RFC 5321 section 4.2.1: permanent", ("rcpt",)),
    Row(("4xx",), LATER_MESSAGE, "RFC 5321 section 4.2.1: transient", ("mail", "data", "content", "final")),
    Row(("5xx",), NEVER_MESSAGE, "RFC 5321 section 4.2.1: permanent", ("mail", "data", "content", "final")),
)  # fmt: skip


def judge(stage: str, code: int, enhanced: str | None) -> Verdict:
    """The verdict of a failing reply (4xx or 5xx). A stage that is not in the table is our own mistake: LookupError."""
    for row in TABLE:
        if fits(row, stage, code, enhanced):
            return row.verdict
    raise LookupError(f"no verdict for {code} at stage {stage}")


def fits(row: Row, stage: str, code: int, enhanced: str | None) -> bool:
    return (
        (not row.stages or stage in row.stages)
        and any(_like(pattern, str(code)) for pattern in row.codes)
        and row.enhanced in (None, enhanced or "none")
    )


def _like(pattern: str, text: str) -> bool:
    return all(wanted in ("x", given) for wanted, given in zip(pattern, text, strict=True))


def lost(*, in_doubt: bool) -> Verdict:
    """No reply came: the stage's row says whether the relay may have the message all the same."""
    return DOUBT if in_doubt else CLOSING


def widest(scopes: Iterable[Scope]) -> Scope | None:
    return max(scopes, key=WIDENING.index, default=None)


# Where servers put their own name for the message (the words are anchored at both ends or at the beginning).
_QUEUE_ID = r"([A-Za-z0-9][A-Za-z0-9._:+=-]{0,63})"
QUEUE_IDS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("postfix", re.compile(rf"(?:Ok: )?queued as {_QUEUE_ID}\Z")),
    ("exim", re.compile(rf"OK id={_QUEUE_ID}\Z")),
    ("sendmail and opensmtpd", re.compile(rf"{_QUEUE_ID} Message accepted for delivery\Z")),
    ("exchange", re.compile(rf"<[^<>]*> \[InternalId={_QUEUE_ID}[,\]]")),
    ("google", re.compile(rf"OK +[0-9]+ {_QUEUE_ID} - gsmtp\Z")),
    ("amazon", re.compile(r"Ok ([0-9a-f-]{20,64})\Z")),
)


def queue_id(message: str) -> str | None:
    """The relay's name for an accepted message, for the operator who greps its log; nothing is decided by it."""
    for _, pattern in QUEUE_IDS:
        if found := pattern.match(message):
            return found[1]
    return None
