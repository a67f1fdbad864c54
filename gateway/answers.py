"""The types of answers, in the words of the HTTP contract. A field that is None is left out.

Moments are Unix seconds; those that end in `_at` are ISO 8601.
"""

from typing import Literal

from msgspec import Raw, Struct


class Waiting(Struct, frozen=True, omit_defaults=True, kw_only=True):
    reason: str
    until: int | None = None


class Pending(Struct, frozen=True, omit_defaults=True, kw_only=True):
    id: str
    to_addr: str | None = None
    subject: str | None = None
    started_at: str
    started_ts: int
    account_id: str | None = None
    priority: int
    waiting_for: Waiting | None = None


class PendingList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    pending: tuple[Pending, ...]
    next: int | None = None


class Deferred(Struct, frozen=True, omit_defaults=True, kw_only=True):
    id: str
    account_id: str | None = None
    deferred_until: int
    cause: str
    attempts: int
    created_at: str
    created_ts: int
    last_error: str | None = None


class DeferredList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    deferred: tuple[Deferred, ...]
    next: int | None = None


class Recipient(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`reply` is the relay's text, for what was not delivered."""

    address: str | None = None
    status: str
    code: int | None = None
    enhanced: str | None = None
    reply: str | None = None
    queue_id: str | None = None


class Held(Struct, frozen=True, omit_defaults=True, kw_only=True):
    id: str
    account_id: str | None = None
    cause: str
    held_at: str
    held_ts: int
    attempts: int
    created_at: str
    created_ts: int
    last_error: str | None = None
    recipients: tuple[Recipient, ...]


class HeldList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    held: tuple[Held, ...]
    next: int | None = None


class Result(Struct, frozen=True, omit_defaults=True, kw_only=True):
    seq: int
    id: str
    account_id: str | None = None
    status: str
    sent_ts: int | None = None
    error_ts: int | None = None
    error: str | None = None
    smtp_code: int | None = None
    attempts: int
    recipients: tuple[Recipient, ...]


class ResultList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    log: str
    results: tuple[Result, ...]
    next: int


class Message(Struct, frozen=True, omit_defaults=True, kw_only=True):
    id: str
    priority: int
    account_id: str | None = None
    status: str
    deferred_ts: int | None = None
    sent_ts: int | None = None
    error_ts: int | None = None
    error: str | None = None
    reported_ts: int | None = None
    created_at: str
    updated_at: str
    created_ts: int
    updated_ts: int
    message: Raw | None = None


class MessageList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    messages: tuple[Message, ...]
    next: int | None = None


class MessageRecord(Message, frozen=True, omit_defaults=True, kw_only=True):
    """One message with everything that is known of it."""

    ok: bool
    recipients: tuple[Recipient, ...]
    timeline: tuple[Raw, ...]
    waiting_for: Waiting | None = None


class EventList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    log: str
    events: tuple[Raw, ...]
    next: int


class Account(Struct, frozen=True, omit_defaults=True, kw_only=True):
    id: str
    host: str
    port: int
    user: str | None = None
    has_password: bool
    ttl: int
    limit_per_minute: int | None = None
    limit_per_hour: int | None = None
    limit_per_day: int | None = None
    limit_behavior: str
    use_tls: bool | None = None
    tls: str
    tls_verify: bool
    tls_ca_file: str | None = None
    auth: str
    batch_size: int | None = None
    max_connections: int | None = None
    max_messages_per_connection: int | None = None
    paused: bool
    throttled_until: int | None = None


class AccountList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    accounts: tuple[Account, ...]


class Volume(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`config` without its secrets; it is missing where it cannot be opened, and from the past."""

    name: str
    backend: str
    config: dict[str, str] | None = None
    account_id: str | None = None


class VolumeList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    volumes: tuple[Volume, ...]


class VolumeRecord(Volume, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool


class AccountState(Struct, frozen=True, omit_defaults=True, kw_only=True):
    paused: bool
    throttled_until: int | None = None
    unreachable_until: int | None = None
    reason: str | None = None


class StatusAnswer(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    active: bool
    reasons: tuple[str, ...]
    version: str
    log: str
    seq: int
    pending: int
    deferred: int
    in_flight: int
    held: int
    accounts: dict[str, AccountState]


SendStatus = Literal["sent", "deferred", "error", "pending"]


class SendResult(Struct, frozen=True, omit_defaults=True, kw_only=True):
    id: str
    status: SendStatus
    deferred_until: int | None = None
    error: str | None = None
    smtp_code: int | None = None
    timestamp: str
    account: str | None = None
    recipients: tuple[Recipient, ...] = ()
