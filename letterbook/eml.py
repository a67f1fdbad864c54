"""A mail in a file (RFC 5322, MIME) as the fields of a message of the HTTP API."""

import mimetypes
from base64 import b64encode
from collections.abc import Iterator
from email import message_from_bytes
from email.headerregistry import AddressHeader
from email.message import EmailMessage, MIMEPart
from email.policy import default
from typing import Any

ADDRESS_FIELDS = {"to": "to", "cc": "cc", "bcc": "bcc", "reply-to": "reply_to"}

LEFT_OUT = frozenset(
    (
        *("from", "sender", "subject", "message-id", "mime-version", *ADDRESS_FIELDS),
        *("received", "return-path", "delivered-to", "x-original-to", "envelope-to"),
        *("dkim-signature", "authentication-results", "received-spf", "domainkey-signature"),
    )
)
"""Headers that are fields of a message, that describe how the file came here, or whose signature would not hold."""

LEFT_OUT_PREFIXES = ("content-", "resent-", "arc-")


class NoMailError(ValueError):
    """The file cannot be sent; the text is one line."""


def message_of(data: bytes) -> dict[str, Any]:
    """The fields of the mail in `data`, attachments in base64. Raises NoMailError."""
    mail = message_from_bytes(data, _class=EmailMessage, policy=default)
    if not mail.keys():
        raise NoMailError("it has no headers: it is no mail")
    fields: dict[str, Any] = {"from": _first_address(mail), "subject": str(mail["subject"] or "")}
    for name, field in ADDRESS_FIELDS.items():
        if addresses := _addresses(mail, name):
            fields[field] = addresses
    if mail["message-id"]:
        fields["message_id"] = str(mail["message-id"]).strip()
    return {**fields, **_content(mail), "headers": _headers(mail)}


def _first_address(mail: EmailMessage) -> str | None:
    addresses = _addresses(mail, "from")
    return addresses[0] if addresses else None


def _addresses(mail: EmailMessage, name: str) -> list[str]:
    headers = [header for header in mail.get_all(name, ()) if isinstance(header, AddressHeader)]
    return [str(address) for header in headers for address in header.addresses]


def _headers(mail: EmailMessage) -> dict[str, str]:
    """The other headers; of one that stands there several times, the first."""
    found: dict[str, str] = {}
    for name, value in mail.items():
        low = name.lower()
        if low not in LEFT_OUT and not low.startswith(LEFT_OUT_PREFIXES) and name not in found:
            found[name] = " ".join(str(value).split())
    return found


def _content(mail: EmailMessage) -> dict[str, Any]:
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    fields: dict[str, Any] = {"body": _text(plain)}
    if html is not None and plain is not None:
        fields["body_html"] = _text(html)
    elif html is not None:
        fields |= {"body": _text(html), "content_type": "html"}
    attachments = [_attachment(part, number) for number, part in enumerate(_others(mail, plain, html), 1)]
    return {**fields, "attachments": attachments} if attachments else fields


def _text(part: MIMEPart | None) -> str:
    if part is None:
        return ""
    try:
        return str(part.get_content())
    except LookupError as error:
        raise NoMailError(f"its text is in a character set that is not known: {error}") from error


def _others(part: MIMEPart, *bodies: MIMEPart | None) -> Iterator[MIMEPart]:
    """Every part that is not the text: of containers, what is in them; a mail within the mail is one part."""
    if part.is_multipart() and part.get_content_maintype() == "multipart":
        for inner in part.iter_parts():
            yield from _others(inner, *bodies)
    elif not any(part is body for body in bodies):
        yield part


def _attachment(part: MIMEPart, number: int) -> dict[str, str]:
    content_type = part.get_content_type()
    attachment = {
        "filename": part.get_filename() or f"attachment-{number}{mimetypes.guess_extension(content_type) or ''}",
        "content": b64encode(_bytes(part)).decode(),
        "content_type": content_type,
    }
    if part["content-id"]:
        attachment["content_id"] = str(part["content-id"]).strip().strip("<>")
    return attachment


def _bytes(part: MIMEPart) -> bytes:
    if part.get_content_maintype() == "message":
        return b"".join(bytes(inner) for inner in part.iter_parts())
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""
