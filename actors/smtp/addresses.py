"""Addresses as they go over the wire: A-labels where ASCII will do, UTF-8 where only SMTPUTF8 can carry it."""

import re

from events.values import ascii_domain

# Whatever could end the path early or start another command; a quoted local part may hold spaces and brackets.
_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SENDABLE = re.compile(r"[!-;=?-~]*")
_UNQUOTED_UNSENDABLE = re.compile(r"[ <>]")


def ascii_address(address: str) -> str | None:
    """The address in ASCII, or None where it needs SMTPUTF8 (RFC 6531 section 3.2): a local part has no A-label."""
    if address.isascii():
        return address
    local, at, domain = address.rpartition("@")
    labels = ascii_domain(domain) if local.isascii() else None
    return None if labels is None else local + at + labels


def can_stand_in_a_path(address: str) -> bool:
    """Whether `<address>` is one path and nothing else: what parse_address refuses must not get past us either."""
    if _SENDABLE.fullmatch(address):
        return True
    if _UNSENDABLE.search(address):
        return False
    quoted = address.startswith('"') and '"@' in address
    return quoted or not _UNQUOTED_UNSENDABLE.search(address)
