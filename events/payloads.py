"""What applications send: the types that decode the bodies of requests, in the words of the HTTP contract.

null means absent everywhere. Unknown fields of a message are ignored, since old clients send some;
every other body forbids them.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from .message import Resolution
from .values import Status
from .volume import Backend

Action = Literal["withdraw", "retry", "hold", "release"]
"""What can be done to many messages at once."""

MOMENT_S_MAX = 9_000_000_000_000.0
"""In microseconds it fits SQLite's integers."""

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class AttachmentPayload(Struct, frozen=True):
    filename: str
    content: str | None = None
    content_type: str | None = None
    content_id: str | None = None
    url: Any = None
    s3: Any = None
    storage_path: str | None = None


class MessagePayload(Struct, frozen=True):
    """A message as a client gives it: every field may be missing, so that the first reason that holds is found
    in the contract's order and not in the order in which a decoder looks."""

    id: str | None = None
    account_id: str | None = None
    sender: str | None = field(name="from", default=None)
    to: list[str] | str | None = None
    cc: list[str] | str | None = None
    bcc: list[str] | str | None = None
    reply_to: list[str] | str | None = None
    return_path: str | None = None
    subject: str | None = None
    body: str | None = None
    content_type: Literal["plain", "html"] | None = None
    body_html: str | None = None
    headers: dict[str, str | None] | None = None
    message_id: str | None = None
    attachments: list[AttachmentPayload] | None = None
    priority: str | int | float | None = None
    deferred_ts: int | float | None = None
    expires_ts: int | float | None = None


class AddMessages(Struct, frozen=True, forbid_unknown_fields=True):
    messages: tuple[Raw, ...]
    default_priority: str | int | float | None = None


class DeleteMessages(Struct, frozen=True, forbid_unknown_fields=True):
    ids: tuple[str, ...]


class CleanupMessages(Struct, frozen=True, forbid_unknown_fields=True):
    """None: as long ago as retention is configured."""

    older_than_seconds: Annotated[float, Meta(ge=0)] | None = None


class Resolve(Struct, frozen=True, forbid_unknown_fields=True):
    """`id` stands in the path."""

    id: str
    resolution: Resolution = field(name="as")


class BulkWhere(Struct, frozen=True, forbid_unknown_fields=True):
    """All that is given must hold; something must be given."""

    account_id: str | None = None
    status: Status | None = None
    priority: str | int | None = None
    before_ts: Annotated[float, Meta(ge=0, le=MOMENT_S_MAX)] | None = None
    to_domain: str | None = None
    subject_contains: str | None = None


class Bulk(Struct, frozen=True, forbid_unknown_fields=True):
    """`after` asks for one step from there, of those numbered up to `up_to`; without it all steps are done."""

    action: Action
    where: BulkWhere
    dry_run: bool | None = None
    after: Number | None = None
    up_to: Number | None = None


class Activate(Struct, frozen=True):
    """Unknown fields are ignored, as the replaced service did. `trust_clock` says that the clock is right, where
    /status names `clock`."""

    restored: Literal["hold", "send"] | None = None
    trust_clock: bool = False


class Account(Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    host: str
    port: int
    user: str | None = None
    password: str | None = None
    ttl: int | None = None
    limit_per_minute: int | None = None
    limit_per_hour: int | None = None
    limit_per_day: int | None = None
    limit_behavior: Literal["defer", "reject"] | None = None
    use_tls: bool | None = None
    tls: Literal["auto", "none", "starttls-required", "implicit"] | None = None
    tls_verify: bool | None = None
    tls_ca_file: str | None = None
    auth: Literal["auto", "plain", "login", "cram-md5"] | None = None
    batch_size: int | None = None
    max_connections: int | None = None
    max_messages_per_connection: int | None = None


class Volume(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    backend: Backend
    config: dict[str, str | None]
    account_id: str | None = None


class Empty(Struct, frozen=True):
    """A body that says nothing; unknown fields are ignored, as the replaced service did."""
