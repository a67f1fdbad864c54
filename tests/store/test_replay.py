"""A view folded anew is the view that was kept, at every moment, however the log was cut into turns and pages."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from events.account import AccountPaused, AccountThrottled
from events.fact import Draft
from events.message import DoubtResolved, MessageFailed, MessageRevised, MessageWithdrawn, RetentionPassed
from events.report import BatchFetched, ResultsReported
from events.schedule import DispatchSuspended
from events.wire import decode_row, encode_data
from store import reading, sql
from store.beside import Replies
from store.replay import (
    DIFFERENCES_MAX,
    Difference,
    OutsideLogError,
    Refolding,
    StaleViewsError,
    at,
    check,
    rebuild,
    refold,
)
from store.schema import VIEW_TABLES, VIEW_VERSIONS, create_views
from store.views import ROW_VIEWS
from store.writer import Request

from .building import T0_US, accepted, account_saved, database, ended, letter, record, started, writer
from .random_facts import DRAFTS, LOGS


def views_of(connection: sqlite3.Connection) -> dict[str, list[tuple]]:
    """Every row of every view; a count of nought says no more than no row."""
    return {
        name: sorted(connection.execute(f"select * from {name} {'where n <> 0' if name == 'totals' else ''}"), key=repr)
        for name in VIEW_TABLES
    }


def empty_views() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    create_views(Database(connection, execute_plugins=False))
    return connection


def refolded(source: sqlite3.Connection, page_facts: int, up_to: int) -> dict[str, list[tuple]]:
    with closing(empty_views()) as target:
        refolding = Refolding(source, target, page_facts)
        while refolding.page(up_to):
            pass
        return views_of(target)


# Any sequence of facts


@settings(deadline=None)
@given(LOGS)
def test_every_view_takes_any_sequence_of_facts(log):
    for view in ROW_VIEWS:
        rows = {}
        for entry in log:
            for key in view.keys(entry):
                row = view.evolve(rows.get(key), entry)
                assert row is None or isinstance(row, view.row)
                rows[key] = row


@settings(deadline=None, max_examples=60)
@given(LOGS, st.integers(1, 7), st.integers(1, 7))
def test_any_log_folds_to_the_same_views_however_it_is_cut(log, turn, page):
    with database() as connection:
        connection.execute("begin")
        for entry in log:
            row = (entry.seq, entry.at_us, entry.kind, 1, entry.message, entry.account, encode_data(entry.fact))
            connection.execute("insert into log values (?, ?, ?, ?, ?, ?, ?)", row)
        connection.execute("commit")
        assert refolded(connection, turn, len(log)) == refolded(connection, page, len(log))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(DRAFTS, min_size=1, max_size=6), max_size=8), st.integers(1, 7))
def test_what_admission_took_refolds_to_the_live_views(turns, page):
    with database() as connection:
        to = writer(connection)
        record(to, [account_saved(), accepted("a"), accepted("b")])
        for drafts in turns:
            to.turn([Request((draft,), {}) for draft in drafts])
        assert refolded(connection, page, to.last_seq) == views_of(connection)


# One log that has everything in it


def story() -> list[list[Draft]]:
    """Turns of an ordinary life, with a message that comes back after retention took its row away."""
    again = MessageRevised(
        id="c", priority=1, due_us=0, expires_us=2 * T0_US, size=5, recipients=("c:0",), reach=(0,), letter="e" * 16
    )
    return [
        [account_saved(limit_per_minute=5), account_saved("other")],
        [
            accepted("a"),
            accepted("b", 2, recipients=2, priority=0),
            accepted("c"),
            Draft(BatchFetched(token="t", messages=3)),
        ],
        [started(3), started(4, account=2), Draft(MessageFailed(cause="quota", revision=5), 5, 1)],
        [ended(3, 7), ended(4, 8, "deferred", "due", account=2)],
        [started(4, account=2), Draft(AccountThrottled(until_us=T0_US * 2, window_s=60, limit=5), 3, 1)],
        [ended(4, 12, "in_doubt", "held", account=2)],
        [Draft(DoubtResolved(resolution="sent"), 4, 2), Draft(AccountPaused(), account=2)],
        [Draft(ResultsReported(up_to=15))],
        [Draft(RetentionPassed(before=16))],
        [Draft(again, 5, 1), accepted("d", due_us=T0_US + 10**9), Draft(DispatchSuspended())],
        [Draft(MessageWithdrawn(), 5, 1)],
    ]


@pytest.fixture
def db(tmp_path) -> Iterator[tuple[sqlite3.Connection, Path, dict[int, dict[str, list[tuple]]]]]:
    """The story in a file, and the live views as they were after each of its turns."""
    path = tmp_path / "a log?.db"
    seen = {}
    with database(path) as connection:
        identify(connection)
        to = writer(connection, step_us=1_000_000)
        for drafts in story():
            assert record(to, drafts).complete, drafts
            seen[to.last_seq] = views_of(connection)
        yield connection, path, seen


def identify(connection: sqlite3.Connection) -> None:
    meta = {"log": "a1"} | {f"view:{name}": str(version) for name, version in VIEW_VERSIONS.items()}
    connection.executemany("insert into meta values (?, ?)", list(meta.items()))


@pytest.mark.parametrize("page", [1, 2, 3, 5, 100])
def test_the_story_refolds_in_pages_of_any_size(db, page):
    connection, _, seen = db
    for seq, views in seen.items():
        assert refolded(connection, page, seq) == views


def test_the_message_that_came_back_kept_its_number_and_nothing_of_the_future(db):
    connection, _, _ = db
    (row,) = connection.execute("select state, revision, created_us from messages where number = 5").fetchall()
    assert row[:2] == ("withdrawn", 19)
    assert connection.execute("select number from messages order by number").fetchall() == [(5,), (20,)]


def test_refold_says_how_far_it_is(db):
    connection, _, _ = db
    steps = []
    with closing(empty_views()) as target:
        assert refold(connection, target, 7, lambda seq, of: steps.append((seq, of))) == 7
    assert steps == [(7, 7)]


def test_rebuild_gives_the_same_views_and_their_versions(db):
    connection, _, seen = db
    before = views_of(connection)
    connection.execute("update messages set state = 'sent'")
    connection.execute("delete from results")
    connection.execute("update meta set value = '0' where name = 'view:messages'")
    assert rebuild(connection) == max(seen)
    assert views_of(connection) == before
    assert dict(connection.execute("select name, value from meta")) == {"log": "a1"} | {
        f"view:{name}": str(version) for name, version in VIEW_VERSIONS.items()
    }
    assert not connection.in_transaction


def test_a_rebuild_that_breaks_off_leaves_the_views_as_they_were(db):
    connection, path, _ = db
    before = views_of(connection)

    def break_off(seq: int, of: int) -> None:
        with closing(sqlite3.connect(path)) as reader:
            assert views_of(reader) == before, "others see the old views until it is done"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rebuild(connection, break_off)
    assert views_of(connection) == before and not connection.in_transaction


# Comparing


def test_views_that_are_right_differ_in_nothing(db):
    connection, _, _ = db
    assert check(connection) == []
    assert not connection.in_transaction


@pytest.mark.parametrize("name", VIEW_TABLES)
def test_a_row_more_a_row_less_and_a_changed_row_show_in_every_view(db, name):
    connection, _, _ = db
    columns = [row[1] for row in connection.execute(f"pragma table_info({name})")]
    insert = f"insert into {name} values ({', '.join('?' * len(columns))})"
    found = connection.execute(f"select rowid, * from {name} order by {columns[-1]} desc limit 1").fetchone()
    if found:
        rowid, *row = found
        connection.execute(f"update {name} set {columns[-1]} = '77' where rowid = {rowid}")
        (changed,) = check(connection)
        assert changed.view == name and changed.live != changed.refolded
        connection.execute(f"delete from {name} where rowid = {rowid}")
        (missing,) = check(connection)
        assert (missing.view, missing.live) == (name, None) and name in missing.line
        connection.execute(insert, row)
        assert check(connection) == []
    else:
        row = [7] * len(columns)
    connection.execute(insert, [99 if isinstance(row[0], int) else "zz", *row[1:]])
    assert [(each.view, each.refolded) for each in check(connection)] == [(name, None)]


def test_many_differences_are_cut_short(db):
    connection, _, _ = db
    connection.executemany("insert into tokens values (?, 1, 1)", [(f"x{n}",) for n in range(2 * DIFFERENCES_MAX)])
    found = check(connection)
    assert len(found) == DIFFERENCES_MAX and isinstance(found[0], Difference)


def test_what_is_recorded_meanwhile_is_no_difference(db):
    _, path, _ = db
    with closing(sqlite3.connect(path, isolation_level=None)) as writing:
        to = writer(writing)
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as reading:
            steps = []

            def go_on(seq: int, of: int) -> None:
                steps.append(seq)
                record(to, [accepted(f"meanwhile {len(steps)}")])

            assert check(reading, go_on) == []
            assert steps


def test_stale_views_are_not_compared(db):
    connection, _, _ = db
    connection.execute("update meta set value = '0' where name = 'view:messages'")
    with pytest.raises(StaleViewsError, match="messages"):
        check(connection)


# The past


def test_every_moment_is_as_it_was(db):
    _, path, seen = db
    for seq, views in seen.items():
        with at(path, seq=seq) as moment:
            assert moment.seq == seq
            assert views_of(moment.connection) == views


def answers(connection: sqlite3.Connection, now_us: int) -> list:
    """What the readings behind the API answer."""
    by_id = [reading.message_by_id(connection, name) for name in "abcdx"]
    lists = [list_of(connection, now_us, 0, 100) for list_of in (reading.pending, reading.deferred)]
    return [
        *by_id,
        *lists,
        reading.held(connection, 0, 100),
        reading.results(connection, 0, 100),
        *(reading.timeline(connection, row.number) for row in by_id if row),
    ]


def test_readings_answer_as_they_did_then(tmp_path):
    path, then = tmp_path / "x.db", {}
    with database(path) as connection:
        to = writer(connection, step_us=1_000_000)
        for drafts in story():
            record(to, drafts)
            then[to.last_seq] = answers(connection, T0_US)
        for seq, expected in then.items():
            with at(path, seq=seq) as moment:
                assert answers(moment.connection, T0_US) == expected


def test_the_past_is_read_by_its_indexes_too(db):
    _, path, _ = db
    with at(path, seq=5) as moment:
        plan = moment.connection.execute(f"explain query plan {sql.TIMELINE}", (5, 0, 10)).fetchall()
        assert any("log_by_message" in step[3] for step in plan)


def test_moments_within_a_turn_can_be_asked_for_too(db):
    _, path, seen = db
    for seq in range(1, max(seen) + 1):
        with at(path, seq=seq) as moment:
            assert moment.connection.execute("select max(seq) from log").fetchone() == (seq,)


def test_a_time_means_the_last_fact_up_to_it(db):
    connection, path, _ = db
    stamps = connection.execute("select seq, at_us from log order by seq").fetchall()
    first, last = stamps[0][1], stamps[-1][1]
    for time_us in sorted({stamp + by for _, stamp in stamps for by in (-1, 0, 1)}):
        if first <= time_us <= last:
            with at(path, time_us=time_us) as moment:
                assert moment.seq == max(seq for seq, stamp in stamps if stamp <= time_us)
                assert moment.at_us == time_us
        else:
            with pytest.raises(OutsideLogError), at(path, time_us=time_us):
                pass


@pytest.mark.parametrize("seq", [-1, 0, 23, 10**6])
def test_a_seq_outside_the_log_is_refused(db, seq):
    _, path, seen = db
    assert max(seen) == 22
    with pytest.raises(OutsideLogError, match="not in the log"), at(path, seq=seq):
        pass


def test_an_empty_log_has_no_past(tmp_path):
    with database(tmp_path / "x.db"), pytest.raises(OutsideLogError, match="empty"), at(tmp_path / "x.db", seq=1):
        pass


def test_the_past_reads_what_stood_beside_the_log_then_and_nothing_later(tmp_path):
    path = tmp_path / "x.db"
    with database(path) as connection:
        to = writer(connection)
        record(to, [account_saved(), accepted("a")], {1: letter("first")})
        record(to, [started(2)])
        record(to, [ended(2, 3, "refused", "failed")], {0: Replies(((0, "no such user"),))})
        record(to, [accepted("b")], {0: letter("second")})
        with at(path, seq=3) as moment:
            past = moment.connection
            assert [row[0] for row in past.execute("select letter from letters")] == [2]
            assert past.execute("select count(*) from replies").fetchone() == (0,)
            assert past.execute("select id from ids").fetchall() == [("a",)]
            joined = "select content from messages join letters on letter = revision where state = 'in_flight'"
            assert b"first" in past.execute(joined).fetchone()[0]
            facts = past.execute("select seq, at_us, kind, version, message, account, data from log where message = 2")
            assert [decode_row(row).seq for row in facts] == [2, 3]
        with at(path, seq=4) as moment:
            assert moment.connection.execute("select text from replies").fetchall() == [(b"no such user",)]


def test_the_past_cannot_be_written(db):
    _, path, _ = db
    with at(path, seq=5) as moment:
        for statement in ("delete from letters", "insert into live.ids values ('x', 1)", "delete from live.letters"):
            with pytest.raises(sqlite3.OperationalError):
                moment.connection.execute(statement)
