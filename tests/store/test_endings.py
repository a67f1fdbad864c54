"""How messages ended within a stretch of the log, also where the views have moved on."""

from events.fact import OWN, Draft
from events.message import MessageFailed, MessageRejected, MessageRevised, MessageWithdrawn, RetentionPassed
from events.report import ResultsReported
from store.endings import endings

from .building import T0_US, accepted, account_saved, database, ended, record, started, writer


def revised(name: str, number: int) -> Draft:
    fact = MessageRevised(
        id=name, priority=2, due_us=0, expires_us=2 * T0_US, size=1, recipients=("x",), reach=(0,), letter="d"
    )
    return Draft(fact, message=number, account=1)


def sent(write, number: int) -> int:
    attempt = record(write, [started(number)]).answers[0].seq
    return record(write, [ended(number, attempt)]).answers[0].seq


def test_every_end_is_found_once_with_what_is_known_of_it():
    with database() as connection:
        write = writer(connection)
        record(write, [account_saved("a")])
        first, second, third = (record(write, [accepted(name)]).answers[0].seq for name in ("m1", "m2", "m3"))
        end = sent(write, first)
        failed = record(write, [Draft(MessageFailed(cause="internal"), message=second, account=1)]).answers[0].seq
        withdrawn = record(write, [Draft(MessageWithdrawn(by="api"), message=third, account=1)]).answers[0].seq
        rejected = record(write, [Draft(MessageRejected(id="m4", reason="missing to"), message=OWN)]).answers[0].seq
        found = endings(connection, 1, write.last_seq, {})
        assert [(one.seq, one.id, one.status, one.cause) for one in found] == [
            (end, "m1", "sent", None),
            (failed, "m2", "error", "internal"),
            (withdrawn, "m3", "withdrawn", "withdrawn"),
            (rejected, "m4", "error", "rejected"),
        ]
        assert (found[0].account_id, found[0].host, found[0].port) == ("a", "relay.example", 25)
        assert found[0].created_us < found[0].at_us and found[0].attempts == 1
        assert found[3].account_id is None
        assert endings(connection, end + 1, failed, {}) == [found[1]]


def test_what_the_views_do_not_have_any_more_is_folded_from_the_log():
    with database() as connection:
        write = writer(connection)
        record(write, [account_saved("a")])
        one = record(write, [accepted("m1")]).answers[0].seq
        sent_at = sent(write, one)
        two = record(write, [accepted("m2")]).answers[0].seq
        gone = record(write, [Draft(MessageWithdrawn(by="api"), message=two, account=1)]).answers[0].seq
        before = endings(connection, 1, write.last_seq, {})
        record(write, [revised("m2", two)])
        record(write, [Draft(ResultsReported(up_to=write.last_seq))])
        record(write, [Draft(RetentionPassed(before=sent_at + 1))])
        assert endings(connection, 1, write.last_seq, {}) == []
        assert endings(connection, 1, write.last_seq, {sent_at: one, gone: two}) == before


def test_a_mark_in_flight_is_no_end():
    with database() as connection:
        write = writer(connection)
        record(write, [account_saved("a")])
        number = record(write, [accepted("m")]).answers[0].seq
        attempt = record(write, [started(number)]).answers[0].seq
        mark = record(write, [Draft(MessageWithdrawn(by="api"), message=number, account=1)]).answers[0].seq
        assert endings(connection, 1, write.last_seq, {mark: number}) == []
        end = record(write, [ended(number, attempt, "deferred", "due")]).answers[0].seq
        found = endings(connection, 1, write.last_seq, {mark: number})
        assert [(one.seq, one.status) for one in found] == [(end, "withdrawn")]
