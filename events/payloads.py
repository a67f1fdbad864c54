"""What applications send: the types that decode the bodies of requests, in the words of the HTTP contract.

null means absent everywhere. Unknown fields of a message are ignored, since old clients send some;
every other body forbids them.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from .message import Resolution


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


class Activate(Struct, frozen=True):
    """Unknown fields are ignored, as the replaced service did."""

    restored: Literal["hold", "send"] | None = None


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


class Empty(Struct, frozen=True):
    """A body that says nothing; unknown fields are ignored, as the replaced service did."""
