"""What requests without a body say: the parameters of queries and paths, by type.

A parameter that is not known is ignored, as HTTP clients and proxies add their own; a known one with a bad value is
a 400 that names it.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from events.payloads import says
from events.values import Status
from events.wire import KINDS

from .settings import EVENTS_WAIT_S_MAX, LIST_LIMIT, LIST_LIMIT_MAX

SEQ_MAX = 2**63 - 1
"""SQLite's largest integer."""

Seq = Annotated[int, Meta(ge=0, le=SEQ_MAX, description="What follows it: the `next` of the page before.")]
Limit = Annotated[int, Meta(ge=1, le=LIST_LIMIT_MAX, description="Rows of a page.")]
Wait = Annotated[
    float, Meta(ge=0, le=EVENTS_WAIT_S_MAX, description="Seconds to wait at the end of the log for something new.")
]
Log = Annotated[str | None, says("The log that the cursor is of: another one is a 409.")]
Kind = Annotated[str | None, says("Facts of this kind only.", enum=sorted(KINDS))]
OfAccount = Annotated[str | None, says("Of this account only.")]
OfMessage = Annotated[str | None, says("Of this message only.")]
Expand = Annotated[bool, says("Join sender, subject, addresses and the relay's words, while they are not erased.")]
Moment = Annotated[float, Meta(ge=0, le=SEQ_MAX / 1_000_001)]


class Nothing(Struct, frozen=True):
    """No parameters."""


class Id(Struct, frozen=True):
    """The id in a path."""

    id: str


class Name(Struct, frozen=True):
    """The name in a path."""

    name: str


class Volumes(Struct, frozen=True):
    """`account_id`: only what this account may use, the shared ones among it."""

    account_id: str | None = None


class RuleId(Struct, frozen=True):
    """The id of a rule in a path."""

    id: int | str


class Listing(Struct, frozen=True):
    """A page of a list: what follows the opaque number `after`."""

    after: Seq = 0
    limit: Limit = LIST_LIMIT


class Results(Struct, frozen=True):
    after: Seq = 0
    limit: Limit = LIST_LIMIT
    log: Log = None


class Messages(Struct, frozen=True):
    active_only: Annotated[bool, says("What has not ended.")] = False
    status: Status | None = None
    account_id: OfAccount = None
    after: Seq = 0
    limit: Limit = LIST_LIMIT


class Events(Struct, frozen=True):
    after: Seq = 0
    limit: Limit = LIST_LIMIT
    kind: Kind = None
    account_id: OfAccount = None
    message_id: OfMessage = None
    wait: Wait = 0.0
    expand: Expand = False
    log: Log = None


class Stream(Struct, frozen=True):
    """`after` None: from now."""

    after: Seq | None = None
    kind: Kind = None
    account_id: OfAccount = None
    message_id: OfMessage = None
    batch: Annotated[bool, says("Frames of many facts.")] = False
    expand: Expand = False
    log: Log = None
    ticket: Annotated[str | None, says("In the place of a header.")] = None


class At(Struct, frozen=True):
    """A past moment (one of `seq` and `time` in Unix seconds), and the view wanted of it."""

    view: Literal["pending", "deferred", "held", "results", "accounts", "message"]
    seq: Annotated[Annotated[int, Meta(ge=0, le=SEQ_MAX)] | None, says("The moment, as the last fact that counts.")] = (
        None
    )
    time: Annotated[Moment | None, says("Or the moment in Unix seconds.")] = None
    id: Annotated[str | None, says("Of the message, for `view=message`.")] = None
    after: Seq = 0
    limit: Limit = LIST_LIMIT
