"""A backup of a day ago is put back: what was sent before it is never sent twice, what was sent after it only if the
operator says so, and whoever follows the log is told that it is another one."""

import json
from collections import Counter
from functools import partial
from pathlib import Path

import trio

from letterbook.capture import CaptureRelay

from .relays import free_port
from .service import LOOK_S, mail, subject_id

FOREVER = 4_000_000_000

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}
"""A websocket that is refused is answered as HTTP (RFC 6455 section 4.2.2)."""


async def keep_adding(it, stop):
    """An application that goes on: mail for much later, so that it changes the log and reaches nobody."""
    number = 0
    while not stop.is_set():
        await it.add([mail(f"later-{number + each}", account_id="a", deferred_ts=FOREVER) for each in range(20)])
        number += 20


async def back_up_under_load(it, file: Path):
    """What `backup` said, while the log was written to all the time."""
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_adding, it, stop)
        before = (await it.status())["seq"]
        while (await it.status())["seq"] < before + 100:
            await trio.sleep(LOOK_S)
        said = await it.run("backup", file, "--json")
        during = (await it.status())["seq"]
        stop.set()
    assert said.code == 0, said.err
    made = json.loads(said.out)
    assert before < made["seq"] < during, "it is of a moment in the middle of the load"
    return made


async def a_day(it, relay, file: Path):
    """A is sent, B waits, the backup is made; then B and C are sent. The service is stopped; what a client knows."""
    await it.account("a", relay.port)
    await it.add([mail("A", account_id="a")])
    await it.until_results(1)
    assert (await it.run("suspend", "--url", it.url)).out.startswith("Dispatch is suspended")
    await it.add([mail("B", account_id="a")])
    made = await back_up_under_load(it, file)
    assert (await it.run("activate", "--url", it.url)).code == 0
    await it.add([mail("C", account_id="a")])
    await it.until_results(3)
    status = await it.status()
    assert arrived(relay) == {"A": 1, "B": 1, "C": 1}
    running = await it.run("restore", file, "--yes")
    assert running.code == 1 and f"in use by the process {it.pid}" in running.err
    assert await it.stop() == 0
    return made, status


def arrived(relay) -> Counter[str]:
    return Counter(subject_id(message.content) for message in relay.messages)


async def put_back(it, file: Path, made, status):
    """Restore and start; it is known for what it is, and sends nothing of its own accord."""
    said = await it.run("restore", file, "--yes", "--json")
    assert said.code == 0, said.err
    answer = json.loads(said.out)
    assert (answer["seq"], answer["hash"], answer["summed"]) == (made["seq"], made["hash"], True)
    assert answer["came_to"] > status["seq"] > made["seq"]
    # The mark does not matter.
    Path(f"{it.db}.mark").unlink()
    await it.start()
    assert "was put back by `letterbook restore`" in it.lines and "activate --restored hold" in it.lines
    now = await it.status()
    assert (now["active"], now["reasons"]) == (False, ["restored"])
    ready = await it.client.get("/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "reasons": ["restored"]})
    assert (await it.message("B"))["waiting_for"] == {"reason": "restored"}
    assert (await it.client.get("/messages/C")).status_code == 404
    assert now["log"] != status["log"]
    (restored,) = await it.events("LogRestored")
    assert (restored["previous_log"], restored["marked_seq"]) == (status["log"], answer["came_to"])
    return now


async def old_cursors_are_told(it, old, new):
    """With the old log's id; and without one, as soon as the cursor is past the end."""
    past = new["seq"] + 1_000_000
    for fields in ({"log": old["log"], "after": 1}, {"after": past}):
        for path in ("/events", "/results", "/events/stream"):
            answer = await it.client.get(path, params=fields, headers=UPGRADE if path.endswith("stream") else {})
            assert answer.status_code == 409, (path, fields, answer.text)
            said = answer.json()
            assert said["log"] == new["log"] and said["seq"] >= new["seq"]
            assert new["log"] in said["error"]
    page = await it.get("/events", log=new["log"], after=0)
    assert page["log"] == new["log"] and page["events"][0]["seq"] == 1


async def run_now_and_look(it, name):
    """Whatever could go by now has gone: a round of the whole unit, twice, each with facts of others in between."""
    for number in range(2):
        await it.post("/commands/run-now")
        await it.add([mail(f"look-{name}-{number}", account_id="a", deferred_ts=FOREVER)])
        await it.until("/status", lambda status: status["in_flight"] == 0)


async def test_hold_sends_nothing_twice_and_a_person_decides(service, tmp_path):
    it = await service()
    file = tmp_path / "yesterday.db"
    async with CaptureRelay().listening() as relay:
        made, old = await a_day(it, relay, file)
        new = await put_back(it, file, made, old)
        await old_cursors_are_told(it, old, new)
        refused = await it.run("activate", "--url", it.url)
        assert refused.code == 1 and "hold" in refused.err and "send" in refused.err
        await run_now_and_look(it, "before")
        assert arrived(relay) == {"A": 1, "B": 1, "C": 1}, "of its own accord it sends nothing"
        assert (await it.run("activate", "--restored", "hold", "--url", it.url)).code == 0
        await it.add([mail("D", account_id="a")])
        await it.until_results(2)
        await run_now_and_look(it, "after")
        assert arrived(relay) == {"A": 1, "B": 1, "C": 1, "D": 1}, "new mail goes, what waited is held"
        held = {row["id"]: row["cause"] for row in (await it.get("/held", limit=10_000))["held"]}
        assert held["B"] == "restored" and "later-0" in held and "D" not in held
        again = await it.post("/commands/add-messages", {"messages": [mail("A", account_id="a")]})
        assert again["rejected"] == [{"id": "A", "reason": "already sent"}]
        assert (await it.run("resolve", "B", "--as", "sent", "--url", it.url)).code == 0
        assert (await it.message("B"))["status"] == "sent"
        await run_now_and_look(it, "resolved")
        assert arrived(relay) == {"A": 1, "B": 1, "C": 1, "D": 1}
        assert (await it.run("status", "--url", it.url)).code == 0
        assert await it.stop() == 0
    checks = await it.run("verify"), await it.run("rebuild", "--check")
    assert [said.code for said in checks] == [0, 0], checks


async def test_send_sends_again_what_was_sent_since_and_nothing_else(service, tmp_path):
    it = await service()
    file = tmp_path / "yesterday.db"
    async with CaptureRelay().listening() as relay:
        made, old = await a_day(it, relay, file)
        await put_back(it, file, made, old)
        assert await it.stop() == 0
        # Stopped and started again before anybody has chosen: the choice still waits.
        await it.start()
        assert (await it.status())["reasons"] == ["restored"]
        assert arrived(relay) == {"A": 1, "B": 1, "C": 1}
        assert (await it.run("activate", "--restored", "send", "--url", it.url)).code == 0
        await it.until_results(2)
        await it.add([mail("C", account_id="a")])
        await it.until_results(3)
        assert arrived(relay) == {"A": 1, "B": 2, "C": 2}, "B by the operator's choice, C by the application's"
        (chosen,) = [fact for fact in await it.events("DispatchActivated") if fact.get("restored")]
        assert chosen["restored"] == "send"
        assert await it.stop() == 0


async def test_a_tail_that_was_watching_says_that_the_log_is_another(service, tmp_path):
    """The command's own client resumes with the old log's id."""
    it = await service()
    await it.account("a", free_port())
    await it.add([mail("A", account_id="a", deferred_ts=FOREVER)])
    assert (await it.run("backup", tmp_path / "b.db")).code == 0
    port = int(it.url.rpartition(":")[2])
    async with trio.open_nursery() as nursery:
        tail = partial(it.run, "tail", "--after", 0, "--json", "--url", it.url)
        said = []

        async def watch():
            said.append(await tail())

        nursery.start_soon(watch)
        await it.until("/status", lambda status: status["active"])
        while "letterbook_streams 1" not in (await it.client.get("/metrics")).text:
            await trio.sleep(LOOK_S)
        assert await it.stop() == 0
        assert (await it.run("restore", tmp_path / "b.db", "--yes")).code == 0
        it._settings["server_port"] = port
        await it.start()
    (ended,) = said
    assert ended.code == 1 and "of another log" in ended.err and '"MessageAccepted"' in ended.out
