"""The small values that facts and commands are made of.

Wrong values cannot be built: an `Address` exists only through `parse_address`, which refuses what could
not be sent or could smuggle a header (RFC 5321 section 4.1.2, RFC 6531 section 3.3).
"""

import re
from typing import Literal

import idna
from msgspec import Struct

Priority = Literal[0, 1, 2, 3]
"""0 immediate, 1 high, 2 medium, 3 low."""

PRIORITY_LABELS = {"immediate": 0, "high": 1, "medium": 2, "low": 3}

Status = Literal["pending", "deferred", "in_flight", "held", "sent", "error", "withdrawn"]
"""A message's state as clients see it: time and limits tell deferred from pending."""

OutcomeStatus = Literal["delivered", "deferred", "refused", "in_doubt"]

MICROSECONDS = 1_000_000
"""Every moment inside is an integer of microseconds since 1970 (UTC); the API divides once, at the door."""

ADDRESS_CHARACTERS_MAX = 320
"""64 for the local part, 255 for the domain, one for the sign between (RFC 5321 section 4.5.3.1)."""


class Outcome(Struct, frozen=True, omit_defaults=True):
    """What became of one recipient in one attempt; `recipient` is the index in the message's envelope.

    The relay's words are not here: they may hold an address, so they stand in the table `replies`.
    """

    recipient: int
    status: OutcomeStatus
    code: int | None = None
    enhanced: str | None = None
    queue_id: str | None = None


class Address(Struct, frozen=True):
    """A mailbox as SMTP takes it; `domain` is as given, case folding is done by `canonical`."""

    local: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"

    @property
    def canonical(self) -> str:
        """The form in which two addresses are the same mailbox: domains ignore case, local parts do not."""
        return f"{self.local}@{self.domain.lower()}"


# The whole of an ordinary address in one match: this is the path of nearly every recipient.
_PLAIN = re.compile(
    r"([A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*)@([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)\Z"
)
_LOCAL = re.compile(r"(?:[^\x00-\x20\x7f\"(),:;<>@\[\\\]]+|\"(?:[^\x00-\x1f\x7f\"\\]|\\[\x20-\x7e])*\")\Z")
_DOMAIN = re.compile(
    r"(?:[^\x00-\x20\x7f\"(),:;<>@\[\\\].]+(?:\.[^\x00-\x20\x7f\"(),:;<>@\[\\\].]+)*|\[[0-9A-Za-z.:]+\])\Z"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f\x80-\x9f\u2028\u2029]")
"""What may never stand in a header or an address: C0, DEL, C1 and the two Unicode line separators."""
_NEVER = re.compile(f"{CONTROL.pattern}|[\ud800-\udfff]")
"""Nor half of a surrogate pair, which has no encoding."""


def bare_address(text: str) -> str:
    """The mailbox of `Name <mailbox>`, or the text itself where there are no angle brackets."""
    if text.endswith(">") and "<" in text:
        return text[text.rindex("<") + 1 : -1].strip()
    return text.strip()


def parse_address(text: str) -> Address | None:
    """Parse `Name <local@domain>` or `local@domain`; None where no such mailbox can be sent to.

    Quoted local parts, non-ASCII local parts and domains (SMTPUTF8) and domain literals are taken.
    """
    bare = bare_address(text)
    if len(bare) > ADDRESS_CHARACTERS_MAX:
        return None
    if match := _PLAIN.match(bare):
        local, domain = match.groups()
    else:
        local, _, domain = bare.rpartition("@")
        if _NEVER.search(bare) or not (_LOCAL.match(local) and _DOMAIN.match(domain)):
            return None
    if len(local.encode()) > 64 or len(domain) > 255 or ".." in domain or ".." in local and not local.startswith('"'):
        return None
    return Address(local, domain)


def ascii_domain(domain: str) -> str | None:
    """The domain in A-labels (RFC 5890), or None where it has none.

    IDNA 2008 first; the codec of the standard library (IDNA 2003) still knows names that the newer rules dropped.
    """
    if domain.isascii():
        return domain
    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        pass
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return None


def split_addresses(text: str) -> list[str]:
    """Split a comma list of addresses, leaving commas inside quotes alone."""
    if '"' not in text:
        return [part for part in (part.strip() for part in text.split(",")) if part]
    parts: list[str] = []
    start, quoted, escaped = 0, False, False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\" and quoted:
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            parts.append(text[start:index])
            start = index + 1
    parts.append(text[start:])
    return [part for part in (part.strip() for part in parts) if part]
