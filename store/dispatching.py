"""What the scheduler, the rate limiter and the sender pool read: the waiting messages in their order, and the rows
that decide whether they may go. Each reading is of one moment and says of which: the log's last seq."""

import sqlite3
from collections.abc import Iterable

from msgspec import Struct

from events.account import AccountSendsImported
from events.attempt import RECIPIENTS_PER_ATTEMPT_MAX, AttemptEnded, AttemptInterrupted
from events.fact import Entry
from events.wire import decode_row

from .beside import secret_name
from .reading import last_seq
from .views import ACCOUNTS, DISPATCH, RELAYS
from .views.accounts import AccountRow, RelayRow
from .views.attempts import AttemptRow
from .views.clock import ClockRow
from .views.counts import DAY_S, MINUTE_US, counts_against_limits
from .views.dispatch import ACTIVE, DispatchRow
from .views.messages import ALL_OF, MESSAGES, MessageRow, decode_states
from .views.rows import View
from .views.rules import NO_RULES, RulesRow
from .worklists import clock_row, rules_row

QUEUE = (
    "select number, due_us, revision, digests, recipients, expires_us from messages"
    " where account = ? and priority = ? and state = 'waiting' order by due_us, number limit ?"
)
"""The head of one account's queue of one priority: a range of the index messages_queue."""

WAITING_ACCOUNTS = "select account from totals where state = 'waiting' and n > 0"
OPEN_ATTEMPTS = "select attempt, message, account, revision, recipients, started_us from attempts order by attempt"
ENDS_SINCE = (
    "select seq, at_us, kind, version, message, account, data from log"
    " where seq > ? and at_us > ? and kind in ('AttemptEnded', 'AttemptInterrupted', 'AccountSendsImported')"
    " order by seq"
)
"""What was imported within a minute tells of sends within it: those of before are in the same fact."""
SLOTS = "select second, n from slots where account = ? and second > ? order by second"
SECRET = "select sealed from secrets where name = ?"


ONLY = ALL_OF[1]
"""Whom the first attempt for a single recipient is for: nearly every message that waits is such a one."""

SECOND_US = 1_000_000

NEVER_US = 2**62
"""A moment beyond all others."""


class QueueRow(Struct, frozen=True, gc=False):
    """A waiting message as the scheduler knows it: whom its next attempt is for, whether others are open too, and
    until when it may go."""

    number: int
    due_us: int
    revision: int
    recipients: tuple[int, ...]
    more: bool = False
    expires_us: int = NEVER_US


class Counted(Struct, frozen=True):
    """An account's transactions that count against its limits, on the wall clock: those of the last minute by their
    ends (microseconds), those of the last day as (second, how many)."""

    ends_us: tuple[int, ...] = ()
    seconds: tuple[tuple[int, int], ...] = ()


NOTHING_COUNTED = Counted()


class UnitState(Struct, frozen=True):
    """All that decides whether an account's mail may go, as of `seq`, and the attempts that were open then."""

    seq: int
    moved: int
    accounts: tuple[AccountRow, ...]
    relays: tuple[RelayRow, ...]
    dispatch: DispatchRow
    waiting: frozenset[int]
    rules: RulesRow = NO_RULES


class Queues(Struct, frozen=True):
    """The heads of some queues, in the order in which they were asked for; `moved` is the seq of the fact that moved
    what waits, the last one: a step of the clock."""

    as_of: int
    moved: int
    queues: list[list[QueueRow]]


def queues(connection: sqlite3.Connection, windows: Iterable[tuple[int, int]], limit: int) -> Queues:
    """For each (account, priority) its first `limit` waiting messages by due and number."""
    heads = [_queue(connection, account, priority, limit) for account, priority in windows]
    return Queues(last_seq(connection), clock_row(connection).seq, heads)


def _queue(connection: sqlite3.Connection, account: int, priority: int, limit: int) -> list[QueueRow]:
    rows = connection.execute(QUEUE, (account, priority, limit))
    return [
        QueueRow(number, due_us, revision, *_next_recipients(digests, recipients), expires_us)
        if recipients or " " in digests
        else QueueRow(number, due_us, revision, ONLY, False, expires_us)
        for number, due_us, revision, digests, recipients, expires_us in rows
    ]


def _next_recipients(digests: str, recipients: str) -> tuple[tuple[int, ...], bool]:
    """Whom the next attempt is for, and whether others are open too. Those never tried come first, so that every
    recipient has had a turn before anybody has a second."""
    if not recipients:
        return first_recipients(digests.count(" ") + 1)
    states = decode_states(recipients)
    untried = [index for index, state in enumerate(states) if state.status == "open"]
    tried = [(state.ended, index) for index, state in enumerate(states) if state.status in ("deferred", "in_doubt")]
    again = [index for _, index in sorted(tried)]
    chosen = (untried or again)[:RECIPIENTS_PER_ATTEMPT_MAX]
    return tuple(chosen), len(chosen) < len(untried) + len(again)


def first_recipients(count: int, reach: tuple[int, ...] | None = None) -> tuple[tuple[int, ...], bool]:
    """The same for a message that was just accepted: of all `count`, or of those that are to be reached."""
    if reach is None:
        reach = ALL_OF[count] if count < len(ALL_OF) else tuple(range(count))
    return reach[:RECIPIENTS_PER_ATTEMPT_MAX], len(reach) > RECIPIENTS_PER_ATTEMPT_MAX


def unit_state(connection: sqlite3.Connection) -> UnitState:
    dispatch = _all(connection, DISPATCH)
    return UnitState(
        seq=last_seq(connection),
        moved=clock_row(connection).seq,
        accounts=tuple(_all(connection, ACCOUNTS)),
        relays=tuple(_all(connection, RELAYS)),
        dispatch=dispatch[0] if dispatch else ACTIVE,
        waiting=frozenset(account for (account,) in connection.execute(WAITING_ACCOUNTS)),
        rules=rules_row(connection) or NO_RULES,
    )


def _all(connection: sqlite3.Connection, view: View) -> list:  # type: ignore[type-arg]  # rows of any one view
    fields = ", ".join(view.row.__struct_fields__)
    return [view.row(*columns) for columns in connection.execute(f"select {fields} from {view.name}")]


def open_attempts(connection: sqlite3.Connection) -> list[tuple[AttemptRow, MessageRow]]:
    """The attempts without an end, with the rows of their messages."""
    attempts = [AttemptRow(*columns) for columns in connection.execute(OPEN_ATTEMPTS)]
    return [(attempt, row) for attempt in attempts if (row := message(connection, attempt.message))]


def message(connection: sqlite3.Connection, number: int) -> MessageRow | None:
    fields = ", ".join(MESSAGES.row.__struct_fields__)
    columns = connection.execute(f"select {fields} from messages where number = ?", (number,)).fetchone()
    return MessageRow(*columns) if columns else None


def counted(connection: sqlite3.Connection, accounts: Iterable[int], now_us: int) -> dict[int, Counted]:
    """What has counted against these accounts' limits in the last minute and in the last day. What was counted before
    the clock stepped forwards counts as if the clock had been right then: a step gives no slot back. (After one
    backwards it lies in the future, and counts as now.)"""
    clock = clock_row(connection)
    ends = _ends_since(connection, _since(clock, now_us - MINUTE_US))
    since_s = _since(clock, now_us - DAY_S * SECOND_US) // SECOND_US
    return {
        account: Counted(
            tuple([_as_of_now(clock, end_us) for about, end_us in ends if about == account]),
            tuple(
                [
                    (-(-_as_of_now(clock, second * SECOND_US) // SECOND_US), n)
                    for second, n in connection.execute(SLOTS, (account, since_s))
                ]
            ),
        )
        for account in accounts
    }


def _since(clock: ClockRow, moment_us: int) -> int:
    """The moment on the clock of its time: where a step forwards came after it, that of before the step."""
    return moment_us - max(0, clock.to_us - clock.from_us) if moment_us < clock.to_us else moment_us


def _as_of_now(clock: ClockRow, stamp_us: int) -> int:
    """A stamp on today's clock."""
    return stamp_us + max(0, clock.to_us - clock.from_us) if stamp_us <= clock.from_us else stamp_us


def counted_as_of(
    connection: sqlite3.Connection, accounts: Iterable[int], now_us: int
) -> tuple[int, dict[int, Counted]]:
    """(as of seq, what has counted against these accounts' limits up to it)."""
    return last_seq(connection), counted(connection, accounts, now_us)


def _ends_since(connection: sqlite3.Connection, since_us: int) -> list[tuple[int | None, int]]:
    rows = connection.execute(ENDS_SINCE, (_first_seq_since(connection, since_us), since_us))
    return [end for entry in map(decode_row, rows) for end in _ends_of(entry, since_us)]


def _ends_of(entry: Entry, since_us: int) -> list[tuple[int | None, int]]:
    fact = entry.fact
    if isinstance(fact, AttemptEnded | AttemptInterrupted):
        return [(entry.account, entry.at_us)] if counts_against_limits(fact) else []
    # Somewhere within its second: the latest moment is never too early to send again.
    assert isinstance(fact, AccountSendsImported)
    ends = (((second + 1) * SECOND_US - 1, n) for second, n in fact.seconds)
    return [(entry.account, end_us) for end_us, n in ends if end_us > since_us for _ in range(n)]


def _first_seq_since(connection: sqlite3.Connection, since_us: int) -> int:
    """The seq before the first fact stamped after a moment: stamps never decrease, so a binary search finds it."""
    low, high = 0, last_seq(connection)
    while low < high:
        middle = (low + high + 1) // 2
        (at_us,) = connection.execute("select at_us from log where seq = ?", (middle,)).fetchone()
        low, high = (middle, high) if at_us <= since_us else (low, middle - 1)
    return low


def sealed_credentials(connection: sqlite3.Connection, account: int) -> bytes | None:
    """What `Secrets.unseal` opens: JSON of {"user", "password"}; None where the account has none."""
    row = connection.execute(SECRET, (secret_name(account),)).fetchone()
    return bytes(row[0]) if row else None
