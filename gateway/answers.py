"""The types of answers, in the words of the HTTP contract. A field that is None is left out.

Moments are Unix seconds; those that end in `_at` are ISO 8601. What control answers it writes itself, since it cannot
see these types: for those routes they describe, and the tests hold the answers against them.
"""

from typing import Annotated, Literal, get_args

from msgspec import Meta, Raw, Struct

from events.rules import Rule
from events.values import Status
from events.waiting import Reason
from events.wire import KINDS


def _words(*words: str) -> Meta:
    """A closed list of words. It is said of a plain `str`, so that whoever encodes need not prove it."""
    return Meta(extra_json_schema={"enum": list(words)})


_STATUS = _words(*get_args(Status))
_FINAL = _words("sent", "error")
_RECIPIENT = _words("open", "delivered", "deferred", "refused", "in_doubt", "withdrawn", "expired")
_ISO = Meta(extra_json_schema={"format": "date-time"})


class Ok(Struct, frozen=True):
    ok: bool = True


class Health(Struct, frozen=True):
    status: Annotated[str, _words("ok")] = "ok"


class Ready(Struct, frozen=True, omit_defaults=True):
    ready: bool
    reasons: tuple[str, ...] = ()


class Active(Struct, frozen=True):
    ok: bool
    active: bool


class Ticket(Struct, frozen=True):
    """For `?ticket=` of the stream, good once, for so many seconds."""

    ok: bool
    ticket: str
    expires_in: int


class Report(Struct, frozen=True):
    """A final result, as an upstream is told it; nulls stand."""

    id: str
    account_id: str | None
    priority: int
    sent_ts: int | None
    error_ts: int | None
    error: str | None
    deferred_ts: int | None


class Exchange(Struct, frozen=True):
    """Our half of an exchange; nulls stand. `confirm` is the token whose batch is stored."""

    log: str
    confirm: str | int | None
    messages: tuple[Raw, ...]
    token: str | None
    delivery_report: tuple[Report, ...]
    report_cursor: int
    ack_cursor: int | None


NULLS_STAND = frozenset({Report.__name__, Exchange.__name__})
"""Answers in which null is said and not left out, for both sides write the same shape."""


class Removed(Struct, frozen=True):
    ok: bool
    removed: int


class Deleted(Struct, frozen=True):
    ok: bool
    removed: int
    not_found: tuple[str, ...]


class Rejected(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One message that was not taken, and why; a message without an id has none here."""

    id: str | None = None
    reason: str


class BulkAnswer(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`next` and `up_to` are those of a single step."""

    ok: bool
    matched: int
    changed: int
    without_content: int | None = None
    in_doubt: int | None = None
    next: int | None = None
    up_to: int | None = None


class Fact(Struct, frozen=True, omit_defaults=True):
    """One entry of the log: this head, and beside it the fields of its kind."""

    seq: int
    at_us: int
    kind: Annotated[str, _words(*sorted(KINDS))]
    message_id: str | None = None
    account_id: str | None = None


_FACT = Meta(extra_json_schema={"$ref": "#/components/schemas/Fact"})


class Error(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every error: one sentence that says what to change, under both names. `log` and `seq` say, for a cursor that
    does not fit, whose and how far this log is."""

    ok: Annotated[bool, Meta(extra_json_schema={"const": False})]
    error: str
    detail: str
    log: str | None = None
    seq: int | None = None


class Waiting(Struct, frozen=True, omit_defaults=True, kw_only=True):
    reason: Annotated[str, _words(*get_args(Reason))]
    until: int | None = None


class Pending(Struct, frozen=True, omit_defaults=True, kw_only=True):
    id: str
    to_addr: str | None = None
    subject: str | None = None
    started_at: Annotated[str, _ISO]
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
    created_at: Annotated[str, _ISO]
    created_ts: int
    last_error: str | None = None


class DeferredList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    deferred: tuple[Deferred, ...]
    next: int | None = None


class Recipient(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`reply` is the relay's text, for what was not delivered."""

    address: str | None = None
    status: Annotated[str, _RECIPIENT]
    code: int | None = None
    enhanced: str | None = None
    reply: str | None = None
    queue_id: str | None = None


class Held(Struct, frozen=True, omit_defaults=True, kw_only=True):
    id: str
    account_id: str | None = None
    cause: str
    held_at: Annotated[str, _ISO]
    held_ts: int
    attempts: int
    created_at: Annotated[str, _ISO]
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
    status: Annotated[str, _FINAL]
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
    status: Annotated[str, _STATUS]
    deferred_ts: int | None = None
    sent_ts: int | None = None
    error_ts: int | None = None
    error: str | None = None
    reported_ts: int | None = None
    created_at: Annotated[str, _ISO]
    updated_at: Annotated[str, _ISO]
    created_ts: int
    updated_ts: int
    message: Annotated[Raw | None, Meta(extra_json_schema={"type": "object"})] = None


class MessageList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    messages: tuple[Message, ...]
    next: int | None = None


class MessageRecord(Message, frozen=True, omit_defaults=True, kw_only=True):
    """One message with everything that is known of it."""

    ok: bool
    recipients: tuple[Recipient, ...]
    timeline: tuple[Annotated[Raw, _FACT], ...]
    waiting_for: Waiting | None = None


class EventList(Struct, frozen=True, omit_defaults=True, kw_only=True):
    ok: bool
    log: str
    events: tuple[Annotated[Raw, _FACT], ...]
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


class RuleList(Struct, frozen=True, kw_only=True):
    """Every rule there is, by id."""

    ok: bool
    rules: tuple[Rule, ...]


class ScheduleAnswer(RuleList, frozen=True, kw_only=True):
    active: bool


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
    timestamp: Annotated[str, _ISO]
    account: str | None = None
    recipients: tuple[Recipient, ...] = ()


class SendAnswer(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The first outcome of one message; `error` and `id` alone where it was not taken."""

    ok: bool
    result: SendResult | None = None
    error: str | None = None
    id: str | None = None


class SendPending(Struct, frozen=True, kw_only=True):
    """No outcome came in time: the message is taken, and goes on by itself."""

    ok: bool
    status: Annotated[str, _words("pending")]
    id: str
    result: SendResult


class Added(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`rejected_count` is that of a stream, whose list of rejections has a bound."""

    ok: bool
    queued: int
    rejected: tuple[Rejected, ...]
    rejected_count: int | None = None
