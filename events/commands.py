"""What the door and the command line ask of the actors: imperatives, each with a `Reply`.

A command goes down a channel and is answered exactly once. A reply that is dropped, because the service
stopped or an actor crashed with the command in its hands, answers `Dropped`, and the door says 503.
"""

from collections.abc import Sequence
from typing import Any, Generic, Literal, TypeVar

import msgspec
import trio

from . import payloads
from .exchange import Heard
from .message import Resolution
from .payloads import Action
from .values import Priority, Status

Answer = TypeVar("Answer")


class Dropped(Exception):
    """Whoever held this command can no longer answer it: ask again."""


class Reply(Generic[Answer]):
    """Where one answer is put and awaited. The first answer counts, so a command is never answered twice."""

    __slots__ = ("_answer", "_dropped", "_event")

    def __init__(self) -> None:
        self._event = trio.Event()
        self._answer: Answer | None = None
        self._dropped = False

    @property
    def answered(self) -> bool:
        return self._event.is_set()

    def put(self, answer: Answer) -> None:
        """Answer, unless that has been done."""
        if not self.answered:
            self._answer = answer
            self._event.set()

    def drop(self) -> None:
        """Give up on answering, unless that has been done."""
        if not self.answered:
            self._dropped = True
            self._event.set()

    async def get(self) -> Answer:
        """The answer. Raises Dropped."""
        await self._event.wait()
        if self._dropped:
            raise Dropped
        return self._answer  # type: ignore[return-value]  # set together with the event


class Submission(msgspec.Struct, frozen=True, eq=False):
    """A batch of messages as they came, to be accepted or rejected one by one.

    `token` is the digest of an upstream's batch token: with one, all or nothing is stored, in one commit.
    `apart`: the same id twice is judged as if it had come in two batches; else its last item counts.
    `reply` gets a tuple of Decision, one a message, in order.
    """

    items: Sequence[bytes | msgspec.Raw]
    by: str
    reply: "Reply[tuple[Decision, ...]]"
    default_priority: int | None = None
    token: str | None = None
    urgent: bool = False
    apart: bool = False


class Decision(msgspec.Struct, frozen=True):
    """What became of one message of a submission: queued under a number, or rejected for a reason.

    `seq` is that of the fact that says so (0 where nothing was recorded)."""

    id: str | None
    number: int | None = None
    reason: str | None = None
    seq: int = 0
    recorded: bool = True


class Unavailable(Exception):
    """The service cannot take this now: a full disk, too large a backlog, or it is stopping (HTTP 503)."""


class Refused(Exception):
    """The command cannot be carried out as asked: one sentence for the client (HTTP 400, 404 or 409)."""

    def __init__(self, sentence: str, status: Literal[400, 404, 409] = 400) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status


class RunNow(msgspec.Struct, frozen=True):
    """Wake scheduler, fetcher and reporter; probe unreachable relays at once."""


class Suspend(msgspec.Struct, frozen=True):
    """Stop dispatch: after the answer no new attempt starts."""


class Activate(msgspec.Struct, frozen=True):
    """Start dispatch; after a restored backup it must say what becomes of waiting mail. `trust_clock` says that the
    clock, which has moved by much, is right."""

    restored: Literal["hold", "send"] | None = None
    trust_clock: bool = False


class SaveAccount(msgspec.Struct, frozen=True):
    account: payloads.Account


class RemoveAccount(msgspec.Struct, frozen=True):
    id: str


class PauseAccount(msgspec.Struct, frozen=True):
    id: str


class ResumeAccount(msgspec.Struct, frozen=True):
    id: str


class SaveVolume(msgspec.Struct, frozen=True):
    """`yields`: what somebody else has saved under this name stands, as what config.ini says does not overwrite it."""

    volume: payloads.Volume
    yields: bool = False


class RemoveVolume(msgspec.Struct, frozen=True):
    name: str


class DeleteMessages(msgspec.Struct, frozen=True):
    ids: tuple[str, ...]


class CleanupMessages(msgspec.Struct, frozen=True):
    """Let go of what was reported longer ago than this; None: than retention is configured to keep it."""

    older_than_s: float | None = None


class Exchange(msgspec.Struct, frozen=True):
    """What an upstream says of our reports; answered by our half of the exchange."""

    heard: Heard


class ResolveMessage(msgspec.Struct, frozen=True):
    """What a person decides about one held message."""

    id: str
    resolution: Resolution


class SaveRule(msgspec.Struct, frozen=True):
    rule: payloads.Rule


class ChangeRule(msgspec.Struct, frozen=True):
    id: int
    change: payloads.RuleChange


class RemoveRule(msgspec.Struct, frozen=True):
    id: int


class Schedule(msgspec.Struct, frozen=True):
    """Replace all rules, suspend or activate dispatch; None: leave that as it is."""

    rules: tuple[payloads.Rule, ...] | None = None
    active: bool | None = None


class Where(msgspec.Struct, frozen=True):
    """Which messages are meant: all that is given must hold. Domain and text are compared without regard to case."""

    account_id: str | None = None
    status: Status | None = None
    priority: Priority | None = None
    before_us: int | None = None
    to_domain: str | None = None
    subject: str | None = None


class Bulk(msgspec.Struct, frozen=True):
    """One step of an action for all messages that are meant and numbered in (after, up_to]: a thousand at most.

    With `dry_run` they are only counted."""

    action: Action
    where: Where
    after: int
    up_to: int
    dry_run: bool = False


Command = (
    RunNow
    | Suspend
    | Activate
    | SaveAccount
    | RemoveAccount
    | PauseAccount
    | ResumeAccount
    | SaveVolume
    | RemoveVolume
    | DeleteMessages
    | CleanupMessages
    | Exchange
    | ResolveMessage
    | SaveRule
    | ChangeRule
    | RemoveRule
    | Schedule
    | Bulk
)


class Control(msgspec.Struct, frozen=True, eq=False):
    """One command for the control actor. The reply gets the contract's answer, or a Refused or Unavailable value."""

    command: Command
    by: str
    reply: "Reply[dict[str, Any] | Refused | Unavailable]"
