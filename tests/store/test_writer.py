"""A turn: what stands beside facts, stamps, the commit's row, and that a turn that fails was none."""

import sqlite3

import pytest

from events.account import AccountRemoved
from events.fact import Draft, Entry
from events.message import ContentErased, MessageWithdrawn
from store.beside import Replies, Sealed, secret_name
from store.chain import GENESIS, commit_hash
from store.writer import Request, Writer

from .building import T0_US, accepted, account_saved, database, letter
from .telling import end, revise, start, story


def rows(connection: sqlite3.Connection, table: str) -> list[tuple]:
    return connection.execute(f"select * from {table}").fetchall()


def test_what_stands_beside_a_fact_is_in_the_same_commit():
    with story() as s:
        first, second = letter("first"), letter("second")
        number = s.given(accepted("a", recipients=2), first)
        revision = s.given(revise(number, "a", ["x", "y"], [0, 1]), second)
        attempt = s.given(start(number, revision, (0, 1)))
        ended = s.given(
            end(number, attempt, "due", "refused", "deferred"), Replies(((0, "no such user"), (1, "later")))
        )
        other = s.given(account_saved("other"), Sealed(b"sealed"))
        assert rows(s.connection, "letters") == [
            (number, number, first.envelope, first.content, first.salt),
            (revision, number, second.envelope, second.content, second.salt),
        ]
        assert rows(s.connection, "replies") == [(ended, 0, number, b"no such user"), (ended, 1, number, b"later")]
        assert rows(s.connection, "secrets") == [(secret_name(other), b"sealed")]
        s.given(Draft(account_saved("other").fact, account=other), Sealed(b"newer"))
        assert rows(s.connection, "secrets") == [(secret_name(other), b"newer")]


def test_a_removed_account_takes_its_password_along():
    with story() as s:
        one, other = (s.given(account_saved(name), Sealed(name.encode())) for name in ("one", "other"))
        s.given(Draft(AccountRemoved(), account=one))
        assert rows(s.connection, "secrets") == [(secret_name(other), b"other")]


def test_a_removal_in_a_request_that_is_not_whole_leaves_the_password():
    with story() as s:
        one = s.given(account_saved("one"), Sealed(b"sealed"))
        removal = Draft(AccountRemoved(), account=one)
        assert not s.together(removal, removal, whole=True).complete
        s.given(accepted("a"))
        assert rows(s.connection, "secrets") == [(secret_name(one), b"sealed")]


def test_what_stands_beside_a_fact_that_was_refused_is_not_written():
    with story() as s:
        s.given(accepted("a"))
        s.when(accepted("a"), letter("again"))
        s.when(end(2, 99, "done", "delivered"), Replies(((0, "x"),)))
        assert rows(s.connection, "letters") == rows(s.connection, "replies") == []


def test_erasures_are_work_that_only_grows():
    with story() as s:
        for pairs in (((2, 5), (3, 3)), ((2, 4), (3, 9))):
            s.given(Draft(ContentErased(letters=pairs)))
        assert rows(s.connection, "erasures") == [(2, 5), (3, 9)]


def test_a_start_is_given_the_letter_of_its_revision():
    with story() as s:
        number = s.given(accepted("a"), letter("first"))
        revision = s.given(revise(number, "a", ["x"], [0]), letter("second"))
        recorded = s.together(Draft(MessageWithdrawn(), message=99), start(number, revision))
        assert list(recorded.started) == [1]
        assert recorded.started[1].letter == letter("second") and recorded.started[1].row.attempt == revision + 1


def test_a_start_and_what_was_accepted_in_the_same_turn():
    with story() as s:
        recorded = s.together(accepted("a"), start(2))
        assert recorded.complete and recorded.started[1].letter is None


def test_stamps_never_decrease_though_the_clock_is_set_back():
    with database() as connection:
        times = iter([T0_US, T0_US - 10, T0_US + 5, 0])
        to = Writer(connection, lambda: next(times))
        stamps = []
        for name in "abcd":
            (entry,) = to.turn([Request((account_saved(name),), {})]).entries
            stamps.append(entry.at_us)
        assert stamps == [T0_US, T0_US, T0_US + 5, T0_US + 5]
        again = Writer(connection, lambda: 0)
        assert again.turn([Request((account_saved("e"),), {})]).entries[0].at_us == T0_US + 5


def test_a_commit_has_the_hash_of_its_rows_and_the_commit_before():
    with story() as s:
        s.together(accepted("a"), accepted("b"))
        log = rows(s.connection, "log")
        first = commit_hash(GENESIS, log[:1])
        assert rows(s.connection, "commits") == [(1, 1, first), (3, 1, commit_hash(first, log[1:]))]


def test_a_turn_of_which_nothing_fits_writes_nothing():
    with story() as s:
        s.together(accepted("a", account=9))
        result = s.writer.turn([Request((), {}), Request((accepted("b", account=9),), {})])
        assert result.entries == () and result.size == 0 and len(result.recorded) == 2
        assert len(rows(s.connection, "commits")) == len(rows(s.connection, "log")) == 1
        assert s.given(accepted("a")) == 2


def test_a_turn_that_fails_was_none():
    with story() as s:
        s.connection.execute("create trigger broken before insert on letters begin select raise(abort, 'no'); end")
        with pytest.raises(sqlite3.IntegrityError):
            s.given(accepted("a"), letter("x"))
        s.connection.execute("drop trigger broken")
        assert not s.connection.in_transaction and len(rows(s.connection, "log")) == 1
        assert s.given(accepted("a"), letter("x")) == 2
        assert [message for _, message in rows(s.connection, "ids")] == [2]


def test_a_writer_goes_on_where_another_left_off():
    with story() as s:
        number = s.given(accepted("a"))
        other = Writer(s.connection, lambda: 2 * T0_US)
        (answer,) = other.turn([Request((start(number),), {})]).recorded[0].answers
        assert isinstance(answer, Entry) and answer.seq == number + 1
        log = rows(s.connection, "log")
        hashes = [hash for _, _, hash in rows(s.connection, "commits")]
        assert hashes[-1] == commit_hash(hashes[-2], log[-1:])


def test_the_log_is_append_only():
    with story() as s:
        for statement in (
            "update log set data = x''",
            "delete from log",
            "update commits set hash = x''",
            "delete from commits",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                s.connection.execute(statement)
