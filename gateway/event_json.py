"""A fact as JSON, the same in lists, timelines and the live stream: seq, time, kind, the ids of whom it is about, and
the fact's own fields. Its data is in the log as JSON already, so it is put behind the head as it is.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct, field

from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Entry
from events.letter import Envelope
from events.wire import encode_data
from store import reading

from .answers import Fact as FactHead

CACHED_MAX = 10_000
"""Encoded facts shared by the streams: as many as may wait for one follower."""


class ReplyWords(Struct, frozen=True):
    recipient: int
    reply: str


class Expansion(Struct, frozen=True, omit_defaults=True):
    """What `expand=1` joins to a fact about a message, as far as it is not erased.

    `addresses` are in the order that the indexes of recipients in facts mean.
    """

    sender: str | None = field(name="from", default=None)
    subject: str | None = None
    addresses: tuple[str, ...] = ()
    replies: tuple[ReplyWords, ...] = ()


_encode = msgspec.json.Encoder().encode
_envelope = msgspec.json.Decoder(Envelope).decode


def event_json(
    entry: Entry, message_ids: Mapping[int, str], account_ids: Mapping[int, str], expansion: Expansion | None = None
) -> bytes:
    """One fact as a JSON object."""
    about = None if entry.message is None else message_ids.get(entry.message)
    account = None if entry.account is None else account_ids.get(entry.account)
    head = _encode(FactHead(entry.seq, entry.at_us, entry.kind, about, account))
    more = (encode_data(entry.fact), _encode(expansion) if expansion else b"{}")
    return b",".join((head[:-1], *(each[1:-1] for each in more if each != b"{}"))) + b"}"


def expansions(connection: reading.Connection, entries: Sequence[Entry]) -> dict[int, Expansion]:
    """What stands beside the log about facts, by their seq."""
    ends = [entry.seq for entry in entries if isinstance(entry.fact, AttemptEnded | AttemptInterrupted)]
    replies = reading.replies(connection, ends)
    return {entry.seq: _expansion(connection, entry, replies) for entry in entries if entry.message is not None}


def _expansion(connection: reading.Connection, entry: Entry, replies: Mapping[tuple[int, int], str]) -> Expansion:
    data = reading.envelope_at(connection, entry.message or 0, entry.seq)
    envelope = _envelope(data) if data else None
    return Expansion(
        envelope.sender if envelope else None,
        envelope.subject if envelope else None,
        envelope.recipients if envelope else (),
        tuple(ReplyWords(index, text) for (ended, index), text in sorted(replies.items()) if ended == entry.seq),
    )


class EventCache:
    """Facts encoded once, whoever streams them; the oldest are forgotten first."""

    def __init__(self, account_ids: Mapping[int, str]) -> None:
        self._account_ids = account_ids
        self._encoded: dict[int, bytes] = {}

    def encode(self, entries: Iterable[Entry], message_ids: Mapping[int, str]) -> list[bytes]:
        """The facts' JSON; those that many are interested in come from memory."""
        return [self._encoded.get(entry.seq) or self._keep(entry, message_ids) for entry in entries]

    def _keep(self, entry: Entry, message_ids: Mapping[int, str]) -> bytes:
        data = self._encoded[entry.seq] = event_json(entry, message_ids, self._account_ids)
        if len(self._encoded) > CACHED_MAX:
            self._encoded.pop(next(iter(self._encoded)))
        return data
