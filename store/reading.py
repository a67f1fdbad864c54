"""The named reads: what is asked of the views, the log and what stands beside it, as plain functions of a connection.

`Store.read` runs one within a read transaction, so all that it returns is of one moment; on the connection that
`replay.at` gives, the same functions see a past one. They return rows, never the shapes of the API, and take the
moment as an argument where due or not is the question.

Lists page by an opaque number. A page reads a bounded stretch of rows, so a filter that few rows pass may leave it
short or empty: `next` says where to go on, and is None only at the end.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct

from events.fact import Entry
from events.lifecycle import OPEN
from events.message import FirstFact
from events.rules import Rule
from events.values import Status
from events.wire import decode_row

from . import sql
from .beside import secret_name, volume_secret_name
from .results_text import Replies, states_of
from .views.accounts import AccountRow, RelayRow
from .views.counts import DAY_MINUTES, HOUR_MINUTES, MINUTE_US, ResultRow
from .views.dispatch import ACTIVE, DispatchRow
from .views.messages import MESSAGES, MessageRow
from .views.rules import RulesRow
from .views.volumes import VolumeRow

Connection = sqlite3.Connection
"""What a reading is given; nobody outside the store opens one."""

STRETCH_ROWS_MAX = 20_000
"""Rows that one page of a list looks at: some 50 ms at most, whatever the filter."""

EVENT_ROWS_MAX = 5_000
"""Rows of the log that one filtered page of events looks at."""

CONTENT_BYTES_MAX = 16_000_000
"""Contents of letters in one page: a page of large attachments ends earlier, so that no answer fills the memory."""

TIMELINE_FACTS_MAX = 10_000
"""Facts of one message: one with a hundred recipients that is retried for five days has some hundreds."""

NEVER = 2**62
"""A day beyond all others."""

STATES_OF_STATUS: dict[str, tuple[str, ...]] = {
    "sent": ("sent",),
    "error": ("failed", "rejected"),
    "withdrawn": ("withdrawn",),
}
"""The statuses that are read from a stretch of all messages; the open ones have reads of their own."""

Row = TypeVar("Row")


class Page(Struct, Generic[Row], frozen=True):
    """Rows of a list in order, and the number to go on after; None at the end."""

    rows: tuple[Row, ...]
    next: int | None = None


class Surroundings(Struct, frozen=True):
    """What decides beside a message's own row whether it may go: accounts by number, relays by key, dispatch,
    rules."""

    accounts: Mapping[int, AccountRow]
    relays: Mapping[str, RelayRow]
    dispatch: DispatchRow
    rules: tuple[Rule, ...] = ()

    def relay_of(self, account: AccountRow) -> RelayRow | None:
        return self.relays.get(account.relay)


class Beside(Struct, frozen=True):
    """What stands beside the log about some rows, as far as it is not erased: envelopes by letter, relays' words."""

    envelopes: Mapping[int, bytes]
    replies: Replies


class Counts(Struct, frozen=True):
    """How many messages there are: by state since ever, and what waits, told apart by whether it is due.

    pending, deferred, in_flight and held are disjoint; mail behind a throttled account is deferred.
    """

    states: Mapping[str, int]
    pending: int
    deferred: int

    @property
    def in_flight(self) -> int:
        return self.states.get("in_flight", 0)

    @property
    def held(self) -> int:
        return self.states.get("held", 0)

    @property
    def open(self) -> int:
        """Messages that are not final yet."""
        return sum(n for state, n in self.states.items() if state in OPEN)


def _json(values: Iterable[Any]) -> str:
    return msgspec.json.encode(list(values)).decode()


# Lists


def pending(connection: sqlite3.Connection, now_us: int, after: int, limit: int) -> Page[MessageRow]:
    """Waiting messages that are due and not behind a throttled account."""
    return _waiting(connection, sql.PENDING, now_us, after, limit)


def deferred(connection: sqlite3.Connection, now_us: int, after: int, limit: int) -> Page[MessageRow]:
    """Messages that wait for a later moment, and all that wait behind a throttled account."""
    return _waiting(connection, sql.DEFERRED, now_us, after, limit)


def _waiting(connection: sqlite3.Connection, statement: str, now_us: int, after: int, limit: int) -> Page[MessageRow]:
    values = {"now": now_us, "after": after, "limit": limit, "stretch": STRETCH_ROWS_MAX}
    return stretch(connection, statement, values, sql.WAITING_STRETCH_END)


def stretch(
    connection: sqlite3.Connection, statement: str, values: Mapping[str, Any], end: str | None
) -> Page[MessageRow]:
    """A page of a statement that looks at one stretch of rows; `end` finds where a full stretch ends."""
    rows = _messages(connection.execute(statement, values))
    if len(rows) == values["limit"]:
        return Page(rows, rows[-1].number)
    skip = {"after": values["after"], "skip": STRETCH_ROWS_MAX - 1}
    last = connection.execute(end, skip).fetchone() if end else None
    return Page(rows, last[0] if last else None)


def _messages(found: Iterable[Sequence[Any]]) -> tuple[MessageRow, ...]:
    return tuple(MessageRow(*columns) for columns in found)


def held(connection: sqlite3.Connection, after: int, limit: int) -> Page[MessageRow]:
    """Mail held for a person."""
    return stretch(connection, sql.HELD, {"after": after, "limit": limit}, None)


def in_flight(connection: sqlite3.Connection, after: int, limit: int) -> Page[MessageRow]:
    """Messages with an open attempt."""
    return stretch(connection, sql.IN_FLIGHT, {"after": after, "limit": limit}, None)


def messages(
    connection: sqlite3.Connection,
    now_us: int,
    after: int,
    limit: int,
    *,
    status: Status | None = None,
    active_only: bool = False,
    account_id: str | None = None,
) -> Page[MessageRow]:
    """Messages by number: of a status, or only those that are not final, or of an account (whoever has its id)."""
    accounts = None if account_id is None else account_numbers(connection, account_id)
    if status is None and not active_only:
        return _all_messages(connection, after, limit, None, accounts)
    if status in STATES_OF_STATUS:
        if active_only:
            return Page(())
        return _all_messages(connection, after, limit, STATES_OF_STATUS[status], accounts)
    return _of_accounts(_open_messages(connection, now_us, after, limit, status), accounts)


def _all_messages(
    connection: sqlite3.Connection,
    after: int,
    limit: int,
    states: tuple[str, ...] | None,
    accounts: frozenset[int] | None,
) -> Page[MessageRow]:
    values = {
        "after": after,
        "limit": limit,
        "stretch": STRETCH_ROWS_MAX,
        "states": None if states is None else _json(states),
        "accounts": None if accounts is None else _json(accounts),
    }
    return stretch(connection, sql.MESSAGES, values, sql.MESSAGES_STRETCH_END)


def _open_messages(
    connection: sqlite3.Connection, now_us: int, after: int, limit: int, status: Status | None
) -> Page[MessageRow]:
    match status:
        case "pending":
            return pending(connection, now_us, after, limit)
        case "deferred":
            return deferred(connection, now_us, after, limit)
        case "held":
            return held(connection, after, limit)
        case "in_flight":
            return in_flight(connection, after, limit)
    parts = (
        _waiting(connection, sql.WAITING, now_us, after, limit),
        held(connection, after, limit),
        in_flight(connection, after, limit),
    )
    return merged(parts, limit)


def merged(parts: Sequence[Page[MessageRow]], limit: int) -> Page[MessageRow]:
    """One page of several, in the order of numbers, no further than all of them have been read."""
    horizon = min((part.next for part in parts if part.next is not None), default=None)
    rows = sorted((row for part in parts for row in part.rows), key=lambda row: row.number)
    if horizon is not None:
        rows = [row for row in rows if row.number <= horizon]
    if len(rows) > limit:
        rows, horizon = rows[:limit], rows[limit - 1].number
    return Page(tuple(rows), horizon)


def _of_accounts(page: Page[MessageRow], accounts: frozenset[int] | None) -> Page[MessageRow]:
    if accounts is None:
        return page
    return Page(tuple(row for row in page.rows if row.account in accounts), page.next)


def results(connection: sqlite3.Connection, after: int, limit: int) -> tuple[ResultRow, ...]:
    """Final results after a seq, in the order of the log."""
    return tuple(ResultRow(*columns) for columns in connection.execute(sql.RESULTS, (after, limit)))


# One message


def message_number(connection: sqlite3.Connection, message_id: str) -> int | None:
    """The number that a client's id stands for; None where the log does not know it."""
    found = connection.execute(sql.NUMBER_OF_ID, (message_id,)).fetchone()
    return found[0] if found else None


def message(connection: sqlite3.Connection, number: int) -> MessageRow | None:
    """A message's row; one that retention took away is folded anew from its own facts."""
    found = connection.execute(sql.MESSAGE, (number,)).fetchone()
    return MessageRow(*found) if found else refolded(connection, number)


def message_by_id(connection: sqlite3.Connection, message_id: str) -> MessageRow | None:
    """The row of the message with a client's id."""
    number = message_number(connection, message_id)
    return None if number is None else message(connection, number)


def refolded(connection: sqlite3.Connection, number: int) -> MessageRow | None:
    """A message's row as its own facts give it."""
    row: MessageRow | None = None
    for entry in timeline(connection, number):
        row = MESSAGES.evolve(row, entry)
    return row


def known_messages(connection: sqlite3.Connection, ids: Iterable[str]) -> dict[str, MessageRow]:
    """Of these ids, those that the log knows, with their rows."""
    rows: dict[str, MessageRow] = {}
    for message_id, number, *rest in connection.execute(sql.KNOWN_IDS, (_json(ids),)).fetchall():
        row = MessageRow(*rest) if rest[0] is not None else refolded(connection, number)
        if row is not None:
            rows[message_id] = row
    return rows


def timeline(connection: sqlite3.Connection, number: int, after: int = 0) -> tuple[Entry, ...]:
    """Every fact about one message, in order."""
    return tuple(map(decode_row, connection.execute(sql.TIMELINE, (number, after, TIMELINE_FACTS_MAX))))


def ids_of(connection: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, str]:
    """The client's ids of messages, by number; also of those that retention took out of the views."""
    wanted = set(numbers)
    found: dict[int, str] = dict(connection.execute(sql.IDS_OF_NUMBERS, (_json(wanted),)))
    if missing := wanted - found.keys():
        for entry in map(decode_row, connection.execute(sql.FIRST_FACTS, (_json(missing),))):
            if isinstance(entry.fact, FirstFact):
                found[entry.seq] = entry.fact.id
    return found


# The log


class Events(Struct, frozen=True):
    """A page of the log; `next` is the seq to go on after, also where nothing matched; `last` is the log's end."""

    entries: tuple[Entry, ...]
    next: int
    last: int


def events(
    connection: sqlite3.Connection,
    after: int,
    limit: int,
    *,
    kind: str | None = None,
    account_id: str | None = None,
    message_id: str | None = None,
) -> Events:
    """Facts after a seq, of a kind, an account, a message; a filtered page looks at a bounded stretch of the log."""
    last = last_seq(connection)
    accounts = None if account_id is None else _json(account_numbers(connection, account_id))
    values = {"after": after, "limit": limit, "kind": kind, "accounts": accounts}
    if message_id is not None:
        values["message"] = message_number(connection, message_id) or 0
        entries = _entries(connection, sql.MESSAGE_EVENTS, values)
        up_to = last
    else:
        filtered = kind is not None or accounts is not None
        values["up_to"] = up_to = min(last, after + (EVENT_ROWS_MAX if filtered else limit))
        entries = _entries(connection, sql.EVENTS, values)
    next_seq = entries[-1].seq if len(entries) == limit else max(up_to, after)
    return Events(entries, next_seq, last)


def _entries(connection: sqlite3.Connection, statement: str, values: Mapping[str, Any]) -> tuple[Entry, ...]:
    return tuple(map(decode_row, connection.execute(statement, values)))


def last_seq(connection: sqlite3.Connection) -> int:
    seq: int = connection.execute(sql.LAST_SEQ).fetchone()[0]
    return seq


# Accounts and what surrounds messages


def accounts(connection: sqlite3.Connection) -> tuple[AccountRow, ...]:
    """Every account there has been, removed ones too, by number."""
    return tuple(AccountRow(*columns) for columns in connection.execute(sql.ACCOUNTS))


def account(connection: sqlite3.Connection, account_id: str) -> AccountRow | None:
    """The living account with this id."""
    found = connection.execute(sql.ACCOUNT, (account_id,)).fetchone()
    return AccountRow(*found) if found else None


def account_numbers(connection: sqlite3.Connection, account_id: str) -> frozenset[int]:
    """Every account that ever had this id."""
    return frozenset(number for (number,) in connection.execute(sql.ACCOUNT_NUMBERS, (account_id,)))


def account_names(connection: sqlite3.Connection) -> tuple[int, dict[int, str]]:
    """(as of seq, the ids of all accounts by number)."""
    return last_seq(connection), {row.number: row.id for row in accounts(connection)}


def sealed_credentials(connection: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, bytes]:
    """What `Secrets.unseal` opens, by account."""
    names = {secret_name(number): number for number in numbers}
    return {names[name]: bytes(sealed) for name, sealed in connection.execute(sql.SECRETS, (_json(names),))}


def volumes(connection: sqlite3.Connection) -> tuple[VolumeRow, ...]:
    """Every volume, by name."""
    return tuple(VolumeRow(*columns) for columns in connection.execute(sql.VOLUMES))


def volume(connection: sqlite3.Connection, name: str) -> VolumeRow | None:
    """The volume with this name."""
    columns = connection.execute(sql.VOLUME, (name,)).fetchone()
    return VolumeRow(*columns) if columns else None


def sealed_volumes(connection: sqlite3.Connection, names: Iterable[str]) -> dict[str, bytes]:
    """What `Secrets.unseal` opens, JSON of the config, by the volume's name."""
    wanted = {volume_secret_name(name): name for name in names}
    return {wanted[name]: bytes(sealed) for name, sealed in connection.execute(sql.SECRETS, (_json(wanted),))}


def surroundings(connection: sqlite3.Connection) -> Surroundings:
    """All accounts, the relays that cannot be reached, whether dispatch is active, and the rules."""
    relays = [RelayRow(*columns) for columns in connection.execute(sql.RELAYS)]
    dispatch = connection.execute(sql.DISPATCH).fetchone()
    return Surroundings(
        {row.number: row for row in accounts(connection)},
        {row.key: row for row in relays},
        DispatchRow(*dispatch) if dispatch else ACTIVE,
        rules(connection),
    )


def rules(connection: sqlite3.Connection) -> tuple[Rule, ...]:
    """Every rule there is, by id."""
    found = connection.execute(sql.RULES).fetchone()
    return RulesRow(*found).all() if found else ()


# Counts


def counts(connection: sqlite3.Connection, now_us: int) -> Counts:
    """How many messages there are in each state, and of those that wait, how many are due."""
    later = _later(connection, now_us)
    throttled = {row.number for row in accounts(connection) if (row.throttled_until_us or 0) > now_us}
    waiting = dict(connection.execute(sql.WAITING_BY_ACCOUNT).fetchall())
    put_off = sum(n if number in throttled else later.get(number, 0) for number, n in waiting.items())
    return Counts(totals(connection), sum(waiting.values()) - put_off, put_off)


def totals(connection: sqlite3.Connection) -> dict[str, int]:
    """How many messages are in each state, over all accounts, since ever."""
    return dict(connection.execute(sql.TOTALS).fetchall())


def open_messages(connection: sqlite3.Connection) -> int:
    """How many messages are not final."""
    return sum(n for state, n in totals(connection).items() if state in OPEN)


def _later(connection: sqlite3.Connection, now_us: int) -> dict[int, int]:
    """How many waiting messages of each account are due later than now."""
    minute = now_us // MINUTE_US
    hour, day = minute // HOUR_MINUTES, minute // DAY_MINUTES
    later: dict[int, int] = {}
    for statement, values in (
        (sql.DUE_ON_LATER_DAYS, {"day": day, "end": NEVER}),
        (sql.DUE_IN_LATER_HOURS, {"hour": hour, "end": (day + 1) * DAY_MINUTES // HOUR_MINUTES}),
        (sql.DUE_IN_LATER_MINUTES, {"minute": minute, "end": (hour + 1) * HOUR_MINUTES}),
        (sql.DUE_THIS_MINUTE, {"minute": minute, "now": now_us, "end": (minute + 1) * MINUTE_US}),
    ):
        for number, n in connection.execute(statement, values):
            later[number] = later.get(number, 0) + n
    return later


def oldest_due_us(connection: sqlite3.Connection) -> int | None:
    """The earliest due moment of all waiting mail; None where nothing waits."""
    due_us: int | None = connection.execute(sql.OLDEST_DUE).fetchone()[0]
    return due_us


# What stands beside


def envelopes(connection: sqlite3.Connection, letters: Iterable[int]) -> dict[int, bytes]:
    """JSON of events.letter.Envelope by letter, of those that are not erased."""
    return {letter: bytes(data) for letter, data in connection.execute(sql.ENVELOPES, (_json(letters),))}


def envelope_at(connection: sqlite3.Connection, number: int, seq: int) -> bytes | None:
    """A message's envelope as of a seq, if it is not erased."""
    found = connection.execute(sql.ENVELOPE_AT, (number, seq)).fetchone()
    return bytes(found[0]) if found else None


def with_contents(connection: sqlite3.Connection, page: Page[MessageRow]) -> tuple[Page[MessageRow], dict[int, bytes]]:
    """The page, cut short where CONTENT_BYTES_MAX is full, and JSON of events.letter.Letter by letter."""
    found: dict[int, bytes] = {}
    size = 0
    for index, row in enumerate(page.rows):
        if size >= CONTENT_BYTES_MAX:
            return Page(page.rows[:index], page.rows[index - 1].number), found
        for (content,) in connection.execute(sql.CONTENT, (row.revision,)):
            found[row.revision] = bytes(content)
            size += len(content)
    return page, found


def replies(connection: sqlite3.Connection, ends: Iterable[int]) -> dict[tuple[int, int], str]:
    """What relays said, by (seq of the attempt's end, recipient's index)."""
    wanted = _json({seq for seq in ends if seq})
    if wanted == "[]":
        return {}
    return {
        (ended, recipient): bytes(text).decode(errors="replace")
        for ended, recipient, text in connection.execute(sql.REPLIES, (wanted,))
    }


def beside(connection: sqlite3.Connection, rows: Iterable[MessageRow | ResultRow]) -> Beside:
    """The envelopes of these rows, and the relays' last words about their recipients."""
    rows = tuple(rows)
    ends = (state.ended for row in rows for state in states_of(row.recipients) if state.status != "delivered")
    return Beside(envelopes(connection, (row.revision for row in rows)), replies(connection, ends))


def reported_us(connection: sqlite3.Connection, seq: int) -> int | None:
    """When the result with this seq was reported; None while it is not, or where nobody remembers."""
    found = connection.execute(sql.REFUSED_UNTIL, (seq,)).fetchone()
    found = found or connection.execute(sql.REPORTED_AT, (seq,)).fetchone()
    return found[0] if found else None
