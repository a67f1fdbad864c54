"""What a step of the clock means: by the pure table, and for every row of the views."""

import sqlite3

import pytest

from events.fact import Entry
from events.service import ClockStepped, ClockTrusted
from store.folding import Folding
from store.schema import migrate
from store.views.clock import BELIEVED, CLOCK, DOUBT_US, LARGE_US, ClockRow, step

from .building import T0_US

S = 1_000_000
HOUR, DAY = 3600 * S, 86_400 * S
YEAR = 365 * DAY


def after(*steps: tuple[int, int]) -> tuple[ClockRow, ClockStepped]:
    """The row, and the last fact, after steps of (by, seconds of true time since the last one)."""
    row, now_us = BELIEVED, T0_US
    for seq, (by_us, later_s) in enumerate(steps, 1):
        now_us += later_s * S + by_us
        fact = step(row, by_us, now_us)
        row = CLOCK.evolve(row, Entry(seq, 0, None, None, fact)) or BELIEVED
    return row, fact


@pytest.mark.parametrize(
    ("steps", "waits_us", "ahead_us", "doubted"),
    [
        ([(LARGE_US, 0)], 0, 0, False),
        ([(-LARGE_US, 0)], 0, 0, False),
        ([(LARGE_US + 1, 0)], LARGE_US + 1, LARGE_US + 1, True),
        ([(HOUR, 0)], HOUR, HOUR, True),
        ([(-HOUR, 0)], -HOUR, -HOUR, True),
        ([(5 * DAY, 0)], 5 * DAY, 5 * DAY, True),
        ([(-YEAR, 0)], -YEAR, -YEAR, True),
        ([(YEAR, 0), (-YEAR, 600)], -YEAR, 0, False),
        ([(-YEAR, 0), (YEAR + LARGE_US, 600)], YEAR + LARGE_US, 0, False),
        ([(YEAR, 0), (3 * S, 600)], 0, YEAR + 3 * S, True),
        ([(YEAR, 0), (YEAR, 600)], YEAR, 2 * YEAR, True),
        ([(YEAR, 0), (-YEAR, 3601)], -YEAR, -YEAR, True),
    ],
)
def test_a_step_is_doubted_added_up_and_taken_back(steps, waits_us, ahead_us, doubted):
    row, fact = after(*steps)
    assert (fact.waits_us, fact.ahead_us, row.doubted(fact.to_us)) == (waits_us, ahead_us, doubted)


def test_a_doubt_ends_after_its_hour():
    row, fact = after((YEAR, 0))
    assert row.doubted(fact.to_us + DOUBT_US - 1) and not row.doubted(fact.to_us + DOUBT_US)
    assert row.believed_us(fact.to_us) == T0_US and row.believed_us(fact.to_us + DOUBT_US) == fact.to_us + DOUBT_US


@pytest.mark.parametrize(
    ("asked_us", "due_us"),
    [
        (T0_US - 1, T0_US - 1),
        (T0_US + 600 * S, T0_US + YEAR + 600 * S),
        (T0_US + YEAR // 4, T0_US + YEAR + HOUR),
        (T0_US + YEAR + 600 * S, T0_US + YEAR + HOUR),
        (T0_US + YEAR + 2 * HOUR, T0_US + YEAR + 2 * HOUR),
    ],
)
def test_after_a_year_forwards_what_was_asked_for_goes_by_the_believed_clock_or_after_the_hour(asked_us, due_us):
    row, fact = after((YEAR, 0))
    assert row.asked_due_us(asked_us, fact.to_us) == due_us
    assert BELIEVED.asked_due_us(asked_us, fact.to_us) == asked_us


def test_a_clock_behind_lets_nothing_go_before_its_own_moment():
    row, fact = after((-YEAR, 0))
    assert row.asked_due_us(T0_US + 5, fact.to_us) == T0_US + 5


@pytest.mark.parametrize("by_us", [YEAR, -YEAR, HOUR, -HOUR])
def test_every_row_is_moved_as_the_table_says(by_us):
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    waiting = {1: (T0_US, None), 2: (T0_US + 60 * S, None), 3: (T0_US + YEAR // 4, T0_US + YEAR // 4)}
    waiting |= {4: (T0_US + 600 * S, T0_US + 600 * S), 5: (T0_US + 2 * YEAR, T0_US + 2 * YEAR)}
    for number, (due_us, asked_us) in waiting.items():
        connection.execute(
            "insert into messages (number, state, account, due_us, asked_us) values (?, 'waiting', 1, ?, ?)",
            (number, due_us, asked_us),
        )
    for number, state, asked_us in ((6, "held", None), (7, "held", T0_US + 600 * S), (8, "in_flight", None)):
        open_later = (number, state, asked_us or T0_US, asked_us)
        connection.execute("insert into messages (number, state, due_us, asked_us) values (?, ?, ?, ?)", open_later)
    connection.execute("insert into attempts (attempt, message) values (20, 8)")
    connection.execute("insert into messages (number, state, due_us) values (9, 'sent', 7)")
    folding = Folding(connection, lambda number: ())
    row, fact = after((by_us, 0))
    folding.fold(Entry(9, T0_US, None, None, fact))
    folding.flush()

    def dues() -> dict[int, int]:
        return dict(connection.execute("select number, due_us from messages"))

    moved = {
        number: due_us + by_us if asked_us is None else row.asked_due_us(asked_us, fact.to_us)
        for number, (due_us, asked_us) in waiting.items()
    }
    # What is held or in flight may wait again, with the due that it has.
    moved |= {6: T0_US + by_us, 7: row.asked_due_us(T0_US + 600 * S, fact.to_us), 8: T0_US + by_us}
    assert dues() == moved | {9: 7}
    assert connection.execute("select sum(n) from due_minutes").fetchone() == (5,)
    folding.fold(Entry(10, T0_US, None, None, ClockTrusted(by="cli")))
    folding.flush()
    asked = {number: asked_us for number, (_, asked_us) in waiting.items() if asked_us}
    assert dues() == moved | asked | {7: T0_US + 600 * S, 9: 7}
    connection.close()
