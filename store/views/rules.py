"""The view `rules`: one row that holds all rules, since which of them counts is a matter of all of them together. That
there is a row says that the log has known a rule, also when every one of them was removed."""

import msgspec
from msgspec import Struct

from events.fact import Entry
from events.rules import Rule
from events.schedule import RuleRemoved, RuleSaved

from .rows import View

ONLY = 0
"""The key of the only row."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(tuple[Rule, ...]).decode


class RulesRow(Struct, frozen=True):
    """`rules` is JSON, by id."""

    key: int = ONLY
    rules: str = "[]"

    def all(self) -> tuple[Rule, ...]:
        return _decode(self.rules)


NO_RULES = RulesRow()
"""What holds before any fact says otherwise."""


def keys(entry: Entry) -> tuple[int, ...]:
    return (ONLY,) if isinstance(entry.fact, RuleSaved | RuleRemoved) else ()


def evolve(row: RulesRow | None, entry: Entry) -> RulesRow | None:
    match entry.fact:
        case RuleSaved() as fact:
            return _with(row, fact.rule or entry.seq, rule_of(fact, entry.seq))
        case RuleRemoved() as fact:
            return _with(row, fact.rule, None)
    return row


def rule_of(fact: RuleSaved, seq: int) -> Rule:
    """The rule that a fact makes."""
    return Rule(
        fact.rule or seq,
        fact.name,
        fact.enabled,
        fact.priority,
        fact.days,
        fact.start_hour,
        fact.end_hour,
        fact.cross_midnight,
        fact.interval_minutes,
    )


def _with(row: RulesRow | None, number: int, rule: Rule | None) -> RulesRow:
    rules = {each.id: each for each in row.all()} if row else {}
    rules.pop(number, None)
    if rule:
        rules[number] = rule
    return RulesRow(ONLY, _encode(sorted(rules.values(), key=lambda each: each.id)).decode())


RULES = View("rules", 1, RulesRow, (RuleSaved, RuleRemoved), keys, evolve)
