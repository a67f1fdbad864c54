"""What the service does all the time costs the same with twenty times the mail: SQLite's own steps are counted.

One database holds every awkward shape: mail due at moments far apart, an account whose limit is used up with a pile
ahead of everybody else's, low priority behind a few immediate ones, and a short queue beside them all.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from events.account import AccountThrottled
from events.fact import Draft, Entry
from store import dispatching, folding, reading, worklists
from store.writer import Writer

from .building import T0_US, accepted, account_saved, database, record, writer

DAY_US = 86_400_000_000
LATER, THROTTLED, LOW, SHORT = 1, 2, 3, 4
FEW, MANY = 1_000, 20_000
NOW_US = 4 * T0_US // 3


@contextmanager
def filled(messages: int) -> Iterator[tuple[sqlite3.Connection, Writer]]:
    with database() as connection:
        write = writer(connection)
        record(write, [account_saved(name) for name in ("later", "throttled", "low", "short")])
        record(write, [Draft(AccountThrottled(until_us=2 * T0_US, window_s=60), account=THROTTLED)])
        each = messages // 3
        later = [accepted(f"a{n}", LATER, due_us=NOW_US + (n + 1) * 30 * DAY_US // each) for n in range(each)]
        throttled = [accepted(f"b{n}", THROTTLED) for n in range(each)]
        low = [accepted(f"c{n}", LOW, priority=3 if n % (each // 5) else 0) for n in range(each)]
        drafts = [*throttled, *low, *later, accepted("d", SHORT)]
        for first in range(0, len(drafts), 1_000):
            record(write, drafts[first : first + 1_000])
        yield connection, write


@pytest.fixture(scope="module")
def few():
    with filled(FEW) as (connection, _):
        yield connection


@pytest.fixture(scope="module")
def many():
    with filled(MANY) as (connection, _):
        yield connection


def steps(connection: sqlite3.Connection, read: Callable[[sqlite3.Connection], Any]) -> int:
    """How often SQLite's machine came by while this was read."""
    count = 0

    def tick() -> int:
        nonlocal count
        count += 1
        return 0

    connection.set_progress_handler(tick, 1)
    try:
        read(connection)
    finally:
        connection.set_progress_handler(None, 0)
    return count


WINDOWS = [(account, priority) for account in (LATER, THROTTLED, LOW, SHORT) for priority in range(4)]

ALL_THE_TIME: dict[str, Callable[[sqlite3.Connection], Any]] = {
    "a refill": lambda connection: dispatching.queues(connection, WINDOWS, 100),
    "the unit's start": dispatching.unit_state,
    "limits": lambda connection: dispatching.counted(connection, (1, 2, 3, 4), NOW_US),
    "what has expired": lambda connection: worklists.expired(connection, NOW_US),
    "removed accounts": worklists.orphaned,
    "what may be let go": lambda connection: worklists.finished(connection, NOW_US),
    "counts": lambda connection: reading.counts(connection, NOW_US),
    "the oldest": reading.oldest_due_us,
    "a page of what waits": lambda connection: reading.messages(connection, NOW_US, 0, 100, active_only=True),
    "a page of all": lambda connection: reading.messages(connection, NOW_US, 0, 100),
    "a page of results": lambda connection: reading.results(connection, 0, 100),
    "accounts": reading.accounts,
}


@pytest.mark.parametrize("name", ALL_THE_TIME)
def test_it_takes_as_many_steps_with_twenty_times_the_mail(few, many, name):
    read = ALL_THE_TIME[name]
    least, most = steps(few, read), steps(many, read)
    # A binary search of the log and a fuller level of counts may add some.
    assert most <= least * 1.3 + 200, (least, most)


def test_a_refill_reads_no_more_than_it_gives(many):
    """Some ten steps a row, whatever stands before, behind or beside the window."""
    for account, priority in WINDOWS:
        (rows,) = dispatching.queues(many, [(account, priority)], 100).queues
        used = steps(many, lambda connection, one=(account, priority): dispatching.queues(connection, [one], 100))
        assert used <= 60 + 16 * len(rows), (account, priority, used)


@pytest.mark.parametrize("read", [reading.pending, reading.deferred])
def test_a_page_of_what_hardly_anything_passes_ends_with_its_stretch(many, read, monkeypatch):
    """All that is due comes first, then all that is not: a page of the one or the other looks at a bounded stretch."""
    monkeypatch.setattr(reading, "STRETCH_ROWS_MAX", 1_000)
    after, pages = 0, 0
    while True:
        page, used = None, 0

        def one_page(connection: sqlite3.Connection, start: int = after) -> None:
            nonlocal page
            page = read(connection, NOW_US, start, 100)

        used = steps(many, one_page)
        assert used < 60 * 1_000, used
        pages += 1
        if page.next is None:
            break
        after = page.next
    assert pages >= MANY // 1_000


def test_rows_in_memory_are_bounded_also_by_what_is_refused(monkeypatch):
    """A client that posts its whole archive again is answered from rows that nothing else has touched for long."""
    monkeypatch.setattr(folding, "ROWS_KEPT_MAX", 500)
    with filled(FEW) as (_, write):
        for again in range(3):
            for first in range(0, 300, 50):
                known = [accepted(f"{'abc'[again]}{n}", THROTTLED) for n in range(first, first + 50)]
                assert not any(isinstance(answer, Entry) for answer in record(write, known).answers)
                assert len(write._folding.in_memory("messages")) <= 500 + 50
