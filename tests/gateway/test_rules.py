"""Why mail waits, as the gateway says it under rules: the reason, and until which tick."""

import time
from typing import Any

import pytest

from events.fact import Draft
from events.schedule import RuleRemoved, RuleSaved

from .service import running


def closed_now(**fields: Any) -> RuleSaved:
    """A rule for an hour that is not this one."""
    hour = (time.gmtime().tm_hour + 12) % 24
    given: dict[str, Any] = {"name": "", "enabled": True, "priority": 0, "days": tuple(range(7)), "start_hour": hour}
    given |= {"end_hour": hour + 1, "cross_midnight": False, "interval_minutes": 60}
    return RuleSaved(**given | fields)


async def test_mail_that_no_rule_lets_go_says_until_when(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        rule = (await service.one(Draft(closed_now()))).seq
        await service.accept("waits", due_us=service.store.clock.now_us())
        await service.accept("urgent", due_us=service.store.clock.now_us(), priority=0)
        waits, urgent = (await client.get("/pending")).json()["pending"]
        until = waits["waiting_for"].pop("until")
        assert waits["waiting_for"] == {"reason": "outside_rules"}
        assert until % 3600 == 0 and 0 < until - time.time() <= 14 * 3600
        assert urgent["waiting_for"] == {"reason": "no_free_connection"}
        assert (await client.get("/messages/waits")).json()["waiting_for"] == {
            "reason": "outside_rules",
            "until": until,
        }
        status = (await client.get("/status")).json()
        assert status["reasons"] == [] and status["pending"] == 2
        await service.one(Draft(RuleRemoved(rule=rule)))
        waits, _ = (await client.get("/pending")).json()["pending"]
        assert waits["waiting_for"] == {"reason": "no_free_connection"}


@pytest.mark.parametrize(("zone", "reason"), [("UTC", "outside_rules"), ("Etc/GMT-12", "no_free_connection")])
async def test_hours_are_those_of_the_time_zone(tmp_path, zone, reason):
    """A rule for the six hours around the ones twelve ahead; by a clock that is twelve ahead it is now."""
    async with running(tmp_path, timezone=zone) as service, service.client() as client:
        hour = (time.gmtime().tm_hour + 9) % 24
        fields = {"cross_midnight": True, "end_hour": (hour + 6) % 24} if hour >= 18 else {"end_hour": hour + 6}
        await service.one(Draft(closed_now(start_hour=hour, interval_minutes=1, **fields)))
        await service.accept("m", due_us=service.store.clock.now_us() - 120_000_000)
        (waits,) = (await client.get("/pending")).json()["pending"]
        assert waits["waiting_for"]["reason"] == reason
