"""Coming over in earnest: the old service's database is taken over, and the service goes on where that one stopped."""

import json
from contextlib import contextmanager

from letterbook.capture import CaptureRelay
from tests.actors.application import say, served
from tests.letterbook.old import old_service

from .service import mail, service, subject_id


@contextmanager
def upstream(told):
    """An application that takes every report and has no mail to give."""

    def answer(handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if body:
            told.append(json.loads(body))
        say(handler, 200, b'{"messages": []}')

    with served(answer) as url:
        yield url


def fill(path, port):
    """Six messages of each fate, and an hour's limit of four of which two are used."""
    with old_service(path) as old:
        old.account("a", port=port, limit_per_hour=4, use_tls=0)
        old.account("b", port=port, use_tls=0)
        for number in range(4):
            old.message(f"limited-{number}", "a", created_at=old.now_s - 500 + number)
        old.message("free", "b", created_at=old.now_s - 100)
        old.message("later", "b", deferred_ts=old.now_s + 86_400)
        old.message("faulty", "b", payload=json.dumps(old.payload("faulty", "b", to=["nobody"])))
        old.message("told", "a", sent_ts=old.now_s - 3000, reported_ts=old.now_s - 2900)
        old.message("sent", "a", sent_ts=old.now_s - 2000)
        old.message("failed", "b", error_ts=old.now_s - 1000, error="550 no such user")
        # The minute and the hour before: two within the hour's window, one outside of it.
        old.sends("a", 5000, 2000, 1)


async def test_it_goes_on_where_the_old_service_stopped(tmp_path):
    told = []
    async with CaptureRelay().listening() as relay:
        with upstream(told) as url:
            async with service(tmp_path, started=False, fetch_url=url) as it:
                fill(tmp_path / "old.db", relay.port)
                said = await it.run("import", tmp_path / "old.db", "--json")
                assert said.code == 0, said.err
                assert json.loads(said.out)["sends"] == 3
                await it.start()
                await goes_on(it, relay)
                await it.until("/status", lambda found: found["seq"] and len(told) >= 6)
                assert await it.stop() == 0
                checked = await it.run("rebuild", "--check")
                assert checked.code == 0, checked.err
    reports = {report["id"]: report for report in told}
    assert {name: report["status"] for name, report in reports.items()} == {
        **dict.fromkeys(("failed", "faulty"), "error"),
        **dict.fromkeys(("sent", "free", "limited-0", "limited-1"), "sent"),
    }
    assert reports["failed"]["error"] == "550 no such user"
    assert [report["id"] for report in told][:3] == ["sent", "failed", "faulty"]


async def goes_on(it, relay):
    """What waits is sent in its order as far as the limit lets it, and what was sent is known."""
    found = await it.until("/status", lambda found: found["accounts"]["a"].get("throttled_until"))
    await it.until("/messages", lambda found: len(found["messages"]) == 4, status="sent", account_id="a")
    await it.until("/messages", lambda found: len(found["messages"]) == 1, status="sent", account_id="b")
    assert found["accounts"]["a"]["throttled_until"] > 0
    assert sorted(subject_id(each.content) for each in relay.messages) == ["free", "limited-0", "limited-1"]
    assert (await it.status())["deferred"] == 3
    again = [mail("told", account_id="a"), mail("sent", account_id="a"), mail("limited-0", account_id="a")]
    answer = await it.post("/commands/add-messages", {"messages": again})
    assert answer["queued"] == 0
    assert {each["id"]: each["reason"] for each in answer["rejected"]} == dict.fromkeys(
        ("told", "sent", "limited-0"), "already sent"
    )
    assert (await it.message("later"))["status"] == "deferred"
    refused = await it.run("import", it.folder / "old.db")
    assert refused.code == 1 and f"the process {it.pid}" in refused.err and len(refused.err.splitlines()) == 1
