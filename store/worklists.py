"""What the acting ones read: whom mail may be accepted for, what has expired, what is to be reported or erased.

Each is a function of a connection, to be run by `Store.read`, and gives at most a step's worth of rows, so that no
reading lasts long and no list grows with the log.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from .reading import known_messages
from .sql import columns
from .views.clock import BELIEVED, ClockRow
from .views.counts import ResultRow
from .views.dispatch import ACTIVE, DispatchRow
from .views.messages import MessageRow, decode_states
from .views.reports import REPORTED
from .views.rules import RulesRow

STEP = 1_000
"""Rows a step: one commit of so many facts takes some 15 ms, and attempts go between two of them."""

LIVING_ACCOUNTS = "select id, number from accounts where removed = 0"
ACCOUNT_NAMES = "select number, id from accounts where number in (select value from json_each(?))"
DISPATCH_ROW = f"select {columns(DispatchRow, 'dispatch')} from dispatch"

CLOCK_ROW = f"select {columns(ClockRow, 'clock')} from clock"

RULES_ROW = f"select {columns(RulesRow, 'rules')} from rules"

MESSAGES_BY_NUMBER = (
    f"select {columns(MessageRow, 'messages')} from messages where number in (select value from json_each(?))"
)
WITH_CONTENT = (
    "select message from letters where message in (select value from json_each(?1)) and length(content) > 0"
    " union select message from replies where message in (select value from json_each(?1)) and text <> x''"
)
"""Of these messages, those that still have a letter or a relay's words."""

WAITING = "select number from messages where state = 'waiting' and number > ? and number <= ? order by number limit ?"
"""Waiting messages by number: a range of the index messages_waiting."""

EXPIRED = (
    "select number, account, created_us from messages"
    " where state = 'waiting' and expires_us <= ? order by expires_us limit ?"
)
"""Waiting messages past their end: a range of the index messages_expiring."""

ORPHANED_ACCOUNTS = (
    "select account, state from totals where state in ('waiting', 'held') and n > 0"
    " and account in (select number from accounts where removed = 1)"
)
"""Removed accounts that still have mail to be ended; `totals` and `accounts` have a few rows an account."""

ORPHANED_WAITING = "select number from messages where account = ? and state = 'waiting' limit ?"
ORPHANED_HELD = "select number from messages where state = 'held' and account = ? limit ?"
"""Mail of one account: a range of messages_queue, and the index messages_held, which holds only what is held."""

REPORTED_UP_TO = "select seq from cursors where name = ?"
REPORTED_FIRST = "select up_to, at_us from reported order by up_to limit ?"
"""When the oldest results still here were reported: the head of a table with one row a ResultsReported."""

FINISHED_BEFORE = (
    "select number, revision, final_seq from messages"
    " where final_seq is not null and final_seq < ? order by final_seq limit ?"
)
"""Finished messages in the order in which they ended: a range of the index messages_final."""

REFUSED_FIRST = "select seq from refused where seq < ? and (settled_us is null or settled_us > ?) order by seq limit 1"
"""The first refused result that is still offered, or was settled after a moment. Rows before it go with retention, so
the walk along the key is short."""

ENDED_BEFORE = "select 1 from messages where final_seq < ?1 union all select 1 from results where seq < ?1 limit 1"

OLD_TOKENS = "select token from tokens where at_us <= ? order by at_us limit ?"
"""Batches by age: the head of tokens_by_age."""

RESULTS_AFTER = f"select {columns(ResultRow, 'results')} from results where seq > ? order by seq limit ?"
RESULTS_BETWEEN_COUNT = "select count(*) from results where seq > ? and seq <= ?"
RESULTS_BY_SEQ = f"select {columns(ResultRow, 'results')} from results where seq in (select value from json_each(?))"
REFUSED_AGAIN = "select seq, since_us from refused where settled_us is null and again_us <= ? order by again_us limit ?"
REFUSED_NEXT = "select again_us from refused where settled_us is null order by again_us limit 1"
"""Refused results by when they are offered again: ranges of the index refused_again."""

RESULT_AFTER_MANY = "select seq from results where seq < ? order by seq limit 1 offset ?"
"""The first result that is too many for one step: a message that came again and again has one for each time."""

RESULTS_BETWEEN = f"select {columns(ResultRow, 'results')} from results where seq >= ? and seq <= ? order by seq"
REPLIES_OF = "select ended, recipient, text from replies where ended in (select value from json_each(?))"


def _json(values: Iterable[Any]) -> str:
    return msgspec.json.encode(list(values)).decode()


def living_accounts(connection: sqlite3.Connection) -> dict[str, int]:
    """Id to number of every account that has not been removed."""
    return dict(connection.execute(LIVING_ACCOUNTS))


def dispatch_row(connection: sqlite3.Connection) -> DispatchRow:
    found = connection.execute(DISPATCH_ROW).fetchone()
    return DispatchRow(*found) if found else ACTIVE


def clock_row(connection: sqlite3.Connection) -> ClockRow:
    found = connection.execute(CLOCK_ROW).fetchone()
    return ClockRow(*found) if found else BELIEVED


def rules_row(connection: sqlite3.Connection) -> RulesRow | None:
    """The row of all rules; None where the log has never known one."""
    found = connection.execute(RULES_ROW).fetchone()
    return RulesRow(*found) if found else None


def asked_messages(connection: sqlite3.Connection, ids: Sequence[str]) -> tuple[dict[str, MessageRow], frozenset[int]]:
    """(the rows of the messages with these ids, the numbers of those that still have content); at most STEP ids."""
    rows = known_messages(connection, ids)
    numbers = _json(row.number for row in rows.values())
    return rows, frozenset(number for (number,) in connection.execute(WITH_CONTENT, (numbers,)))


def waiting_numbers(connection: sqlite3.Connection, after: int, up_to: int, limit: int = STEP) -> list[int]:
    return [number for (number,) in connection.execute(WAITING, (after, up_to, limit))]


class Expired(Struct, frozen=True):
    number: int
    account: int | None
    created_us: int


def expired(connection: sqlite3.Connection, now_us: int, limit: int = STEP) -> list[Expired]:
    """Waiting messages whose time has passed."""
    return [Expired(*found) for found in connection.execute(EXPIRED, (now_us, limit))]


def orphaned(connection: sqlite3.Connection, limit: int = STEP) -> list[tuple[int, int]]:
    """(message, account) of mail that waits or is held under a removed account; what is in flight ends first."""
    found: list[tuple[int, int]] = []
    for account, state in connection.execute(ORPHANED_ACCOUNTS).fetchall():
        statement = ORPHANED_WAITING if state == "waiting" else ORPHANED_HELD
        left = limit - len(found)
        found += [(number, account) for (number,) in connection.execute(statement, (account, left))]
    return found


def reported_up_to(connection: sqlite3.Connection) -> int:
    """The seq up to which every result was reported."""
    row = connection.execute(REPORTED_UP_TO, (REPORTED,)).fetchone()
    return row[0] if row else 0


class Finished(Struct, frozen=True):
    """A retention step: (number, revision) of messages whose content goes, and the seq before which rows leave the
    views; `more` where another step follows."""

    letters: tuple[tuple[int, int], ...]
    before: int
    more: bool = False


def finished(connection: sqlite3.Connection, reported_at_us: int, limit: int = STEP) -> Finished | None:
    """What was reported by a moment and is still in the views, at most `limit` messages and results; None where
    nothing is.

    Stamps never decrease, so what was reported by then stands before what was not.
    """
    heads = connection.execute(REPORTED_FIRST, (limit,)).fetchall()
    past = [up_to for up_to, at_us in heads if at_us <= reported_at_us]
    if not past:
        return None
    end = past[-1] + 1
    if refused := connection.execute(REFUSED_FIRST, (end, reported_at_us)).fetchone():
        # What was refused counts as reported only since it was settled, and nothing passes it before.
        (end,) = refused
        if not connection.execute(ENDED_BEFORE, (end,)).fetchone():
            return None
    (before,) = connection.execute(RESULT_AFTER_MANY, (end, limit)).fetchone() or (end,)
    rows = connection.execute(FINISHED_BEFORE, (before, limit)).fetchall()
    if len(rows) == limit:
        return Finished(_pairs(rows), rows[-1][2] + 1, more=True)
    return Finished(_pairs(rows), before, more=before < end or len(past) == limit)


def _pairs(rows: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, int], ...]:
    return tuple((number, revision) for number, revision, _ in rows)


def old_tokens(connection: sqlite3.Connection, seen_by_us: int, limit: int = STEP) -> tuple[str, ...]:
    """Tokens of batches that were stored by a moment, the oldest first."""
    return tuple(token for (token,) in connection.execute(OLD_TOKENS, (seen_by_us, limit)))


class Reportable(Struct, frozen=True):
    """What a stretch of the log needs to be told upstream: its results by seq, the rows of messages that were
    deferred, the accounts' ids, and the relays' words by (ended, recipient)."""

    results: dict[int, ResultRow]
    messages: dict[int, MessageRow]
    accounts: dict[int, str]
    replies: dict[tuple[int, int], str]


def reportable(
    connection: sqlite3.Connection, first: int, last: int, deferred: Sequence[int], ends: Sequence[int]
) -> Reportable:
    """`deferred` are numbers of messages, `ends` the seqs of ends of attempts within [first, last]."""
    results = {found[0]: ResultRow(*found) for found in connection.execute(RESULTS_BETWEEN, (first, last))}
    deferred_rows = connection.execute(MESSAGES_BY_NUMBER, (_json(deferred),))
    messages = {row.number: row for row in (MessageRow(*found) for found in deferred_rows)}
    accounts = {row.account for row in results.values()} | {row.account for row in messages.values()}
    spoken = {*ends, *(ended for row in results.values() for ended in _ends(row))}
    replies = connection.execute(REPLIES_OF, (_json(spoken),))
    return Reportable(
        results,
        messages,
        dict(connection.execute(ACCOUNT_NAMES, (_json(accounts - {None}),))),
        {(ended, recipient): bytes(text).decode(errors="replace") for ended, recipient, text in replies},
    )


def _ends(result: ResultRow) -> Iterable[int]:
    """The ends of attempts that said the last word about its recipients."""
    return (state.ended for state in decode_states(result.recipients)) if result.recipients else ()


class Unreported(Struct, frozen=True):
    """A batch of results for the upstream, oldest first, with what it takes to say them: `refused` are those that it
    has refused before, by their seq the moment of the first time; `again_us` is when the next of these is due."""

    results: tuple[ResultRow, ...]
    accounts: dict[int, str]
    replies: dict[tuple[int, int], str]
    refused: dict[int, int]
    again_us: int | None = None


def unreported(connection: sqlite3.Connection, now_us: int, limit: int) -> Unreported:
    """What is to be told next: what was refused and is due again, in at most half of the batch, then what is new."""
    refused = dict(connection.execute(REFUSED_AGAIN, (now_us, max(1, limit // 2))))
    rows = [ResultRow(*found) for found in connection.execute(RESULTS_BY_SEQ, (_json(refused),))]
    rows.sort(key=lambda row: row.seq)
    after = reported_up_to(connection)
    rows += [ResultRow(*found) for found in connection.execute(RESULTS_AFTER, (after, limit - len(rows)))]
    again = connection.execute(REFUSED_NEXT).fetchone()
    return _said(connection, rows, refused, again[0] if again else None)


def unacknowledged(connection: sqlite3.Connection, after: int, limit: int) -> Unreported:
    """The results after a seq."""
    return _said(connection, [ResultRow(*found) for found in connection.execute(RESULTS_AFTER, (after, limit))], {})


def _said(
    connection: sqlite3.Connection, rows: Sequence[ResultRow], refused: dict[int, int], again_us: int | None = None
) -> Unreported:
    accounts = connection.execute(ACCOUNT_NAMES, (_json({row.account for row in rows} - {None}),))
    replies = connection.execute(REPLIES_OF, (_json({ended for row in rows for ended in _ends(row)}),))
    return Unreported(
        tuple(rows),
        dict(accounts),
        {(ended, recipient): bytes(text).decode(errors="replace") for ended, recipient, text in replies},
        refused,
        again_us,
    )


def results_between(connection: sqlite3.Connection, after: int, up_to: int) -> int:
    """How many results there are after a seq up to another."""
    (count,) = connection.execute(RESULTS_BETWEEN_COUNT, (after, up_to)).fetchone()
    return int(count)
