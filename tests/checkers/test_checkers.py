"""What the checkers let pass and what they find, by logs that are made by hand."""

import pytest

from events.account import AccountSaved
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import Entry, Fact
from events.message import MessageAccepted
from events.schedule import RuleSaved
from events.service import ClockStepped, ServiceStarted
from events.values import Outcome
from tests.simulation.observed import Life, Observed

from . import clock, order

HOUR_S = 3_600.0
STARTED = ServiceStarted(version="1", recovery="")
RULE = RuleSaved(
    name="", enabled=True, priority=0, days=(0,), start_hour=0, end_hour=24, cross_midnight=False, interval_minutes=5
)
A, B = 2, 3


def observed(*facts: tuple[float, Fact], jumps: tuple[tuple[float, float], ...] = (), lives: tuple[float, ...] = ()):
    seen = Observed(0, jumps=list(jumps), lives=[Life(n, at) for n, at in enumerate(lives)])
    seen.log = [Entry(seq, int(at * 1e6), None, None, fact) for seq, (at, fact) in enumerate(facts, 1)]
    seen.true_at = {seq: at for seq, (at, _) in enumerate(facts, 1)}
    return seen


def stepped(by_s: float) -> ClockStepped:
    return ClockStepped(by_us=int(by_s * 1e6))


@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
def test_a_jump_just_after_a_start_is_found_by_the_comparison(by_s: float) -> None:
    facts = (0.0, STARTED), (100.0, STARTED), (110.0, stepped(by_s))
    assert list(clock.check(observed(*facts, jumps=((100.2, by_s),), lives=(0.0, 100.0)))) == []
    assert len(list(clock.check(observed(*facts[:2], jumps=((100.2, by_s),), lives=(0.0, 100.0))))) == 1


def test_a_start_may_pass_over_an_hour_forwards_and_over_none_backwards() -> None:
    facts = (0.0, STARTED), (100.1, STARTED)
    assert list(clock.check(observed(*facts, jumps=((50.0, HOUR_S),), lives=(0.0, 100.0)))) == []
    assert len(list(clock.check(observed(*facts, jumps=((50.0, -HOUR_S),), lives=(0.0, 100.0))))) == 1


def test_a_step_that_nobody_jumped_is_found() -> None:
    assert len(list(clock.check(observed((0.0, STARTED), (10.0, stepped(HOUR_S)), lives=(0.0,))))) == 1


def overtaking(priority: int, *rules: Fact) -> Observed:
    """B of low priority goes twice after A came back, which has `priority` and came due later than B."""

    def accepted(priority: int, due_us: int) -> MessageAccepted:
        return MessageAccepted(
            id="m", priority=priority, due_us=due_us, expires_us=9**15, size=1, recipients=("a",), letter=""
        )

    def ended(attempt: int, due_us: int) -> AttemptEnded:
        outcomes = (Outcome(0, "deferred"),)
        return AttemptEnded(
            attempt=attempt, outcomes=outcomes, next="due", charged=True, due_us=due_us, due_cause="retry"
        )

    going = AttemptStarted(revision=1, recipients=(0,))
    account = AccountSaved(id="a", host="a", port=25, credentials="c" * 16, max_connections=1)
    told: list[tuple[int | None, Fact]] = [(None, account), (A, accepted(priority, 5)), (B, accepted(3, 5))]
    told += [(A, going), (A, ended(4, 30)), (B, going), (B, ended(6, 20)), (B, going)]
    seen = Observed(0)
    entries = [Entry(seq, seq * 100, number, 1, fact) for seq, (number, fact) in enumerate(told, 1)]
    seen.log = [*entries, *(Entry(90, 9_000, None, None, rule) for rule in rules)]
    return seen


@pytest.mark.parametrize("observed", [overtaking(1), overtaking(0, RULE)])
def test_mail_that_is_overtaken_is_found(observed: Observed) -> None:
    (sentence,) = order.check(observed)
    assert sentence.startswith("attempt 8 is for message 3")


def test_rules_keep_what_came_due_after_they_let_go() -> None:
    assert list(order.check(overtaking(1, RULE))) == []
