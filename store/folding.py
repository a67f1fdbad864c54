"""The one applier: it folds entries into every view, a turn at a time, with one statement a table.

The writer, `rebuild`, `check` and `at` all fold by this, so a view as of any moment is what the live one was.

A turn goes: `load` the rows that its entries will touch (one read a view), `fold` each entry in memory, `flush`
what changed (one write a table). Between `load` and `flush` the rows in memory are the truth, and admission
judges by them. `mark` and `undo` take back the folds of a request that must be whole and is not.

A message whose row retention took away comes back from its own facts (`history`) when a new fact names it.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from events.fact import Entry, Fact
from events.message import MessageRevised, MessageWithdrawn, RetentionPassed
from events.wire import KINDS

from .schema import DERIVED
from .views import MESSAGES, ROW_VIEWS
from .views.counts import DAY_S, ResultRow, due_steps, result_of, slot_steps, total_steps
from .views.messages import MessageRow
from .views.rows import Key, View

History = Callable[[int], Iterable[Entry]]

ROWS_KEPT_MAX = 20_000
"""Rows of `messages` kept from turn to turn: an attempt's start and end find here what its acceptance wrote."""

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


_UPSERT = {view.name: _upsert(view) for view in ROW_VIEWS}
_DELETE = {view.name: f"delete from {view.name} where {view.key} = ?" for view in ROW_VIEWS}
_INSERT_MESSAGE = f"insert into messages values ({', '.join('?' * len(MessageRow.__struct_fields__))})"

_ADD_TOTAL = (
    "insert into totals (account, state, n) values (?, ?, ?)"
    " on conflict (account, state) do update set n = n + excluded.n"
)
_ADD_DUE = (
    "insert into due_minutes (account, minute, n) values (?, ?, ?)"
    " on conflict (account, minute) do update set n = n + excluded.n"
)
_DROP_EMPTY_MINUTES = "delete from due_minutes where account = ? and minute = ? and n = 0"
_ADD_SLOT = (
    "insert into slots (account, slot, second, n) values (?, ?, ?, ?) on conflict (account, slot) do update"
    " set n = case when second = excluded.second then n + excluded.n else excluded.n end, second = excluded.second"
)
_INSERT_RESULT = f"insert into results values ({', '.join('?' * len(ResultRow.__struct_fields__))})"
_RETENTION = (
    "delete from messages where final_seq < ?",
    "delete from results where seq < ?",
    "delete from reported where up_to < ?",
)

FOLDED_TABLES: tuple[str, ...] = tuple(_SELECT) + tuple(DERIVED)


class _Mark(Struct, frozen=True):
    undo: int
    totals: dict[Any, int]
    dues: dict[Any, int]
    slots: dict[Any, int]
    results: int


class Folding:
    """The views of one database, as the entries so far leave them. Not for use by two threads."""

    def __init__(self, connection: sqlite3.Connection, history: History) -> None:
        self._connection = connection
        self._history = history
        self._rows: dict[str, dict[Key, Any]] = {view.name: {} for view in ROW_VIEWS}
        self._dirty: dict[str, dict[Key, None]] = {view.name: {} for view in ROW_VIEWS}
        self._undo: list[tuple[str, Key, Any]] = []
        self._stored: set[Key] = set()
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
        self._undo.clear()
        self._stored.clear()
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
            rows[columns[0]] = row_type(*columns)
            if view == "messages":
                self._stored.add(columns[0])

    def row(self, view: str, key: Key) -> Any:
        """The row as of the last folded entry, or None; loads it where that has not been done."""
        rows = self._rows[view]
        if key not in rows:
            self.load(view, (key,))
        return rows[key]

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
        """Take one entry into every view, in memory; RetentionPassed alone reaches the tables at once."""
        if isinstance(entry.fact, RetentionPassed):
            self._pass_retention(entry.fact.before)
            return
        for view in _TOUCHED[type(entry.fact)]:
            for key in view.keys(entry):
                self._evolve(view, key, entry)
        for (account, second), step in slot_steps(entry):
            self._slots[account, second] += step

    def _evolve(self, view: View[Any], key: Key, entry: Entry) -> None:
        name = view.name
        if name == "messages" and isinstance(entry.fact, MessageRevised | MessageWithdrawn):
            before = self.message(entry.message or 0)
        else:
            before = self.row(name, key)
        after = view.evolve(before, entry)
        if after is before:
            return
        self._undo.append((name, key, before))
        self._rows[name][key] = after
        self._dirty[name][key] = None
        if name == "messages":
            self._derive(before, after, entry)

    def _derive(self, before: MessageRow | None, after: MessageRow | None, entry: Entry) -> None:
        for total, step in total_steps(before, after):
            self._totals[total] += step
        for minute, step in due_steps(before, after):
            self._dues[minute] += step
        if result := result_of(before, after, entry):
            self._results.append(result)

    def mark(self) -> _Mark:
        """Where `undo` can come back to."""
        return _Mark(len(self._undo), dict(self._totals), dict(self._dues), dict(self._slots), len(self._results))

    def undo(self, mark: _Mark) -> None:
        """Take back every fold since the mark. Rows stay marked as changed: writing them again does no harm."""
        while len(self._undo) > mark.undo:
            name, key, before = self._undo.pop()
            self._rows[name][key] = before
        for counts, then in ((self._totals, mark.totals), (self._dues, mark.dues), (self._slots, mark.slots)):
            counts.clear()
            counts.update(then)
        del self._results[mark.results :]

    def flush(self) -> None:
        """Write what changed since the last flush, one statement a table."""
        for view in ROW_VIEWS:
            if dirty := self._dirty[view.name]:
                self._flush_rows(view, dirty)
                dirty.clear()
        self._flush_counts()
        if self._results:
            self._connection.executemany(_INSERT_RESULT, map(astuple, self._results))
            self._results.clear()
        self._undo.clear()
        self._shrink()

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

    def _flush_messages(self, present: list[tuple[Key, MessageRow]]) -> None:
        """New rows are inserted without asking whether they are there, which costs half as much."""
        stored = self._stored
        new = [astuple(row) for key, row in present if key not in stored]
        changed = [astuple(row) for key, row in present if key in stored]
        if new:
            self._connection.executemany(_INSERT_MESSAGE, new)
            stored.update(row[0] for row in new)
        if changed:
            self._connection.executemany(_UPSERT["messages"], changed)

    def _flush_counts(self) -> None:
        if totals := [(account, state, n) for (account, state), n in self._totals.items() if n]:
            self._connection.executemany(_ADD_TOTAL, totals)
        if dues := [(account, minute, n) for (account, minute), n in self._dues.items() if n]:
            self._connection.executemany(_ADD_DUE, dues)
            self._connection.executemany(_DROP_EMPTY_MINUTES, [due[:2] for due in dues if due[2] < 0])
        if slots := [(account, second % DAY_S, second, n) for (account, second), n in self._slots.items() if n]:
            self._connection.executemany(_ADD_SLOT, slots)
        self._totals.clear()
        self._dues.clear()
        self._slots.clear()

    def _shrink(self) -> None:
        """Keep memory bounded: only open messages are likely to be asked for again."""
        messages = self._rows["messages"]
        if len(messages) > ROWS_KEPT_MAX:
            messages.clear()
            self._stored.clear()
        for name in ("attempts", "tokens", "reported"):
            self._rows[name].clear()

    def _pass_retention(self, before: int) -> None:
        """One declared range delete a table; what the rows in memory say is written first, then dropped."""
        self.flush()
        for statement in _RETENTION:
            self._connection.execute(statement, (before,))
        self._rows["messages"].clear()
        self._rows["reported"].clear()
        self._stored.clear()


_ROW_TYPE: dict[str, type[Struct]] = {view.name: view.row for view in ROW_VIEWS}

_TOUCHED: dict[type[Fact], tuple[View[Any], ...]] = {
    kind: tuple(view for view in ROW_VIEWS if kind in view.facts) for kind in KINDS.values()
}
