"""cleanup-messages: what was reported long ago is let go of, and what was not stays."""

import json

from letterbook.capture import CaptureRelay

from .service import mail

SECRET = "a word of the letter's own"


async def test_what_was_reported_is_erased_and_the_facts_stay(service):
    it = await service()
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        await it.add(
            [
                mail("sent", account_id="a", body=SECRET),
                mail("refused", "550@example.org", account_id="a"),
                mail("later", account_id="a", deferred_ts=4_000_000_000),
            ]
        )
        await it.until_results(2)
        await it.until("/messages/refused", lambda record: "reported_ts" in record)
        await it.until("/messages/sent", lambda record: "reported_ts" in record)
        assert await it.post("/commands/cleanup-messages") == {"ok": True, "removed": 0}
        said = await it.run("cleanup", "--older-than", 86_400, "--json", "--url", it.url)
        assert (said.code, json.loads(said.out)) == (0, {"ok": True, "removed": 0})
        answer = await it.post("/commands/cleanup-messages", {"older_than_seconds": 0})
        assert answer == {"ok": True, "removed": 2}
        assert await it.results() == []
        assert [each["id"] for each in (await it.get("/messages"))["messages"]] == ["later"]
        (erased,) = await it.events("ContentErased")
        (passed,) = await it.events("RetentionPassed")
        assert erased["by"] == passed["by"] == "api" and len(erased["letters"]) == 2
        # The log still says what came of it, without a word of the letter or the relay.
        (refused,) = [end for end in await it.events("AttemptEnded") if end["message_id"] == "refused"]
        assert refused["outcomes"][0]["code"] == 550 and "no such user" not in json.dumps(refused)
        again = await it.post("/commands/add-messages", {"messages": [mail("sent", account_id="a")]})
        assert again["rejected"] == [{"id": "sent", "reason": "already sent"}]
    said = await it.run("cleanup", "--older-than", 0, "--url", it.url)
    assert (said.code, said.out) == (0, "0 messages were let go of.\n")
    assert await it.stop() == 0
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in it.folder.glob("letterbook.db*"))
    said = await it.run("verify")
    assert said.code == 0
