"""What requests without a body say: the parameters of queries and paths, by type.

A parameter that is not known is ignored, as HTTP clients and proxies add their own; a known one with a bad value is
a 400 that names it.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from events.values import Status

from .settings import EVENTS_WAIT_S_MAX, LIST_LIMIT, LIST_LIMIT_MAX

SEQ_MAX = 2**63 - 1
"""SQLite's largest integer."""

Seq = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
Limit = Annotated[int, Meta(ge=1, le=LIST_LIMIT_MAX)]
Wait = Annotated[float, Meta(ge=0, le=EVENTS_WAIT_S_MAX)]
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


class Listing(Struct, frozen=True):
    """A page of a list: what follows the opaque number `after`."""

    after: Seq = 0
    limit: Limit = LIST_LIMIT


class Results(Struct, frozen=True):
    after: Seq = 0
    limit: Limit = LIST_LIMIT
    log: str | None = None


class Messages(Struct, frozen=True):
    active_only: bool = False
    status: Status | None = None
    account_id: str | None = None
    after: Seq = 0
    limit: Limit = LIST_LIMIT


class Events(Struct, frozen=True):
    after: Seq = 0
    limit: Limit = LIST_LIMIT
    kind: str | None = None
    account_id: str | None = None
    message_id: str | None = None
    wait: Wait = 0.0
    expand: bool = False
    log: str | None = None


class Stream(Struct, frozen=True):
    """`after` None: from now."""

    after: Seq | None = None
    kind: str | None = None
    account_id: str | None = None
    message_id: str | None = None
    batch: bool = False
    expand: bool = False
    log: str | None = None
    ticket: str | None = None


class At(Struct, frozen=True):
    """A past moment (one of `seq` and `time` in Unix seconds), and the view wanted of it."""

    view: Literal["pending", "deferred", "held", "results", "accounts", "message"]
    seq: Annotated[int, Meta(ge=0, le=SEQ_MAX)] | None = None
    time: Moment | None = None
    id: str | None = None
    after: Seq = 0
    limit: Limit = LIST_LIMIT
