"""The wire form of facts: `kind`, `version` and short JSON, and the lifting of old versions.

A stored row is never rewritten. When a fact's shape changes, its VERSION goes up and an upcaster from the
version before is added to UPCASTERS: a function from the old JSON object to the new one.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from . import account, attempt, message, report, schedule, service, volume
from .fact import Entry, Fact

MODULES = (message, attempt, account, schedule, report, volume, service)

KINDS: dict[str, type[Fact]] = {
    name: kind
    for module in MODULES
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Fact) and kind is not Fact
}
"""Every kind of fact by its name in the log."""

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTERS: dict[tuple[str, int], Upcaster] = {}
"""(kind, old version) -> a function that lifts the data by one version. Nothing has changed shape yet."""

_encoder = msgspec.json.Encoder()
_decoders = {name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()}
encode_data = _encoder.encode
"""A fact's data as bytes."""


class UnknownKind(ValueError):
    """The log holds a fact that this release does not know: it was written by a newer one."""


def decode_data(kind: str, version: int, data: bytes, upcasters: dict[tuple[str, int], Upcaster] = UPCASTERS) -> Fact:
    """A stored row's fact, lifted to today's shape. Raises UnknownKind, or msgspec.ValidationError on damage."""
    known = KINDS.get(kind)
    if known is None or version > known.VERSION:
        raise UnknownKind(f"the log holds {kind} version {version}, which this release does not know: use a newer one")
    if version == known.VERSION:
        return _decoders[kind].decode(data)
    fields = msgspec.json.decode(data)
    for step in range(version, known.VERSION):
        fields = upcasters[kind, step](fields)
    return msgspec.convert(fields, known)


def decode_row(row: tuple[int, int, str, int, int | None, int | None, bytes]) -> Entry:
    """An Entry from a row of the table `log`, its columns in the order in which they are declared."""
    seq, at_us, kind, version, about_message, about_account, data = row
    return Entry(seq, at_us, about_message, about_account, decode_data(kind, version, data))
