"""Mail that is held until a person says what becomes of it: listed, and resolved each way, by the command line."""

import json

from letterbook.capture import CaptureRelay

from .service import kinds, mail, subject_id


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
