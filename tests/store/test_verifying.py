"""A log is damaged in every way there is, as somebody with an SQL shell would, and the walk names the place."""

import sqlite3
from collections.abc import Iterator

import pytest

from store.verifying import COMMITS_PER_PAGE, Damage, verify

from .building import account_saved, database, record, writer

SIZES = (1, 3, 1, 5, 2)
"""Facts a commit: so commits end at 1, 4, 5, 10 and 12."""

LAST = sum(SIZES)


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with database() as connection:
        to = writer(connection)
        for number, size in enumerate(SIZES):
            record(to, [account_saved(f"a{number}.{index}") for index in range(size)])
        for trigger in ("log_is_append_only_update", "log_is_append_only_delete"):
            connection.execute(f"drop trigger {trigger}")
        for trigger in ("commits_are_append_only_update", "commits_are_append_only_delete"):
            connection.execute(f"drop trigger {trigger}")
        yield connection


def insert_between(db: sqlite3.Connection, at: int) -> None:
    """Make room at a seq by moving what follows, and put a copy of the fact before into it."""
    for seq in range(LAST, at - 1, -1):
        db.execute("update log set seq = seq + 1 where seq = ?", (seq,))
    db.execute(
        f"insert into log select {at}, at_us, kind, version, message, account, data from log where seq = {at - 1}"
    )


def swap(db: sqlite3.Connection, one: int, other: int) -> None:
    """Change the places of two facts, each keeping all it says but its seq."""
    for a, b in ((one, -1), (other, one), (-1, other)):
        db.execute("update log set seq = ? where seq = ?", (b, a))


def flip(column: str, value: str, seq: int) -> str:
    return f"update log set {column} = {value} where seq = {seq}"


TAMPERING = {
    "a fact alone in its commit": (flip("data", "cast('{}' as blob)", 5), Damage("changed", 5, 5)),
    "the first fact": (flip("at_us", "at_us + 1", 1), Damage("changed", 1, 1)),
    "one fact of several": (flip("account", "9", 3), Damage("changed", 2, 4)),
    "its kind": (flip("kind", "'AccountRemoved'", 7), Damage("changed", 6, 10)),
    "its version": (flip("version", "2", 7), Damage("changed", 6, 10)),
    "nobody became number nought": (flip("message", "0", 5), Damage("changed", 5, 5)),
    "nobody became the empty string": (flip("message", "''", 5), Damage("changed", 5, 5)),
    "a blob became the same text": (flip("data", "cast(data as text)", 5), Damage("changed", 5, 5)),
    "a kind that is no text": (flip("kind", "cast(x'ff00' as text)", 5), Damage("changed", 5, 5)),
    "a fact deleted": ("delete from log where seq = 7", Damage("missing", 7, 7)),
    "a fact deleted at a commit's end": ("delete from log where seq = 10", Damage("missing", 10, 10)),
    "the first fact deleted": ("delete from log where seq = 1", Damage("missing", 1, 1)),
    "the last fact deleted": ("delete from log where seq = 12", Damage("missing", 12, 12)),
    "a commit's facts deleted": ("delete from log where seq between 6 and 10", Damage("missing", 6, 6)),
    "every fact deleted": ("delete from log", Damage("missing", 1, 1)),
    "a fact moved away": ("update log set seq = 99 where seq = 7", Damage("missing", 7, 7)),
    "a fact put in at the end": (
        "insert into log select 13, at_us, kind, version, message, account, data from log where seq = 12",
        Damage("outside", 13, 13),
    ),
    "a fact put in far beyond": (
        "insert into log select 99, at_us, kind, version, message, account, data from log where seq = 12",
        Damage("outside", 99, 99),
    ),
    "a fact put in before the first": (
        "insert into log select 0, at_us, kind, version, message, account, data from log where seq = 1",
        Damage("outside", 0, 0),
    ),
    "a commit deleted": ("delete from commits where last_seq = 5", Damage("commit_missing", 5, 5)),
    "the first commit deleted": ("delete from commits where last_seq = 1", Damage("commit_missing", 1, 1)),
    "two commits deleted": ("delete from commits where last_seq in (4, 5)", Damage("changed", 2, 10)),
    "the last commit deleted": ("delete from commits where last_seq = 12", Damage("outside", 11, 11)),
    "every commit deleted": ("delete from commits", Damage("outside", 1, 1)),
    "a commit's hash changed": (
        "update commits set hash = zeroblob(32) where last_seq = 4",
        Damage("commit_changed", 2, 4),
    ),
    "the last commit's hash changed": (
        "update commits set hash = zeroblob(32) where last_seq = 12",
        Damage("changed", 11, 12),
    ),
    "a commit's hash became text": ("update commits set hash = 'x' where last_seq = 4", Damage("commit_changed", 2, 4)),
    "a commit's end moved": ("update commits set last_seq = 6 where last_seq = 5", Damage("changed", 5, 6)),
    "a commit put in": ("insert into commits values (7, 1, zeroblob(32))", Damage("changed", 6, 7)),
    "a format of the future": ("update commits set format = 2 where last_seq = 4", Damage("format", 2, 4)),
    "the commit's and the fact's time": ("update log set at_us = 1; ", Damage("changed", 1, 1)),
    "the log without its tail": (
        "delete from log where seq > 5; delete from commits where last_seq > 5",
        Damage("restored", 6, LAST),
    ),
    "an empty log": ("delete from log; delete from commits", Damage("restored", 1, LAST)),
}


@pytest.mark.parametrize("case", TAMPERING)
def test_damage_is_named_where_it_is(db, case):
    script, damage = TAMPERING[case]
    for statement in filter(str.strip, script.split(";")):
        db.execute(statement)
    verdict = verify(db, LAST)
    assert verdict.damage == damage
    assert verdict.facts < damage.first or damage.first == 0
    assert verdict.line.startswith(f"{damage.place}: ") and "\n" not in verdict.line


def test_an_untouched_log_is_as_it_was_written(db):
    (digest,) = db.execute("select hash from commits where last_seq = ?", (LAST,)).fetchone()
    for mark in (None, 0, 3, LAST):
        verdict = verify(db, mark)
        assert (verdict.facts, verdict.commits, verdict.hash, verdict.damage) == (LAST, len(SIZES), digest, None)
        assert digest.hex() in verdict.line


def test_an_empty_log_has_nothing_wrong_with_it():
    with database() as connection:
        assert verify(connection, None).damage is None
        assert verify(connection, 0).damage is None
        assert verify(connection, 1).damage == Damage("restored", 1, 1)


@pytest.mark.parametrize(("at", "damage"), [(5, Damage("changed", 5, 5)), (7, Damage("changed", 6, 10))])
def test_an_inserted_fact_shows_in_the_commit_that_it_fell_into(db, at, damage):
    insert_between(db, at)
    assert verify(db, LAST).damage == damage


@pytest.mark.parametrize(
    ("one", "other", "damage"),
    [(2, 3, Damage("changed", 2, 4)), (1, 5, Damage("changed", 1, 1)), (4, 6, Damage("changed", 2, 4))],
)
def test_swapped_facts_show_in_the_earlier_commit(db, one, other, damage):
    swap(db, one, other)
    assert verify(db, LAST).damage == damage


def test_every_single_byte_of_a_fact_counts(db):
    (data,) = db.execute("select data from log where seq = 5").fetchone()
    for index in range(len(data)):
        flipped = bytes([*data[:index], data[index] ^ 1, *data[index + 1 :]])
        db.execute("update log set data = ? where seq = 5", (flipped,))
        assert verify(db, None).damage == Damage("changed", 5, 5)


def test_the_walk_goes_by_pages_and_says_how_far_it_is(db):
    to = writer(db)
    for index in range(2 * COMMITS_PER_PAGE):
        record(to, [account_saved(f"b{index}")])
    steps = []
    assert verify(db, None, lambda done, of: steps.append((done, of))).facts == LAST + 2 * COMMITS_PER_PAGE
    last = LAST + 2 * COMMITS_PER_PAGE
    page = COMMITS_PER_PAGE - len(SIZES)
    assert steps == [(LAST + page, last), (LAST + page + COMMITS_PER_PAGE, last), (last, last)]


def test_what_comes_while_it_walks_does_not_disturb_it(db):
    to = writer(db)

    def write_more(done: int, of: int) -> None:
        record(to, [account_saved(f"c{to.last_seq}")])

    verdict = verify(db, None, write_more)
    assert verdict.damage is None
    assert verdict.facts == LAST


def test_a_file_that_cannot_be_read_is_damage_and_no_error(tmp_path):
    path = tmp_path / "x.db"
    with database(path) as connection:
        to = writer(connection)
        for index in range(300):
            record(to, [account_saved(f"a{index}")])
    page_size, pages = 4096, path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in range(pages // 2, pages):
            file.seek(page * page_size)
            file.write(b"\xff" * 64)
    with sqlite3.connect(path) as connection:
        assert verify(connection, None).damage is not None
    connection.close()
