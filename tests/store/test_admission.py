"""Every rule of admission: given what the log holds, when a fact is asked for, then it is taken or refused, and why."""

from collections.abc import Callable

import pytest

from events.account import AccountPaused, AccountRemoved, AccountResumed, AccountSendsImported, AccountThrottled
from events.attempt import AttemptInterrupted
from events.fact import OWN, Draft, Entry
from events.lifecycle import Refusal
from events.message import (
    ContentErased,
    DoubtResolved,
    MessageExpedited,
    MessageFailed,
    MessageImported,
    MessageRejected,
    MessageRequeued,
    MessageWithdrawn,
    RetentionPassed,
)
from events.report import BatchFetched, ReportRefused, ReportSettled, ResultsReported, TokensForgotten
from events.rules import RULES_MAX
from events.schedule import DispatchActivated, DispatchSuspended, RuleRemoved
from events.volume import VolumeRemoved, VolumeSaved
from store.admission import _RULES
from store.writer import Declined

from .building import T0_US, accepted, account_saved, letter, rule_saved
from .telling import Story, end, revise, start, story

Telling = Callable[[Story], Draft]
CASES: list[tuple[str, Telling, str | None]] = []


def case(reason: str | None) -> Callable[[Telling], Telling]:
    """A story that ends with a draft; `reason` is why it is refused, None where it is taken."""

    def keep(telling: Telling) -> Telling:
        CASES.append((telling.__name__, telling, reason))
        return telling

    return keep


def about(fact, account: int | None = 1, message: int | None = None) -> Draft:
    return Draft(fact, message=message, account=account)


REJECTED = Draft(MessageRejected(id="a", reason="missing to"), message=OWN)


@case(None)
def a_new_id(s):
    return accepted("a")


@case("known id")
def an_id_that_waits(s):
    s.given(accepted("a"))
    return accepted("a")


@case("known id")
def an_id_that_was_rejected(s):
    s.given(REJECTED)
    return accepted("a")


@case("known id")
def an_id_with_a_nul_that_the_log_knows(s):
    s.given(accepted("a\0b"))
    return accepted("a\0b")


@case(None)
def an_id_that_is_another_up_to_a_nul(s):
    s.given(accepted("a"))
    return accepted("a\0b")


@case("no such account")
def a_message_without_an_account(s):
    return accepted("a", account=7)


@case("no such account")
def a_message_of_a_removed_account(s):
    s.given(about(AccountRemoved()))
    return accepted("a")


@case(None)
def a_message_of_a_paused_account(s):
    s.given(about(AccountPaused()))
    return accepted("a")


@case("known id")
def a_rejection_of_an_id_that_is_known(s):
    s.given(accepted("a"))
    return REJECTED


@case(None)
def a_rejection_of_an_unknown_id_without_an_account(s):
    return REJECTED


IMPORTED = Draft(MessageImported(id="a", ended="failed", ended_us=5, created_us=3), message=OWN)


@case(None)
def an_imported_id(s):
    return IMPORTED


@case("known id")
def an_id_that_is_imported_and_known(s):
    s.given(accepted("a"))
    return IMPORTED


@case("known id")
def an_id_that_was_imported(s):
    s.given(IMPORTED)
    return accepted("a")


@case(None)
def new_content_for_what_had_failed_elsewhere(s):
    return revise(s.given(IMPORTED), "a", ["x"], [0])


@case("already sent")
def new_content_for_what_was_sent_elsewhere(s):
    sent = Draft(MessageImported(id="a", ended="sent", ended_us=5, created_us=3), message=OWN)
    return revise(s.given(sent), "a", ["x"], [0])


@case("no such account")
def sends_of_an_account_that_is_gone(s):
    s.given(about(AccountRemoved()))
    return about(AccountSendsImported(seconds=((1, 2),)))


@case(None)
def new_content_while_it_waits(s):
    return revise(s.given(accepted("a")), "a", ["x"], [0])


@case("unknown message")
def new_content_for_a_number_that_is_not_there(s):
    return revise(99, "a", ["x"], [0])


@case("no such account")
def new_content_under_a_removed_account(s):
    number = s.given(accepted("a"))
    s.given(about(AccountRemoved()))
    return revise(number, "a", ["x"], [0])


@case("in flight")
def new_content_in_flight(s):
    s.given(start(number := s.given(accepted("a"))))
    return revise(number, "a", ["x"], [0])


def partly(s: Story, *statuses: str, then: str = "due") -> int:
    number = s.given(accepted("a", recipients=len(statuses)))
    s.given(end(number, s.given(start(number, recipients=range(len(statuses)))), then, *statuses))
    return number


@case("reached meanwhile")
def new_content_for_somebody_who_has_it_by_now(s):
    return revise(partly(s, "delivered", "deferred"), "a", ["a:0", "a:1"], [0, 1])


@case("reached meanwhile")
def new_content_for_somebody_who_may_have_it(s):
    return revise(partly(s, "in_doubt", "deferred"), "a", ["a:1", "a:0"], [0, 1])


@case("reached meanwhile")
def new_content_for_somebody_who_had_it_two_contents_ago(s):
    number = partly(s, "delivered", "deferred")
    s.given(revise(number, "a", ["a:1"], [0]))
    return revise(number, "a", ["a:0"], [0])


@case(None)
def new_content_that_passes_by_who_has_it(s):
    return revise(partly(s, "delivered", "deferred"), "a", ["a:0", "a:1"], [1])


@case(None)
def new_content_for_a_doubt_that_a_person_called_an_error(s):
    number = partly(s, "in_doubt", then="held")
    s.given(about(DoubtResolved(resolution="error"), message=number))
    return revise(number, "a", ["a:0"], [0])


@case("already sent")
def new_content_for_a_doubt_that_a_person_called_sent(s):
    number = partly(s, "in_doubt", then="held")
    s.given(about(DoubtResolved(resolution="sent"), message=number))
    return revise(number, "a", ["a:0"], [0])


@case(None)
def an_attempt_at_what_waits(s):
    return start(s.given(accepted("a")))


@case("not waiting")
def an_attempt_at_nothing(s):
    return start(99)


@case("not waiting")
def a_second_attempt(s):
    s.given(start(number := s.given(accepted("a"))))
    return start(number)


@case("other revision")
def an_attempt_at_content_that_was_replaced(s):
    number = s.given(accepted("a"))
    s.given(revise(number, "a", ["x"], [0]))
    return start(number)


@case("other revision")
def an_attempt_under_another_account(s):
    other = s.given(account_saved("other"))
    return start(s.given(accepted("a")), account=other)


@case("reached meanwhile")
def an_attempt_for_somebody_who_has_it(s):
    return start(partly(s, "delivered", "deferred"), recipients=(0, 1))


@case("reached meanwhile")
def an_attempt_for_somebody_whom_new_content_passes_by(s):
    number = partly(s, "in_doubt", "deferred")
    revision = s.given(revise(number, "a", ["a:0", "b"], [1]))
    return start(number, revision, recipients=(0, 1))


@case("reached meanwhile")
def an_attempt_for_a_recipient_that_is_not_there(s):
    return start(partly(s, "deferred"), recipients=(0, 1))


@case(None)
def another_attempt_for_who_is_in_doubt(s):
    return start(partly(s, "delivered", "in_doubt"), recipients=(1,))


@case("account paused")
def an_attempt_of_a_paused_account(s):
    number = s.given(accepted("a"))
    s.given(about(AccountPaused()))
    return start(number)


@case("no such account")
def an_attempt_of_a_removed_account(s):
    number = s.given(accepted("a"))
    s.given(about(AccountRemoved()))
    return start(number)


@case(None)
def a_new_rule(s):
    return rule_saved()


@case("too many rules")
def one_rule_too_many(s):
    for _ in range(RULES_MAX):
        s.given(rule_saved())
    return rule_saved()


@case(None)
def a_rule_that_changes(s):
    return rule_saved(rule=s.given(rule_saved()))


@case("no such rule")
def a_rule_that_changes_after_it_was_removed(s):
    number = s.given(rule_saved())
    s.given(Draft(RuleRemoved(rule=number)))
    return rule_saved(rule=number)


@case("no such rule")
def a_rule_that_is_removed_twice(s):
    number = s.given(rule_saved())
    s.given(Draft(RuleRemoved(rule=number)))
    return Draft(RuleRemoved(rule=number))


@case(None)
def a_rule_in_the_place_of_one_too_many(s):
    numbers = [s.given(rule_saved()) for _ in range(RULES_MAX)]
    s.given(Draft(RuleRemoved(rule=numbers[0])))
    return rule_saved()


@case("suspended")
def an_attempt_while_dispatch_is_suspended(s):
    number = s.given(accepted("a"))
    s.given(about(DispatchSuspended(), account=None))
    return start(number)


@case(None)
def an_attempt_after_dispatch_was_activated(s):
    number = s.given(accepted("a"))
    s.given(about(DispatchSuspended(), account=None))
    s.given(about(DispatchActivated(), account=None))
    return start(number)


@case(None)
def an_end_of_what_has_started(s):
    number = s.given(accepted("a"))
    return end(number, s.given(start(number)), "done", "delivered")


@case("no such attempt")
def a_second_end(s):
    number = s.given(accepted("a"))
    s.given(end(number, attempt := s.given(start(number)), "due", "deferred"))
    return end(number, attempt, "due", "deferred")


@case("no such attempt")
def an_end_of_another_messages_attempt(s):
    attempt = s.given(start(s.given(accepted("a"))))
    return end(s.given(accepted("b")), attempt, "done", "delivered")


@case("no such attempt")
def an_interruption_of_what_has_ended(s):
    number = s.given(accepted("a"))
    s.given(end(number, attempt := s.given(start(number)), "done", "delivered"))
    return about(AttemptInterrupted(attempt=attempt, outcomes=(), next="due"), message=number)


@case(None)
def an_interruption_while_all_is_paused_and_suspended(s):
    number = s.given(accepted("a"))
    attempt = s.given(start(number))
    s.given(about(AccountRemoved()))
    s.given(about(DispatchSuspended(), account=None))
    return about(AttemptInterrupted(attempt=attempt, outcomes=(), next="due"), message=number)


@case("already ended")
def taking_back_what_was_sent(s):
    return about(MessageWithdrawn(), message=partly(s, "delivered", then="done"))


@case("not held")
def resolving_what_waits(s):
    return about(DoubtResolved(resolution="sent"), message=s.given(accepted("a")))


def held(s: Story) -> int:
    return partly(s, "in_doubt", then="held")


def failed(s: Story, *statuses: str) -> int:
    """A message with its content, which failed after an attempt with these outcomes."""
    number = s.given(accepted("a", recipients=len(statuses)), letter("x"))
    attempt = s.given(start(number, recipients=range(len(statuses))))
    return s.given(end(number, attempt, "failed", *statuses)) and number


AGAIN = MessageRequeued(due_us=T0_US, expires_us=2 * T0_US)


@case(None)
def trying_again_what_failed_for_somebody(s):
    return about(AGAIN, message=failed(s, "delivered", "refused", "in_doubt"))


@case("reached meanwhile")
def trying_again_what_nobody_is_left_for(s):
    return about(AGAIN, message=failed(s, "delivered", "in_doubt"))


@case("not failed")
def trying_again_what_was_sent(s):
    return about(AGAIN, message=partly(s, "delivered", then="done"))


@case("not failed")
def trying_again_what_waits_again_already(s):
    number = failed(s, "refused")
    s.given(about(AGAIN, message=number))
    return about(AGAIN, message=number)


@case("no such account")
def trying_again_without_an_account(s):
    number = failed(s, "refused")
    s.given(about(AccountRemoved()))
    return about(AGAIN, message=number)


@case("other account")
def trying_again_under_another_account(s):
    number = failed(s, "refused")
    return about(AGAIN, message=number, account=s.given(account_saved("other")))


@case("content erased")
def trying_again_what_has_no_content_any_more(s):
    number = failed(s, "refused")
    s.given(about(ContentErased(letters=((number, number),)), account=None))
    return about(AGAIN, message=number)


@case("content needed")
def erasing_what_is_to_be_tried_again(s):
    number = failed(s, "refused")
    s.given(about(AGAIN, message=number))
    return about(ContentErased(letters=((number, number),)), account=None)


@case(None)
def erasing_what_newer_content_took_the_place_of(s):
    number = failed(s, "refused")
    s.given(revise(number, "a", ["a:0"], [0]))
    return about(ContentErased(letters=((number, number),)), account=None)


def put_off(s: Story, cause: str) -> int:
    number = s.given(accepted("a"))
    return s.given(end(number, s.given(start(number)), "due", "deferred", due_us=2 * T0_US, due_cause=cause)) and number


SOONER = MessageExpedited(due_us=T0_US)


@case(None)
def having_no_patience_with_a_retry(s):
    return about(SOONER, message=put_off(s, "retry"))


@case(None)
def having_no_patience_with_a_relay(s):
    return about(SOONER, message=put_off(s, "relay"))


@case("not put off")
def having_no_patience_twice(s):
    number = put_off(s, "retry")
    s.given(about(SOONER, message=number))
    return about(SOONER, message=number)


@case("not put off")
def sending_at_once_what_its_sender_asked_to_be_sent_later(s):
    return about(SOONER, message=s.given(accepted("a", due_us=2 * T0_US)))


@case("not put off")
def putting_it_off_in_place_of_sending_it_sooner(s):
    return about(MessageExpedited(due_us=3 * T0_US), message=put_off(s, "retry"))


@case("not waiting")
def having_no_patience_with_what_is_held(s):
    return about(SOONER, message=held(s))


@case(None)
def giving_up_what_waited_too_long(s):
    number = s.given(accepted("a"))
    s.writer._now_us = lambda: 2 * T0_US
    return about(MessageFailed(cause="expired"), message=number)


@case("not expired")
def giving_up_what_still_has_time(s):
    number = s.given(accepted("a"))
    s.writer._now_us = lambda: 2 * T0_US - 1
    return about(MessageFailed(cause="expired"), message=number)


@case("not expired")
def giving_up_what_got_new_content_and_time_meanwhile(s):
    number = s.given(accepted("a"))
    s.given(revise(number, "a", ["x"], [0]))
    s.writer._now_us = lambda: 2 * T0_US
    return about(MessageFailed(cause="expired"), message=number)


@case("not waiting")
def giving_up_what_is_held(s):
    number = held(s)
    s.writer._now_us = lambda: 2 * T0_US
    return about(MessageFailed(cause="expired"), message=number)


@case("other account")
def giving_up_what_is_another_accounts_by_now(s):
    number, other = s.given(accepted("a")), s.given(account_saved("other"))
    s.given(revise(number, "a", ["x"], [0], account=other))
    s.given(about(AccountRemoved()))
    return about(MessageFailed(cause="account_removed"), message=number)


@case("other account")
def a_failure_that_names_no_account(s):
    return about(MessageFailed(cause="internal"), account=None, message=s.given(accepted("a")))


@case(None)
def a_failure_of_our_own(s):
    return about(MessageFailed(cause="internal"), message=held(s))


@case("in flight")
def giving_up_what_flies(s):
    s.given(start(number := s.given(accepted("a"))))
    s.given(about(AccountRemoved()))
    return about(MessageFailed(cause="account_removed"), message=number)


@case(None)
def ending_what_is_held_under_a_removed_account(s):
    number = held(s)
    s.given(about(AccountRemoved()))
    return about(MessageFailed(cause="account_removed"), message=number)


@case("account not removed")
def ending_the_mail_of_an_account_that_lives(s):
    return about(MessageFailed(cause="account_removed"), message=s.given(accepted("a")))


@case(None)
def refusing_what_is_over_the_limit(s):
    number = s.given(accepted("a"))
    return about(MessageFailed(cause="quota", revision=number), message=number)


@case("other revision")
def refusing_content_that_was_replaced(s):
    number = s.given(accepted("a"))
    s.given(revise(number, "a", ["x"], [0]))
    return about(MessageFailed(cause="quota", revision=number), message=number)


@case("not waiting")
def refusing_what_was_held_meanwhile(s):
    number = held(s)
    return about(MessageFailed(cause="quota", revision=number), message=number)


@case("unknown message")
def taking_back_nothing_at_all(s):
    return about(MessageWithdrawn())


@case(None)
def a_new_account(s):
    return account_saved("other")


@case("account exists")
def a_new_account_under_an_id_that_lives(s):
    return account_saved("default")


@case(None)
def a_new_account_under_the_id_of_a_removed_one(s):
    s.given(about(AccountRemoved()))
    return account_saved("default")


@case(None)
def a_change_of_an_account(s):
    return about(account_saved().fact)


@case("no such account")
def a_change_of_a_removed_account(s):
    s.given(about(AccountRemoved()))
    return about(account_saved().fact)


@case("no such account")
def a_second_removal(s):
    s.given(about(AccountRemoved()))
    return about(AccountRemoved())


@case("already so")
def pausing_what_is_paused(s):
    s.given(about(AccountPaused()))
    return about(AccountPaused())


@case("already so")
def resuming_what_is_not_paused(s):
    return about(AccountResumed())


@case("no such account")
def pausing_what_is_not_there(s):
    return about(AccountPaused(), account=9)


@case("no such account")
def throttling_what_is_not_there(s):
    return about(AccountThrottled(until_us=T0_US, window_s=60, limit=2), account=None)


def limited(s: Story, **limits: int | None) -> None:
    s.given(about(account_saved(**limits).fact))


@case(None)
def throttling_by_the_minutes_limit(s):
    limited(s, limit_per_minute=2)
    return about(AccountThrottled(until_us=T0_US, window_s=60, limit=2))


@case(None)
def throttling_by_the_hours_limit(s):
    limited(s, limit_per_minute=2, limit_per_hour=3)
    return about(AccountThrottled(until_us=T0_US, window_s=3600, limit=3))


@case(None)
def throttling_by_the_days_limit(s):
    limited(s, limit_per_day=4)
    return about(AccountThrottled(until_us=T0_US, window_s=86_400, limit=4))


@case("other limit")
def throttling_by_a_limit_that_was_lifted(s):
    limited(s, limit_per_minute=2)
    limited(s, limit_per_hour=2)
    return about(AccountThrottled(until_us=T0_US, window_s=60, limit=2))


@case("other limit")
def throttling_by_a_limit_that_was_changed(s):
    limited(s, limit_per_day=3)
    return about(AccountThrottled(until_us=T0_US, window_s=86_400, limit=2))


@case("other limit")
def throttling_by_no_limit(s):
    return about(AccountThrottled(until_us=T0_US, window_s=60))


@case("token seen")
def a_batch_that_was_stored(s):
    s.given(about(BatchFetched(token="t", messages=0)))
    return about(BatchFetched(token="t", messages=0))


@case(None)
def a_second_batch_without_a_token(s):
    s.given(about(BatchFetched(token="", messages=0)))
    return about(BatchFetched(token="", messages=0))


@case("already so")
def a_report_that_moves_no_cursor(s):
    s.given(about(ResultsReported(up_to=1)))
    return about(ResultsReported(up_to=1))


@case("beyond the log")
def a_report_of_results_that_are_not_there_yet(s):
    return about(ResultsReported(up_to=2))


@case(None)
def a_batch_whose_token_was_forgotten(s):
    s.given(about(BatchFetched(token="t", messages=0)))
    s.given(about(TokensForgotten(tokens=("t",))))
    return about(BatchFetched(token="t", messages=0))


@case("beyond the cursor")
def a_refusal_of_what_was_not_told(s):
    return about(ReportRefused(result=1, again_us=0))


@case(None)
def a_refusal_of_what_was_told(s):
    s.given(about(ResultsReported(up_to=1)))
    return about(ReportRefused(result=1, again_us=0))


@case("already so")
def a_refusal_of_what_is_settled(s):
    for draft in REFUSED_AND_SETTLED:
        s.given(draft)
    return about(ReportRefused(result=1, again_us=0))


@case("already so")
def settling_what_was_not_refused(s):
    return about(ReportSettled(result=1))


@case("already so")
def settling_twice(s):
    for draft in REFUSED_AND_SETTLED:
        s.given(draft)
    return about(ReportSettled(result=1))


@case("unreported")
def retention_of_what_was_refused(s):
    for draft in REFUSED_AND_SETTLED[:2]:
        s.given(draft)
    return about(RetentionPassed(before=2))


@case(None)
def retention_of_what_was_refused_and_is_settled(s):
    for draft in REFUSED_AND_SETTLED:
        s.given(draft)
    return about(RetentionPassed(before=2))


REFUSED_AND_SETTLED = (
    Draft(ResultsReported(up_to=1)),
    Draft(ReportRefused(result=1, again_us=0)),
    Draft(ReportSettled(result=1)),
)


@case("unreported")
def retention_of_what_is_unreported(s):
    return about(RetentionPassed(before=2))


@case(None)
def retention_of_what_was_reported(s):
    s.given(about(ResultsReported(up_to=1)))
    return about(RetentionPassed(before=2))


VOLUME = VolumeSaved(name="files", backend="local", config="d")


@case("no such volume")
def removing_a_volume_that_is_not_there(s):
    return about(VolumeRemoved(name="files"), account=None)


@case(None)
def removing_a_volume(s):
    s.given(about(VOLUME, account=None))
    return about(VolumeRemoved(name="files"), account=None)


@case("no such volume")
def removing_a_volume_twice(s):
    s.given(about(VOLUME, account=None))
    s.given(about(VolumeRemoved(name="files"), account=None))
    return about(VolumeRemoved(name="files"), account=None)


@pytest.mark.parametrize(("name", "telling", "reason"), CASES, ids=[name for name, _, _ in CASES])
def test_then(name, telling, reason):
    with story() as s:
        draft = telling(s)
        last = s.writer.last_seq
        answer = s.when(draft)
        if reason is None:
            assert isinstance(answer, Entry) and answer.seq == last + 1
        else:
            assert isinstance(answer, Declined) and (answer.reason, answer.seq) == (reason, last)
            assert s.writer.last_seq == last


def test_every_rule_has_a_story_in_which_it_refuses():
    refused = set()
    for _, telling, reason in CASES:
        with story() as s:
            refused |= {type(telling(s).fact)} if reason else set()
    assert refused >= set(_RULES)


def test_a_refusal_shows_the_row_that_it_was_judged_by():
    with story() as s:
        number = s.given(accepted("a"))
        again = s.when(accepted("a"))
        assert isinstance(again, Declined) and isinstance(again.reason, Refusal)
        assert again.row == s.row(number)


def test_facts_of_one_turn_are_judged_by_the_facts_before_them():
    with story() as s:
        answers = s.together(accepted("a"), accepted("a"), start(2), start(2), about(AccountPaused()), start(2)).answers
        assert [answer.reason if isinstance(answer, Declined) else answer.kind for answer in answers] == [
            "MessageAccepted",
            "known id",
            "AttemptStarted",
            "not waiting",
            "AccountPaused",
            "not waiting",
        ]


def test_content_is_erased_or_sent_again_and_never_both_within_one_turn():
    for first_erased in (True, False):
        with story() as s:
            number = failed(s, "refused")
            drafts = [about(ContentErased(letters=((number, number),)), account=None), about(AGAIN, message=number)]
            answers = s.together(*(drafts if first_erased else reversed(drafts))).answers
            assert isinstance(answers[0], Entry) and isinstance(answers[1], Declined)
            assert answers[1].reason == ("content erased" if first_erased else "content needed")
