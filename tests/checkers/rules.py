"""Under rules nothing starts but what a tick has let go, what is immediate, and what somebody was in a hurry for.

A start is decided a little before it is in the log, and from facts that the unit has followed by then. So it is right
if the rules of any moment of the last LAG_S let it go. Runs in which somebody moved the clock are left out, for then
a stamp does not say by which clock a tick was judged. What the rules let go is worked out by looking at every minute.
"""

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from events.attempt import AttemptStarted
from events.fact import Entry
from events.lifecycle import Refusal
from events.message import MessageAccepted, MessageRevised
from events.schedule import RuleRemoved, RuleSaved
from tests.simulation.messages import WALL_S
from tests.simulation.observed import Observed

from .facts import moves

LAG_S = 20
"""A turn, a reading and a connection, each slow."""

MINUTE_US = 60_000_000
DAYS_BACK = 2


class _Due(NamedTuple):
    priority: int
    due_us: int


class _Rules:
    """The rules as of a seq, told from the facts by themselves."""

    def __init__(self) -> None:
        self._rules: dict[int, RuleSaved] = {}
        self.history: list[tuple[int, tuple[tuple[int, RuleSaved], ...]]] = [(0, ())]

    def fold(self, entry: Entry) -> None:
        match entry.fact:
            case RuleSaved() as fact:
                self._rules[fact.rule or entry.seq] = fact
            case RuleRemoved(rule=number):
                del self._rules[number]
        self.history.append((entry.at_us, tuple(sorted(self._rules.items()))))

    def since(self, at_us: int) -> Iterator[Sequence[tuple[int, RuleSaved]]]:
        """Every state that held at this moment or later."""
        for index, (_, rules) in enumerate(self.history):
            if index + 1 == len(self.history) or self.history[index + 1][0] >= at_us:
                yield rules


def check(observed: Observed) -> Iterator[str]:
    if observed.jumps or not any(isinstance(entry.fact, RuleSaved) for entry in observed.log):
        return
    hurries = [WALL_S + (each.answered_at or each.at + LAG_S) for each in observed.asked if each.name == "run now"]
    rules, due, priority = _Rules(), dict[int, _Due](), dict[int, int]()
    after = {entry.seq: state for _, _, state, entry in moves(observed.log)}
    for entry in observed.log:
        fact, number = entry.fact, entry.message or 0
        match fact:
            case RuleSaved() | RuleRemoved():
                rules.fold(entry)
            case MessageAccepted() | MessageRevised():
                priority[number] = fact.priority
            case AttemptStarted() if not _right(entry, due[number], rules, hurries):
                yield f"attempt {entry.seq} of message {number} {due[number]} began at {_clock(entry.at_us)}: no tick"
        state = after.get(entry.seq)
        if state == "waiting" and not isinstance(state, Refusal):
            due[number] = _Due(priority[number], getattr(fact, "due_us", None) or entry.at_us)


def _right(entry: Entry, due: _Due, rules: _Rules, hurries: Sequence[float]) -> bool:
    if due.priority == 0 or any(due.due_us / 1e6 <= hurry_s <= entry.at_us / 1e6 + LAG_S for hurry_s in hurries):
        return True
    moments = (entry.at_us, entry.at_us - LAG_S * 1_000_000)
    return any(_lets_go(each, due.due_us, at_us) for each in rules.since(moments[1]) for at_us in moments)


def _lets_go(rules: Sequence[tuple[int, RuleSaved]], due_us: int, at_us: int) -> bool:
    enabled = [rule for _, rule in sorted(rules, key=lambda each: (each[1].priority, each[0])) if rule.enabled]
    if not enabled:
        return True
    minute = at_us // MINUTE_US
    if not _counts(enabled, minute):
        return False
    first = max(-(-due_us // MINUTE_US), minute - DAYS_BACK * 1_440)
    return any(_tick(enabled, each) for each in range(first, minute + 1))


def _counts(enabled: Sequence[RuleSaved], minute: int) -> RuleSaved | None:
    moment = dt.datetime.fromtimestamp(minute * 60, dt.UTC)
    for rule in enabled:
        length = (rule.end_hour - rule.start_hour) % 24 or 24
        since_h = (moment.hour - rule.start_hour) % 24
        began = moment - dt.timedelta(hours=since_h)
        if since_h < length and began.weekday() in rule.days:
            return rule
    return None


def _tick(enabled: Sequence[RuleSaved], minute: int) -> bool:
    rule = _counts(enabled, minute)
    return rule is not None and minute % 1_440 % rule.interval_minutes == 0


def _clock(at_us: int) -> str:
    return f"{dt.datetime.fromtimestamp(at_us / 1_000_000, dt.UTC):%H:%M:%S.%f}"
