"""The write-ahead file stays small under load and under slow readers; freed pages go back; the disk is watched."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
import trio

from store.housekeeping import (
    CHECKPOINT_ABOVE_BYTES,
    DAY_S,
    IDLE_TICK_S,
    IDLE_TICKS,
    MB,
    NO_WAL,
    RESTART_WAIT_MS,
    SAMPLE_EVERY_S,
    SAMPLES_KEPT,
    TICK_S,
    VACUUM_KEEPS_PAGES,
    VACUUM_PAGES,
    Growth,
    Housekeeper,
    Relief,
    Seen,
    Wal,
    WalIndex,
    chore,
    disk_free_bytes,
    disk_low,
    figures,
    free_pages,
    relieve,
    truncate,
    used_bytes,
)

from .building import PRAGMAS, database

FRAME = 4096 + 24


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def db(path, index) -> Iterator[sqlite3.Connection]:
    with database(path) as connection:
        connection.execute("pragma synchronous = off").close()
        assert truncate(connection)
        index.open()
        yield connection


@pytest.fixture
def index(path) -> Iterator[WalIndex]:
    """Opened after the first connection and, being asked for first, closed after the last one."""
    found = WalIndex(path)
    yield found
    found.close()


@pytest.fixture
def other(path, db) -> Iterator[sqlite3.Connection]:
    """A second connection to the same file, with a wait that a test would notice."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)) as connection:
        for pragma in PRAGMAS[2:]:
            connection.execute(f"pragma {pragma}").close()
        yield connection


def wal_file(path: Path) -> int:
    return os.stat(f"{path}-wal").st_size


def fill(db: sqlite3.Connection, megabytes: float, start: int = 0) -> None:
    """A commit of letters of 100 KB."""
    db.execute("begin")
    for number in range(int(megabytes * 10)):
        db.execute("insert into letters values (?, 1, x'', ?, x'')", (start + number + 1, bytes(100_000)))
    db.execute("commit")


def hold_open(reader: sqlite3.Connection) -> None:
    """Begin a read transaction that sees the file as it is now, until somebody ends it."""
    reader.execute("begin")
    reader.execute("select count(*) from letters").fetchone()


# How full it is


def test_how_full_the_write_ahead_file_is_stands_in_its_index(db, path, index):
    fill(db, 2)
    wal = index.look()
    assert wal.bytes == wal.unsaved == wal_file(path) - 32
    assert wal.bytes % FRAME == 0
    busy, frames, copied = db.execute("pragma wal_checkpoint(passive)").fetchone()
    assert (busy, frames * FRAME, copied * FRAME) == (0, wal.bytes, wal.bytes)
    assert index.look() == Wal(wal.bytes, 0)
    db.execute("delete from letters where letter = 1")
    assert index.look().bytes < 100 * FRAME, "the next commit began it anew"
    assert wal_file(path) > wal.bytes, "though the file is as long as it was"


def test_a_database_that_nobody_has_open_has_no_write_ahead_file(tmp_path):
    assert WalIndex(tmp_path / "none.db").look() == NO_WAL
    (tmp_path / "short.db-shm").write_bytes(b"123")
    short = WalIndex(tmp_path / "short.db")
    short.open()
    assert short.look() == NO_WAL
    short.close()


# Between two turns


def test_below_the_limit_the_writer_does_nothing(db, path, index):
    fill(db, 1)
    before = index.look()
    assert relieve(db, before.bytes, before.bytes)
    assert index.look() == before


def test_past_the_limit_the_next_commit_begins_the_file_anew(db, path, index, other):
    fill(db, 2)
    assert relieve(db, index.look().bytes, MB)
    fill(db, 0.1, start=1000)
    assert index.look().bytes < MB / 2


def test_a_reader_in_the_way_is_waited_for_only_shortly(db, path, index, other):
    fill(db, 1)
    hold_open(other)
    fill(db, 2, start=1000)
    (usual,) = db.execute("pragma busy_timeout").fetchone()
    started = trio_free_clock()
    assert not relieve(db, index.look().bytes, MB)
    assert trio_free_clock() - started < 1 + RESTART_WAIT_MS / 1000
    assert db.execute("pragma busy_timeout").fetchone() == (usual,)
    other.execute("rollback")
    assert relieve(db, index.look().bytes, MB)


def trio_free_clock() -> float:
    return os.times().elapsed


def test_under_load_the_file_stays_near_the_limit(db, path, index, other):
    relief = Relief(index, db, 2 * MB)
    for turn in range(30):
        fill(db, 0.5, start=1000 * turn)
        relief.between_turns()
    assert wal_file(path) < 3.5 * MB


def test_while_a_reader_is_in_the_way_it_is_tried_again_a_quarter_of_the_limit_later(db, path, index, other):
    relief = Relief(index, db, MB)
    tried = []
    db.set_trace_callback(lambda statement: tried.append(statement) if "restart" in statement else None)
    fill(db, 0.1)
    hold_open(other)
    fill(db, 1.2, start=100)
    for turn in range(1, 9):
        relief.between_turns()
        fill(db, 0.1, start=1000 * turn)
    assert len(tried) == 3, "not after each of eight turns"
    other.execute("rollback")
    fill(db, 0.3, start=20_000)
    relief.between_turns()
    fill(db, 0.1, start=30_000)
    assert index.look().bytes < MB / 2


# Chores


BIG, SMALL = CHECKPOINT_ABOVE_BYTES + 1, CHECKPOINT_ABOVE_BYTES
SEEN = [
    Seen(wal, truncate, idle, free)
    for wal, truncate, idle, free in product(
        (NO_WAL, Wal(SMALL, SMALL), Wal(BIG, 0), Wal(BIG, 1)),
        (True, False),
        (0, IDLE_TICKS - 1, IDLE_TICKS),
        (0, VACUUM_KEEPS_PAGES, VACUUM_KEEPS_PAGES + 1),
    )
]


def test_what_is_done_in_a_tick_follows_from_what_is_seen():
    for seen in SEEN:
        passive = seen.wal == Wal(BIG, 1)
        vacuum = seen.idle_ticks == IDLE_TICKS and seen.free_pages == VACUUM_KEEPS_PAGES + 1
        expected = "truncate" if seen.truncate else "passive" if passive else "vacuum" if vacuum else None
        assert chore(seen) == expected


def test_the_first_tick_truncates_for_a_crash_may_have_come_before_it(db, path, index, other):
    fill(db, 1)
    housekeeper = Housekeeper(index, other, threaded=False)
    assert housekeeper.tick() == "truncate"
    assert wal_file(path) == 0
    assert housekeeper.tick() is None


def test_truncating_is_tried_until_it_succeeds(db, path, index, other):
    housekeeper = Housekeeper(index, other, threaded=False)
    fill(db, 1)
    hold_open(db)
    with closing(sqlite3.connect(path, isolation_level=None)) as third:
        third.execute("insert into ids values ('x', 1)")
    assert [housekeeper.tick(), housekeeper.tick()] == ["truncate", "truncate"]
    db.execute("rollback")
    assert [housekeeper.tick(), housekeeper.tick()] == ["truncate", None]
    assert wal_file(path) == 0


def test_it_is_truncated_again_when_asked_for_again(db, path, index, other):
    housekeeper = Housekeeper(index, other, threaded=False)
    assert [housekeeper.tick(), housekeeper.tick()] == ["truncate", None]
    housekeeper.ask_for_truncating()
    assert [housekeeper.tick(), housekeeper.tick()] == ["truncate", None]


def test_a_full_write_ahead_file_is_copied_while_the_writer_goes_on(db, path, index, other):
    housekeeper = Housekeeper(index, other, threaded=False)
    housekeeper.tick()
    fill(db, 5)
    assert housekeeper.tick() == "passive"
    assert index.look().unsaved == 0
    assert housekeeper.tick() is None


def test_free_pages_go_back_in_small_steps_when_nothing_happens(db, path, index, other):
    housekeeper = Housekeeper(index, other, threaded=False)
    fill(db, 20)
    db.execute("delete from letters")
    housekeeper.tick()
    before, size = free_pages(db), path.stat().st_size
    assert before > VACUUM_KEEPS_PAGES
    chores = [housekeeper.tick() for _ in range(IDLE_TICKS + 5)]
    assert chores.index("vacuum") >= IDLE_TICKS - 1
    assert chores.count("vacuum") >= 4, "its own commits do not end the idleness"
    assert free_pages(db) == before - VACUUM_PAGES * chores.count("vacuum")
    db.execute("insert into ids values ('x', 1)")
    assert housekeeper.tick() is None, "somebody is at work"
    assert truncate(db)
    assert path.stat().st_size < size


@pytest.mark.parametrize("threaded", [True, False])
async def test_it_ticks_until_it_is_cancelled(db, path, index, other, threaded, autojump_clock):
    fill(db, 1)
    with trio.move_on_after(3 * TICK_S) as scope:
        await Housekeeper(index, other, threaded).run()
    assert scope.cancelled_caught
    assert wal_file(path) == 0


# The disk


def test_the_disk_is_low_below_what_is_asked_for(path):
    free_mb = disk_free_bytes(path) // MB
    assert disk_low(path, free_mb * 2)
    assert not disk_low(path, max(1, free_mb // 2))
    assert not disk_low(path, 0)


def test_growth_is_known_after_an_hour():
    growth = Growth()
    assert growth.bytes_a_day() is None
    for second in range(0, 3600, 60):
        growth.note(second, second)
    assert growth.bytes_a_day() is None
    growth.note(3600, 3600)
    assert growth.bytes_a_day() == DAY_S


def test_growth_is_that_of_the_last_day():
    growth = Growth()
    for sample in range(3 * SAMPLES_KEPT):
        assert growth.wants_sample(sample * SAMPLE_EVERY_S)
        growth.note(sample * SAMPLE_EVERY_S, max(0, sample - SAMPLES_KEPT) * 1000)
    assert growth.bytes_a_day() == pytest.approx(1000 * DAY_S / SAMPLE_EVERY_S)


def test_what_shrinks_does_not_grow():
    growth = Growth()
    growth.note(0, 1000)
    growth.note(7200, 500)
    assert growth.bytes_a_day() == 0


def test_the_figures(db, path, index):
    growth = Growth()
    first = figures(path, index, growth)
    assert (first.bytes_a_day, first.days_left) == (None, None)
    assert first.free_bytes > 0 and first.log_bytes == path.stat().st_size
    growth.note(0, used_bytes(db))
    growth.note(DAY_S, used_bytes(db))
    still = figures(path, index, growth)
    assert (still.bytes_a_day, still.days_left) == (0, None), "at this rate the disk is never full"
    fill(db, 1)
    assert figures(path, index, growth).wal_bytes > MB
    assert truncate(db)
    growth.note(2 * DAY_S, used_bytes(db))
    grown = figures(path, index, growth)
    assert grown.bytes_a_day > MB / 3
    assert grown.days_left == pytest.approx(grown.free_bytes / grown.bytes_a_day, rel=0.01)
    assert figures(path.parent / "none.db", index, Growth()).log_bytes == 0


def test_over_days_it_is_the_growth_of_what_stays(db, path, index):
    """Three letters a day stay, twelve come and are let go two days later; then all free pages are given back."""
    growth = Growth()
    for day in range(8):
        fill(db, 0.3, start=day * 100)
        fill(db, 1.2, start=day * 100 + 50)
        db.execute("delete from letters where letter < ? and letter % 100 > 50", ((day - 1) * 100,))
        for each in range(SAMPLES_KEPT):
            growth.note(day * DAY_S + each * SAMPLE_EVERY_S, used_bytes(db))
    assert growth.bytes_a_day() == pytest.approx(300_000, rel=0.05)
    assert free_pages(db) * 4096 < 2 * MB, "what is let go is filled again"
    db.execute("delete from letters where letter % 100 > 50")
    assert truncate(db)
    before = figures(path, index, growth)
    db.executescript("pragma incremental_vacuum")
    assert truncate(db) and path.stat().st_size < before.log_bytes
    after = figures(path, index, growth)
    assert after.bytes_a_day == before.bytes_a_day, "giving pages back is no change of what is needed"
    assert after.days_left == pytest.approx(before.days_left, rel=0.01), "they are on the disk, and were in the file"


async def test_samples_are_taken_whether_anybody_asks_or_not(db, index, other, autojump_clock):
    housekeeper = Housekeeper(index, other, threaded=False)
    with trio.move_on_after(3700):
        await housekeeper.run()
    assert housekeeper.growth.bytes_a_day() == 0
    assert housekeeper.growth.used == used_bytes(db)


async def test_while_pages_go_back_the_ticks_stay_short(db, index, other, autojump_clock):
    fill(db, 30)
    db.execute("delete from letters")
    before = free_pages(db) - VACUUM_KEEPS_PAGES
    with trio.move_on_after(TICK_S * (IDLE_TICKS + before / VACUUM_PAGES + 2) + IDLE_TICK_S):
        await Housekeeper(index, other, threaded=False).run()
    assert free_pages(db) <= VACUUM_KEEPS_PAGES
