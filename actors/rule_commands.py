"""What control does about rules: each command becomes facts, and its answer is the list as it then stands.

Only control says anything about rules, one command at a time, so what it reads is what is true. A whole set is replaced
in one commit: no mail goes by half of it.
"""

from collections.abc import Sequence

from msgspec import Struct, to_builtins

from events import commands, payloads
from events.commands import Refused, Unavailable
from events.fact import Draft
from events.rules import RULES_MAX, Rule, made
from events.schedule import RuleRemoved, RuleSaved
from store import reading
from store.opening import Store

RuleCommand = commands.SaveRule | commands.ChangeRule | commands.RemoveRule


def saved(rule: Rule, by: str) -> RuleSaved:
    """The fact that makes a rule what it is."""
    if rule.fault:
        raise Refused(rule.fault)
    fields = {name: getattr(rule, name) for name in rule.__struct_fields__[1:]}
    return RuleSaved(**fields, rule=rule.id, by=by)


def wanted(command: RuleCommand, rules: Sequence[Rule], by: str) -> RuleSaved | RuleRemoved | None:
    """The fact that a command asks for; None where it is so already. Raises Refused."""
    if isinstance(command, commands.SaveRule):
        if len(rules) >= RULES_MAX:
            raise Refused(f"there are {RULES_MAX} rules, and no more can be: change or delete one")
        return saved(made(command.rule), by)
    known = next((rule for rule in rules if rule.id == command.id), None)
    if known is None:
        raise Refused(f"there is no rule {command.id}: GET /commands/rules lists them", 404)
    if isinstance(command, commands.RemoveRule):
        return RuleRemoved(rule=known.id, by=by)
    changed = made(command.change, known)
    return saved(changed, by) if changed != known else None


def replacing(wishes: Sequence[payloads.Rule], rules: Sequence[Rule], by: str) -> list[RuleSaved | RuleRemoved]:
    """The facts that put these rules in the place of all others; those that stand already stay as they are. Raises
    Refused."""
    if len(wishes) > RULES_MAX:
        raise Refused(f"these are {len(wishes)} rules: give {RULES_MAX} at most")
    new = [made(wish) for wish in wishes]
    left = list(rules)
    facts: list[RuleSaved | RuleRemoved] = []
    for rule in new:
        same = next((each for each in left if _content(each) == _content(rule)), None)
        if same:
            left.remove(same)
        else:
            facts.append(saved(rule, by))
    return [*(RuleRemoved(rule=each.id, by=by) for each in left), *facts]


def _content(rule: Struct) -> dict[str, object]:
    return {name: getattr(rule, name) for name in rule.__struct_fields__ if name != "id"}


async def carry_out(store: Store, command: RuleCommand, by: str) -> dict[str, object]:
    """Raises Refused and Unavailable."""
    fact = wanted(command, await store.read(reading.rules), by)
    await _record(store, [fact] if fact else [])
    return await listed(store)


async def replace_all(store: Store, wishes: Sequence[payloads.Rule], by: str) -> None:
    """Raises Refused and Unavailable."""
    await _record(store, replacing(wishes, await store.read(reading.rules), by))


async def _record(store: Store, facts: Sequence[RuleSaved | RuleRemoved]) -> None:
    if facts and not (await store.record([Draft(fact) for fact in facts], urgent=True, whole=True)).complete:
        raise Unavailable("the rules kept changing: ask again")


async def listed(store: Store) -> dict[str, object]:
    """The answer: every rule there is."""
    return {"ok": True, "rules": [to_builtins(rule) for rule in await store.read(reading.rules)]}
