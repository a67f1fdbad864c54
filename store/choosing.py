"""Which messages a bulk command means, a step at a time.

A step is one reading of one moment: at most STEP messages by number, out of a bounded stretch of those in the states
that the command is for, so no reading lasts long and none grows with the log. A step may come back short, or empty,
and still have a `next`. Recipients and subjects stand in the envelopes beside the log, which are looked at one by one;
where an envelope has been erased, a message is not found by them.
"""

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from events.commands import Where
from events.letter import Envelope
from events.lifecycle import State
from events.values import ascii_domain

from .erasing import kept
from .reading import STRETCH_ROWS_MAX, Page, account_numbers, merged, stretch
from .sql import ENVELOPES, MESSAGES_STRETCH_END, WAITING_STRETCH_END, columns
from .views.messages import MessageRow
from .worklists import STEP

_MESSAGE = columns(MessageRow, "m")

_FITTING = (
    " where (:accounts is null or m.account in (select value from json_each(:accounts)))"
    " and (:priority is null or m.priority = :priority)"
    " and (:before_us is null or m.created_us < :before_us)"
    " limit :limit"
)

CHOSEN_WAITING = (
    f"select {_MESSAGE} from (select * from messages indexed by messages_waiting"
    " where state = 'waiting' and number > :after and number <= :up_to order by number limit :stretch) m" + _FITTING
)
"""Waiting messages: a stretch of the index messages_waiting."""

CHOSEN_HELD = (
    f"select {_MESSAGE} from (select * from messages indexed by messages_held"
    " where state = 'held' and number > :after and number <= :up_to order by number limit :stretch) m" + _FITTING
)
"""Held messages: a stretch of the index messages_held."""

HELD_STRETCH_END = (
    "select number from messages indexed by messages_held where state = 'held' and number > :after"
    " order by number limit 1 offset :skip"
)
"""The last number of a full stretch of held messages."""

CHOSEN_FAILED = (
    f"select {_MESSAGE} from (select * from messages where number > :after and number <= :up_to"
    " order by number limit :stretch) m" + _FITTING.replace(" where ", " where m.state = 'failed' and ", 1)
)
"""Failed messages among a stretch of all of them."""

CHOSEN_IN_FLIGHT = (
    f"select {_MESSAGE} from (select m.* from attempts a cross join messages m on m.number = a.message"
    " where a.message > :after and a.message <= :up_to order by m.number limit :stretch) m" + _FITTING
)
"""The messages of open attempts, of which there are no more than connections."""

THROTTLED = "select number from accounts where throttled_until_us > ?"
"""The accounts whose limits are used up: `accounts` has some tens of rows."""

SOURCES: dict[State, tuple[str, str | None]] = {
    "waiting": (CHOSEN_WAITING, WAITING_STRETCH_END),
    "held": (CHOSEN_HELD, HELD_STRETCH_END),
    "failed": (CHOSEN_FAILED, MESSAGES_STRETCH_END),
    "in_flight": (CHOSEN_IN_FLIGHT, None),
}
"""The statement that reads messages in a state, and the one that finds where its stretch ends."""

_STATES_OF: dict[str, frozenset[State]] = {
    "pending": frozenset({"waiting"}),
    "deferred": frozenset({"waiting"}),
    "error": frozenset({"failed"}),
}
"""A status that is not simply a state: time and limits tell the two kinds of waiting apart."""

_envelope = msgspec.json.Decoder(Envelope).decode


class Chosen(Struct, frozen=True):
    """A step's messages, the letters of the failed ones that can still be sent, and the number to go on after; None at
    the end."""

    rows: tuple[MessageRow, ...]
    letters: frozenset[int] = frozenset()
    next: int | None = None


def chosen(
    connection: sqlite3.Connection,
    where: Where,
    states: Iterable[State],
    now_us: int,
    after: int,
    up_to: int,
    limit: int = STEP,
) -> Chosen:
    """The next messages in one of `states` for which everything in `where` holds."""
    allowed = frozenset(states)
    if where.status is not None:
        allowed &= _STATES_OF.get(where.status, frozenset({where.status}))
    page = _page(connection, where, allowed, after, up_to, limit)
    has_status = _has_status(connection, where, now_us)
    rows = [row for row in page.rows if has_status(row)]
    if where.to_domain is not None or where.subject is not None:
        fitting = _letters_that_fit(connection, where, (row.revision for row in rows))
        rows = [row for row in rows if row.revision in fitting]
    failed = [row.revision for row in rows if row.state == "failed"]
    following = page.next if page.next is not None and page.next < up_to else None
    return Chosen(tuple(rows), kept(connection, failed) if failed else frozenset(), following)


def _page(
    connection: sqlite3.Connection, where: Where, states: frozenset[State], after: int, up_to: int, limit: int
) -> Page[MessageRow]:
    accounts = None if where.account_id is None else list(account_numbers(connection, where.account_id))
    values: Mapping[str, Any] = {
        "after": after,
        "up_to": up_to,
        "limit": limit,
        "stretch": STRETCH_ROWS_MAX,
        "accounts": None if accounts is None else msgspec.json.encode(accounts).decode(),
        "priority": where.priority,
        "before_us": where.before_us,
    }
    sources = [SOURCES[state] for state in sorted(states) if state in SOURCES]
    return merged([stretch(connection, statement, values, end) for statement, end in sources], limit)


def _has_status(connection: sqlite3.Connection, where: Where, now_us: int) -> Callable[[MessageRow], bool]:
    """Whether a row is pending or deferred, where that is asked for."""
    if where.status not in ("pending", "deferred"):
        return lambda row: True
    throttled = {number for (number,) in connection.execute(THROTTLED, (now_us,))}
    deferred = where.status == "deferred"
    return lambda row: (row.due_us > now_us or row.account in throttled) == deferred


def _letters_that_fit(connection: sqlite3.Connection, where: Where, letters: Iterable[int]) -> set[int]:
    """Of these letters, those whose recipients and subject are the ones meant. An envelope may be large: each is let
    go before the next."""
    domain = None if where.to_domain is None else folded_domain(where.to_domain)
    words = None if where.subject is None else where.subject.casefold()
    found = set()
    for letter, data in connection.execute(ENVELOPES, (msgspec.json.encode(list(letters)).decode(),)):
        envelope = _envelope(data)
        if (words is None or words in envelope.subject.casefold()) and (
            domain is None or any(folded_domain(each.rpartition("@")[2]) == domain for each in envelope.recipients)
        ):
            found.add(letter)
    return found


def folded_domain(domain: str) -> str:
    """The form in which two domains are the same: A-labels, small letters."""
    return (ascii_domain(domain) or domain).lower()
