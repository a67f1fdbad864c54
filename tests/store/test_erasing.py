"""After erasing, the raw bytes of the database and of its write-ahead file are searched for what was erased."""

import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from events.fact import Draft
from events.message import ContentErased, MessageRevised
from store.beside import LetterRow, Replies
from store.erasing import BYTES_PER_STEP, LETTERS_PER_STEP, MARGIN, PAGE_BYTES, erase_pending, erase_step
from store.housekeeping import truncate, vacuum_step
from store.replay import check
from store.schema import VIEW_VERSIONS
from store.writer import Writer

from .building import T0_US, accepted, account_saved, database, ended, letter, record, started, writer

MARKER = re.compile(rb"SECRET[0-9]{9}")


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def db(path) -> Iterator[sqlite3.Connection]:
    with database(path) as connection:
        connection.execute("pragma synchronous = off").close()
        yield connection


def marker(number: int) -> bytes:
    return b"SECRET%09d" % number


def raw(path: Path) -> bytes:
    """Everything of the database that stands on the disk."""
    return b"".join(each.read_bytes() for each in (path, Path(f"{path}-wal")) if each.exists())


def readable(path: Path) -> set[bytes]:
    """The markers that can be read there."""
    return set(MARKER.findall(raw(path)))


def put(db: sqlite3.Connection, number: int, size: int) -> None:
    """A letter that bears its marker all over."""
    text = marker(number) + b" "
    row = (number, number, text * 4, text * (size // len(text) + 1), text)
    db.execute("insert into letters values (?, ?, ?, ?, ?)", row)


def erase(db: sqlite3.Connection, *numbers: int) -> None:
    """As ContentErased leaves it, and then what has to be done."""
    db.executemany("insert into erasures values (?, ?)", [(number, number) for number in numbers])
    assert erase_pending(db) >= len(numbers) > 0
    assert truncate(db)


def living(db: sqlite3.Connection) -> set[int]:
    return {number for (number,) in db.execute("select letter from letters where length(content) > 0")}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [(40, 300), (300, 3000), (3000, 12_000)])
def test_no_byte_of_an_erased_letter_is_left_at_any_time(db, path, seed, sizes):
    """Letters come and go in random order, while others live, are moved, are written and are erased later."""
    rng = random.Random(seed)
    for number in range(1, 301):
        put(db, number, rng.randint(*sizes))
    alive, last = set(range(1, 301)), 300
    while alive:
        gone = rng.sample(sorted(alive), min(len(alive), 30))
        alive -= set(gone)
        erase(db, *gone)
        vacuum_step(db)
        assert truncate(db)
        assert readable(path) == {marker(number) for number in alive}
        assert living(db) == alive
        if last < 330:
            last += 10
            for number in range(last - 9, last + 1):
                put(db, number, rng.randint(*sizes))
                alive.add(number)


def test_letters_erased_in_order_leave_their_places_and_one_that_lives_keeps_its_neighbours(db, path):
    many = 4 * MARGIN
    held = 2 * MARGIN + 7
    for number in range(1, many + 1):
        put(db, number, 200)
    for start in range(1, many + 1, 500):
        erase(db, *(number for number in range(start, min(start + 500, many + 1)) if number != held))
        assert readable(path) == {marker(number) for number in living(db)}
    rows = [number for (number,) in db.execute("select letter from letters")]
    assert living(db) == {held}
    assert held in rows and len(rows) < 3 * MARGIN + LETTERS_PER_STEP
    assert 1 not in rows, "from the table's start on everything empty is gone"
    assert many in rows, "the end stays: letters to come are its neighbours"
    erase(db, held)
    assert readable(path) == set()
    assert db.execute("select count(*) from letters").fetchone()[0] <= MARGIN


def test_the_margin_is_no_less_than_the_empty_rows_of_two_pages(db, path):
    """However small their numbers are."""
    db.executemany("insert into letters values (?, 1, x'', x'', x'')", [(number,) for number in range(1, 4 * MARGIN)])
    assert truncate(db)
    data = path.read_bytes()
    (page_bytes,) = db.execute("pragma page_size").fetchone()
    assert page_bytes == PAGE_BYTES
    leaves = [data[start : start + PAGE_BYTES] for start in range(PAGE_BYTES, len(data), PAGE_BYTES)]
    # A leaf of a table begins with 13, and says at offset 3 how many rows it has.
    fullest = max(int.from_bytes(leaf[3:5], "big") for leaf in leaves if leaf[0] == 13)
    assert fullest > 300 and 2 * fullest <= MARGIN


def test_a_step_is_short_and_the_rest_is_done_later(db):
    for number in range(1, 2 * LETTERS_PER_STEP + 1):
        put(db, number, 50)
    db.executemany("insert into erasures values (?, ?)", [(n, n) for n in range(1, 2 * LETTERS_PER_STEP + 1)])
    assert erase_step(db)
    assert len(living(db)) == LETTERS_PER_STEP
    assert not db.in_transaction
    erase_pending(db)
    assert living(db) == set()
    assert erase_step(db) == 0


def test_large_letters_end_a_step_early(db, path):
    for number in range(1, 6):
        put(db, number, BYTES_PER_STEP)
    db.executemany("insert into erasures values (?, ?)", [(number, number) for number in range(1, 6)])
    erase_step(db)
    assert len(living(db)) == 4
    assert db.execute("select count(*) from erasures").fetchone() == (4,)
    erase_pending(db)
    assert truncate(db)
    assert readable(path) == set()


def test_erasing_begun_before_a_crash_is_done_at_the_next_start(db, path):
    put(db, 1, 500)
    db.execute("insert into erasures values (1, 1)")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        assert erase_pending(other) == 1
        assert truncate(other)
    assert readable(path) == set()


def test_until_a_checkpoint_can_truncate_the_bytes_are_still_there(db, path):
    """What the request for a truncating checkpoint is for: a reader in the way puts it off, and it is tried again."""
    put(db, 1, 500)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("begin")
        reader.execute("select count(*) from letters").fetchone()
        db.execute("insert into erasures values (1, 1)")
        erase_pending(db)
        assert not truncate(db)
        assert readable(path) == {marker(1)}
        reader.execute("rollback")
        assert truncate(db)
        assert readable(path) == set()


# Through the log


def revised(name: str, message: int, text: str) -> tuple[Draft, LetterRow]:
    fact = MessageRevised(
        id=name, priority=2, due_us=0, expires_us=2 * T0_US, size=1, recipients=(f"{name}:0",), reach=(0,), letter="d"
    )
    return Draft(fact, message=message, account=1), letter(text)


def attempt(to: Writer, message: int, revision: int, reply: str) -> None:
    begun = record(to, [started(message, revision)]).answers[0].seq
    assert record(to, [ended(message, begun, "refused", "failed")], {0: Replies(((0, reply),))}).complete


@pytest.fixture
def two_revisions(db) -> Writer:
    """The message 2 has failed twice: with a letter at seq 2, a reply, a second letter at seq 5 and its reply; the
    message 8 has one letter and one reply."""
    meta = {f"view:{name}": str(version) for name, version in VIEW_VERSIONS.items()}
    db.executemany("insert into meta values (?, ?)", list(meta.items()))
    to = writer(db)
    record(to, [account_saved(), accepted("a")], {1: letter("first content")})
    attempt(to, 2, 2, "first reply")
    draft, row = revised("a", 2, "second content")
    record(to, [draft], {0: row})
    attempt(to, 2, 5, "second reply")
    record(to, [accepted("b")], {0: letter("other content")})
    attempt(to, 8, 8, "other reply")
    return to


def words_in(path: Path) -> set[str]:
    words = ("first content", "first reply", "second content", "second reply", "other content", "other reply")
    return {word for word in words if word.encode() in raw(path)}


OTHERS = {"other content", "other reply"}


def test_a_message_s_letters_and_the_replies_about_them_go(db, path, two_revisions):
    record(two_revisions, [Draft(ContentErased(letters=((2, 5),)))])
    assert erase_pending(db) == 1
    assert truncate(db)
    assert words_in(path) == OTHERS
    assert check(db) == [], "facts and views stay as they are"


def test_an_earlier_revision_is_erased_without_the_later_one(db, path, two_revisions):
    record(two_revisions, [Draft(ContentErased(letters=((2, 2),)))])
    erase_pending(db)
    assert truncate(db)
    assert words_in(path) == OTHERS | {"second content", "second reply"}


def test_what_came_after_the_fact_and_before_the_erasing_stays(db, path, two_revisions):
    record(two_revisions, [Draft(ContentErased(letters=((2, 5),)))])
    draft, row = revised("a", 2, "third content")
    record(two_revisions, [draft], {0: row})
    attempt(two_revisions, 2, two_revisions.last_seq, "third reply")
    erase_pending(db)
    assert truncate(db)
    assert words_in(path) == OTHERS
    assert b"third content" in raw(path) and b"third reply" in raw(path)


def test_a_later_erasure_of_the_same_message_takes_the_place_of_the_earlier(db, path, two_revisions):
    record(two_revisions, [Draft(ContentErased(letters=((2, 2),)))])
    record(two_revisions, [Draft(ContentErased(letters=((2, 5), (8, 8))))])
    assert erase_pending(db) == 2
    assert truncate(db)
    assert words_in(path) == set()


def test_erasing_what_is_not_there_is_done_at_once(db, two_revisions):
    record(two_revisions, [Draft(ContentErased(letters=((2, 5), (77, 78))))])
    assert erase_pending(db) == 2
    db.execute("insert into erasures values (2, 5)")
    assert erase_pending(db) == 1
    assert db.execute("select count(*) from erasures").fetchone() == (0,)


def test_an_erased_letter_s_message_can_come_again(db, path, two_revisions):
    record(two_revisions, [Draft(ContentErased(letters=((2, 5),)))])
    erase_pending(db)
    draft, row = revised("a", 2, "third content")
    assert record(two_revisions, [draft], {0: row}).complete
    again = record(two_revisions, [started(2, two_revisions.last_seq)])
    assert again.complete and again.started[0].letter == row
