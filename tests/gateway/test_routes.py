"""Every route over real HTTP: what it answers when it is asked well."""

import sqlite3

import trio

from events.account import AccountSaved, AccountThrottled, RelayUnreachable
from events.fact import OWN, Draft
from events.message import MessageHeld
from events.report import ResultsReported
from events.values import Outcome
from store import reading, replay
from store.beside import Sealed

from .service import HOUR_US, TOKEN, running


def message(name, **fields):
    return {"id": name, "from": "a@example.org", "to": ["b@example.org"], "subject": "s", "body": "b", **fields}


async def test_health_and_ready_are_open_and_say_how_it_is(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        client.headers.pop("X-API-Token")
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/ready")).json() == {"ready": True}
        answer = await client.post("/commands/suspend", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.json() == {"ok": True, "active": False}
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "reasons": ["suspended"]})


async def test_status_counts_are_disjoint_and_accounts_say_what_ails_them(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        now_us = service.store.clock.now_us()
        await service.account("slow", limit_per_minute=5)
        await service.accept("due")
        await service.accept("later", due_us=now_us + HOUR_US)
        behind = await service.accept("behind", "slow")
        until = now_us // 1_000_000 + 1000
        await service.one(
            Draft(AccountThrottled(until_us=until * 1_000_000, window_s=60, limit=5), behind, service.accounts["slow"])
        )
        fact = RelayUnreachable("relay.example", 25, "c" * 16, "connect", until * 1_000_000, 1)
        await service.one(Draft(fact))
        await service.start(await service.accept("flying"))
        await service.one(Draft(MessageHeld(cause="in_doubt"), message=await service.accept("held")))
        status = (await client.get("/status")).json()
        assert (status["pending"], status["deferred"], status["in_flight"], status["held"]) == (1, 2, 1, 1)
        assert status["log"] == service.store.log_id and status["seq"] == service.store.last_seq
        assert status["active"] is True and status["reasons"] == [] and status["version"] == "0.1.0"
        slow = status["accounts"]["slow"]
        assert slow == {"paused": False, "throttled_until": until, "unreachable_until": until, "reason": "connect"}


async def test_add_messages_counts_what_was_queued_and_names_what_was_not(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        service.decide = lambda message: "missing from" if "from" not in message else None
        body = {"messages": [message("a"), {"id": "b"}, {"to": "x"}, 7], "default_priority": "high"}
        answer = await client.post("/commands/add-messages", json=body)
        assert answer.status_code == 200
        assert answer.json() == {
            "ok": True,
            "queued": 1,
            "rejected": [{"id": "b", "reason": "missing from"}, {"reason": "missing id"}, {"reason": "missing id"}],
        }
        assert service.submitted[0].default_priority == 1 and service.submitted[0].by == "api"
        assert (await client.post("/commands/add-messages", json={"messages": []})).json()["queued"] == 0


async def test_a_message_twice_in_a_batch_is_counted_once():
    from events.commands import Decision
    from gateway.writing import added

    decisions = (Decision("a", 7, None, 7, recorded=False), Decision("a", 7, None, 7))
    assert added(decisions) == {"ok": True, "queued": 1, "rejected": []}


async def test_more_than_a_batch_is_refused_whole(tmp_path):
    async with running(tmp_path, max_batch=2) as service, service.client() as client:
        answer = await client.post("/commands/add-messages", json={"messages": [message("a")] * 3})
        assert answer.status_code == 400
        assert answer.json()["error"] == "Cannot enqueue more than 2 messages at once"
        assert service.submitted == []


async def test_lists_page_and_say_where_to_go_on(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for index in range(3):
            await service.accept(f"m{index}", to=["x@y.z", "u@v.w"])
        first = (await client.get("/pending?limit=2")).json()
        assert [each["id"] for each in first["pending"]] == ["m0", "m1"]
        assert first["pending"][0]["to_addr"] == "x@y.z, u@v.w" and first["pending"][0]["subject"] == "About m0"
        assert first["pending"][0]["waiting_for"] == {"reason": "no_free_connection"}
        rest = (await client.get(f"/pending?limit=2&after={first['next']}")).json()
        assert [each["id"] for each in rest["pending"]] == ["m2"] and "next" not in rest


async def test_deferred_mail_says_until_when_and_why(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        now_us = service.store.clock.now_us()
        await service.accept("asked", due_us=now_us + HOUR_US)
        number = await service.accept("again")
        await service.end(
            number,
            await service.start(number),
            Outcome(0, "deferred", 451, "4.7.1"),
            then="due",
            due_us=now_us + HOUR_US,
            due_cause="retry",
            charged=True,
            texts=((0, "451 4.7.1 come back later"),),
        )
        by_id = {each["id"]: each for each in (await client.get("/deferred")).json()["deferred"]}
        assert by_id["asked"]["cause"] == "due_later" and by_id["asked"]["attempts"] == 0
        assert by_id["again"]["cause"] == "retry" and by_id["again"]["last_error"] == "451 4.7.1 come back later"
        assert abs(by_id["again"]["deferred_until"] - (now_us + HOUR_US) / 1e6) <= 1
        account = await service.account("default", limit_per_minute=5)
        await service.one(Draft(AccountThrottled(until_us=now_us + 2 * HOUR_US, window_s=60, limit=5), number, account))
        causes = {each["cause"] for each in (await client.get("/deferred")).json()["deferred"]}
        assert causes == {"quota"}


async def test_held_mail_says_since_when_and_who_is_in_doubt(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        number = await service.accept("doubt", to=("a@example.org", "b@example.org"))
        outcomes = Outcome(0, "in_doubt"), Outcome(1, "delivered", 250)
        attempt = await service.start(number, recipients=(0, 1))
        await service.end(number, attempt, *outcomes, then="held", cause="in_doubt", charged=True)
        await service.one(Draft(MessageHeld(cause="restored"), message=await service.accept("put aside")))
        first = (await client.get("/held?limit=1")).json()
        (doubt,) = first["held"]
        at = (await service.store.read(reading.message, number)).updated_us // 1_000_000
        assert (doubt["id"], doubt["cause"], doubt["account_id"], doubt["attempts"]) == (
            *("doubt", "in_doubt", "default"),
            1,
        )
        assert doubt["held_ts"] == at and doubt["held_at"].endswith("Z") and doubt["last_error"].startswith("in doubt")
        assert [each["address"] for each in doubt["recipients"] if each["status"] == "in_doubt"] == ["a@example.org"]
        (aside,) = (await client.get(f"/held?after={first['next']}")).json()["held"]
        assert (aside["id"], aside["cause"]) == ("put aside", "restored") and "last_error" not in aside
        past = (await client.get(f"/audit/at?seq={service.store.last_seq}&view=held")).json()
        assert [each["id"] for each in past["held"]] == ["doubt", "put aside"]
        assert (await client.get("/messages?status=held")).json()["messages"][0]["id"] == "doubt"


async def test_a_resolution_names_the_message_in_the_path_and_what_it_becomes_in_the_body(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.one(Draft(MessageHeld(cause="restored"), message=await service.accept("a/b ü")))
        path = "/messages/a%2Fb%20%C3%BC/resolve"
        for body, word in (({}, "as"), ({"as": "no"}, "as"), ({"as": "sent", "x": 1}, "x"), ({"id": "a"}, "id")):
            answer = await client.post(path, json=body)
            assert answer.status_code == 400 and word in answer.json()["error"]
        assert (await client.post(path, json={"as": "sent"})).json() == {"ok": True}
        answer = await client.post(path, json={"as": "sent"})
        assert (answer.status_code, answer.json()["error"]) == (409, "not held")
        (fact,) = (await client.get("/events?kind=DoubtResolved")).json()["events"]
        assert (fact["resolution"], fact["by"], fact["message_id"]) == ("sent", "api", "a/b ü")


async def test_what_the_command_line_asks_for_is_recorded_as_asked_for_by_it(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await client.post("/commands/suspend", headers={"User-Agent": "letterbook-cli"})
        (fact,) = (await client.get("/events?kind=DispatchSuspended")).json()["events"]
        assert fact["by"] == "cli"


async def test_results_carry_recipients_and_a_cursor_of_this_log(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        sent = await service.send("good")
        failed = await service.refuse("bad")
        answer = (await client.get(f"/results?log={service.store.log_id}")).json()
        assert answer["log"] == service.store.log_id and answer["next"] == failed
        good, bad = answer["results"]
        assert (good["seq"], good["status"], good["smtp_code"]) == (sent, "sent", 250) and "error" not in good
        assert bad["error"] == "550 5.1.1 no such user" and "sent_ts" not in bad
        assert bad["recipients"] == [
            {
                "address": "b@example.org",
                "status": "refused",
                "code": 550,
                "enhanced": "5.1.1",
                "reply": "550 5.1.1 no such user",
            }
        ]
        assert (await client.get(f"/results?after={failed}")).json() == {
            "ok": True,
            "log": service.store.log_id,
            "results": [],
            "next": failed,
        }


async def test_messages_by_filter_and_their_contents(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        end = await service.send("sent")
        await service.refuse("failed")
        await service.accept("waits")
        await service.one(Draft(ResultsReported(up_to=end)))
        listed = {each["id"]: each for each in (await client.get("/messages")).json()["messages"]}
        assert {name: each["status"] for name, each in listed.items()} == {
            "sent": "sent",
            "failed": "error",
            "waits": "pending",
        }
        assert listed["sent"]["message"]["subject"] == "About sent" and "reported_ts" in listed["sent"]
        assert "reported_ts" not in listed["failed"] and listed["failed"]["error"] == "550 5.1.1 no such user"
        for query, found in (("active_only=true", ["waits"]), ("status=sent", ["sent"]), ("account_id=none", [])):
            answer = (await client.get(f"/messages?{query}")).json()
            assert [each["id"] for each in answer["messages"]] == found


async def test_one_message_with_its_timeline_and_a_slash_in_its_id(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.refuse("a/b c")
        record = (await client.get("/messages/a%2Fb%20c")).json()
        assert record["id"] == "a/b c" and record["status"] == "error" and record["ok"] is True
        kinds = [fact["kind"] for fact in record["timeline"]]
        assert kinds == ["MessageAccepted", "AttemptStarted", "AttemptEnded"]
        assert all(fact["message_id"] == "a/b c" and fact["account_id"] == "default" for fact in record["timeline"])
        assert record["recipients"][0]["reply"] == "550 5.1.1 no such user" and "waiting_for" not in record
        assert (await client.get("/messages/a/b")).status_code == 404
        assert (await client.get("/messages/unknown")).json()["error"] == "No message with this id is known"
        assert (await client.get("/messages/%ff")).status_code == 400


async def test_a_rejected_message_is_known_by_its_rejection(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        service.decide = lambda message: "account not found"
        await client.post("/commands/add-messages", json={"messages": [message("no")]})
        record = (await client.get("/messages/no")).json()
        assert record["status"] == "error" and record["error"] == "account not found" and record["recipients"] == []
        assert (await client.get("/results")).json()["results"][0]["error"] == "account not found"


async def test_events_by_filter_and_expanded(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        end = await service.refuse("a")
        page = (await client.get("/events?limit=2")).json()
        assert [event["seq"] for event in page["events"]] == [1, 2] and page["next"] == 2
        page = (await client.get("/events?message_id=a&kind=AttemptEnded&expand=1")).json()
        (event,) = page["events"]
        assert event["seq"] == end and event["subject"] == "About a" and event["addresses"] == ["b@example.org"]
        assert event["replies"] == [{"recipient": 0, "reply": "550 5.1.1 no such user"}]
        assert page["next"] == end
        page = (await client.get("/events?account_id=default&kind=AccountPaused")).json()
        assert page["events"] == [] and page["next"] == end


async def test_a_long_poll_answers_when_there_is_something(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        answers = []

        async def poll(query):
            answers.append((await client.get(f"/events?after=1&wait=20&{query}")).json())

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(poll, "kind=AttemptEnded")
                end = await service.send("a")
        assert [event["seq"] for event in answers[0]["events"]] == [end]
        assert (await client.get(f"/events?after={end}&wait=0.01")).json()["events"] == []


async def test_a_filtered_long_poll_answers_after_one_stretch_before_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "EVENT_ROWS_MAX", 2)
    async with running(tmp_path) as service, service.client() as client:
        await service.send("a")
        with trio.fail_after(30):
            page = (await client.get("/events?after=0&wait=20&kind=AccountPaused")).json()
        assert page["events"] == [] and page["next"] == 2


async def test_a_look_back_ends_with_its_client(tmp_path, monkeypatch):
    pages = []

    def endless(path, *, seq, time_us, progress):
        try:
            while True:
                pages.append(seq)
                progress(1, 2)
        finally:
            pages.append("ended")

    monkeypatch.setattr(replay, "at", endless)
    async with running(tmp_path) as service, service.client() as client:
        await service.send("a")
        with trio.move_on_after(0.3):
            await client.get("/audit/at?seq=1&view=pending")
        with trio.fail_after(30):
            while not pages or pages[-1] != "ended" or service.door.audits.borrowed_tokens:
                await trio.sleep(0.01)


async def test_a_look_back_at_what_is_damaged_is_no_bug_and_ends_nothing(tmp_path, monkeypatch, caplog):
    def damaged(path, *, seq, time_us, progress):
        connection = sqlite3.connect(path)
        connection.execute("pragma writable_schema = on")
        connection.execute("update sqlite_master set rootpage = 999999 where name = 'log'")
        connection.execute("pragma writable_schema = reset")
        connection.execute("select max(at_us) from log").fetchall()

    async with running(tmp_path) as service, service.client() as client:
        await service.send("a")
        with monkeypatch.context() as patch:
            copy = tmp_path / "copy.db"
            with sqlite3.connect(service.store.path) as live, sqlite3.connect(copy) as target:
                live.backup(target)
            patch.setattr(replay, "at", lambda path, **fields: damaged(copy, **fields))
            answer = await client.get("/audit/at?seq=1&view=pending")
        assert answer.status_code == 503 and "cannot be read" in answer.json()["error"]
        assert "is damaged: keep a copy" in caplog.text and "Traceback" not in caplog.text
        assert (await client.get("/audit/at?seq=1&view=pending")).status_code == 200


async def test_a_secret_that_cannot_be_unsealed_hides_its_user_alone(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("good", "u", "p")
        fact = AccountSaved(id="bad", host="relay.example", port=25, credentials="c" * 16, has_password=True)
        await service.one(Draft(fact, account=OWN), Sealed(b"sealed under another key, long enough"))
        accounts = (await client.get("/accounts")).json()["accounts"]
        assert {account["id"]: account.get("user") for account in accounts} == {"good": "u", "bad": None}


async def test_the_log_says_what_is_in_flight(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.start(await service.accept("a"))
        service.door._gauges = lambda: {"in_flight": 7, "connections": 3}
        lines = (await client.get("/metrics")).text.splitlines()
        assert "letterbook_in_flight 1.0" in lines and "letterbook_connections 3.0" in lines


async def test_cursors_of_another_log_or_past_the_end_are_conflicts(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        for path in ("/events", "/results"):
            for query in ("log=other", "after=2"):
                answer = await client.get(f"{path}?{query}")
                assert answer.status_code == 409 and service.store.log_id in answer.json()["error"]
                assert answer.json()["log"] == service.store.log_id and answer.json()["seq"] == 1


async def test_a_cursor_may_be_ahead_of_what_followers_have(tmp_path):
    """A page shows what is on disk; publishing it comes a moment later."""
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        end = (await client.get("/events")).json()["next"]
        service.store._hub.last_seq = end - 1
        for path in ("/events", "/results"):
            assert (await client.get(f"{path}?after={end}&log={service.store.log_id}")).json()["next"] == end
            assert (await client.get(f"{path}?after={end + 1}")).status_code == 409
        service.store._hub.last_seq = end


async def test_accounts_show_no_password(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        body = {"id": "mine", "host": "h", "port": 25, "user": "me", "password": "secret"}
        assert (await client.post("/account", json=body)).json() == {"ok": True}
        answer = await client.get("/accounts")
        (account,) = answer.json()["accounts"]
        assert account["user"] == "me" and account["has_password"] is True and "secret" not in answer.text
        for path, paused in (("/account/mine/pause", True), ("/account/mine/resume", False)):
            assert (await client.post(path)).json() == {"ok": True}
            assert (await client.get("/accounts")).json()["accounts"][0]["paused"] is paused
        assert (await client.delete("/account/mine")).json() == {"ok": True}
        assert (await client.get("/accounts")).json() == {"ok": True, "accounts": []}
        answer = await client.delete("/account/never")
        assert answer.status_code == 404 and answer.json()["error"] == "account not found: never"


async def test_run_now_suspend_activate_take_any_body_or_none(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for name in ("run-now", "suspend", "activate"):
            for body in ({}, {"json": {"whatever": 1}}, {"json": {}}):
                answer = await client.post(f"/commands/{name}", **body)
                assert answer.status_code == 200 and answer.json()["ok"] is True


async def test_delete_messages_names_what_was_not_found(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        answer = await client.post("/commands/delete-messages", json={"ids": ["a", "b"]})
        assert answer.json() == {"ok": True, "removed": 0, "not_found": ["a", "b"]}


async def test_the_past_has_the_same_shapes(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        number = await service.accept("a")
        attempt = await service.start(number)
        end = await service.end(number, attempt)
        for view in ("pending", "deferred", "held", "results", "accounts"):
            answer = await client.get(f"/audit/at?seq={number}&view={view}")
            assert answer.status_code == 200 and answer.json()["ok"] is True
        pending = (await client.get(f"/audit/at?seq={number}&view=pending")).json()["pending"]
        assert [each["id"] for each in pending] == ["a"] and "waiting_for" not in pending[0]
        assert pending[0]["subject"] == "About a"
        assert (await client.get(f"/audit/at?seq={end}&view=pending")).json()["pending"] == []
        then = (await client.get(f"/audit/at?seq={attempt}&view=message&id=a")).json()
        assert then["status"] == "in_flight" and len(then["timeline"]) == 2
        now = service.store.clock.now_us() / 1e6
        assert (await client.get(f"/audit/at?time={now + 100}&view=pending")).status_code == 404
        assert (await client.get("/audit/at?time=5&view=pending")).status_code == 404
        assert (await client.get(f"/audit/at?seq={end + 1}&view=pending")).status_code == 404
        assert (await client.get("/audit/at?seq=1&view=message&id=a")).status_code == 404
        for query in ("view=pending", "seq=1&time=1&view=pending", "seq=1&view=message", "seq=1&view=else"):
            assert (await client.get(f"/audit/at?{query}")).status_code == 400


async def test_metrics_count_what_was_called_sent_by_what_it_came_to(tmp_path):
    """Called sent, a message of which a recipient was refused before has failed all the same."""
    async with running(tmp_path) as service, service.client() as client:
        for name, statuses in (("whole", ("in_doubt",)), ("half", ("in_doubt", "refused"))):
            number = await service.accept(name, to=[f"r{each}@example.org" for each in range(len(statuses))])
            attempt = await service.start(number, recipients=tuple(range(len(statuses))))
            outcomes = [Outcome(index, status) for index, status in enumerate(statuses)]
            await service.end(number, attempt, *outcomes, then="held", cause="in_doubt")
            assert (await client.post(f"/messages/{name}/resolve", json={"as": "sent"})).status_code == 200
        counted = {f'asyncmail_{each}_total{{account_id="default"}} 1.0' for each in ("sent", "errors")}
        with trio.fail_after(30):
            while not counted <= set((await client.get("/metrics")).text.splitlines()):
                await trio.sleep(0.01)


async def test_metrics_count_and_conserve(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.send("a")
        await service.refuse("b")
        await service.accept("c")
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
        assert lines['asyncmail_sent_total{account_id="default"}'] == "1.0"
        assert lines['asyncmail_errors_total{account_id="default"}'] == "1.0"
        assert lines["asyncmail_pending_messages"] == "1.0"
        states = {name: float(value) for name, value in lines.items() if name.startswith("letterbook_messages")}
        accepted = states.pop('letterbook_messages{state="accepted"}')
        states.pop('letterbook_messages{state="rejected"}')
        assert accepted == sum(states.values()) == 3
        assert float(lines["letterbook_log_bytes"]) > 0 and float(lines["letterbook_queue_age_seconds"]) > 0
        assert lines["letterbook_attempt_seconds_count"] == "2.0"


async def test_older_dashboards_may_have_the_other_prefix(tmp_path):
    async with running(tmp_path, legacy_prefix="gmp") as service, service.client() as client:
        assert "gmp_pending_messages" in (await client.get("/metrics")).text


async def test_without_a_token_everybody_on_this_machine_may_call(tmp_path):
    async with running(tmp_path, api_token="") as service, service.client() as client:
        client.headers.pop("X-API-Token")
        assert (await client.get("/status")).status_code == 200
        assert (await client.get("/status", headers={"Origin": service.url})).status_code == 200
        for origin in ("https://elsewhere.example", "null", "http://127.0.0.1:1"):
            answer = await client.post("/commands/suspend", headers={"Origin": origin})
            assert answer.status_code == 401 and "api_token" in answer.json()["error"]


async def test_in_process_commands_answer_as_http_does(tmp_path):
    from gateway.commands import handle_command

    async with running(tmp_path) as service:
        door = service.door
        assert await handle_command(door, "nonsense", {}) == {"ok": False, "error": "unknown command"}
        answer = await handle_command(door, "addMessages", {"messages": [message("a"), {}]})
        assert answer == {"ok": True, "queued": 1, "rejected": [{"reason": "missing id"}]}
        assert service.submitted[0].by == "program"
        pending = await handle_command(door, "pendingMessages", {"limit": 10})
        assert [each["id"] for each in pending["pending"]] == ["a"]
        assert (await handle_command(door, "run now")) == {"ok": True}
        wrong = await handle_command(door, "addMessages", {"messages": 3})
        assert wrong["ok"] is False and "messages" in wrong["error"]
        assert (await handle_command(door, "addMessages", {"messages": [object()]}))["ok"] is False
        assert (await handle_command(door, "listMessages", {"limit": "many"}))["ok"] is False
        assert "asyncmail" in (await handle_command(door, "metrics"))["text"]
