"""The scheduler by itself: facts in, plans out, at exact moments."""

import gc
import sys
from collections.abc import Iterable
from types import FunctionType, ModuleType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from actors.scheduler import REFILL_BELOW, REFILLS_MAX, WINDOW_MAX, Candidate, Plan, Scheduler
from events.account import (
    AccountPaused,
    AccountRemoved,
    AccountResumed,
    AccountSaved,
    AccountThrottled,
    RelayReached,
    RelayUnreachable,
)
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import Entry, Fact
from events.message import (
    DoubtResolved,
    MessageAccepted,
    MessageExpedited,
    MessageFailed,
    MessageRequeued,
    MessageRevised,
    MessageWithdrawn,
)
from events.schedule import DispatchActivated, DispatchSuspended
from events.service import ClockStepped, ServiceStarted
from events.values import Outcome
from store.dispatching import QueueRow, Queues, UnitState
from store.views import ACCOUNTS
from store.views.dispatch import ACTIVE

NOW_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


class Given:
    """A scheduler with accounts 1, 2, .. that have so many senders waiting; the view is a dict kept beside it."""

    def __init__(self, *credit: int, batch_size: int = 1, **account: Any) -> None:
        self.scheduler = Scheduler(batch_size)
        self.scheduler.start(UnitState(0, 0, (), (), ACTIVE, frozenset()))
        self.seq = 0
        self.now_us = NOW_US
        self.credit: dict[int, int] = {}
        for number, count in enumerate(credit, 1):
            self.save(number, **account)
            self.credit[number] = count

    def fold(self, fact: Fact, message: int | None = None, account: int | None = None) -> int:
        self.seq += 1
        self.scheduler.fold(Entry(self.seq, self.now_us, message or self.seq, account, fact))
        return self.seq

    def save(self, number: int, **fields: Any) -> None:
        self.fold(
            AccountSaved(id=f"a{number}", host=f"relay{number}", port=25, credentials="c", **fields), None, number
        )

    def accept(self, account: int = 1, priority: int = 2, due_us: int = NOW_US, recipients: int = 1) -> int:
        return self.fold(accepted(priority, due_us, recipients), None, account)

    def plan(self) -> Plan:
        return self.scheduler.plan(self.now_us, lambda account: self.credit.get(account, 0))

    def stirs(self) -> bool:
        return self.scheduler.stirs(lambda account: self.credit.get(account, 0))

    def offered(self) -> list[int]:
        return [candidate.number for candidate in self.plan().candidates]

    def grant(self, candidate: Candidate) -> None:
        """A sender takes it: it waits no more."""
        self.scheduler.granted(candidate.number)
        self.credit[candidate.account] -= 1

    def start(self, candidate: Candidate) -> int:
        self.grant(candidate)
        fact = AttemptStarted(revision=candidate.revision, recipients=candidate.recipients)
        return self.fold(fact, candidate.number, candidate.account)

    def end(self, candidate: Candidate, next: str = "done", *statuses: str, **fields: Any) -> None:
        outcomes = tuple(Outcome(i, s) for i, s in zip(candidate.recipients, statuses or ["delivered"], strict=False))
        fact = AttemptEnded(attempt=1, outcomes=outcomes, next=next, **fields)
        self.fold(fact, candidate.number, candidate.account)
        self.credit[candidate.account] += 1

    def deliver_all(self) -> list[int]:
        """Offer, start and end until nothing more is offered; the numbers in their order."""
        order: list[int] = []
        while candidates := self.plan().candidates:
            for candidate in candidates:
                self.start(candidate)
                order.append(candidate.number)
            for candidate in candidates:
                self.end(candidate)
        return order

    def refill(self, *queues: Iterable[QueueRow], as_of: int | None = None, moved: int = 0) -> None:
        as_of = self.seq if as_of is None else as_of
        self.scheduler.refilled(Queues(as_of, moved, [list(queue) for queue in queues]))


def accepted(priority: int = 2, due_us: int = NOW_US, recipients: int = 1) -> MessageAccepted:
    return MessageAccepted(
        id="m", priority=priority, due_us=due_us, expires_us=NOW_US * 2, size=1, letter="",
        recipients=("d",) * recipients,
    )  # fmt: skip


def revised(priority: int = 2) -> MessageRevised:
    return MessageRevised(
        id="m",
        priority=priority,
        due_us=NOW_US,
        expires_us=NOW_US * 2,
        size=1,
        letter="",
        recipients=("d",),
        reach=(0,),
    )


# Order


def test_mail_goes_by_priority_then_due_then_number():
    given = Given(1)
    low = given.accept(priority=3)
    later = given.accept(due_us=NOW_US - 1)
    first, second = given.accept(due_us=NOW_US - 2), given.accept(due_us=NOW_US - 2)
    high, immediate = given.accept(priority=1), given.accept(priority=0)
    assert given.deliver_all() == [immediate, high, first, second, later, low]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=60), st.integers(1, 4))
def test_one_account_sends_in_exactly_that_order(messages, credit):
    given = Given(credit)
    keys = {given.accept(1, priority, NOW_US - due): (priority, -due) for priority, due in messages}
    assert given.deliver_all() == sorted(keys, key=lambda number: (*keys[number], number))


def test_what_is_not_due_waits_for_its_moment():
    given = Given(1)
    given.accept(due_us=NOW_US + 7)
    plan = given.plan()
    assert (plan.candidates, plan.demand, plan.wake_us) == ((), {}, NOW_US + 7)
    given.now_us += 7
    assert len(given.plan().candidates) == 1


def test_a_high_priority_that_is_not_due_keeps_nobody():
    given = Given(2)
    given.accept(priority=0, due_us=NOW_US + 7)
    low = given.accept(priority=3)
    assert given.offered() == [low]


def test_accounts_take_turns():
    given = Given(3, 3, 3)
    for account in (1, 2, 3):
        for _ in range(5):
            given.accept(account)
    accounts = [candidate.account for candidate in given.plan().candidates]
    assert [set(accounts[turn : turn + 3]) for turn in (0, 3, 6)] == [{1, 2, 3}] * 3


def test_an_account_has_batch_size_messages_a_turn():
    given = Given(4, 4, batch_size=2)
    given.save(2, batch_size=3)
    for account in (1, 2):
        for _ in range(5):
            given.accept(account)
    accounts = [candidate.account for candidate in given.plan().candidates]
    assert accounts in ([1, 1, 2, 2, 2, 1, 1, 2], [2, 2, 2, 1, 1, 2, 1, 1])


def test_another_account_begins_each_time():
    given = Given(1, 1, 1)
    begins = set()
    for _ in range(3):
        for account in (1, 2, 3):
            given.accept(account)
        plan = given.plan()
        begins.add(plan.candidates[0].account)
        for candidate in plan.candidates:
            given.start(candidate)
            given.end(candidate)
    assert begins == {1, 2, 3}


def test_immediate_mail_of_all_accounts_goes_before_any_other():
    given = Given(2, 2)
    given.accept(1), given.accept(2)
    immediate = {given.accept(1, priority=0), given.accept(2, priority=0)}
    assert set(given.offered()[:2]) == immediate


def test_an_account_is_offered_no_more_than_its_senders_wait_for():
    given = Given(2, 0)
    for account in (1, 1, 1, 2):
        given.accept(account)
    one, _ = given.plan().candidates
    assert given.offered() == []
    given.grant(one)
    assert given.offered() == []
    assert given.scheduler.hungry(1) and given.scheduler.hungry(2)
    given.credit[1] += 1
    assert len(given.offered()) == 1


def test_demand_says_how_many_connections_could_be_used():
    given = Given(1, 1)
    for _ in range(3):
        given.accept(1)
    given.accept(2, priority=0)
    given.accept(2, due_us=NOW_US + 1)
    plan = given.plan()
    assert {number: (wanted.connections, wanted.immediate) for number, wanted in plan.demand.items()} == {
        1: (3, False),
        2: (1, True),
    }
    given.start(plan.candidates[0])
    assert given.plan().demand[plan.candidates[0].account].connections in (1, 3)


# Bounded memory, and refills


def test_a_hundred_thousand_waiting_messages_are_not_kept():
    given = Given(1)
    for _ in range(100_000):
        given.accept()
    scheduler = given.scheduler
    assert len(scheduler._where) == WINDOW_MAX
    immediate = given.accept(priority=0)
    assert given.offered() == [immediate]
    assert len(scheduler._where) == WINDOW_MAX + 1


def test_memory_is_bounded_while_a_backlog_is_sent():
    given = Given(5)
    waiting = {given.accept(): None for _ in range(3_000)}
    order = []
    while len(order) < 3_000:
        plan = given.plan()
        if plan.refills:
            given.scheduler.refilling(plan.refills)
            given.refill([QueueRow(number, NOW_US, number, (0,)) for number in list(waiting)[:WINDOW_MAX]])
        for candidate in plan.candidates:
            given.start(candidate)
            given.end(candidate)
            del waiting[candidate.number]
            order.append(candidate.number)
        assert len(given.scheduler._where) <= WINDOW_MAX
    assert order == sorted(order)
    assert not given.scheduler._out and not given.scheduler._flying and not given.scheduler._journal


def waiting_for_refill(extra: int = 10) -> tuple[Given, list[int]]:
    """Account 1 has more than its window holds, and so little left in it that a refill is due and begun."""
    given = Given(1)
    numbers = [given.accept() for _ in range(WINDOW_MAX + extra)]
    while not (plan := given.plan()).refills:
        (candidate,) = plan.candidates
        numbers.remove(candidate.number)
        given.start(candidate)
        given.end(candidate)
    for candidate in plan.candidates:
        given.scheduler.release(candidate.number, 0)
    assert plan.refills == ((1, 2),)
    given.scheduler.refilling(plan.refills)
    return given, numbers


def as_rows(numbers: Iterable[int]) -> list[QueueRow]:
    return [QueueRow(number, NOW_US, number, (0,)) for number in numbers]


def test_a_window_is_read_again_before_it_is_empty():
    given, numbers = waiting_for_refill()
    assert len(given.scheduler._where) == REFILL_BELOW - 1
    plan = given.plan()
    assert plan.refills == ()
    for candidate in plan.candidates:
        given.scheduler.release(candidate.number, 0)
    given.refill(as_rows(numbers))
    assert given.deliver_all() == numbers


def test_what_was_folded_while_the_read_was_under_way_is_not_lost():
    given, numbers = waiting_for_refill()
    as_of, read = given.seq, as_rows(numbers)
    late = given.accept()
    given.fold(MessageWithdrawn(), numbers[0], 1)
    given.refill(read, as_of=as_of)
    assert not given.scheduler._journal
    assert given.deliver_all() == [*numbers[1:], late]


def test_facts_up_to_the_reads_seq_are_passed_over():
    given, numbers = waiting_for_refill()
    # The view is ahead of the follower: it has one more message, and one fewer.
    read = as_rows([*numbers[1:], given.seq + 1])
    given.refill(read, as_of=given.seq + 2)
    late = given.accept()
    given.fold(MessageWithdrawn(), numbers[0], 1)
    assert given.deliver_all() == [*numbers[1:], late]


def test_a_message_revised_to_another_priority_during_a_read_is_in_its_new_place():
    given, numbers = waiting_for_refill()
    as_of, read = given.seq, as_rows(numbers)
    given.fold(revised(priority=0), numbers[3], 1)
    given.refill(read, as_of=as_of)
    assert given.deliver_all() == [numbers[3], *numbers[:3], *numbers[4:]]


def test_a_message_revised_to_another_account_during_a_read_is_in_its_new_place():
    given, numbers = waiting_for_refill()
    given.save(2)
    given.credit[2] = 1
    as_of, read = given.seq, as_rows(numbers)
    given.fold(revised(), numbers[3], 2)
    given.refill(read, as_of=as_of)
    plan = given.plan()
    assert {candidate.account: candidate.number for candidate in plan.candidates} == {1: numbers[0], 2: numbers[3]}


def test_a_doubt_resolved_during_a_read_asks_for_another():
    given, numbers = waiting_for_refill()
    as_of = given.seq
    given.fold(DoubtResolved(resolution="resend"), 1, 1)
    given.refill(as_rows(numbers), as_of=as_of)
    assert set(given.plan().refills) == {(1, priority) for priority in range(4)}


def test_what_is_queued_again_asks_for_a_read_of_the_view_that_alone_knows_its_place():
    for fact in (MessageRequeued(due_us=NOW_US, expires_us=2 * NOW_US), DoubtResolved(resolution="resend")):
        given = Given(1)
        assert not given.plan().refills
        given.fold(fact, 1, 1)
        assert given.stirs() and set(given.plan().refills) == {(1, priority) for priority in range(4)}


def test_what_is_expedited_leaves_its_later_place_and_goes_after_a_read():
    given = Given(1)
    later = given.accept(due_us=NOW_US + 60 * SECOND_US)
    assert given.offered() == []
    given.fold(MessageExpedited(due_us=NOW_US), later, 1)
    plan = given.plan()
    assert not plan.candidates and set(plan.refills) == {(1, priority) for priority in range(4)}
    given.scheduler.refilling(plan.refills)
    read = {2: [QueueRow(later, NOW_US, later, (0,))]}
    given.refill(*[read.get(priority, []) for _, priority in plan.refills])
    assert given.offered() == [later]


def test_lower_priorities_do_not_overtake_what_waits_beyond_a_window():
    given = Given(WINDOW_MAX + 5)
    for _ in range(WINDOW_MAX + 1):
        given.accept(priority=1)
    given.accept(priority=2)
    assert len(given.offered()) == WINDOW_MAX


def test_a_message_with_more_recipients_comes_back_by_a_read():
    given = Given(1)
    number = given.accept(recipients=250)
    (candidate,) = given.plan().candidates
    assert (len(candidate.recipients), candidate.more) == (100, True)
    given.start(candidate)
    given.end(candidate, "due", due_us=NOW_US, due_cause="more")
    plan = given.plan()
    assert plan.refills == ((1, 2),)
    given.scheduler.refilling(plan.refills)
    given.refill([QueueRow(number, NOW_US, number, tuple(range(100, 200)), True)])
    (candidate,) = given.plan().candidates
    assert candidate.recipients == tuple(range(100, 200))


# Messages that change


def test_a_deferred_message_comes_back_at_its_moment_for_those_still_open():
    given = Given(1)
    given.accept(recipients=3)
    (candidate,) = given.plan().candidates
    given.start(candidate)
    given.end(candidate, "due", "delivered", "deferred", "refused", due_us=NOW_US + 60 * SECOND_US)
    assert given.plan().wake_us == NOW_US + 60 * SECOND_US
    given.now_us += 60 * SECOND_US
    (candidate,) = given.plan().candidates
    assert candidate.recipients == (1,)


def test_a_message_withdrawn_in_flight_does_not_come_back():
    given = Given(1)
    given.accept()
    (candidate,) = given.plan().candidates
    given.start(candidate)
    given.fold(MessageWithdrawn(), candidate.number, 1)
    given.end(candidate, "due", "deferred", due_us=NOW_US)
    assert given.offered() == []


def test_a_message_that_failed_while_it_was_out_does_not_come_back():
    given = Given(1)
    number = given.accept()
    assert given.offered() == [number]
    seq = given.fold(MessageFailed(cause="expired"), number, 1)
    given.scheduler.release(number, seq)
    assert given.offered() == []


def test_new_content_is_offered_with_its_own_revision():
    given = Given(1)
    number = given.accept()
    assert given.offered() == [number]
    seq = given.fold(revised(priority=1), number, 1)
    given.scheduler.release(number, seq)
    (candidate,) = given.plan().candidates
    assert (candidate.revision, candidate.priority) == (seq, 1)


# What keeps an account


def test_after_a_refused_start_nothing_is_offered_before_the_follower_has_passed_it():
    given = Given(2)
    given.accept(), given.accept()
    one, _ = given.plan().candidates
    given.grant(one)
    refused_at = given.seq + 2
    given.scheduler.release(one.number, refused_at)
    given.credit[1] += 1
    given.accept()
    assert given.offered() == []
    # The fact that takes the follower past it stirs nothing by itself, and yet the account is looked at again.
    given.fold(ServiceStarted(version="", recovery=""))
    assert given.stirs()
    assert given.offered() == [one.number]


def test_a_blocked_account_rests_until_its_moment():
    given = Given(2)
    number = given.accept()
    assert given.offered() == [number]
    given.scheduler.release(number, 0)
    given.scheduler.block(1, NOW_US + 5)
    given.accept()
    plan = given.plan()
    assert (plan.candidates, plan.demand, plan.wake_us) == ((), {}, NOW_US + 5)
    given.now_us += 5
    assert given.offered() == [number, number + 1]


def blocked_while_one_flies() -> tuple[Given, Candidate]:
    given = Given(2)
    given.accept(), given.accept()
    one, two = given.plan().candidates
    given.grant(one)
    given.scheduler.release(two.number, 0)
    given.scheduler.block(1, None)
    assert given.offered() == []
    return given, one


def test_the_end_of_an_attempt_unblocks():
    given, one = blocked_while_one_flies()
    given.fold(AttemptStarted(revision=one.revision, recipients=(0,)), one.number, 1)
    assert not given.stirs()
    given.end(one)
    assert given.stirs()
    assert len(given.offered()) == 1


def test_a_grant_that_comes_back_unblocks_for_no_end_will():
    given, one = blocked_while_one_flies()
    given.scheduler.release(one.number, 0)
    given.credit[1] += 1
    assert given.stirs()
    assert len(given.offered()) == 2


def test_new_limits_unblock():
    given, _ = blocked_while_one_flies()
    given.save(1, limit_per_minute=5)
    assert given.stirs()
    assert len(given.offered()) == 1


def test_a_throttled_account_rests_until_its_moment_and_a_moved_clock_forgets_it():
    given = Given(1)
    number = given.accept()
    given.fold(AccountThrottled(until_us=NOW_US + 5, window_s=60), number, 1)
    plan = given.plan()
    assert (plan.candidates, plan.wake_us) == ((), NOW_US + 5)
    given.fold(ClockStepped(by_us=-3600 * SECOND_US))
    assert given.stirs()
    assert given.offered() == [number]


def test_a_large_step_has_everything_read_anew_and_takes_no_reading_from_before():
    given = Given(1)
    given.accept(due_us=NOW_US + 60 * SECOND_US)
    year_us = 365 * 86_400 * SECOND_US
    moved = given.fold(ClockStepped(by_us=year_us, waits_us=year_us))
    given.now_us += year_us
    plan = given.plan()
    assert (plan.candidates, len(plan.refills)) == ((), 4)
    given.scheduler.refilling(plan.refills)
    stale = QueueRow(2, NOW_US + 60 * SECOND_US, 2, (0,))
    given.refill([], [], [stale], [], as_of=moved - 1)
    plan = given.plan()
    assert (plan.candidates, len(plan.refills)) == ((), 4)
    given.scheduler.refilling(plan.refills)
    fresh = replace(stale, due_us=stale.due_us + year_us)
    given.refill([], [], [fresh], [], moved=moved)
    assert given.plan().wake_us == fresh.due_us
    given.now_us = fresh.due_us
    assert given.offered() == [2]


def test_after_a_step_an_attempt_under_way_ends_as_any_other():
    given = Given(1)
    given.accept()
    [candidate] = given.plan().candidates
    given.start(candidate)
    moved = given.fold(ClockStepped(by_us=-3600 * SECOND_US, waits_us=-3600 * SECOND_US))
    given.now_us -= 3600 * SECOND_US
    plan = given.plan()
    given.scheduler.refilling(plan.refills)
    given.refill([], [], [], [], moved=moved)
    given.end(candidate, "due", "deferred", due_us=given.now_us + SECOND_US)
    assert given.plan().wake_us == given.now_us + SECOND_US
    given.now_us += SECOND_US
    assert given.offered() == [candidate.number]


def test_suspended_and_active_again():
    given = Given(1)
    number = given.accept()
    given.fold(DispatchSuspended())
    assert given.plan() == Plan((), {}, (), None)
    given.fold(DispatchActivated())
    assert given.stirs()
    assert given.offered() == [number]


def test_paused_and_resumed():
    given = Given(1)
    number = given.accept()
    given.fold(AccountPaused(), None, 1)
    assert given.plan() == Plan((), {}, (), None)
    given.fold(AccountResumed(), None, 1)
    assert given.stirs()
    assert given.offered() == [number]


def test_a_removed_account_is_offered_nothing():
    given = Given(1)
    given.accept()
    given.fold(AccountRemoved(), None, 1)
    assert given.plan() == Plan((), {}, (), None)


def test_an_unreachable_relay_wants_a_connection_and_gets_no_mail():
    given = Given(1)
    number = given.accept()
    relay = {"host": "relay1", "port": 25, "credentials": "c"}
    given.fold(RelayUnreachable(**relay, reason="dns", until_us=NOW_US + 5, failures=1), None, 1)
    plan = given.plan()
    assert (plan.candidates, plan.demand[1].connections, plan.wake_us) == ((), 1, NOW_US + 5)
    given.fold(RelayReached(**relay), None, 1)
    assert given.stirs()
    assert given.offered() == [number]


def test_a_message_due_later_at_an_unreachable_relay_is_thought_of():
    given = Given(1)
    given.accept(due_us=NOW_US + 60 * SECOND_US)
    relay = {"host": "relay1", "port": 25, "credentials": "c"}
    given.fold(RelayUnreachable(**relay, reason="final", until_us=NOW_US, failures=1), None, 1)
    assert given.plan().wake_us == NOW_US + 60 * SECOND_US
    given.now_us += 60 * SECOND_US
    assert given.plan().demand[1].connections == 1


def test_nothing_is_offered_while_the_log_takes_no_starts():
    given = Given(1)
    given.accept()
    given.scheduler.rest(NOW_US + SECOND_US)
    assert given.plan() == Plan((), {}, (), NOW_US + SECOND_US)


def test_only_changes_that_may_let_mail_go_stir():
    given = Given(1)
    given.accept()
    (candidate,) = given.plan().candidates
    assert not given.stirs()
    given.start(candidate)
    given.end(candidate)
    assert not given.stirs()
    given.accept()
    assert given.stirs()


def test_an_account_without_mail_costs_a_plan_nothing():
    given = Given(*[1] * 50)
    given.accept(7)
    given.plan()
    assert list(given.scheduler._live) == [7]


# Many


def saved(number: int) -> Entry:
    return Entry(number, NOW_US, None, number, AccountSaved(id=f"a{number}", host="h", port=25, credentials="c"))


def test_a_refill_is_of_few_windows_and_every_window_has_its_turn():
    """An account that wants one after each does not keep the others from theirs."""
    scheduler, accounts = Scheduler(), 50
    rows = tuple(ACCOUNTS.evolve(None, saved(number)) for number in range(1, accounts + 1))
    scheduler.start(UnitState(accounts, 0, rows, (), ACTIVE, frozenset(range(1, accounts + 1))))
    read: list[tuple[int, int]] = []
    for seq in range(accounts + 1, 3 * accounts):
        refills = scheduler.plan(NOW_US, lambda account: 0).refills
        assert len(refills) <= REFILLS_MAX
        read += refills
        scheduler.refilling(refills)
        # The first account's windows come back full but for a moment: they are wanted again at once.
        again = [QueueRow(number, NOW_US, number, (0,)) for number in range(WINDOW_MAX)]
        scheduler.refilled(Queues(seq, 0, [again if account == 1 else () for account, _ in refills]))
        for number in range(WINDOW_MAX):
            scheduler.fold(Entry(seq, NOW_US, number, 1, MessageWithdrawn()))
    assert set(read) == {(account, priority) for account in range(1, accounts + 1) for priority in range(4)}


def reachable_bytes(root: object) -> int:
    """The size of everything that hangs on an object, but for classes and the program's own."""
    seen: set[int] = set()
    left, size = [root], 0
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, type | ModuleType | FunctionType):
            continue
        seen.add(id(each))
        size += sys.getsizeof(each)
        left += gc.get_referents(each)
    return size


def bytes_after(messages: int) -> int:
    """What the scheduler needs when so many messages wait, some due and most of them later, and as many have gone."""
    scheduler, accounts = Scheduler(), 4
    for number in range(1, accounts + 1):
        scheduler.fold(saved(number))
    for seq in range(accounts + 1, accounts + 1 + 2 * messages):
        fact = accepted(seq % 3, NOW_US + seq % 7 * seq * SECOND_US, 1)
        scheduler.fold(Entry(seq, NOW_US, seq, 1 + seq % accounts, fact))
        if seq % 2:
            scheduler.fold(Entry(seq, NOW_US, seq - 1, 1 + seq % accounts, MessageWithdrawn()))
    scheduler.plan(NOW_US, lambda account: 0)
    return reachable_bytes(scheduler)


def test_the_scheduler_remembers_no_more_of_twenty_times_the_mail():
    assert bytes_after(20_000) <= bytes_after(1_000) * 1.5
