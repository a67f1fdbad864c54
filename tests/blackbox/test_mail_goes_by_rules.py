"""Rules in a real process: kept in the log, asked for over HTTP, and they outlast a restart."""

import json
import time

import pytest
import trio

from letterbook.capture import CaptureRelay

from .service import mail, service

OFFICE = {"name": "office", "days": [0, 1, 2, 3, 4], "start_hour": 8, "end_hour": 18, "interval_minutes": 15}
NIGHT = {"name": "night", "start_hour": 22, "end_hour": 6, "cross_midnight": True, "interval_minutes": 60}

WRONG = [
    ({"interval_minutes": 0}, "interval_minutes"),
    ({"interval_minutes": 1.5}, "interval_minutes"),
    ({"interval_minutes": 600, "start_hour": 12, "end_hour": 18}, "interval_minutes"),
    ({}, "interval_minutes"),
    ({"interval_minutes": 1, "days": [7]}, "days"),
    ({"interval_minutes": 1, "days": [-1]}, "days"),
    ({"interval_minutes": 1, "days": []}, "days"),
    ({"interval_minutes": 1, "days": "Monday"}, "days"),
    ({"interval_minutes": 1, "start_hour": 24}, "start_hour"),
    ({"interval_minutes": 1, "end_hour": 25}, "end_hour"),
    ({"interval_minutes": 1, "start_hour": 9, "end_hour": 9}, "end_hour"),
    ({"interval_minutes": 1, "start_hour": 9, "end_hour": 10, "cross_midnight": True}, "cross_midnight"),
    ({"interval_minutes": 1, "enabled": "yes"}, "enabled"),
    ({"interval_minutes": 1, "pause": True}, "pause"),
]


async def test_rules_are_made_listed_changed_and_deleted_and_outlast_a_restart(tmp_path):
    async with service(tmp_path, scheduler_rules=json.dumps([NIGHT])) as it:
        (night,) = (await it.get("/commands/rules"))["rules"]
        assert (night["name"], night["days"], night["cross_midnight"]) == ("night", list(range(7)), True)
        office = (await it.post("/commands/rules", OFFICE))["rules"][1]
        assert {name: office[name] for name in OFFICE} == OFFICE and office["enabled"]
        for body, named in WRONG:
            answer = await it.client.post("/commands/rules", json=body)
            assert answer.status_code == 400 and named in answer.json()["error"], (body, answer.text)
        changed = await it.client.patch(f"/commands/rules/{night['id']}", json={"enabled": False, "priority": None})
        assert [rule["enabled"] for rule in changed.json()["rules"]] == [False, True]
        for path in ("/commands/rules/12345", "/commands/rules/night"):
            assert (
                (await it.client.delete(path)).status_code == (await it.client.patch(path, json={})).status_code == 404
            )
        assert (await it.client.patch(f"/commands/rules/{night['id']}", json={"id": 3})).status_code == 400
        said = await it.run("rules")
        assert "office" in said.out and "disabled" in said.out and "Mon Tue Wed Thu Fri" in said.out
        shown = await it.get("/commands/rules")
        assert json.loads((await it.run("rules", "--json")).out) == shown
        await it.kill()
        await it.start()
        assert await it.get("/commands/rules") == shown
        for rule in shown["rules"]:
            assert (await it.client.delete(f"/commands/rules/{rule['id']}")).status_code == 200
        # The log has known rules, so those of the configuration are no more than its beginning.
        await it.stop()
        await it.start()
        assert (await it.get("/commands/rules"))["rules"] == []
        assert [event["kind"] for event in await it.events() if event["kind"].startswith("Rule")] == [
            *("RuleSaved", "RuleSaved", "RuleSaved", "RuleRemoved", "RuleRemoved"),
        ]
        assert "“office”, Mon Tue Wed Thu Fri, 8 to 18 h, every 15 minutes" in (await it.run("log")).out


@pytest.mark.parametrize(
    "settings", [{"scheduler_timezone": "Mars/Olympus"}, {"scheduler_rules": '[{"interval_minutes":0}]'}]
)
async def test_a_start_that_its_configuration_forbids_is_one_line(tmp_path, settings):
    async with service(tmp_path, started=False, **settings) as it:
        for words in ("serve", "check-config"):
            said = await it.run(words)
            (name,) = settings
            assert said.code == 1 and said.err.count("\n") == 1 and f"LETTERBOOK_{name}".upper() in said.err
        assert not it.db.exists()


async def test_mail_waits_for_its_window_and_urgent_mail_does_not(tmp_path):
    """A window twelve hours from now; then one that is open, and every minute a tick."""
    hour = (time.gmtime().tm_hour + 12) % 24
    relay = CaptureRelay()
    async with trio.open_nursery() as nursery, service(tmp_path, delivery_send_interval_seconds=3600) as it:
        await nursery.start(relay.serve)
        await it.account("a", relay.port)
        body = {"start_hour": hour, "end_hour": hour + 1, "interval_minutes": 60}
        (rule,) = (await it.post("/commands/rules", body))["rules"]
        await it.add([mail("waits", account_id="a"), mail("urgent", account_id="a", priority=0)])
        await it.until_results(1)
        for _ in range(2):
            waits = (await it.message("waits"))["waiting_for"]
            assert waits["reason"] == "outside_rules" and waits["until"] % 3600 == 0
            shown = await it.run("pending")
            assert "outside rules" in shown.out and "waits" in shown.out
            await it.stop()
            await it.start()
        assert [result["id"] for result in await it.results()] == ["urgent"]
        await it.post("/commands/run-now")
        await it.until_results(2)
        await it.add([mail("later", account_id="a")])
        assert (await it.message("later"))["waiting_for"]["reason"] == "outside_rules"
        opened = {"start_hour": 0, "end_hour": 24, "interval_minutes": 1}
        assert (await it.client.patch(f"/commands/rules/{rule['id']}", json=opened)).status_code == 200
        await it.until_results(3, within_s=150)
        assert sorted(result["id"] for result in await it.results()) == ["later", "urgent", "waits"]
        assert relay.received == 3
        nursery.cancel_scope.cancel()
