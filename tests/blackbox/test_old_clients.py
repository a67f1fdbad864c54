"""What was promised to clients of the service that this one replaces: one test a promise, named after it."""

import base64
import re
import time
from contextlib import asynccontextmanager
from email import message_from_bytes, policy

import httpx
import pytest
import trio

from letterbook import open_service
from letterbook.capture import CaptureRelay
from letterbook.config import load

from .conftest import started
from .service import TOKEN, Service, kinds, mail

STANDING: dict[str, object] = {
    # Nobody listens there: what goes to the default account is only ever looked at.
    "smtp_host": "127.0.0.1",
    "smtp_port": 9,
    "delivery_send_wait_seconds": 20,
    "delivery_max_retries": 0,
    "delivery_max_message_mb": 1,
}

LATER = int(time.time()) + 86_400
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
UNAUTHORIZED = {"ok": False, "error": "Invalid or missing API token", "detail": "Invalid or missing API token"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """A second service for all tests here: without a token, without a default account."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "config.ini").touch()
    it = Service(folder, {"server_api_token": "", "metrics_legacy_prefix": "gmp"})
    trio.run(started, it)
    try:
        yield it
    finally:
        trio.run(it.close)


@pytest.fixture
async def bare(another):
    another.attach()
    yield another
    await another.detach()


def stranger(it, headers=None):
    """A client who shows no more than these headers."""
    return httpx.AsyncClient(base_url=it.url, headers=headers, trust_env=False, verify=False, timeout=60)


def later(message_id, /, **fields):
    """A message that stays where it can be looked at."""
    return mail(message_id, **{"deferred_ts": LATER, **fields})


async def added(it, *messages, **beside):
    answer = await it.post("/commands/add-messages", {"messages": list(messages), **beside})
    assert answer["ok"] is True
    return answer


async def reason(it, message):
    """Why this one message is not taken."""
    answer = await added(it, message)
    assert answer["queued"] == 0
    (rejected,) = answer["rejected"]
    assert rejected.get("id") == (message.get("id") or None)
    return rejected["reason"]


@asynccontextmanager
async def relayed(it, account, **fields):
    """A relay of ours, and an account of this name on it."""
    async with CaptureRelay().listening() as relay:
        await it.account(account, relay.port, **fields)
        yield relay


async def delivered(it, account, **fields):
    """A message as the relay of its account was given it, with the envelope."""
    async with relayed(it, account) as relay:
        assert (await added(it, mail(f"{account}-1", **{"account_id": account, **fields})))["queued"] == 1
        await it.until_results(1, account)
        (arrived,) = relay.messages
    return arrived, message_from_bytes(arrived.content, policy=policy.default)


# Who may come in


@pytest.mark.parametrize(
    "headers", [{"X-API-Token": TOKEN}, {"Authorization": f"Bearer {TOKEN}"}, {"authorization": f"bearer {TOKEN}"}]
)
async def test_the_token_is_an_x_api_token_or_a_bearer(shared, headers):
    async with stranger(shared, headers) as client:
        assert (await client.get("/status")).status_code == 200


async def test_a_wrong_or_missing_token_is_a_401_in_the_two_names(shared):
    async with stranger(shared) as client:
        for headers in ({}, {"X-API-Token": "wrong"}, {"Authorization": "Basic eA=="}):
            answer = await client.get("/status", headers=headers)
            assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/openapi.json"])
async def test_some_routes_are_open(shared, path):
    async with stranger(shared) as client:
        assert (await client.get(path)).status_code == 200


async def test_without_a_token_everybody_may_call_on_a_loopback_address_only(bare):
    async with stranger(bare) as client:
        assert (await client.get("/status")).status_code == 200
    said = await bare.run("check-config", server_host="0.0.0.0")
    assert said.code == 1 and "host = 0.0.0.0 is open to others" in said.err


# Errors

WRONG = {
    "not JSON": ("POST", "/commands/add-messages", {"content": b"{", "headers": JSON}, 400),
    "wrong envelope": ("POST", "/commands/add-messages", {"json": {"messages": 7}}, 400),
    "no route": ("GET", "/nothing", {}, 404),
    "no message": ("GET", "/messages/unknown", {}, 404),
    "no account": ("DELETE", "/account/unknown", {}, 404),
    "method": ("GET", "/commands/add-messages", {}, 405),
    "cursor": ("GET", "/results?after=999999999", {}, 409),
    "media type": ("POST", "/account", {"content": b"id=1", "headers": {"Content-Type": "text/plain"}}, 415),
    "upgrade": ("GET", "/events/stream", {}, 426),
}


@pytest.mark.parametrize("case", WRONG)
async def test_every_error_is_json_with_ok_error_and_detail(shared, case):
    method, path, request, status = WRONG[case]
    answer = await shared.client.request(method, path, **request)
    body = answer.json()
    assert answer.status_code == status and answer.headers["content-type"] == "application/json"
    assert body["ok"] is False and body["error"] == body["detail"] and isinstance(body["error"], str)


async def test_a_fault_of_the_envelope_names_the_field(shared):
    answer = await shared.client.post("/commands/delete-messages", json={"ids": ["a", 7]})
    assert answer.status_code == 400 and "$.ids[1]" in answer.json()["error"]


async def test_an_unknown_field_of_a_body_is_named(shared):
    for path, body in (
        ("/commands/add-messages", {"messages": []}), ("/commands/delete-messages", {"ids": []}),
        ("/commands/cleanup-messages", {}), ("/account", {"id": "a", "host": "h", "port": 25}),
    ):  # fmt: skip
        answer = await shared.client.post(path, json={**body, "surprise": 1})
        assert answer.status_code == 400 and "surprise" in answer.json()["error"]


async def test_run_now_suspend_and_activate_ignore_unknown_fields_and_need_no_body(shared):
    for path in ("/commands/run-now", "/commands/suspend", "/commands/activate"):
        assert (await shared.post(path, {"surprise": 1}))["ok"] is True
        assert (await shared.client.post(path)).status_code == 200


async def test_null_in_an_optional_field_means_absent_in_every_body(shared):
    account = dict.fromkeys(("user", "password", "ttl", "limit_per_minute", "use_tls", "tls", "auth"))
    await shared.account("nulls", 9, **account)
    nulls = dict.fromkeys(
        ("account_id", "cc", "bcc", "reply_to", "return_path", "content_type", "body_html", "headers")
    )
    nulls |= dict.fromkeys(("message_id", "attachments", "priority", "expires_ts"))
    assert (await added(shared, later("nulls", **nulls), default_priority=None))["queued"] == 1
    assert (await shared.post("/commands/cleanup-messages", {"older_than_seconds": None}))["ok"] is True
    assert (await shared.post("/commands/activate", {"restored": None}))["active"] is True


# Commands by name


async def test_handle_command_knows_the_names_of_old(tmp_path):
    names = (
        "run now", "suspend", "activate", "addAccount", "listAccounts", "deleteAccount", "sendMessage", "addMessages",
        "deleteMessages", "listMessages", "cleanupMessages", "pendingMessages", "listDeferred",
    )  # fmt: skip
    settings = {"storage_db_path": tmp_path / "a.db", "storage_key_file": tmp_path / "a.key", "storage_min_free_mb": 1}
    file = tmp_path / "config.ini"
    file.touch()
    config = load(file, {f"LETTERBOOK_{name}".upper(): str(value) for name, value in settings.items()})
    async with open_service(config) as service:
        for name in names:
            assert (await service.handle_command(name, {})).get("error") != "unknown command"
        assert await service.handle_command("dance", {}) == {"ok": False, "error": "unknown command"}
        assert await service.handle_command("listAccounts", {}) == {"ok": True, "accounts": []}


# Cursors


async def test_a_log_stands_beside_every_cursor(shared):
    status = await shared.status()
    assert (await shared.get("/events"))["log"] == (await shared.get("/results"))["log"] == status["log"]
    assert (await shared.get("/results", log=status["log"]))["ok"] is True


async def test_the_cursor_of_another_log_is_a_409_that_names_this_one(shared):
    status = await shared.status()
    for path in ("/events", "/results"):
        answer = await shared.client.get(path, params={"log": "another"})
        assert answer.status_code == 409 and answer.json()["log"] == status["log"]
        assert answer.json()["seq"] >= status["seq"]


async def test_after_is_exclusive_and_next_goes_on(shared):
    await added(shared, later("page-1"), later("page-2"), later("page-3"))
    first = await shared.get("/messages", limit=1)
    rest = await shared.get("/messages", after=first["next"], limit=10_000)
    assert len(first["messages"]) == 1 and first["messages"][0] not in rest["messages"] and "next" not in rest
    assert (await shared.client.get("/messages", params={"limit": 10_001})).status_code == 400


# The service


async def test_health_and_ready_are_as_they_were(shared):
    assert await shared.get("/health") == {"status": "ok"}
    await shared.post("/commands/activate")
    assert await shared.get("/ready") == {"ready": True}
    await shared.post("/commands/suspend")
    answer = await shared.client.get("/ready")
    await shared.post("/commands/activate")
    assert answer.status_code == 503 and answer.json() == {"ready": False, "reasons": ["suspended"]}


async def test_status_has_four_counts_and_the_accounts(shared):
    status = await shared.status()
    assert status["ok"] is True and status["active"] is True and status["reasons"] == []
    assert all(isinstance(status[name], int) for name in ("pending", "deferred", "in_flight", "held", "seq"))
    assert isinstance(status["version"], str) and status["accounts"]["default"]["paused"] is False


async def test_run_now_suspend_and_activate_answer_as_before(shared):
    assert await shared.post("/commands/run-now") == {"ok": True}
    assert await shared.post("/commands/suspend") == {"ok": True, "active": False}
    assert (await shared.status())["active"] is False
    assert await shared.post("/commands/activate") == {"ok": True, "active": True}


async def test_nothing_starts_after_suspend_until_activate(shared):
    async with relayed(shared, "stopped") as relay:
        await shared.post("/commands/suspend")
        await added(shared, mail("stopped-1", account_id="stopped"))
        record = await shared.message("stopped-1")
        assert record["waiting_for"] == {"reason": "suspended"} and relay.received == 0
        await shared.post("/commands/activate")
        await shared.until_results(1, "stopped")
        assert relay.received == 1


async def test_metrics_have_the_names_of_old(shared):
    text = (await shared.client.get("/metrics")).text
    for name in ("sent_total", "errors_total", "deferred_total", "rate_limited_total"):
        assert f"# TYPE asyncmail_{name} counter" in text
    assert re.search(r"^asyncmail_pending_messages \d", text, re.MULTILINE)
    assert "letterbook_messages{" in text


async def test_metrics_have_the_prefix_gmp_on_request(bare):
    text = (await bare.client.get("/metrics")).text
    assert "gmp_sent_total" in text and "gmp_pending_messages" in text and "asyncmail_" not in text


# Accounts


async def test_accounts_are_listed_without_passwords(shared):
    await shared.account("shown", 2525, user="u", password="very secret", limit_per_minute=30, limit_per_hour=0)
    text = (await shared.client.get("/accounts")).text
    (account,) = [each for each in (await shared.get("/accounts"))["accounts"] if each["id"] == "shown"]
    assert "very secret" not in text and account["has_password"] is True
    assert (account["host"], account["port"], account["user"], account["ttl"]) == ("127.0.0.1", 2525, "u", 300)
    assert account["limit_per_minute"] == 30 and account["limit_behavior"] == "defer"
    assert "limit_per_hour" not in account and "limit_per_day" not in account  # 0 means none, and null is left out


async def test_a_missing_password_keeps_the_stored_one_for_the_same_relay_only(shared):
    async def has_password(port, **fields):
        await shared.account("kept", port, user="u", **fields)
        return {each["id"]: each["has_password"] for each in (await shared.get("/accounts"))["accounts"]}["kept"]

    assert await has_password(25, password="p") and await has_password(25) and not await has_password(26)


async def test_a_deleted_accounts_mail_ends_with_a_result(shared):
    await shared.account("gone", 9)
    await added(shared, later("gone-1", account_id="gone"))
    answer = await shared.client.delete("/account/gone")
    assert answer.json() == {"ok": True}
    record = await shared.until("/messages/gone-1", lambda record: record["status"] == "error")
    assert (record["status"], record["error"]) == ("error", "account removed")
    assert await reason(shared, later("gone-2", account_id="gone")) == "account not found"


async def test_an_account_can_be_paused_and_resumed(shared):
    await shared.account("paused", 9)
    assert await shared.post("/account/paused/pause") == {"ok": True}
    assert (await shared.status())["accounts"]["paused"]["paused"] is True
    assert await shared.post("/account/paused/resume") == {"ok": True}


# The log


async def test_events_have_seq_time_kind_and_whom_they_are_about(shared):
    await added(shared, later("fact-1"))
    page = await shared.get("/events", message_id="fact-1")
    (fact,) = page["events"]
    assert fact["kind"] == "MessageAccepted" and fact["message_id"] == "fact-1" and fact["account_id"] == "default"
    assert isinstance(fact["seq"], int) and fact["at_us"] > LATER * 1000 and page["next"] >= fact["seq"]
    by_kind = await shared.get("/events", kind="MessageAccepted", account_id="default", limit=10_000)
    assert fact in by_kind["events"] and {each["kind"] for each in by_kind["events"]} == {"MessageAccepted"}


async def test_expand_joins_what_the_log_does_not_hold(shared):
    await added(shared, later("expand-1", to="ann@example.org"))
    (bare_fact,) = (await shared.get("/events", message_id="expand-1"))["events"]
    (fact,) = (await shared.get("/events", message_id="expand-1", expand=1))["events"]
    assert fact["addresses"] == ["ann@example.org"] and fact["subject"] == "About expand-1"
    assert "ann@example.org" not in str(bare_fact) and "About" not in str(bare_fact)


async def test_a_ticket_is_for_a_browser_that_wants_the_stream(shared):
    answer = await shared.post("/events/ticket")
    assert answer["ok"] is True and answer["expires_in"] == 30 and len(answer["ticket"]) > 20


async def test_the_past_has_the_shape_of_the_present_without_waiting_for(shared):
    await added(shared, later("past-1"))
    seq = (await shared.status())["seq"]
    record = await shared.message("past-1")
    then = await shared.get("/audit/at", view="message", id="past-1", seq=seq)
    assert record.pop("waiting_for") and then == record
    assert (await shared.client.get("/audit/at", params={"view": "pending", "seq": 10**9})).status_code == 404
    assert (await shared.client.get("/audit/at", params={"view": "pending", "time": 1})).status_code == 404


# Many at once, by what they have in common


async def test_bulk_wants_to_know_which_and_tells_what_it_would_do(shared):
    await shared.account("many", 9)
    await added(shared, *(later(f"many-{number}", account_id="many") for number in range(3)))
    answer = await shared.client.post("/commands/bulk", json={"action": "withdraw", "where": {}})
    assert answer.status_code == 400 and "where is empty" in answer.json()["error"]
    bulk = {"action": "withdraw", "where": {"account_id": "many"}}
    assert await shared.post("/commands/bulk", {**bulk, "dry_run": True}) == {"ok": True, "matched": 3, "changed": 0}
    assert await shared.post("/commands/bulk", bulk) == {"ok": True, "matched": 3, "changed": 3}
    assert {(await shared.message(f"many-{number}"))["status"] for number in range(3)} == {"withdrawn"}


async def test_held_mail_is_listed_and_resolved(shared):
    await shared.account("asks", 9)
    await shared.post("/account/asks/pause")
    await added(shared, mail("asks-1", account_id="asks"))
    await shared.post("/commands/bulk", {"action": "hold", "where": {"account_id": "asks"}})
    (row,) = [each for each in (await shared.get("/held"))["held"] if each["id"] == "asks-1"]
    assert row["cause"] == "operator" and ISO.match(row["held_at"]) and isinstance(row["held_ts"], int)
    assert await reason(shared, mail("asks-1", account_id="asks")) == "in flight"
    assert await shared.post("/messages/asks-1/resolve", {"as": "sent"}) == {"ok": True}
    assert (await shared.message("asks-1"))["status"] == "sent"
    answer = await shared.client.post("/messages/asks-1/resolve", json={"as": "sent"})
    assert answer.status_code == 409


# One message at once


async def test_send_message_answers_with_the_result(shared):
    async with relayed(shared, "at-once"):
        answer = await shared.post("/commands/send-message", mail("at-once-1", account_id="at-once"))
    result = answer["result"]
    assert answer["ok"] is True and result["status"] == "sent" and ISO.match(result["timestamp"])
    assert (result["id"], result["account"], result["smtp_code"]) == ("at-once-1", "at-once", 250)
    assert [each["status"] for each in result["recipients"]] == ["delivered"]
    assert "error" not in result and "deferred_until" not in result


async def test_send_message_makes_an_id_or_takes_the_idempotency_key(shared):
    message = mail("", deferred_ts=LATER)
    del message["id"]
    answer = await shared.post("/commands/send-message", message)
    assert answer["result"]["status"] == "deferred" and answer["result"]["id"]
    assert answer["result"]["deferred_until"] == LATER
    headers = {"Idempotency-Key": "key-1"}
    for _ in range(2):
        answer = await shared.client.post("/commands/send-message", json=message, headers=headers)
        assert answer.json()["result"]["id"] == "key-1"


async def test_send_message_says_why_it_refuses(shared):
    answer = await shared.client.post("/commands/send-message", json={"id": "refused-1", "from": "a@example.org"})
    assert answer.status_code == 200 and answer.json() == {"ok": False, "error": "missing to", "id": "refused-1"}


# Many messages


async def test_add_messages_counts_what_is_queued_and_lists_what_is_rejected(shared):
    answer = await added(shared, later("queued-1"), {"id": "queued-2"}, {"from": "a@example.org"})
    rejected = [{"id": "queued-2", "reason": "missing from"}, {"reason": "missing id"}]
    assert answer == {"ok": True, "queued": 1, "rejected": rejected}


async def test_over_a_thousand_messages_are_refused_with_the_sentence_of_old(shared):
    answer = await shared.client.post("/commands/add-messages", json={"messages": [{}] * 1001})
    assert answer.status_code == 400 and answer.json()["error"] == "Cannot enqueue more than 1000 messages at once"
    assert (await shared.client.post("/commands/add-messages", json={"messages": [{}] * 1000})).status_code == 200


async def test_when_all_are_rejected_the_answer_is_200_all_the_same(shared):
    answer = await shared.client.post("/commands/add-messages", json={"messages": [{}, 7, "x", None]})
    assert answer.status_code == 200 and answer.json()["ok"] is True and answer.json()["queued"] == 0
    assert len(answer.json()["rejected"]) == 4


async def test_delete_messages_says_what_was_removed_and_what_is_unknown(shared):
    await added(shared, later("delete-1"))
    answer = await shared.post("/commands/delete-messages", {"ids": ["delete-1", "nobody"]})
    assert answer == {"ok": True, "removed": 1, "not_found": ["nobody"]}
    assert (await shared.message("delete-1"))["status"] == "withdrawn"
    assert "delete-1" not in {each["id"] for each in await shared.results()}


async def test_cleanup_lets_go_of_what_was_reported(bare):
    async with relayed(bare, "clean"):
        await bare.add([mail("clean-1", account_id="clean")])
        await bare.until("/messages/clean-1", lambda record: "reported_ts" in record)
    assert await bare.post("/commands/cleanup-messages", {"older_than_seconds": 0}) == {"ok": True, "removed": 1}
    assert await reason(bare, mail("clean-1", account_id="clean")) == "already sent"


# Lists


async def test_pending_rows_are_as_they_were(shared):
    await shared.account("waits", 9)
    await shared.post("/account/waits/pause")
    await added(shared, mail("waits-1", "Ann <ann@example.org>, bob@example.org", account_id="waits", priority="high"))
    (row,) = [each for each in (await shared.get("/pending"))["pending"] if each["id"] == "waits-1"]
    assert ISO.match(row.pop("started_at")) and isinstance(row.pop("started_ts"), int)
    assert row == {
        "id": "waits-1", "to_addr": "ann@example.org, bob@example.org", "subject": "About waits-1",
        "account_id": "waits", "priority": 1, "waiting_for": {"reason": "account_paused"},
    }  # fmt: skip


async def test_deferred_rows_are_as_they_were(shared):
    await added(shared, later("deferred-1"))
    (row,) = [each for each in (await shared.get("/deferred"))["deferred"] if each["id"] == "deferred-1"]
    assert ISO.match(row.pop("created_at")) and isinstance(row.pop("created_ts"), int)
    assert row == {
        "id": "deferred-1", "account_id": "default", "deferred_until": LATER, "cause": "due_later", "attempts": 0
    }  # fmt: skip


async def test_results_are_as_they_were(shared):
    async with relayed(shared, "results"):
        to = "ann@example.org, 550@example.org"
        await added(shared, mail("results-1", account_id="results"), mail("results-2", to, account_id="results"))
        results = {each["id"]: each for each in await shared.until_results(2, "results")}
    sent, error = results["results-1"], results["results-2"]
    assert sent["status"] == "sent" and isinstance(sent["sent_ts"], int) and "error_ts" not in sent
    assert "error" not in sent and sent["attempts"] == 1 and sent["smtp_code"] == 250
    assert error["status"] == "error" and isinstance(error["error_ts"], int) and "sent_ts" not in error
    assert error["error"].startswith("1 of 2 refused: 550 ") and error["smtp_code"] == 550
    assert {each["address"]: each["status"] for each in error["recipients"]} == {
        "ann@example.org": "delivered",
        "550@example.org": "refused",
    }


async def test_messages_have_their_fields_and_filters(shared):
    await added(shared, later("listed-1", account_id="default", priority=0))
    page = await shared.get("/messages", status="deferred", account_id="default", active_only="true", limit=10_000)
    (row,) = [each for each in page["messages"] if each["id"] == "listed-1"]
    assert ISO.match(row["created_at"]) and ISO.match(row["updated_at"])
    assert isinstance(row["created_ts"], int) and isinstance(row["updated_ts"], int)
    assert (row["status"], row["deferred_ts"], row["priority"]) == ("deferred", LATER, 0)
    assert row["message"]["subject"] == "About listed-1" and None not in row.values()
    assert {"sent_ts", "error_ts", "error", "reported_ts"}.isdisjoint(row)


async def test_a_message_is_found_by_its_percent_encoded_id(shared):
    await added(shared, later("a/b c%20ü"))
    record = await shared.get("/messages/a%2Fb%20c%2520%C3%BC")
    assert record["id"] == "a/b c%20ü" and record["ok"] is True and kinds(record["timeline"]) == ["MessageAccepted"]
    assert record["waiting_for"] == {"reason": "due_later", "until": LATER}


async def test_a_rejected_message_is_known_by_its_rejection(shared):
    await reason(shared, mail("known-1", "nobody"))
    record = await shared.message("known-1")
    assert (record["status"], record["error"]) == ("error", "invalid address: to[0]")


# A message


async def test_recipients_may_be_comma_strings(shared):
    arrived, letter = await delivered(
        shared, "commas", to="Ann <ann@example.org>, bob@example.org", cc="cy@example.org,di@example.org",
        bcc="ed@example.org, flo@example.org", reply_to="gus@example.org, hal@example.org",
    )  # fmt: skip
    names = ("ann", "bob", "cy", "di", "ed", "flo")
    assert set(arrived.recipients) == {f"{name}@example.org" for name in names}
    assert letter["To"] == "Ann <ann@example.org>, bob@example.org" and letter["Bcc"] is None
    assert letter["Cc"] == "cy@example.org, di@example.org"
    assert letter["Reply-To"] == "gus@example.org, hal@example.org"


async def test_the_envelopes_sender_is_return_path_else_from(shared):
    arrived, letter = await delivered(shared, "bounces", return_path="bounce@example.org")
    assert arrived.sender == "bounce@example.org" and "clerk@letterbook.test" in letter["From"]
    arrived, _ = await delivered(shared, "plain-from")
    assert arrived.sender == "clerk@letterbook.test"


async def test_content_type_html_is_html_and_body_html_makes_two_parts(shared):
    _, letter = await delivered(shared, "html", body="<p>é</p>", content_type="html")
    assert letter.get_content_type() == "text/html" and "<p>é</p>" in letter.get_content()
    _, letter = await delivered(shared, "both", body="plain", body_html="<p>rich</p>")
    assert letter.get_content_type() == "multipart/alternative"
    parts = [(part.get_content_type(), part.get_content().strip()) for part in letter.iter_parts()]
    assert parts == [("text/plain", "plain"), ("text/html", "<p>rich</p>")]


async def test_headers_replace_defaults_skip_null_and_never_touch_the_structure(shared):
    headers = {"X-One": "1", "X-None": None, "Date": "Thu, 01 Jan 2026 00:00:00 +0000", "Content-Type": "x/y"}
    headers |= {"From": "mallory@example.org", "Subject": "another", "Bcc": "m@example.org", "MIME-Version": "9"}
    arrived, letter = await delivered(shared, "headers", headers=headers)
    assert letter["X-One"] == "1" and letter["X-None"] is None and letter["Date"] == headers["Date"]
    assert letter.get_content_type() == "text/plain" and "clerk@" in letter["From"] and letter["Bcc"] is None
    assert letter["Subject"] == "About headers-1" and letter.get_all("MIME-Version") == ["1.0"]
    assert arrived.recipients == ("ann@example.org",)


async def test_a_message_id_is_kept(shared):
    _, letter = await delivered(shared, "message-id", message_id="<mine@example.org>")
    assert letter["Message-ID"] == "<mine@example.org>"


async def test_attachments_are_base64(shared):
    content = base64.b64encode(b"\0\1\2").decode()
    attachments = [
        {"filename": "a.bin", "content": content, "content_type": "application/x-own"},
        {"filename": "b.bin", "storage_path": f"base64:{content}"},
    ]
    _, letter = await delivered(shared, "files", attachments=attachments)
    found = [(part.get_filename(), part.get_content()) for part in letter.iter_attachments()]
    assert found == [("a.bin", b"\0\1\2"), ("b.bin", b"\0\1\2")]


async def test_unknown_fields_of_a_message_are_ignored(shared):
    message = later("unknown-fields", surprise={"a": [1]}, _id=7, retry_count=None)
    assert (await added(shared, message))["queued"] == 1
    assert "surprise" not in (await shared.message("unknown-fields"))["message"]


PRIORITIES = {
    "immediate": 0, "high": 1, "medium": 2, "low": 3, "HIGH": 1, 0: 0, 3: 3, -5: 0, 99: 3, 1e9: 3, 1.9: 1, None: 2,
}  # fmt: skip


async def test_a_priority_is_a_label_or_a_number_that_is_clamped(shared):
    messages = [later(f"priority-{wish}", priority=wish) for wish in PRIORITIES]
    assert (await added(shared, *messages))["queued"] == len(messages)
    for wish, number in PRIORITIES.items():
        assert (await shared.message(f"priority-{wish}"))["priority"] == number, wish


async def test_another_word_is_no_priority(shared):
    assert await reason(shared, later("urgent-1", priority="urgent")) == "invalid field: priority"


@pytest.mark.parametrize(("wish", "number"), [("low", 3), ("IMMEDIATE", 0), (1, 1), (-7, 0), (12, 3)])
async def test_default_priority_is_for_messages_that_name_none(shared, wish, number):
    ids = f"default-{wish}", f"own-{wish}"
    await added(shared, later(ids[0]), later(ids[1], priority=1), default_priority=wish)
    assert [(await shared.message(each))["priority"] for each in ids] == [number, 1]


async def test_expires_ts_ends_a_message(shared):
    await shared.account("expiring", 9)
    await shared.post("/account/expiring/pause")
    await added(shared, mail("expired-1", account_id="expiring", expires_ts=1))
    (result,) = await shared.until_results(1, "expiring")
    assert result["status"] == "error" and result["error"].startswith("Expired after ")


async def test_an_empty_subject_or_body_is_allowed(shared):
    assert (await added(shared, later("empty", subject="", body="")))["queued"] == 1


# Why a message is not taken: the first reason that holds

NO_ID = {key: value for key, value in mail("").items() if key != "id"}

REASONS = {
    "missing id": [NO_ID, mail(""), mail("") | {"id": None}],
    "missing from": [{"from": None}, {"from": ""}],
    "missing to": [{"to": None}, {"to": ""}, {"to": []}, {"to": " , "}],
    "missing subject": [{"subject": None}],
    "missing body": [{"body": None}],
    "invalid address: from": [{"from": "nobody"}],
    "invalid address: to[1]": [{"to": ["ann@example.org", "nobody"]}, {"to": "ann@example.org, nobody"}],
    "invalid address: cc[0]": [{"cc": "nobody"}],
    "invalid address: return_path": [{"return_path": "nobody"}],
    "control character in subject": [{"subject": "a\r\nBcc: m@example.org"}],
    "control character in headers": [{"headers": {"X-A": "a\nb"}}],
    "account not found": [{"account_id": "unknown"}],
    "message too large": [{"body": "x" * 1_100_000}],
    "invalid field: content_type": [{"content_type": "rtf"}],
    "invalid field: body_html": [{"body_html": 7}],
    "invalid field: attachments[0].content": [{"attachments": [{"filename": "a", "content": "no base64!"}]}],
    "invalid field: priority": [{"priority": []}],
    "invalid field: deferred_ts": [{"deferred_ts": "soon"}],
    "Invalid/unauthorized storage volumes: nowhere:a": [
        {"attachments": [{"filename": "a", "storage_path": "nowhere:a"}]}
    ],
}


@pytest.mark.parametrize("expected", REASONS)
async def test_every_reason_is_said_as_it_was(shared, expected):
    for number, fields in enumerate(REASONS[expected]):
        message = fields if expected == "missing id" else later(f"{expected}-{number}") | fields
        assert await reason(shared, message) == expected


async def test_the_first_reason_that_holds_is_given(shared):
    everything = {"id": "first", "to": "nobody", "account_id": "unknown", "priority": "urgent", "attachments": 7}
    found = []
    for name, value in (
        ("from", "a@example.org"), ("subject", "s"), ("body", "b"), ("to", "a@example.org"), ("account_id", None),
        ("attachments", None), ("priority", 1),
    ):  # fmt: skip
        found.append(await reason(shared, everything))
        everything[name] = value
    assert found == [
        "missing from", "missing subject", "missing body", "invalid address: to[0]", "account not found",
        "invalid field: attachments", "invalid field: priority",
    ]  # fmt: skip
    assert (await added(shared, everything | {"deferred_ts": LATER}))["queued"] == 1


async def test_without_an_account_and_a_default_the_configuration_is_missing(bare):
    assert await reason(bare, mail("nowhere")) == "missing account configuration"


async def test_a_rejection_is_a_result_only_where_the_id_is_new(shared):
    await added(shared, later("stands-1"))
    assert await reason(shared, mail("stands-1", "nobody")) == "invalid address: to[0]"
    assert (await shared.message("stands-1"))["status"] == "deferred"
    await reason(shared, mail("new-1", "nobody"))
    results = {each["id"]: each for each in await shared.results()}
    assert "stands-1" not in results and results["new-1"]["error"] == "invalid address: to[0]"


# The same id again


async def test_a_waiting_message_takes_the_new_content(shared):
    await added(shared, later("again-1"))
    assert (await added(shared, later("again-1", subject="Another")))["queued"] == 1
    assert (await shared.message("again-1"))["message"]["subject"] == "Another"


async def test_what_was_sent_is_already_sent_whatever_the_new_payload(shared):
    async with relayed(shared, "once") as relay:
        await added(shared, mail("once-1", account_id="once"))
        await shared.until_results(1, "once")
        for message in (mail("once-1", account_id="once"), {"id": "once-1"}, {"id": "once-1", "to": 7}):
            assert await reason(shared, message) == "already sent"
        assert relay.received == 1


async def test_what_failed_is_queued_afresh_for_those_who_do_not_have_it(shared):
    async with relayed(shared, "afresh") as relay:
        to = "ann@example.org, 550@example.org"
        await added(shared, mail("afresh-1", to, account_id="afresh"))
        await shared.until_results(1, "afresh")
        to = "ann@example.org, bob@example.org"
        assert (await added(shared, mail("afresh-1", to, account_id="afresh")))["queued"] == 1
        await shared.until_results(2, "afresh")
        assert [message.recipients for message in relay.messages] == [("ann@example.org",), ("bob@example.org",)]


async def test_twice_in_one_batch_the_last_wins_and_counts_once(shared):
    answer = await added(shared, later("twice-1", subject="One"), later("twice-1", subject="Two"))
    assert answer == {"ok": True, "queued": 1, "rejected": []}
    assert (await shared.message("twice-1"))["message"]["subject"] == "Two"


# Limits and retries


async def test_over_the_limit_a_message_is_deferred_or_rejected(shared):
    for name, behavior in (("defers", "defer"), ("rejects", "reject")):
        async with relayed(shared, name, limit_per_hour=1, limit_behavior=behavior):
            assert (await shared.post("/commands/send-message", mail(f"{name}-1", account_id=name)))["ok"] is True
            answer = await shared.post("/commands/send-message", mail(f"{name}-2", account_id=name))
        result = answer["result"]
        assert answer["ok"] is False
        if behavior == "defer":
            assert result["status"] == "deferred" and isinstance(result["deferred_until"], int)
        else:
            assert (result["status"], result["error"]) == ("error", "rate_limit_exceeded")


async def test_an_error_is_the_relays_reply_code_first(shared):
    async with relayed(shared, "refuses"):
        answer = await shared.post("/commands/send-message", mail("refuses-1", "550@example.org", account_id="refuses"))
    assert answer["result"]["status"] == "error" and answer["result"]["error"].startswith("550 5.1.1 ")
    assert answer["result"]["smtp_code"] == 550


async def test_exhausted_retries_say_so(shared):
    async with relayed(shared, "tired"):
        await added(shared, mail("tired-1", "451@example.org", account_id="tired"))
        (result,) = await shared.until_results(1, "tired")
    assert result["error"].startswith("Max retries (0) exceeded: 451 ")


# Everywhere

LISTS = ("/status", "/pending", "/deferred", "/held", "/results", "/messages", "/accounts")


def moments(value):
    """(name, value) of every field within."""
    for name, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield name, each
        if isinstance(each, dict | list):
            yield from moments(each)


@pytest.mark.parametrize("path", LISTS)
async def test_moments_are_seconds_or_iso_and_nothing_is_null(shared, path):
    """What the tests before it left in the lists is enough to look at, and one more is made for who runs it alone."""
    async with relayed(shared, "moments"):
        await added(shared, mail(f"moments{path}", account_id="moments"), later(f"later{path}"))
        await shared.until_results(1, "moments")
    answer = await shared.get(path, **({} if path == "/status" else {"limit": 10_000}))
    for name, value in moments(answer):
        assert value is not None, name
        if str(name).endswith("_at") or name == "timestamp":
            assert ISO.match(value), (name, value)
        if str(name).endswith(("_ts", "_until")):
            assert type(value) is int and 0 < value < 10**10, (name, value)
