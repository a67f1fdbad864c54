"""The one applier: it folds entries into every view, a turn at a time, with one statement a table.

The writer, `rebuild`, `check` and `at` all fold by this, so a view as of any moment is what the live one was.

A turn goes: `load` the rows that its entries will touch (one read a view), `fold` each entry in memory, `flush`
what changed (one write a table). Between `load` and `flush` the rows in memory are the truth, and admission
judges by them. `mark` and `undo` take back the folds of a request that must be whole and is not.

A message whose row retention took away comes back from its own facts (`history`) when a new fact names it. Retention
itself only deletes at `flush`: until then the row in memory is what those facts would give.

A step of the clock moves what waits (see `views/clock.py`), and that may be all there is: so it is written first, then
moved by one declared update a table, and the rows in memory are read again. It cannot be taken back alone, so such a
fact is never part of a request that must be whole.
"""

import operator
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from events.account import AccountSendsImported
from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Entry, Fact
from events.message import MessageRevised, RetentionPassed
from events.service import ClockStepped, ClockTrusted
from events.wire import KINDS

from .schema import QUEUE_INDEX
from .views import MESSAGES, ROW_VIEWS
from .views.clock import BELIEVED, ONLY, ClockRow
from .views.counts import (
    DAY_MINUTES,
    DAY_S,
    HOUR_MINUTES,
    MINUTE_US,
    NOBODY,
    ResultRow,
    due_steps,
    result_of,
    slots_of,
    total_steps,
)
from .views.messages import MessageRow
from .views.rows import Key, View

History = Callable[[int], Iterable[Entry]]

ROWS_KEPT_MAX = 20_000
"""Rows of `messages` kept from turn to turn: an attempt's start and end find here what its acceptance wrote."""

ATTEMPTS_KEPT_MAX = 4_000
"""Ends find here what their starts wrote, and ended ones are dropped: more than any number of connections."""

_SELECT = {
    view.name: f"select {', '.join(view.row.__struct_fields__)} from {view.name}"
    f" where {view.key} in (select value from json_each(?))"
    for view in ROW_VIEWS
}


def _upsert(view: View[Any]) -> str:
    fields = view.row.__struct_fields__
    updates = ", ".join(f"{name} = excluded.{name}" for name in fields[1:])
    marks = ", ".join("?" * len(fields))
    insert = f"insert into {view.name} ({', '.join(fields)}) values ({marks})"
    return f"{insert} on conflict ({view.key}) do update set {updates}"


_MOVED = (
    "state",
    "due_us",
    "due_cause",
    "expires_us",
    "asked_us",
    "updated_us",
    "recipients",
    "attempts",
    "retries",
    "uncharged",
    "doubts",
    "faults",
    "attempt",
    "withdrawing",
    "final_seq",
    "final_us",
    "cause",
    "detail",
)
"""What changes in a row of `messages` unless it is revised: the rest need not be written again, nor its index."""


def _update_message(names: tuple[str, ...]) -> str:
    return f"update messages set {', '.join(f'{name} = ?' for name in names)} where number = ?"


_MOVE_MESSAGE = _update_message(_MOVED)
_REVISE_MESSAGE = _update_message(MessageRow.__struct_fields__[1:])
_moved = operator.attrgetter(*_MOVED, "number")

_UPSERT = {view.name: _upsert(view) for view in ROW_VIEWS}
_DELETE = {view.name: f"delete from {view.name} where {view.key} = ?" for view in ROW_VIEWS}
_INSERT_MESSAGE = f"insert into messages values ({', '.join('?' * len(MessageRow.__struct_fields__))})"

_ADD_TOTAL = (
    "insert into totals (account, state, n) values (?, ?, ?)"
    " on conflict (account, state) do update set n = n + excluded.n"
)
_DUES = tuple(
    (
        minutes,
        f"insert into due_{unit}s values (?, ?, ?) on conflict (account, {unit}) do update set n = n + excluded.n",
        f"delete from due_{unit}s where account = ? and {unit} = ? and n = 0",
    )
    for unit, minutes in (("minute", 1), ("hour", HOUR_MINUTES), ("day", DAY_MINUTES))
)
"""For minutes, and their sums by hours and days: how long each is, how it is added to, and how an empty one goes."""

_ADD_SLOT = (
    "insert into slots (account, slot, second, n) values (?, ?, ?, ?) on conflict (account, slot) do update"
    " set n = case when second = excluded.second then n + excluded.n else excluded.n end, second = excluded.second"
    " where excluded.second >= second"
)
"""A later second takes the slot of an earlier one, in whatever order they are told."""
_INSERT_RESULT = f"insert into results values ({', '.join('?' * len(ResultRow.__struct_fields__))})"
_RETAIN_FIRST = {
    "reported": "delete from reported where up_to < ?",
    "refused": "delete from refused where seq < ?",
}
"""Rows that can come again under the same key after retention has passed, and then have their own right to be there."""

_RETAIN = ("delete from messages where final_seq < ?", "delete from results where seq < ?")
"""Retention: one declared range delete a table."""

_MOVE_DUE = tuple(
    f"update messages {indexed} set due_us = case when asked_us is null then due_us + :waits"
    " when asked_us <= :believed then asked_us else max(asked_us, min(asked_us + :ahead, :until)) end"
    f" where {which} and (asked_us is not null or :waits <> 0)"
    for indexed, which in (
        ("indexed by messages_waiting", "state = 'waiting'"),
        ("indexed by messages_held", "state = 'held'"),
        ("", "number in (select message from attempts)"),
    )
)
"""What waits, and what may wait again, for mail that is held or in flight keeps its due for then: as long as it would
have waited, or, where somebody has asked for a moment, by `ClockRow.asked_due_us`."""

_MOVE_CLOSED = (
    "update accounts set throttled_until_us = throttled_until_us + :waits where throttled_until_us is not null",
    "update relays set until_us = until_us + :waits",
)
_COUNT_DUE_ANEW = (
    *(f"delete from due_{unit}s" for unit in ("minute", "hour", "day")),
    (
        "insert into due_minutes (account, minute, n)"
        f" select coalesce(account, {NOBODY}), due_us / {MINUTE_US}, count(*)"
        " from messages where state = 'waiting' group by 1, 2"
    ),
    *(
        f"insert into due_{unit}s (account, {unit}, n) select account, minute / {minutes}, sum(n) from due_minutes"
        " group by 1, 2"
        for unit, minutes in (("hour", HOUR_MINUTES), ("day", DAY_MINUTES))
    ),
)
_MOVE_ALL = ("drop index messages_queue", *_MOVE_DUE, QUEUE_INDEX, *_MOVE_CLOSED, *_COUNT_DUE_ANEW)
"""A step of the clock reads and writes all that waits, in one transaction. To make the index anew takes half the time
of moving every entry in it. A million messages take some ten seconds, and no more memory than else, in which attempts
under way wait for their ends to be recorded: once a step, and nothing is lost."""

MOVES_WAITS = frozenset({ClockStepped, ClockTrusted})
"""Facts that can move all that waits."""

_WITH_SLOTS = frozenset({AttemptEnded, AttemptInterrupted, AccountSendsImported})


class _Mark(Struct, frozen=True):
    totals: dict[Any, int]
    dues: dict[Any, int]
    slots: dict[Any, int]
    results: int
    retention: int


class Folding:
    """The views of one database, as the entries so far leave them. Not for use by two threads."""

    def __init__(self, connection: sqlite3.Connection, history: History) -> None:
        self._connection = connection
        self._history = history
        self._rows: dict[str, dict[Key, Any]] = {view.name: {} for view in ROW_VIEWS}
        self._dirty: dict[str, dict[Key, None]] = {view.name: {} for view in ROW_VIEWS}
        # (view, key, row before, whether it was to be written already), while a mark is set.
        self._undo: list[tuple[str, Key, Any, bool]] | None = None
        self._stored: dict[Key, int] = {}
        self._retention = 0
        self._totals: dict[tuple[int, str], int] = defaultdict(int)
        self._dues: dict[tuple[int, int], int] = defaultdict(int)
        self._slots: dict[tuple[int, int], int] = defaultdict(int)
        self._results: list[ResultRow] = []

    def forget(self) -> None:
        """Drop every row in memory: after a rollback the database alone says what is true."""
        for rows in self._rows.values():
            rows.clear()
        for keys in self._dirty.values():
            keys.clear()
        self._undo = None
        self._stored.clear()
        self._retention = 0
        self._totals.clear()
        self._dues.clear()
        self._slots.clear()
        self._results.clear()

    def load(self, view: str, keys: Iterable[Key]) -> None:
        """Read rows that are not in memory yet, in one statement; a key without a row is kept as None."""
        rows = self._rows[view]
        missing = [key for key in dict.fromkeys(keys) if key not in rows]
        if not missing:
            return
        row_type = _ROW_TYPE[view]
        rows.update(dict.fromkeys(missing))
        for columns in self._connection.execute(_SELECT[view], (msgspec.json.encode(missing).decode(),)):
            row: Any = row_type(*columns)
            rows[columns[0]] = row
            if view == "messages":
                self._stored[columns[0]] = row.revision
            elif view in _RETAIN_FIRST and columns[0] < self._retention:
                rows[columns[0]] = None

    def row(self, view: str, key: Key) -> Any:
        """The row as of the last folded entry, or None; loads it where that has not been done."""
        rows = self._rows[view]
        if key not in rows:
            self.load(view, (key,))
        return rows[key]

    def in_memory(self, view: str) -> list[Any]:
        """The rows of a view that are in memory, those that changed in this turn among them."""
        return [row for row in self._rows[view].values() if row is not None]

    def message(self, number: int) -> MessageRow | None:
        """A message's row, refolded from its own facts where retention took it away."""
        row: MessageRow | None = self.row("messages", number)
        if row is None:
            for entry in self._history(number):
                row = MESSAGES.evolve(row, entry)
            self._rows["messages"][number] = row
        return row

    def expect_new(self, view: str, key: Key) -> None:
        """Nothing is stored under this key yet: no read is needed to know that it has no row."""
        self._rows[view].setdefault(key, None)

    def load_for(self, entries: Sequence[Entry]) -> None:
        """Read whatever these entries will touch."""
        for view in ROW_VIEWS:
            touching = [entry for entry in entries if type(entry.fact) in view.facts]
            self.load(view.name, [key for entry in touching for key in view.keys(entry)])

    def fold(self, entry: Entry) -> None:
        """Take one entry into every view, in memory."""
        fact = entry.fact
        kind = type(fact)
        for view in _TOUCHED[kind]:
            for key in view.keys(entry):
                self._evolve(view, key, entry)
        if kind in _WITH_SLOTS:
            for account, second, n in slots_of(entry):
                self._slots[account, second] += n
        elif isinstance(fact, RetentionPassed):
            # What is final by now: so it does not matter that the deletes wait for the end of the turn.
            self._pass_retention(min(fact.before, entry.seq))
        elif kind in MOVES_WAITS:
            self._move_waits(entry)

    def _move_waits(self, entry: Entry) -> None:
        clock: ClockRow = self.row("clock", ONLY) or BELIEVED
        if clock.seq != entry.seq:
            return
        assert self._undo is None, "a step of the clock is no part of a request that must be whole"
        self.flush()
        fact = entry.fact
        waits_us, now_us = (fact.waits_us, fact.to_us) if isinstance(fact, ClockStepped) else (0, 0)
        values = {"believed": clock.believed_us(now_us), "ahead": max(0, clock.ahead_us), "until": 0}
        if clock.doubted(now_us):
            values["until"] = clock.doubted_until_us
        for statement in _MOVE_ALL:
            self._connection.execute(statement, values | {"waits": waits_us})
        for name in ("messages", "accounts", "relays"):
            self._rows[name].clear()
        self._stored.clear()

    def _evolve(self, view: View[Any], key: Key, entry: Entry) -> None:
        name = view.name
        before = self.row(name, key)
        if before is None and name == "messages" and type(entry.fact) is MessageRevised:
            before = self.message(entry.message or 0)
        after = view.evolve(before, entry)
        if after is not before:
            self._put(name, key, before, after)
            if name == "messages":
                self._derive(before, after, entry)

    def _put(self, name: str, key: Key, before: Any, after: Any) -> None:
        dirty = self._dirty[name]
        if self._undo is not None:
            self._undo.append((name, key, before, key in dirty))
        self._rows[name][key] = after
        dirty[key] = None

    def _derive(self, before: MessageRow | None, after: MessageRow | None, entry: Entry) -> None:
        for total, step in total_steps(before, after):
            self._totals[total] += step
        for minute, step in due_steps(before, after):
            self._dues[minute] += step
        if result := result_of(before, after, entry):
            self._results.append(result)

    def mark(self) -> _Mark:
        """Where `undo` can come back to; from here on folds are remembered, until `undo` or `keep`."""
        self._undo = []
        counts = dict(self._totals), dict(self._dues), dict(self._slots)
        return _Mark(*counts, len(self._results), self._retention)

    def keep(self) -> None:
        """What was folded since the mark stays."""
        self._undo = None

    def undo(self, mark: _Mark) -> None:
        """Take back every fold since the mark, without a trace."""
        for name, key, before, was_dirty in reversed(self._undo or ()):
            self._rows[name][key] = before
            if not was_dirty:
                del self._dirty[name][key]
        self._undo = None
        for counts, then in ((self._totals, mark.totals), (self._dues, mark.dues), (self._slots, mark.slots)):
            counts.clear()
            counts.update(then)
        del self._results[mark.results :]
        if self._retention != mark.retention:
            self._retention = mark.retention
            for name in _RETAIN_FIRST:
                self._forget_clean(name)

    def _forget_clean(self, name: str) -> None:
        """Drop the rows of a view that are not waiting to be written: they can be read again."""
        rows, dirty = self._rows[name], self._dirty[name]
        for key in [key for key in rows if key not in dirty]:
            del rows[key]

    def flush(self) -> None:
        """Write what changed since the last flush, one statement a table."""
        if self._retention:
            for statement in _RETAIN_FIRST.values():
                self._connection.execute(statement, (self._retention,))
        for view in ROW_VIEWS:
            if dirty := self._dirty[view.name]:
                self._flush_rows(view, dirty)
                dirty.clear()
        self._flush_counts()
        if self._results:
            self._connection.executemany(_INSERT_RESULT, map(astuple, self._results))
            self._results.clear()
        if self._retention:
            self._delete_retained()
        self.shrink()

    def _flush_rows(self, view: View[Any], dirty: Iterable[Key]) -> None:
        rows = self._rows[view.name]
        present = [(key, row) for key in dirty if (row := rows[key]) is not None]
        gone = [(key,) for key in dirty if rows[key] is None]
        if view is MESSAGES:
            self._flush_messages(present)
        elif present:
            self._connection.executemany(_UPSERT[view.name], [astuple(row) for _, row in present])
        if gone:
            self._connection.executemany(_DELETE[view.name], gone)
            for (key,) in gone:
                del rows[key]

    def _flush_messages(self, present: list[tuple[Key, MessageRow]]) -> None:
        """An insert for new rows and an update of what moves for stored ones: an upsert costs several times that."""
        new: list[tuple[Any, ...]] = []
        moved: list[tuple[Any, ...]] = []
        revised: list[tuple[Any, ...]] = []
        stored = self._stored
        for key, row in present:
            revision = stored.get(key)
            if revision is None:
                new.append(astuple(row))
            elif revision == row.revision:
                moved.append(_moved(row))
            else:
                number, *columns = astuple(row)
                revised.append((*columns, number))
            stored[key] = row.revision
        for statement, rows in ((_INSERT_MESSAGE, new), (_MOVE_MESSAGE, moved), (_REVISE_MESSAGE, revised)):
            if rows:
                self._connection.executemany(statement, rows)

    def _flush_counts(self) -> None:
        if totals := [(account, state, n) for (account, state), n in self._totals.items() if n]:
            self._connection.executemany(_ADD_TOTAL, totals)
        for minutes, add, drop_empty in _DUES if self._dues else ():
            dues: dict[tuple[int, int], int] = defaultdict(int)
            for (account, minute), n in self._dues.items():
                dues[account, minute // minutes] += n
            if changed := [(account, at, n) for (account, at), n in dues.items() if n]:
                self._connection.executemany(add, changed)
                self._connection.executemany(drop_empty, [each[:2] for each in changed if each[2] < 0])
        if slots := [(account, second % DAY_S, second, n) for (account, second), n in self._slots.items() if n]:
            self._connection.executemany(_ADD_SLOT, slots)
        self._totals.clear()
        self._dues.clear()
        self._slots.clear()

    def shrink(self) -> None:
        """Keep memory bounded: open attempts are as few as connections, and of messages the recent ones are kept. Also
        after a turn that wrote nothing: what was refused has been read."""
        messages = self._rows["messages"]
        if len(messages) > ROWS_KEPT_MAX:
            messages.clear()
            self._stored.clear()
        attempts = self._rows["attempts"]
        if len(attempts) > ATTEMPTS_KEPT_MAX:
            attempts.clear()
        for name in ("tokens", *_RETAIN_FIRST):
            self._rows[name].clear()

    def _pass_retention(self, before: int) -> None:
        """Rows that can come again under the same key go at once where they are in memory; the rest at `flush`."""
        self._retention = max(self._retention, before)
        for name in _RETAIN_FIRST:
            rows: Any = self._rows[name]
            for key, row in [(key, row) for key, row in rows.items() if row is not None and key < before]:
                self._put(name, key, row, None)

    def _delete_retained(self) -> None:
        for statement in _RETAIN:
            self._connection.execute(statement, (self._retention,))
        self._retention = 0
        self._rows["messages"].clear()
        self._stored.clear()


_ROW_TYPE: dict[str, type[Struct]] = {view.name: view.row for view in ROW_VIEWS}

_TOUCHED: dict[type[Fact], tuple[View[Any], ...]] = {
    kind: tuple(view for view in ROW_VIEWS if kind in view.facts) for kind in KINDS.values()
}
