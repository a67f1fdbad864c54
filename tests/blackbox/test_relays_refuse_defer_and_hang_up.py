"""What a relay's refusals, delays and broken conversations become: each recipient's outcome, the next attempt, and the
words in which an operator finds it in results, timelines, events and /status."""

import pytest

from letterbook.capture import CaptureRelay

from .relays import Line, ScriptedRelay, StockRelay
from .service import kinds, mail, subject_id

STANDING = {"delivery_retry_delays": "0.2", "delivery_max_retries": 2}


async def test_4xx_is_retried_and_5xx_ends_at_once(shared):
    async with CaptureRelay().listening() as relay:
        await shared.account("codes", relay.port)
        asked = {
            "later": "451-then-250@example.org",
            "later-at-dot": "451-at-dot-then-250@example.org",
            "never": "550@example.org",
            "never-at-dot": "554-at-dot@example.org",
            "always-later": "450@example.org",
        }
        await shared.add([mail(name, address, account_id="codes") for name, address in asked.items()])
        results = {result["id"]: result for result in await shared.until_results(len(asked), "codes")}
        taken = sorted(subject_id(message.content) for message in relay.messages)
    assert taken == ["later", "later-at-dot"]
    assert {name: (result["status"], result["attempts"]) for name, result in results.items()} == {
        "later": ("sent", 2),
        "later-at-dot": ("sent", 2),
        "never": ("error", 1),
        "never-at-dot": ("error", 1),
        "always-later": ("error", 3),
    }
    assert results["never"]["smtp_code"] == 550
    assert results["never"]["error"].startswith("550 5.1.1 ")
    assert results["never-at-dot"]["error"].startswith("554 5.7.1 ")
    assert results["always-later"]["error"].startswith("Max retries (2) exceeded: 450 4.2.1 ")


async def test_one_of_three_recipients_is_refused_and_the_result_says_which(shared):
    async with CaptureRelay().listening() as relay:
        await shared.account("three", relay.port)
        recipients = ["ann@example.org", "550@example.org", "bob@example.org"]
        await shared.add([mail("one-three", recipients, account_id="three")])
        (result,) = await shared.until_results(1, "three")
        (message,) = relay.messages
    assert message.recipients == ("ann@example.org", "bob@example.org")
    assert result["status"] == "error" and result["error"].startswith("1 of 3 refused: 550 ")
    assert [(each["address"], each["status"], each["code"]) for each in result["recipients"]] == [
        ("ann@example.org", "delivered", 250),
        ("550@example.org", "refused", 550),
        ("bob@example.org", "delivered", 250),
    ]
    assert result["recipients"][1]["reply"].startswith("550 5.1.1 ")


async def test_a_relay_that_hangs_up_after_the_final_dot_leaves_the_message_in_doubt(shared):
    async with CaptureRelay().listening() as relay:
        await shared.account("doubt", relay.port)
        await shared.add([mail("one-doubt", "drop-after-dot-then-250@example.org", account_id="doubt")])
        (result,) = await shared.until_results(1, "doubt")
        message = await shared.message("one-doubt")
        events = await shared.events("AttemptEnded")
        first, second = relay.messages
    assert (first.acknowledged, second.acknowledged) == (False, True)
    assert result["status"] == "sent" and result["attempts"] == 2
    timeline = message["timeline"]
    assert kinds(timeline) == ["MessageAccepted", "AttemptStarted", "AttemptEnded", "AttemptStarted", "AttemptEnded"]
    assert [outcome["status"] for outcome in timeline[2]["outcomes"]] == ["in_doubt"]
    ends = [end["outcomes"] for end in events if end["message_id"] == "one-doubt"]
    assert [[outcome["status"] for outcome in outcomes] for outcomes in ends] == [["in_doubt"], ["delivered"]]

    def identity(content):
        return [line for line in content.split(b"\r\n") if line.startswith(b"Message-ID:")]

    assert identity(first.content) == identity(second.content) != []


async def test_mail_in_doubt_is_held_where_the_operator_wants_so(service):
    it = await service(delivery_in_doubt="hold")
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        await it.add([mail("m", "drop-after-dot@example.org", account_id="a")])
        await it.until("/status", lambda status: status["held"] == 1)
        message = await it.message("m")
        assert relay.received == 1
    assert message["status"] == "held"
    assert message["recipients"][0]["status"] == "in_doubt"


async def test_replies_of_several_lines_and_in_single_bytes_are_understood(shared):
    async with CaptureRelay(multi_line=True, split_bytes=1).listening() as relay:
        await shared.account("lines", relay.port)
        await shared.add([mail("good", account_id="lines"), mail("bad", ["550@example.org"], account_id="lines")])
        results = {result["id"]: result for result in await shared.until_results(2, "lines")}
        assert [subject_id(message.content) for message in relay.messages] == ["good"]
    assert results["good"]["status"] == "sent"
    assert results["bad"]["smtp_code"] == 550


async def test_mail_deferred_in_a_pipeline_is_a_deferral_whatever_follows(shared):
    """After 451 to MAIL the pipelined RCPT and DATA are out of order: their 503 says nothing about the message."""
    async with CaptureRelay(mail_reply="451 4.3.0 not now").listening() as relay:
        await shared.account("pipeline", relay.port)
        await shared.add([mail("one-pipeline", ["ann@example.org", "bob@example.org"], account_id="pipeline")])
        (result,) = await shared.until_results(1, "pipeline")
        message = await shared.message("one-pipeline")
    ends = [fact for fact in message["timeline"] if fact["kind"] == "AttemptEnded"]
    outcomes = [[(each["status"], each["code"]) for each in end["outcomes"]] for end in ends]
    assert outcomes == [[("deferred", 451)] * 2] * 3
    assert [end["next"] for end in ends] == ["due", "due", "failed"]
    assert result["error"].startswith("Max retries (2) exceeded: ") and "451 4.3.0 not now" in result["error"]


async def test_a_changed_password_charges_no_message_and_is_mended_by_the_right_one(shared, authority, ca_file):
    with StockRelay(authority, {"clerk": "old"}).listening() as relay:
        fields = {"user": "clerk", "tls": "starttls-required", "tls_ca_file": str(ca_file)}
        # A connection that has logged in would go on serving: only new ones meet the change.
        fields |= {"max_messages_per_connection": 1, "max_connections": 1}
        await shared.account("password", relay.port, password="old", **fields)
        await shared.add([mail("before", account_id="password")])
        await shared.until_results(1, "password")
        relay.logins["clerk"] = "new"
        await shared.add([mail(f"after-{number}", account_id="password") for number in range(5)])
        status = await shared.until("/status", lambda status: "unreachable_until" in status["accounts"]["password"])
        assert status["accounts"]["password"]["reason"] == "auth"
        # One message at most can have gone over a connection that had logged in before.
        assert status["pending"] >= 4 and relay.refused_logins >= 1
        pending = await shared.get("/pending")
        assert {row["waiting_for"]["reason"] for row in pending["pending"]} == {"relay_unreachable"}
        await shared.account("password", relay.port, password="new", **fields)
        await shared.post("/commands/run-now")
        results = await shared.until_results(6, "password")
        healed = await shared.status()
        await shared.client.delete("/account/password")
        await relay.until_left()
    assert "unreachable_until" not in healed["accounts"]["password"] and "reason" not in healed["accounts"]["password"]
    assert {result["status"] for result in results} == {"sent"}
    assert {result["attempts"] for result in results} == {1}


INJECTED = b"220 go ahead\r\n250 injected\r\n"


@pytest.mark.parametrize("tls", ["auto", "starttls-required"])
async def test_bytes_before_the_tls_handshake_are_refused(shared, tls):
    """What follows 220 in clear was said by nobody whom TLS vouches for (CVE-2011-0411 turned round)."""
    rows = Line("EHLO", b"250-scripted\r\n250 STARTTLS\r\n"), Line("STARTTLS", INJECTED)
    async with ScriptedRelay(*rows).listening() as relay:
        await shared.account("injected", relay.port, tls=tls)
        await shared.add([mail(f"injected-{tls}", account_id="injected")])
        status = await shared.until("/status", lambda status: "reason" in status["accounts"]["injected"])
        message = await shared.message(f"injected-{tls}")
        assert not [line for line in relay.lines if line.startswith(("MAIL", "RCPT", "DATA"))]
    assert status["accounts"]["injected"]["reason"] == "injected"
    assert "AttemptStarted" not in kinds(message["timeline"])
