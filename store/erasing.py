"""Erasing: no byte of a letter, its envelope, its salt or the relay's words about it is left readable in the file.

The recorder fills the table `erasures` in the very commit of ContentErased, so what has to be erased survives a crash
and is taken up again at the next start. Each step is one short transaction: it overwrites blobs in place, empties
their rows, and removes the work item. The write-ahead file still holds what was there before, until a truncating
checkpoint succeeds: whoever erased asks housekeeping for one.

Why a row is emptied, and not simply deleted. When a page of a table has become rather empty, SQLite merges it with
its neighbours, and the rows that move leave copies of themselves in the gaps of those pages, where `secure_delete`
does not reach. Such a copy is of a letter that still lives; when that one is erased in its turn, the copy stays
(measured: 5 of 10,800 letters, erased in random order by overwriting and deleting; 0 by what is done here). Making a
row smaller never merges pages. So an erased letter is a row without content, and a row is deleted only where every
row on the pages around it is empty too: MARGIN rows away from any letter that lives. Pages of ordinary letters come
free as their neighbours are erased; beside a living letter some hundreds of empty rows stay.

`secure_delete` must be on for every connection that writes letters, not only here: without it a row that moves when
a table's first page is divided leaves a copy too. It would clear what emptying frees by itself; overwriting first
does not rely on that.

Erased replies keep their places, empty: they are few, and small.

Readers take a letter whose content has no length as erased.
"""

import sqlite3
from collections.abc import Iterable, Iterator

import msgspec

LETTERS_PER_STEP = 50
"""A letter takes some 50 us to erase: a step is over in a few milliseconds, and a turn need not wait longer."""

BYTES_PER_STEP = 1_000_000
"""Overwriting goes through the write-ahead file; a step ends after so many bytes, but a letter is never divided."""

PAGE_BYTES = 4_096
EMPTY_ROW_BYTES = 10
"""What an empty row takes at the very least: its place in the page's list 2, its length 1, its key 1, and 6 for the
header of its record. Numbers of usual size add up to 7 (measured: 383 rows on a page at most, in a small log)."""

MARGIN = 2 * (PAGE_BYTES // EMPTY_ROW_BYTES)
"""No fewer than the rows on the two pages to either side that SQLite may merge a page with."""

_ZEROS = bytes(65_536)

_WORK = "select message, up_to from erasures limit ?"
"""The next work items."""

_LETTERS = "select letter from letters where message = ? and letter <= ? and length(content) > 0 order by letter"
"""The letters of a message that are still to be erased."""

_KEPT = (
    "select letter from letters l where letter in (select value from json_each(?)) and length(content) > 0"
    " and not exists (select 1 from erasures e where e.message = l.message and e.up_to >= l.letter)"
)
"""Of these letters, those that are there and are not to be erased."""

_EMPTY = "update letters set envelope = x'', content = x'', salt = x'' where letter = ?"
"""What is left of an erased letter."""

_EMPTY_REPLIES = (
    "update replies set text = x'' where message = ?1 and text <> x'' and ended <"
    " coalesce((select min(letter) from letters where message = ?1 and letter > ?2), 9223372036854775807)"
)
"""The relay's words about the erased revisions: every one up to the message's next revision, if it has one.

A message is not revised while an attempt is under way, so an attempt that ended after a revision was about it.
"""

_DONE = "delete from erasures where message = ? and up_to = ?"

_BEFORE = "select letter, length(content) from letters where letter < ? order by letter desc limit ?"
_FROM = "select letter, length(content) from letters where letter >= ? order by letter limit ?"
"""The rows around a letter, walked until the first that lives."""

_DELETE = "delete from letters where letter between ? and ?"

WALKED_MAX = 4 * MARGIN + LETTERS_PER_STEP
"""Rows looked at in one direction: what lies further inside was deleted by an earlier step."""


def kept(connection: sqlite3.Connection, letters: Iterable[int]) -> frozenset[int]:
    """Of these letters, those that can still be sent."""
    wanted = msgspec.json.encode(list(letters)).decode()
    return frozenset(letter for (letter,) in connection.execute(_KEPT, (wanted,)))


def erase_pending(connection: sqlite3.Connection) -> int:
    """Do all the erasing there is, a step at a time; how many work items were done.

    `connection` is in autocommit and may write. Where the answer is not 0, a truncating checkpoint is due.
    """
    done = 0
    while step := erase_step(connection):
        done += step
    return done


def erase_step(connection: sqlite3.Connection) -> int:
    """Erase a few letters in one short transaction; how many work items were looked at, 0 when there are none."""
    connection.execute("pragma secure_delete = on").close()
    connection.execute("begin immediate")
    try:
        items = connection.execute(_WORK, (LETTERS_PER_STEP,)).fetchall()
        erased = _erase(connection, items)
        _delete_where_all_is_empty(connection, erased)
        connection.execute("commit")
    finally:
        if connection.in_transaction:
            connection.execute("rollback")
    return len(items)


def _erase(connection: sqlite3.Connection, items: Iterable[tuple[int, int]]) -> list[int]:
    """Erase what the items name until the step is full; an item is done when nothing of it is left."""
    erased: list[int] = []
    size = 0
    for message, up_to in items:
        for (letter,) in connection.execute(_LETTERS, (message, up_to)).fetchall():
            if len(erased) >= LETTERS_PER_STEP or size > BYTES_PER_STEP:
                return erased
            size += _overwrite(connection, letter)
            erased.append(letter)
        connection.execute(_EMPTY_REPLIES, (message, up_to))
        connection.execute(_DONE, (message, up_to))
    return erased


def _overwrite(connection: sqlite3.Connection, letter: int) -> int:
    """Overwrite a letter's blobs in place, then empty its row; how many bytes that were."""
    size = 0
    for column in ("envelope", "content", "salt"):
        with connection.blobopen("letters", column, letter) as blob:
            size += (length := len(blob))
            for start in range(0, length, len(_ZEROS)):
                blob.write(_ZEROS[: length - start])
    connection.execute(_EMPTY, (letter,))
    return size


def _delete_where_all_is_empty(connection: sqlite3.Connection, erased: Iterable[int]) -> None:
    """Delete the inner part of each run of empty rows that the erased letters have made or lengthened."""
    last = 0
    for letter in sorted(erased):
        if letter <= last:
            continue
        before, at_start = _run(connection.execute(_BEFORE, (letter, WALKED_MAX)))
        after, _ = _run(connection.execute(_FROM, (letter, WALKED_MAX)))
        run = [*reversed(before), *after]
        last = run[-1]
        # Before the table's first row there is no page to be merged with; after its last one new letters come.
        if inner := run[0 if at_start else MARGIN : -MARGIN]:
            connection.execute(_DELETE, (inner[0], inner[-1]))


def _run(rows: Iterator[tuple[int, int]]) -> tuple[list[int], bool]:
    """The empty rows at the beginning of `rows`, and whether those were all the rows there are."""
    run: list[int] = []
    for letter, length in rows:
        if length:
            return run, False
        run.append(letter)
    return run, len(run) < WALKED_MAX
