"""The named reads, over logs that are written by the real writer."""

from contextlib import contextmanager

import msgspec
import pytest

from events.account import AccountPaused, AccountThrottled
from events.fact import OWN, Draft
from events.message import MessageHeld, MessageRejected, RetentionPassed
from events.report import ResultsReported
from store import reading
from store.beside import LetterRow, Replies, Sealed

from .building import T0_US, accepted, account_saved, database, ended, letter, record, started, writer

LATER_US = T0_US + 3_600_000_000
NOW_US = T0_US + 1_000_000


@contextmanager
def book(*accounts: str):
    """A database, a function that records one draft and gives its seq, and its writer."""
    with database() as connection:
        write = writer(connection)

        def say(draft: Draft, beside=None) -> int:
            return record(write, [draft], {0: beside} if beside else {}).answers[0].seq

        for name in accounts or ("default",):
            say(account_saved(name, limit_per_minute=9))
        yield connection, say


def ids(page) -> list[str]:
    return [row.id for row in page.rows]


def test_pending_is_what_is_due_and_deferred_is_what_is_not():
    with book() as (db, say):
        for index in range(4):
            say(accepted(f"m{index}", due_us=LATER_US if index % 2 else 0))
        assert ids(reading.pending(db, NOW_US, 0, 10)) == ["m0", "m2"]
        assert ids(reading.deferred(db, NOW_US, 0, 10)) == ["m1", "m3"]
        assert ids(reading.pending(db, LATER_US, 0, 10)) == ["m0", "m1", "m2", "m3"]


def test_mail_behind_a_throttled_account_is_deferred():
    with book("one", "two") as (db, say):
        number = say(accepted("a", 1))
        say(accepted("b", 2))
        say(Draft(AccountThrottled(until_us=LATER_US, window_s=60, limit=9), message=number, account=1))
        assert ids(reading.pending(db, NOW_US, 0, 10)) == ["b"]
        assert ids(reading.deferred(db, NOW_US, 0, 10)) == ["a"]
        assert ids(reading.pending(db, LATER_US, 0, 10)) == ["a", "b"]


def test_a_list_pages_by_number():
    with book() as (db, say):
        for index in range(5):
            say(accepted(f"m{index}"))
        first = reading.pending(db, NOW_US, 0, 2)
        second = reading.pending(db, NOW_US, first.next, 2)
        third = reading.pending(db, NOW_US, second.next, 2)
        assert ids(first) + ids(second) + ids(third) == [f"m{index}" for index in range(5)]
        assert third.next is None


@pytest.mark.parametrize("listing", ["pending", "messages"])
def test_a_page_looks_at_a_bounded_stretch_and_says_where_to_go_on(monkeypatch, listing):
    monkeypatch.setattr(reading, "STRETCH_ROWS_MAX", 3)
    with book("default", "other") as (db, say):
        for index in range(8):
            say(accepted(f"m{index}", 2 if index == 7 else 1, due_us=0 if index == 7 else LATER_US))
        found, after, pages = [], 0, 0
        while after is not None:
            if listing == "pending":
                page = reading.pending(db, NOW_US, after, 10)
            else:
                page = reading.messages(db, NOW_US, after, 10, account_id="other")
            found += ids(page)
            after = page.next
            pages += 1
        assert found == ["m7"] and pages == 3


def test_messages_of_every_status():
    with book() as (db, say):
        say(accepted("waits"))
        say(accepted("later", due_us=LATER_US))
        flying = say(accepted("flies"))
        say(started(flying))
        sent = say(accepted("sent"))
        say(ended(sent, say(started(sent))))
        failed = say(accepted("failed"))
        say(ended(failed, say(started(failed)), "refused", "failed"))
        say(Draft(MessageHeld(cause="in_doubt"), message=say(accepted("held"))))
        say(Draft(MessageRejected(id="rejected", reason="missing from"), message=OWN))
        by_status = {
            status: ids(reading.messages(db, NOW_US, 0, 10, status=status))
            for status in ("pending", "deferred", "in_flight", "held", "sent", "error", "withdrawn")
        }
        assert by_status == {
            "pending": ["waits"],
            "deferred": ["later"],
            "in_flight": ["flies"],
            "held": ["held"],
            "sent": ["sent"],
            "error": ["failed", "rejected"],
            "withdrawn": [],
        }
        assert ids(reading.messages(db, NOW_US, 0, 10, active_only=True)) == ["waits", "later", "flies", "held"]
        assert ids(reading.messages(db, NOW_US, 0, 2, active_only=True)) == ["waits", "later"]
        assert ids(reading.messages(db, NOW_US, 0, 10, active_only=True, status="sent")) == []
        assert len(reading.messages(db, NOW_US, 0, 10).rows) == 7
        assert reading.messages(db, NOW_US, 0, 10, account_id="nobody").rows == ()


def test_active_messages_page_without_gap_or_repeat():
    with book() as (db, say):
        for index in range(12):
            number = say(accepted(f"m{index}"))
            if index % 3 == 1:
                say(started(number))
            elif index % 3 == 2:
                say(Draft(MessageHeld(cause="in_doubt"), message=number))
        found, after = [], 0
        while after is not None:
            page = reading.messages(db, NOW_US, after, 5, active_only=True)
            found += ids(page)
            after = page.next
        assert found == [f"m{index}" for index in range(12)]


def test_counts_are_disjoint_and_exact_to_the_microsecond():
    with book("one", "two") as (db, say):
        minute_us = 60_000_000
        edge_us = (NOW_US // minute_us) * minute_us
        for index, due_us in enumerate((0, NOW_US, NOW_US + 1, edge_us + minute_us - 1, edge_us + minute_us, LATER_US)):
            say(accepted(f"m{index}", 1, due_us=due_us, priority=index % 4))
        throttled = say(accepted("t", 2))
        say(Draft(AccountThrottled(until_us=LATER_US, window_s=60, limit=9), message=throttled, account=2))
        flying = say(accepted("flies"))
        say(started(flying))
        say(Draft(MessageHeld(cause="in_doubt"), message=say(accepted("held"))))
        counts = reading.counts(db, NOW_US)
        assert (counts.pending, counts.deferred, counts.in_flight, counts.held) == (2, 5, 1, 1)
        assert counts.open == 9 == reading.open_messages(db)
        assert counts.pending == len(reading.pending(db, NOW_US, 0, 100).rows)
        assert counts.deferred == len(reading.deferred(db, NOW_US, 0, 100).rows)
        assert reading.oldest_due_us(db) == 0


def test_nothing_waits_in_an_empty_log():
    with book() as (db, _):
        assert reading.oldest_due_us(db) is None
        assert reading.counts(db, NOW_US).open == 0


def test_a_message_that_retention_took_away_comes_back_from_its_facts():
    with book() as (db, say):
        number = say(accepted("old"))
        end = say(ended(number, say(started(number))))
        before = reading.message_by_id(db, "old")
        say(Draft(ResultsReported(up_to=end)))
        say(Draft(RetentionPassed(before=end + 1)))
        assert reading.messages(db, NOW_US, 0, 10).rows == ()
        assert reading.message_by_id(db, "old") == before
        assert reading.known_messages(db, ["old", "new"]) == {"old": before}
        assert reading.ids_of(db, [number, 999]) == {number: "old"}
        assert [entry.kind for entry in reading.timeline(db, number)] == [
            "MessageAccepted",
            "AttemptStarted",
            "AttemptEnded",
        ]


def test_events_give_a_cursor_even_where_nothing_matches(monkeypatch):
    monkeypatch.setattr(reading, "EVENT_ROWS_MAX", 4)
    with book() as (db, say):
        for index in range(9):
            say(accepted(f"m{index}"))
        end = say(Draft(AccountPaused(), account=1))
        first = reading.events(db, 1, 10, kind="AccountPaused")
        assert first.entries == () and first.next == 5 and first.last == end
        assert [entry.seq for entry in reading.events(db, 5, 10, kind="AccountPaused").entries] == []
        assert [entry.seq for entry in reading.events(db, 9, 10, kind="AccountPaused").entries] == [end]
        assert reading.events(db, end, 10).next == end


def test_events_of_a_message_and_of_an_account():
    with book("one", "two") as (db, say):
        number = say(accepted("a", 1))
        say(accepted("b", 2))
        attempt = say(started(number))
        assert [entry.seq for entry in reading.events(db, 0, 10, message_id="a").entries] == [number, attempt]
        assert reading.events(db, 0, 1, message_id="a").next == number
        assert reading.events(db, 0, 10, message_id="unknown").entries == ()
        assert {entry.account for entry in reading.events(db, 0, 10, account_id="two").entries} == {2}
        assert reading.events(db, 0, 10, account_id="nobody").entries == ()


def test_an_unfiltered_page_of_events_is_as_long_as_asked_for():
    with book() as (db, say):
        for index in range(9):
            say(accepted(f"m{index}"))
        page = reading.events(db, 2, 3)
        assert [entry.seq for entry in page.entries] == [3, 4, 5] and page.next == 5


def test_contents_end_a_page_where_it_is_full(monkeypatch):
    monkeypatch.setattr(reading, "CONTENT_BYTES_MAX", 3000)
    with book() as (db, say):
        for index in range(5):
            say(accepted(f"m{index}"), letter("x"))
        page, contents = reading.with_contents(db, reading.messages(db, NOW_US, 0, 10))
        assert ids(page) == ["m0", "m1"] and page.next == page.rows[-1].number and len(contents) == 2
        rest = reading.messages(db, NOW_US, page.next, 10)
        assert ids(rest) == ["m2", "m3", "m4"]


def test_what_stands_beside_is_read_as_far_as_it_is_there():
    with book() as (db, say):
        number = say(accepted("a"), LetterRow(b'{"sender":"a@b","recipients":[],"subject":""}', b"{}", b"salt"))
        end = say(ended(number, say(started(number)), "refused", "failed"), Replies(((0, "550 no"),)))
        rows = reading.results(db, 0, 10)
        beside = reading.beside(db, rows)
        assert beside.replies == {(end, 0): "550 no"} and list(beside.envelopes) == [number]
        assert reading.envelope_at(db, number, end) == beside.envelopes[number]
        assert reading.envelope_at(db, number, number - 1) is None
        assert reading.replies(db, []) == {}


def test_when_a_result_was_reported():
    with book() as (db, say):
        ends = []
        for name in ("a", "b", "c"):
            number = say(accepted(name))
            ends.append(say(ended(number, say(started(number)))))
        say(Draft(ResultsReported(up_to=ends[1])))
        assert reading.reported_us(db, ends[0]) == reading.reported_us(db, ends[1])
        assert reading.reported_us(db, ends[2]) is None


def test_accounts_and_their_sealed_credentials():
    with book("one", "two") as (db, say):
        say(Draft(msgspec.structs.replace(account_saved("one").fact, port=26), account=1), Sealed(b"sealed"))
        assert [row.id for row in reading.accounts(db)] == ["one", "two"]
        assert reading.account(db, "one").port == 26 and reading.account(db, "none") is None
        assert reading.sealed_credentials(db, [1, 2]) == {1: b"sealed"}
        assert reading.account_names(db)[1] == {1: "one", 2: "two"}
        around = reading.surroundings(db)
        assert around.dispatch.active and around.relay_of(around.accounts[1]) is None
