"""What applications send: the types that decode the bodies of requests, in the words of the HTTP contract.

null means absent everywhere. Unknown fields of a message are ignored, since old clients send some;
every other body forbids them.

What is said here of a field, beside its type, is for the API's description alone and judges nothing: the parser and
control refuse what does not fit in the contract's own words.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, field

from .exchange import Heard
from .letter import S3Object
from .message import Resolution
from .values import Status
from .volume import Backend

Action = Literal["withdraw", "retry", "hold", "release"]
"""What can be done to many messages at once."""

MOMENT_S_MAX = 9_000_000_000_000.0
"""In microseconds it fits SQLite's integers."""

REQUIRED = ("id", "from", "to", "subject", "body")
"""What a message must have to be taken. To send-message alone the id may come otherwise."""


def says(words: str, **schema: Any) -> Meta:
    """What the API's description says of a field."""
    return Meta(description=words, extra_json_schema=schema)


Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class AttachmentPayload(Struct, frozen=True):
    """One attachment of a message."""

    filename: str
    content: Annotated[str | None, says("Strict base64 (RFC 4648).")] = None
    content_type: Annotated[str | None, says("A media type; by the file's name where it is left out.")] = None
    content_id: Annotated[str | None, says("Makes it inline, for `cid:` in HTML.")] = None
    url: Annotated[str | None, says("http or https; fetched when the message is sent.")] = None
    s3: S3Object | None = None
    storage_path: Annotated[str | None, says("`volume:path`; `base64:..` stands for `content`.")] = None


_LIST = {"minLength": 1, "minItems": 1}
_LABELS = {"examples": [2, "high"]}


class MessagePayload(Struct, frozen=True):
    """A message. Unknown fields are ignored."""

    # Every field may be missing, so that the first reason that holds is found in the contract's order, and not in the
    # order in which a decoder looks.

    id: Annotated[
        str | None,
        says("Yours; in the log for ever, so never an address.", minLength=1, maxLength=1000, examples=["invoice-42"]),
    ] = None
    account_id: Annotated[str | None, says("Without one: the account of `[smtp]`, called `default`.")] = None
    sender: Annotated[
        str | None, says("An address, with or without a name.", minLength=1, examples=["Shop <shop@example.com>"])
    ] = field(name="from", default=None)
    to: Annotated[
        list[str] | str | None, says("A list of addresses, or one comma string.", **_LIST, examples=["ada@example.org"])
    ] = None
    cc: Annotated[list[str] | str | None, says("As `to`.")] = None
    bcc: Annotated[list[str] | str | None, says("As `to`; in no header.")] = None
    reply_to: Annotated[list[str] | str | None, says("As `to`.")] = None
    return_path: Annotated[str | None, says("The envelope's sender, else `from`; `<>` for nobody.")] = None
    subject: Annotated[str | None, says("May be empty, not missing.", examples=["Your invoice"])] = None
    body: Annotated[str | None, says("May be empty, not missing.", examples=["22.30 euro"])] = None
    content_type: Annotated[Literal["plain", "html"] | None, says("Of `body`; `plain` where it is left out.")] = None
    body_html: Annotated[str | None, says("Then `body` is the plain part.")] = None
    headers: Annotated[
        dict[str, str | None] | None,
        says("Replace defaults, never From, To, Cc, Subject, Bcc or those of the structure; null is skipped."),
    ] = None
    message_id: Annotated[str | None, says("The Message-ID, else one is made, the same at every attempt.")] = None
    attachments: list[AttachmentPayload] | None = None
    priority: Annotated[
        str | int | float | None,
        says("0 to 3, clamped, or `immediate`, `high`, `medium`, `low`; 2 where nothing says otherwise.", **_LABELS),
    ] = None
    deferred_ts: Annotated[int | float | None, says("Not before, in Unix seconds.")] = None
    expires_ts: Annotated[
        int | float | None, says("Not after, in Unix seconds; at most `max_age_seconds` from its acceptance.")
    ] = None


RawMessage = Annotated[
    Raw, Meta(extra_json_schema={"allOf": [{"$ref": "#/components/schemas/MessagePayload"}, {"required": ["id"]}]})
]
"""A message that is decoded later, alone, so that its faults are its own."""


class AddMessages(Struct, frozen=True, forbid_unknown_fields=True):
    messages: Annotated[tuple[RawMessage, ...], says("At most `max_batch` (1,000) in JSON.")]
    default_priority: Annotated[str | int | float | None, says("For messages that name none.", **_LABELS)] = None


class DeleteMessages(Struct, frozen=True, forbid_unknown_fields=True):
    ids: tuple[str, ...]


class CleanupMessages(Struct, frozen=True, forbid_unknown_fields=True):
    """Without a body: as long ago as retention is configured."""

    older_than_seconds: Annotated[float, Meta(ge=0)] | None = None


class ProxySync(Heard, frozen=True, forbid_unknown_fields=True):
    """Half of an exchange. `log` names the log that `ack_cursor` is of."""

    sync_token: str | None = None


class Resolve(Struct, frozen=True, forbid_unknown_fields=True):
    """`id` stands in the path."""

    id: str
    resolution: Annotated[Resolution, says("What becomes of it.")] = field(name="as")


class BulkWhere(Struct, frozen=True, forbid_unknown_fields=True):
    """All that is given must hold; something must be given."""

    account_id: str | None = None
    status: Status | None = None
    priority: Annotated[str | int | None, says("0 to 3, or a label.", **_LABELS)] = None
    before_ts: Annotated[
        Annotated[float, Meta(ge=0, le=MOMENT_S_MAX)] | None, says("Accepted before this moment, in Unix seconds.")
    ] = None
    to_domain: Annotated[str | None, says("A recipient's domain is this one; a subdomain is another.")] = None
    subject_contains: Annotated[str | None, says("In any case.")] = None


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


_MOST = 2**31 - 1
_COUNT = {"minimum": 0, "maximum": _MOST}


class Account(Struct, frozen=True, forbid_unknown_fields=True):
    id: Annotated[str, says("200 characters at most.", minLength=1, maxLength=200, examples=["news"])]
    host: Annotated[
        str, says("The relay's name or address.", minLength=1, maxLength=255, examples=["relay.example.com"])
    ]
    port: Annotated[int, says("The relay's port.", minimum=1, maximum=65535, examples=[587])]
    user: Annotated[str | None, says("To log in with.")] = None
    password: Annotated[
        str | None, says("A missing one keeps the stored one while `host`, `port` and `user` stay the same.")
    ] = None
    ttl: Annotated[int | None, says("Seconds that an idle connection is kept (300).", **_COUNT)] = None
    limit_per_minute: Annotated[int | None, says("Transactions in any 60 seconds; 0 is no limit.", **_COUNT)] = None
    limit_per_hour: Annotated[int | None, says("Transactions in any 3,600 seconds.", **_COUNT)] = None
    limit_per_day: Annotated[int | None, says("Transactions in any 86,400 seconds.", **_COUNT)] = None
    limit_behavior: Annotated[Literal["defer", "reject"] | None, says("Over the limit; `defer` by default.")] = None
    use_tls: Annotated[
        bool | None, says("true: implicit on port 465, elsewhere STARTTLS required; false: `auto`. `tls` wins.")
    ] = None
    tls: Annotated[
        Literal["auto", "none", "starttls-required", "implicit"] | None,
        says("`auto`: from the first byte on port 465, else STARTTLS where it is offered."),
    ] = None
    tls_verify: Annotated[bool | None, says("false takes any certificate.")] = None
    tls_ca_file: Annotated[str | None, says("A file with a private authority's certificate (PEM).")] = None
    auth: Annotated[
        Literal["auto", "plain", "login", "cram-md5"] | None,
        says("`auto`: PLAIN first under TLS, CRAM-MD5 first without."),
    ] = None
    batch_size: Annotated[int | None, says("Messages before the next account's turn.", **_COUNT)] = None
    max_connections: Annotated[int | None, says("Connections at once (20).", **_COUNT)] = None
    max_messages_per_connection: Annotated[int | None, says("Messages over one connection (1,000).", **_COUNT)] = None


class Volume(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    backend: Backend
    config: dict[str, str | None]
    account_id: str | None = None


Day = Annotated[int, Meta(ge=0, le=6)]
StartHour = Annotated[int, Meta(ge=0, le=23)]
EndHour = Annotated[int, Meta(ge=0, le=24)]
Minutes = Annotated[int, Meta(ge=1, le=2**31 - 1)]
RulePriority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
RuleName = Annotated[str, Meta(max_length=200)]


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """A time window for mail; what is left out is: enabled, priority 0, every day, the whole day."""

    interval_minutes: Minutes
    name: RuleName | None = None
    enabled: bool | None = None
    priority: RulePriority | None = None
    days: tuple[Day, ...] | None = None
    start_hour: StartHour | None = None
    end_hour: EndHour | None = None
    cross_midnight: bool | None = None


class RuleChange(Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays; `id` stands in the path."""

    id: int | str
    name: RuleName | None = None
    enabled: bool | None = None
    priority: RulePriority | None = None
    days: tuple[Day, ...] | None = None
    start_hour: StartHour | None = None
    end_hour: EndHour | None = None
    cross_midnight: bool | None = None
    interval_minutes: Minutes | None = None


class Schedule(Struct, frozen=True, forbid_unknown_fields=True):
    """Rules that replace all there are, and whether dispatch is to be active; what is left out stays."""

    rules: tuple[Rule, ...] | None = None
    active: bool | None = None


class Empty(Struct, frozen=True):
    """A body that says nothing; unknown fields are ignored, as the replaced service did."""
