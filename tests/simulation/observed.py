"""What was seen from outside, for the checkers: nothing in here comes from the service's own memory.

Moments are seconds of virtual time, the true one, whatever the service's clock was made to believe.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from events.fact import Entry


@dataclass(frozen=True)
class Message:
    """A message as a client gives it. `version` counts the contents that an id was given, and stands in the subject."""

    id: str
    version: int
    account: str
    to: tuple[str, ...]
    priority: int = 2
    defer_s: float = 0
    expire_s: float = 0
    padding: int = 0


@dataclass
class Asked:
    """A client's command: `answer` is None where none came, because the service was gone or going."""

    at: float
    name: str
    payload: dict[str, Any]
    messages: tuple[Message, ...] = ()
    answered_at: float | None = None
    answer: dict[str, Any] | None = None
    life: int = 0
    seq_before: int = 0
    """The log's last fact when it was asked, and when it was answered."""
    seq_after: int = 0
    by: str = "client"

    @property
    def ok(self) -> bool:
        return bool(self.answer and self.answer.get("ok"))

    def refused(self) -> dict[str, str]:
        """id -> reason of the messages that were not taken."""
        return {each.get("id", ""): each["reason"] for each in (self.answer or {}).get("rejected", [])}


@dataclass
class Transaction:
    """One SMTP transaction, from the first byte of MAIL leaving the service to what the relay made of it.

    What the log said in the moment of that first byte stands in the fields from `number` to `letter`.
    """

    life: int
    relay: str
    sender: str
    mail_at: float
    number: int | None = None
    state: str | None = None
    attempt: int | None = None
    revision: int | None = None
    letter: str | None = None
    accepted: list[str] = field(default_factory=list)
    content_at: float | None = None
    took_at: float | None = None
    over_at: float | None = None
    subject: str | None = None
    late: bool = False
    """Taken when the connection was gone already: the service had to judge without knowing."""

    @property
    def id(self) -> str:
        return self.sender.partition("@")[0]


@dataclass
class Reported:
    """One event that the upstream was told; `acknowledged` is what it answered."""

    at: float
    life: int
    event: dict[str, Any]
    acknowledged: bool


@dataclass
class Followed:
    """What one follower was given: it began after `after`."""

    life: int
    after: int
    seqs: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


@dataclass
class Offered:
    """A batch that the upstream offered; `confirmed_at` is when its token came back."""

    token: str
    messages: tuple[Message, ...]
    given: int = 0
    confirmed_at: float | None = None


@dataclass
class Life:
    """One run of the service, from its start to its crash or stop."""

    number: int
    began_at: float
    ended_at: float | None = None
    how: str = ""
    first_seq: int = 0
    """The log's last fact when it began."""


@dataclass
class Observed:
    """Everything that was seen in one run."""

    seed: int
    asked: list[Asked] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    reported: list[Reported] = field(default_factory=list)
    followed: list[Followed] = field(default_factory=list)
    offered: list[Offered] = field(default_factory=list)
    lives: list[Life] = field(default_factory=list)
    jumps: list[tuple[float, float]] = field(default_factory=list)
    """(moment, by how many seconds) of each jump of the wall clock."""
    true_at: dict[int, float] = field(default_factory=dict)
    """When each fact was written, by its seq; those of a commit that a crash tore may be written anew."""
    connects: list[tuple[float, str]] = field(default_factory=list)
    """(moment, relay) of each connection that the service asked for."""
    surprises: list[str] = field(default_factory=list)
    """Lines of the service's own log that only a bug writes, and what the checks during the run found."""
    story: list[str] = field(default_factory=list)
    log: Sequence[Entry] = ()
    hash: str = ""
    calm_at: float = 0

    def tell(self, who: str, what: str) -> None:
        self.story.append(f"{trio.current_time():10.3f}  {who:<12} {what}")

    def surprise(self, what: str) -> None:
        self.tell("SURPRISE", what)
        self.surprises.append(f"at {trio.current_time():.3f}: {what}")
