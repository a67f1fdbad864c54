"""Replaying: the views folded anew from the log, by the same applier as the live ones.

`rebuild` does it in place, `check` beside the live views to compare the two, `at` as of an earlier moment. All read
the log in pages and hold no read transaction for longer than one, so a running service is not held up and its
write-ahead file does not grow; the log below its end never changes, so pages of different moments fit together.

A message that retention took away is refolded from its own facts when it comes back, and here too from those before
the fact at hand only: what the log says later was not known then.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Struct
from sqlite_utils import Database

from events.attempt import AttemptStarted
from events.fact import Entry
from events.message import FirstFact
from events.wire import decode_row

from .folding import Folding
from .reading import last_seq
from .schema import DERIVED, VIEW_VERSIONS, create_views, drop_views
from .surveying import stale_views
from .views import ROW_VIEWS

PAGE_FACTS = 2_000
"""As many as the largest usual commit: larger pages are hardly faster, and in the service the loop waits for one."""

DIFFERENCES_MAX = 100
"""Enough to see what kind of difference it is; the rest is only counted when the views are rebuilt."""

BREATH_S = 0.005
"""A sleep shorter than that lets no other thread of the service through (see `breathe`)."""

Progress = Callable[[int, int], None]
"""Called after every page with the seq that is folded, and the seq to come to."""

_PAGE = (
    "select seq, at_us, kind, version, message, account, data from log where seq > ? and seq <= ? order by seq limit ?"
)
"""The next page of the log, within what is to be folded."""

_HISTORY = (
    "select seq, at_us, kind, version, message, account, data from log where message = ? and seq < ? order by seq"
)
"""A message's facts before the one at hand."""

_STAMP = "select at_us from log where seq = ?"
_META = "select name, value from meta"
_VERSION = "insert into meta values (?, ?) on conflict (name) do update set value = excluded.value"


class OutsideLogError(ValueError):
    """The moment asked for is before the first fact or after the last one; the text says which, in one line."""


class StaleViewsError(ValueError):
    """The live views were folded by another version of the code, so there is nothing to compare with."""


class Difference(Struct, frozen=True):
    """A row that is not the same in the live view and in the refolded one; None where one has no such row."""

    view: str
    live: tuple[Any, ...] | None
    refolded: tuple[Any, ...] | None

    @property
    def line(self) -> str:
        return f"{self.view}: the log gives {self.refolded}, the view holds {self.live}"


class Moment(Struct, frozen=True):
    """The views as of a moment: `connection` answers every reading as the live one did after `seq`, and what is due
    is judged at `at_us`."""

    connection: sqlite3.Connection
    seq: int
    at_us: int


def breathe(seq: int, of: int) -> None:
    """The progress of a replay inside the service: a real sleep a page, else a thread that only folds starves the
    loop and the writer (measured: short releases of the interpreter's lock let nobody through)."""
    time.sleep(BREATH_S)


class Refolding:
    """Folds a log into empty views, a page at a time. The target's transactions are the caller's.

    `target` may be the source itself.
    """

    def __init__(self, source: sqlite3.Connection, target: sqlite3.Connection, page_facts: int = PAGE_FACTS) -> None:
        self._source = source
        self._page_facts = page_facts
        self._folding = Folding(target, self._history)
        self._folded_before = 0
        self.seq = 0

    def _history(self, number: int) -> Iterator[Entry]:
        return map(decode_row, self._source.execute(_HISTORY, (number, self._folded_before)))

    def page(self, up_to: int) -> bool:
        """Fold the next page, not past `up_to`; False where there is nothing left. Raises UnknownKind."""
        rows = self._source.execute(_PAGE, (self.seq, up_to, self._page_facts)).fetchall()
        if not rows:
            return False
        self._fold([decode_row(row) for row in rows])
        return True

    def _fold(self, entries: list[Entry]) -> None:
        folding = self._folding
        for entry in entries:
            if isinstance(entry.fact, FirstFact):
                folding.expect_new("messages", entry.seq)
            elif isinstance(entry.fact, AttemptStarted):
                folding.expect_new("attempts", entry.seq)
        folding.load_for(entries)
        for entry in entries:
            self._folded_before = entry.seq
            folding.fold(entry)
        folding.flush()
        self.seq = entries[-1].seq


def refold(
    source: sqlite3.Connection, target: sqlite3.Connection, up_to: int | None = None, progress: Progress | None = None
) -> int:
    """Fold the log of `source` into the empty views of `target`, up to a seq or to the end; the seq it came to."""
    return _run(Refolding(source, target), last_seq(source) if up_to is None else up_to, progress)


def _run(refolding: Refolding, up_to: int, progress: Progress | None) -> int:
    while refolding.page(up_to):
        if progress:
            progress(refolding.seq, up_to)
    return refolding.seq


def rebuild(connection: sqlite3.Connection, progress: Progress | None = None) -> int:
    """Drop the live views and fold them anew, in one transaction; how many facts were folded.

    `connection` is in autocommit and the only writer; other connections see the old views until it is done.
    """
    connection.execute("begin immediate")
    try:
        database = Database(connection, execute_plugins=False)
        drop_views(database)
        create_views(database)
        facts = refold(connection, connection, None, progress)
        connection.executemany(_VERSION, [(f"view:{name}", str(version)) for name, version in VIEW_VERSIONS.items()])
        connection.execute("commit")
    finally:
        if connection.in_transaction:
            connection.execute("rollback")
    return facts


# Comparing


def check(connection: sqlite3.Connection, progress: Progress | None = None) -> list[Difference]:
    """Refold the whole log beside the live views and compare every row; at most DIFFERENCES_MAX differences.

    For running services too: `connection` is in autocommit and only read. What is recorded meanwhile is folded as
    well, in the one read transaction that compares. Raises StaleViewsError.
    """
    if stale := stale_views(dict(connection.execute(_META))):
        raise StaleViewsError(f"views of another version ({', '.join(stale)}): run `letterbook rebuild`")
    with closing(_scratch()) as target:
        # One transaction for all of it, never committed: without one every row would be its own.
        target.execute("begin")
        refolding = Refolding(connection, target)
        _run(refolding, last_seq(connection), progress)
        connection.execute("begin")
        try:
            _run(refolding, last_seq(connection), None)
            return list(islice(_differences(connection, target), DIFFERENCES_MAX))
        finally:
            connection.execute("rollback")


def _scratch() -> sqlite3.Connection:
    """A private database with empty views: in memory, and in a nameless file once it outgrows its cache."""
    connection = sqlite3.connect("", isolation_level=None, uri=True, check_same_thread=False)
    for pragma in ("journal_mode = off", "synchronous = off", "cache_size = -65536"):
        connection.execute(f"pragma {pragma}").close()
    create_views(Database(connection, execute_plugins=False))
    return connection


def _tables() -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Every view's name, columns and key."""
    for view in ROW_VIEWS:
        yield view.name, view.row.__struct_fields__, (view.key,)
    for name, (row, key, _) in DERIVED.items():
        yield name, row.__struct_fields__, key


def _differences(live: sqlite3.Connection, refolded: sqlite3.Connection) -> Iterator[Difference]:
    for name, columns, key in _tables():
        # A count of nought and no row say the same; which it is depends on where a turn ended.
        some = "where n <> 0" if name == "totals" else ""
        rest = [column for column in columns if column not in key]
        select = f"select {', '.join((*key, *rest))} from {name} {some} order by {', '.join(key)}"
        yield from _compare(name, len(key), live.execute(select), refolded.execute(select))


def _compare(view: str, key: int, live: Iterator[Any], refolded: Iterator[Any]) -> Iterator[Difference]:
    """Walk two lists in the order of their keys, which are the first `key` columns, and yield what only one has."""
    mine, theirs = next(live, None), next(refolded, None)
    while mine is not None or theirs is not None:
        if mine == theirs:
            mine, theirs = next(live, None), next(refolded, None)
        elif mine is not None and theirs is not None and mine[:key] == theirs[:key]:
            yield Difference(view, mine, theirs)
            mine, theirs = next(live, None), next(refolded, None)
        elif theirs is None or (mine is not None and mine[:key] < theirs[:key]):
            yield Difference(view, mine, None)
            mine = next(live, None)
        else:
            yield Difference(view, None, theirs)
            theirs = next(refolded, None)


# The past

_AS_OF = {"log": "seq", "commits": "last_seq", "letters": "letter", "replies": "ended", "ids": "number"}
"""What the file holds beside the views, and the column that says since which seq."""


@contextmanager
def at(
    path: Path, *, seq: int | None = None, time_us: int | None = None, progress: Progress | None = None
) -> Iterator[Moment]:
    """The views as of a seq, or of the last fact up to a time (one of the two is given).

    Readings work on it unchanged: views are the refolded ones, and of the log and what stands beside it they see
    what was there by then and has not been erased since. The file is only read, of a running service too.
    Raises OutsideLogError.
    """
    with closing(_scratch()) as connection:
        connection.execute("attach ? as live", (f"{path.absolute().as_uri()}?mode=ro",))
        seq, at_us = _find(connection, seq, time_us)
        for table, since in _AS_OF.items():
            connection.execute(f"create temp view {table} as select * from live.{table} where {since} <= {seq}")
        refolding = Refolding(connection, connection)
        while _page_in_transaction(connection, refolding, seq):
            if progress:
                progress(refolding.seq, seq)
        yield Moment(connection, seq, at_us)


def _page_in_transaction(connection: sqlite3.Connection, refolding: Refolding, up_to: int) -> bool:
    """One transaction a page, so that the file is not held for longer, and each row is not its own transaction."""
    connection.execute("begin")
    more = refolding.page(up_to)
    connection.execute("commit")
    return more


def _find(connection: sqlite3.Connection, seq: int | None, time_us: int | None) -> tuple[int, int]:
    """The seq and the moment that are asked for."""
    last = last_seq(connection)
    if last == 0:
        raise OutsideLogError("the log is empty")
    if seq is not None:
        if not 1 <= seq <= last:
            raise OutsideLogError(f"{seq} is not in the log: it goes from 1 to {last}")
        return seq, _stamp(connection, seq)
    if time_us is None:
        raise ValueError("neither a seq nor a time is given")
    if time_us < _stamp(connection, 1):
        raise OutsideLogError("that time is before the first fact")
    if time_us > _stamp(connection, last):
        raise OutsideLogError("that time is after the last fact")
    return _last_up_to(connection, time_us, last), time_us


def _stamp(connection: sqlite3.Connection, seq: int) -> int:
    (at_us,) = connection.execute(_STAMP, (seq,)).fetchone()
    return int(at_us)


def _last_up_to(connection: sqlite3.Connection, time_us: int, last: int) -> int:
    """The last seq whose stamp is not after a time that the log spans: stamps never decrease, so by halving."""
    low, high = 1, last
    while low < high:
        middle = (low + high + 1) // 2
        if _stamp(connection, middle) <= time_us:
            low = middle
        else:
            high = middle - 1
    return low
