"""A letter: the content of one message, as it is stored beside the log and composed for the wire.

It is canonical: `parse` in the ingest actor has already turned comma lists into tuples, labels into numbers
and refused what cannot be sent. Encoded as JSON it is the `message` of `GET /messages/{id}`.
"""

from msgspec import Struct, field


class S3Object(Struct, frozen=True):
    """An object in a bucket."""

    bucket: str
    key: str


class Attachment(Struct, frozen=True, omit_defaults=True):
    """One attachment; exactly one source is set. `content` is base64 text, strict (RFC 4648 section 4); what another
    source has is fetched when the message is sent, and `storage_path` is `volume:path`."""

    filename: str
    content: str | None = None
    content_type: str | None = None
    content_id: str | None = None
    url: str | None = None
    s3: S3Object | None = None
    storage_path: str | None = None


class Letter(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The headers, text and attachments of one message, with the addresses as the client wrote them."""

    id: str
    sender: str = field(name="from")
    to: tuple[str, ...]
    cc: tuple[str, ...] = ()
    bcc: tuple[str, ...] = ()
    reply_to: tuple[str, ...] = ()
    return_path: str | None = None
    subject: str
    body: str
    content_type: str = "plain"
    body_html: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message_id: str | None = None
    attachments: tuple[Attachment, ...] = ()


class Envelope(Struct, frozen=True, omit_defaults=True):
    """What SMTP and the lists need without reading the content: sender, recipients (their order is the
    index used by every fact: to, then cc, then bcc, each mailbox once) and the subject."""

    sender: str
    recipients: tuple[str, ...]
    subject: str
