"""Facts as the JSON Lines of an export: with all that the chain's hash is made of (store/chain.py)."""

import msgspec
from msgspec import UNSET, Struct, UnsetType

from store.exporting import Stretch


class _Commit(Struct, frozen=True, gc=False):
    format: int | None
    hash: str


class _Line(Struct, frozen=True, gc=False):
    """`message_id` and `account_id` are joined for readers, and no part of the hash."""

    seq: int
    at_us: int
    kind: str
    version: int
    message: int | None
    account: int | None
    data: str
    message_id: str | UnsetType = UNSET
    account_id: str | UnsetType = UNSET
    commit: _Commit | UnsetType = UNSET


_encode = msgspec.json.Encoder().encode_lines


def encoded(stretch: Stretch) -> bytes:
    """A stretch's facts, a line each."""
    messages, accounts = stretch.message_ids, stretch.account_ids
    return _encode(
        [
            _Line(
                fact.seq,
                fact.at_us,
                fact.kind,
                fact.version,
                fact.message,
                fact.account,
                fact.data.decode(errors="replace"),
                messages.get(fact.message or 0, UNSET),
                accounts.get(fact.account or 0, UNSET),
                UNSET if fact.hash is None else _Commit(fact.format, fact.hash.hex()),
            )
            for fact in stretch.facts
        ]
    )
