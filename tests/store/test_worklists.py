"""The acting ones' readings: bounded, in order, and without a scan of what grows with the mail."""

import re
import sqlite3

import pytest

from events.account import AccountRemoved
from events.fact import OWN, Draft
from events.message import (
    MessageFailed,
    MessageHeld,
    MessageRejected,
    MessageRevised,
    MessageWithdrawn,
    RetentionPassed,
)
from events.report import ResultsReported
from store import worklists
from store.beside import Replies
from store.worklists import (
    Expired,
    Finished,
    asked_messages,
    dispatch_row,
    expired,
    finished,
    living_accounts,
    orphaned,
    reportable,
    reported_up_to,
    waiting_numbers,
)

from .building import T0_US, accepted, account_saved, database, ended, letter, record, started, writer

STATEMENTS = {
    name: text
    for name, text in vars(worklists).items()
    if name.isupper() and not name.startswith("_") and isinstance(text, str) and " " in text
}

MAY_SCAN = {
    "LIVING_ACCOUNTS": {"accounts"},
    "DISPATCH_ROW": {"dispatch"},
    "CLOCK_ROW": {"clock"},
    "RULES_ROW": {"rules"},
    "ORPHANED_ACCOUNTS": {"totals", "accounts"},
    "REPORTED_FIRST": {"reported"},
}
"""Tables of some rows an account, and the head of `reported`, which a limit bounds."""

IN_ORDER_OF_AN_INDEX = {"ORPHANED_HELD": "messages_held", "REFUSED_NEXT": "refused_again"}


@pytest.fixture
def written():
    """A log with mail in every state under accounts 1 (living) and 2 (removed): (connection, writer, number by id)."""
    with database() as connection:
        write = writer(connection)
        record(write, [account_saved("one"), account_saved("two")])
        numbers = {}
        for account in (1, 2):
            for state in ("waiting", "held", "flying", "sent", "failed", "withdrawn"):
                name = f"{state} {account}"
                numbers[name] = record(write, [accepted(name, account)], {0: letter("x")}).answers[0].seq
            record(write, [Draft(MessageHeld(cause="x"), message=numbers[f"held {account}"])])
            record(write, [started(numbers[f"flying {account}"], account=account)])
            attempt = record(write, [started(numbers[f"sent {account}"], account=account)]).answers[0].seq
            record(write, [ended(numbers[f"sent {account}"], attempt, account=account)], {0: Replies(((0, "ok"),))})
            record(write, [Draft(MessageFailed(cause="internal"), numbers[f"failed {account}"], account)])
            record(write, [Draft(MessageWithdrawn(), message=numbers[f"withdrawn {account}"])])
        record(write, [Draft(MessageRejected(id="rejected", reason="missing to"), message=OWN)])
        record(write, [Draft(AccountRemoved(), account=2)])
        yield connection, write, numbers


def states(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("select id, state from messages"))


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_a_statement_scans_only_what_is_declared(written, name):
    statement = STATEMENTS[name]
    values = (1,) * max(statement.count("?") if "?1" not in statement else 1, 0)
    steps = [row[3] for row in written[0].execute(f"explain query plan {statement}", values)]
    scanned = {match[1]: step for step in steps if (match := re.match(r"SCAN (\S+)", step))}
    allowed = MAY_SCAN.get(name, set()) | {"json_each"}
    wrong = [step for table, step in scanned.items() if table not in allowed]
    assert not [step for step in wrong if IN_ORDER_OF_AN_INDEX.get(name, "none") not in step], steps


def test_only_the_living_take_mail(written):
    assert living_accounts(written[0]) == {"one": 1}


def test_before_any_fact_dispatch_is_active(written):
    assert dispatch_row(written[0]).active


def test_what_a_client_names_is_found_with_whether_content_is_left(written):
    connection, _, numbers = written
    rows, with_content = asked_messages(connection, ["waiting 1", "sent 1", "rejected", "nobody"])
    assert set(rows) == {"waiting 1", "sent 1", "rejected"}
    assert with_content == {numbers["waiting 1"], numbers["sent 1"]}


def test_waiting_mail_is_paged_by_number(written):
    connection, write, numbers = written
    both = [numbers["waiting 1"], numbers["waiting 2"]]
    assert waiting_numbers(connection, 0, write.last_seq) == both
    assert waiting_numbers(connection, 0, write.last_seq, 1) == both[:1]
    assert waiting_numbers(connection, both[0], write.last_seq) == both[1:]
    assert waiting_numbers(connection, 0, both[0]) == both[:1]


def test_only_waiting_mail_expires(written):
    connection, _, numbers = written
    found = expired(connection, 3 * T0_US)
    assert {each.number for each in found} == {numbers["waiting 1"], numbers["waiting 2"]}
    assert all(isinstance(each, Expired) and each.created_us >= T0_US for each in found)
    assert expired(connection, T0_US) == [] and len(expired(connection, 3 * T0_US, 1)) == 1


def test_a_removed_accounts_mail_is_found_but_for_what_flies(written):
    connection, write, numbers = written
    assert sorted(orphaned(connection)) == [(numbers["waiting 2"], 2), (numbers["held 2"], 2)]
    assert len(orphaned(connection, 1)) == 1
    record(write, [Draft(MessageFailed(cause="account_removed"), *found) for found in orphaned(connection)])
    assert orphaned(connection) == []


def test_what_was_reported_is_let_go_in_the_order_in_which_it_ended(written):
    connection, write, numbers = written
    assert finished(connection, 2 * T0_US) is None and reported_up_to(connection) == 0
    up_to = write.last_seq
    record(write, [Draft(ResultsReported(up_to=up_to))])
    assert reported_up_to(connection) == up_to
    assert finished(connection, T0_US) is None, "not kept for long enough"
    step = finished(connection, 2 * T0_US)
    ended_there = [numbers[f"{state} {account}"] for account in (1, 2) for state in ("sent", "failed", "withdrawn")]
    rejected = connection.execute("select number from messages where id = 'rejected'").fetchone()[0]
    assert step == Finished(tuple((number, number) for number in [*ended_there, rejected]), up_to + 1)
    small = finished(connection, 2 * T0_US, 2)
    assert small.more and [number for number, _ in small.letters] == ended_there[:2]
    assert small.before <= up_to


def test_a_message_that_came_again_and_again_does_not_make_a_step_larger(written):
    """It is one message with a result for each time: results are let go in steps of their own."""
    connection, write, numbers = written
    number = numbers["failed 1"]
    for _ in range(10):
        again = MessageRevised(
            id="failed 1", priority=2, due_us=0, expires_us=2 * T0_US, size=1, recipients=("d",), reach=(0,), letter="d"
        )
        record(write, [Draft(again, message=number, account=1)])
        record(write, [Draft(MessageFailed(cause="internal"), message=number, account=1)])
    record(write, [Draft(ResultsReported(up_to=write.last_seq))])
    steps = []
    while step := finished(connection, 2 * T0_US, 4):
        ((results,),) = connection.execute("select count(*) from results where seq < ?", (step.before,))
        steps.append(results)
        assert results <= 4 and len(step.letters) <= 4
        record(write, [Draft(RetentionPassed(before=step.before))])
        if not step.more:
            break
    assert len(steps) >= 4 and sum(steps) == 15
    assert connection.execute("select count(*) from results").fetchone() == (0,)


def test_what_is_told_upstream_comes_with_ids_accounts_and_the_relays_words(written):
    connection, write, numbers = written
    found = reportable(connection, 1, write.last_seq, [numbers["waiting 1"]], [])
    assert {row.id for row in found.results.values()} == {"sent 1", "failed 1", "sent 2", "failed 2", "rejected"}
    assert found.messages[numbers["waiting 1"]].id == "waiting 1"
    assert found.accounts == {1: "one", 2: "two"}
    assert set(found.replies.values()) == {"ok"}
    assert reportable(connection, 1, 2, [], []).results == {}


def test_a_message_queued_again_keeps_its_older_result(written):
    connection, write, numbers = written
    number = numbers["failed 1"]
    again = MessageRevised(
        id="failed 1", priority=2, due_us=0, expires_us=2 * T0_US, size=1, recipients=("d",), reach=(0,), letter="d"
    )
    record(write, [Draft(again, message=number, account=1)])
    record(write, [Draft(MessageFailed(cause="internal"), message=number, account=1)])
    found = reportable(connection, 1, write.last_seq, [], [])
    assert [row.message for row in found.results.values()].count(number) == 2
    assert states(connection)["failed 1"] == "failed"
