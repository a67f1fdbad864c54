"""What control does about rules: facts that say all of a rule, refusals that name the field, a set replaced whole."""

from events import payloads
from events.commands import Activate, ChangeRule, Refused, RemoveRule, SaveRule, Schedule
from events.fact import Draft
from events.rules import RULES_MAX
from events.schedule import DispatchSuspended
from store.dispatching import unit_state

from .opened import facts, kinds
from .test_control import controlling


def rule(interval=15, **fields) -> payloads.Rule:
    return payloads.Rule(interval, **fields)


async def saved(ask, *wishes: payloads.Rule) -> list[int]:
    """Save these rules; the ids of all there are."""
    for wish in wishes:
        answer = await ask(SaveRule(wish))
        assert not isinstance(answer, Exception), answer
    return [each["id"] for each in answer["rules"]]


async def test_a_rule_is_saved_with_everything_that_was_left_out(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        answer = await ask(SaveRule(rule(name="office", days=(4, 0, 4), start_hour=8, end_hour=18)))
        wanted = {
            "id": 1, "name": "office", "enabled": True, "priority": 0, "days": (0, 4), "start_hour": 8, "end_hour": 18,
            "cross_midnight": False, "interval_minutes": 15,
        }  # fmt: skip
        assert answer == {"ok": True, "rules": [wanted]}
        (entry,) = await facts(store)
        assert (entry.kind, entry.fact.by) == ("RuleSaved", "tester")
        whole_day = (await ask(SaveRule(rule())))["rules"][1]
        assert (whole_day["days"], whole_day["start_hour"], whole_day["end_hour"]) == (tuple(range(7)), 0, 24)


async def test_a_change_keeps_the_rest_and_what_is_so_already_is_no_fact(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        first, second = await saved(ask, rule(name="a"), rule(name="b"))
        answer = await ask(ChangeRule(first, payloads.RuleChange(first, enabled=False)))
        assert [(each["id"], each["name"], each["enabled"]) for each in answer["rules"]] == [
            (first, "a", False),
            (second, "b", True),
        ]
        assert await ask(ChangeRule(first, payloads.RuleChange(first, enabled=False))) == answer
        assert await kinds(store) == ["RuleSaved"] * 3
        assert [each["id"] for each in (await ask(RemoveRule(first)))["rules"]] == [second]


async def test_what_is_not_there_and_what_cannot_be_is_refused(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        (number,) = await saved(ask, rule(start_hour=8, end_hour=18))
        for command in (ChangeRule(99, payloads.RuleChange(99)), RemoveRule(99)):
            assert (await ask(command)).status == 404
        later = await ask(ChangeRule(number, payloads.RuleChange(number, start_hour=18)))
        assert isinstance(later, Refused) and later.status == 400 and "end_hour" in later.sentence
        named = await ask(SaveRule(rule(name="a\nb")))
        assert isinstance(named, Refused) and "name" in named.sentence
        await saved(ask, *[rule()] * (RULES_MAX - 1))
        assert str(RULES_MAX) in (await ask(SaveRule(rule()))).sentence
        assert len(await kinds(store)) == RULES_MAX


async def test_a_set_is_replaced_in_one_commit_and_what_stands_keeps_its_id(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        _, kept = await saved(ask, rule(name="goes"), rule(name="stays"))
        answer = await ask(Schedule((rule(name="comes"), rule(name="stays")), active=False))
        assert [(each["name"], each["id"] == kept) for each in answer["rules"]] == [("stays", True), ("comes", False)]
        assert answer["active"] is False
        assert (await kinds(store))[2:] == ["DispatchSuspended", "RuleRemoved", "RuleSaved"]
        assert await ask(Schedule((rule(name="stays"), rule(name="comes")))) == answer
        assert (await ask(Schedule((), active=True))) == {"ok": True, "rules": [], "active": True}
        assert await ask(Schedule()) == {"ok": True, "rules": [], "active": True}


async def test_nothing_of_a_set_with_a_fault_is_taken(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await saved(ask, rule(name="stays"))
        for wishes in ((rule(name="new"), rule(start_hour=9, end_hour=9)), [rule()] * (RULES_MAX + 1)):
            assert isinstance(await ask(Schedule(tuple(wishes))), Refused)
        assert [each.name for each in (await store.read(unit_state)).rules.all()] == ["stays"]


async def test_a_full_set_can_be_replaced_by_another(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (_, ask):
        await ask(Schedule(tuple(rule(name=f"{n}") for n in range(RULES_MAX))))
        answer = await ask(Schedule(tuple(rule(name=f"new {n}") for n in range(RULES_MAX))))
        assert len(answer["rules"]) == RULES_MAX and answer["rules"][0]["name"] == "new 0"


async def test_a_restored_log_is_not_activated_by_a_schedule(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await store.record([Draft(DispatchSuspended(restored=True))])
        refused = await ask(Schedule((rule(),), active=True))
        assert isinstance(refused, Refused) and "restored" in refused.sentence
        assert await kinds(store) == ["DispatchSuspended"]
        assert (await ask(Activate("send")))["active"]
