"""Mail that is held until a person says what becomes of it: listed, and resolved each way, by the command line."""

import json
import os
import signal
import subprocess

import httpx
import trio

from letterbook.capture import CaptureRelay

from .service import WAIT_S_MAX, Said, kinds, letterbook, mail, subject_id


async def test_mail_in_doubt_is_held_and_becomes_what_the_operator_says(service):
    """The relay has all three, and hangs up before it says so; only the one that is resent comes twice."""
    it = await service(delivery_in_doubt="hold")
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        ids = {"again": "drop-after-dot-then-250@example.org", "arrived": "drop-after-dot@example.org"}
        ids["lost/one"] = "drop-after-dot@example.net"
        await it.add([mail(name, address, account_id="a") for name, address in ids.items()])
        await it.until("/status", lambda status: status["held"] == 3)
        held = (await it.get("/held"))["held"]
        table = await it.run("held")
        assert [(row["id"], row["cause"], row["recipients"][0]["status"]) for row in held] == [
            (name, "in_doubt", "in_doubt") for name in ids
        ]
        assert all(address in table.out for address in ids.values()) and table.out.startswith("id\tsince\t")
        said = [
            await it.run("resolve", name, "--as", resolution, "--url", it.url)
            for name, resolution in (("again", "resend"), ("arrived", "sent"), ("lost/one", "error"))
        ]
        assert [(each.code, each.out) for each in said] == [
            (0, "again waits again.\n"),
            (0, "arrived is called sent.\n"),
            (0, "lost/one is called an error.\n"),
        ]
        results = {result["id"]: result for result in await it.until_results(3)}
        assert sorted(subject_id(message.content) for message in relay.messages) == [
            "again",
            "again",
            "arrived",
            "lost/one",
        ]
    assert {name: result["status"] for name, result in results.items()} == {
        "again": "sent",
        "arrived": "sent",
        "lost/one": "error",
    }
    assert results["lost/one"]["error"] == "held, and resolved as an error"
    timeline = (await it.message("again"))["timeline"]
    assert kinds(timeline)[-4:] == ["AttemptEnded", "DoubtResolved", "AttemptStarted", "AttemptEnded"]
    assert timeline[-3]["by"] == "cli"
    late, unknown = [
        await it.run("resolve", name, "--as", "sent", "--url", it.url, "--json") for name in ("again", "nobody")
    ]
    assert (late.code, unknown.code) == (1, 1)
    assert late.err.startswith("letterbook: the message is not held, it is sent: ")
    assert unknown.err == "letterbook: No message with this id is known\n"
    assert (await it.run("held")).out.count("\n") == 1
    at = await it.run("at", timeline[-4]["seq"], "held", "--json")
    assert "again" in [row["id"] for row in json.loads(at.out)["held"]]
    assert (await it.run("rebuild", "--check")).code == 0


async def test_many_messages_are_held_released_retried_and_withdrawn_by_the_command_line(service):
    it = await service(delivery_retry_delays="3600")

    async def bulk(action, *options, code=0):
        said = await it.run("bulk", action, *options, "--url", it.url)
        assert said.code == code, said
        return said.out if code == 0 else said.err

    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        await it.post("/account/a/pause")
        await it.add([mail(f"news-{n}", account_id="a", subject="The News", priority=3) for n in range(1500)])
        others = {"other": "x@elsewhere.example", "later": "451-then-250@example.org"}
        await it.add([mail(name, address, account_id="a") for name, address in others.items()])
        assert "say which messages are meant" in await bulk("hold", code=2)
        assert await bulk("hold", "--subject", "the NEWS", "--dry-run") == "1,500 messages would be held.\n"
        assert "give --yes" in await bulk("hold", "--subject", "the news", code=2)
        assert (await it.status())["held"] == 0
        assert await bulk("hold", "--subject", "the news", "--account", "a", "--yes") == "1,500 messages held.\n"
        assert await bulk("hold", "--subject", "the news", "--yes") == "0 messages would be held.\n"
        assert await bulk("withdraw", "--to-domain", "Elsewhere.example", "--yes") == "1 message withdrawn.\n"
        await it.post("/account/a/resume")
        await it.until("/deferred", lambda page: [row["cause"] for row in page["deferred"]] == ["retry"])
        assert relay.received == 0
        assert await bulk("retry", "--status", "deferred", "--yes") == "1 message tried again.\n"
        (result,) = await it.until_results(1)
        assert (result["id"], result["attempts"]) == ("later", 2)
        answer = await bulk("release", "--priority", "low", "--yes", "--json")
        assert json.loads(answer) == {"ok": True, "matched": 1500, "changed": 1500}
        await it.until_results(1501)
        assert relay.received == 1501
    facts = await it.events("MessageHeld")
    assert len(facts) == 1500 and {fact["by"] for fact in facts} == {"cli"}
    assert (await it.message("other"))["status"] == "withdrawn"
    assert (await it.run("rebuild", "--check")).code == 0


async def test_what_failed_is_tried_again_for_those_who_were_not_reached(service):
    it = await service()
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        await it.add([mail("m", ["ann@example.org", "550-then-250@example.org"], account_id="a")])
        (result,) = await it.until_results(1)
        assert result["status"] == "error" and result["error"].startswith("1 of 2 refused: 550 ")
        where = {"status": "error", "account_id": "a"}
        answer = await it.post("/commands/bulk", {"action": "retry", "where": where})
        assert answer == {"ok": True, "matched": 1, "changed": 1}
        _, again = await it.until_results(2)
        reached = [message.recipients for message in relay.messages]
        assert reached == [("ann@example.org",), ("550-then-250@example.org",)]
        assert again["status"] == "sent" and again["attempts"] == 1
        await it.post("/commands/delete-messages", {"ids": ["m"]})
    timeline = (await it.message("m"))["timeline"]
    assert "MessageRequeued" in kinds(timeline)
    nothing = await it.post("/commands/bulk", {"action": "retry", "where": where})
    assert nothing == {"ok": True, "matched": 0, "changed": 0}


async def test_a_bulk_action_that_the_stop_breaks_off_has_done_what_the_log_says_and_goes_on_when_asked_again(service):
    it = await service()
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        await it.post("/commands/suspend")
        await it.add([mail(f"m{n}", account_id="a") for n in range(4000)])
        body = {"action": "hold", "where": {"account_id": "a"}}
        async with trio.open_nursery() as nursery:
            answered = []

            async def ask():
                try:
                    answered.append((await it.client.post("/commands/bulk", json=body)).json())
                except httpx.HTTPError:
                    # It was stopped before there was an answer.
                    answered.append(None)

            nursery.start_soon(ask)
            await it.until("/status", lambda status: status["held"] >= 1000)
            it.signal(signal.SIGTERM)
        await it.ended()
        await it.start()
        held = (await it.status())["held"]
        assert held % 1000 == 0 and held >= 1000
        done = answered[0]["changed"] if answered[0] else 0
        assert done <= held
        rest = await it.post("/commands/bulk", body)
        assert (rest["changed"], (await it.status())["held"]) == (4000 - held, 4000)
    assert (await it.run("verify")).code == 0


async def test_on_a_terminal_the_operator_is_asked_and_sees_how_far_it_is(service):
    it = await service()
    await it.post("/commands/suspend")
    await it.account("a", 25)
    await it.add([mail(f"m{n}", account_id="a", priority=n % 2) for n in range(1200)])
    words = letterbook("bulk", "withdraw", "--priority", "0", "--url", it.url)
    no = await on_terminal(words, it, "n\n")
    assert "600 messages will be withdrawn. Go on? [y/N]" in no.out and "nothing was changed" in no.out
    assert (no.code, (await it.status())["pending"]) == (1, 1200)
    yes = await on_terminal(words, it, "y\n")
    assert "600 messages withdrawn." in yes.out and "withdraw: up to message" in yes.out
    assert (yes.code, (await it.status())["pending"]) == (0, 600)


async def on_terminal(words, it, typed) -> Said:
    """Run a command on a terminal of its own, with this typed when it asks."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        words, cwd=it.folder, env=it.environment | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        os.write(ours, typed.encode())
        while data := await trio.to_thread.run_sync(read_terminal, ours):
            shown += data
        code = await trio.to_thread.run_sync(process.wait, WAIT_S_MAX)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return Said(code, shown.decode(), "")


def read_terminal(terminal: int) -> bytes:
    """What has been shown; nothing once the other side is closed, which Linux calls an error."""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
