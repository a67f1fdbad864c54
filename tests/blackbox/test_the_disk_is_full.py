"""A full disk refuses what can be refused and loses nothing, and all goes on by itself when there is room again."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from letterbook.capture import CaptureRelay

from .service import LOOK_S, Service, mail
from .small_disk import SmallDisk, small_disk

KILOBYTES = 8_000
IN_FLIGHT = 2


class Holding:
    """A relay that keeps its last answer to itself until it is let go."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.relay = CaptureRelay(on_message=self._wait)

    async def _wait(self, message: object) -> None:
        await self.go.wait()

    def hold(self) -> None:
        self.go = trio.Event()


@asynccontextmanager
async def on(disk: SmallDisk, folder: Path, **settings: object) -> AsyncIterator[tuple[Service, Holding]]:
    folder.mkdir()
    (folder / "config.ini").touch()
    files = {"storage_db_path": disk.folder / "letterbook.db", "storage_key_file": disk.folder / "letterbook.key"}
    usual = {"storage_min_free_mb": 0, "delivery_max_connections": IN_FLIGHT, "delivery_in_doubt": "hold"}
    it = Service(folder, {**files, **usual, "server_drain_seconds": 1, **settings}, disk.within)
    holding = Holding()
    try:
        async with holding.relay.listening():
            await it.start()
            await it.account("a", holding.relay.port)
            yield it, holding
    finally:
        await it.close()


async def until_in_flight(it: Service, holding: Holding, *ids: str) -> None:
    holding.hold()
    before = holding.relay.received
    await it.add([mail(name, account_id="a") for name in ids])
    await holding.relay.until_received(before + IN_FLIGHT)


async def post_until(it: Service, status: int) -> list[str]:
    """Post mail until it is answered so; what was taken before."""
    taken: list[str] = []
    with trio.fail_after(60):
        for number in range(10_000):
            name = f"{status}-{number}"
            letter = mail(name, account_id="a", body="x" * 50_000, deferred_ts=2_000_000_000)
            answer = await it.client.post("/commands/add-messages", json={"messages": [letter]})
            if answer.status_code == 503:
                assert answer.headers["Retry-After"] == "1"
                assert set(answer.json()) == {"ok", "error", "detail"} and "disk" in answer.json()["error"]
            else:
                assert answer.json()["queued"] == 1
                taken.append(name)
            if answer.status_code == status:
                return taken
            await trio.sleep(LOOK_S)
    raise AssertionError


async def unready(it: Service) -> list[str]:
    return list((await it.client.get("/ready")).json().get("reasons", []))


async def test_a_full_disk_loses_nothing_whether_it_gets_room_or_a_stop_or_a_kill(tmp_path):
    with small_disk(tmp_path / "disk", KILOBYTES) as disk:
        async with on(disk, tmp_path / "service") as (it, holding):
            await until_in_flight(it, holding, "m0", "m1", "m2", "m3")
            disk.fill()
            taken = await post_until(it, 503)
            assert await unready(it) == ["disk"] and (await it.status())["reasons"] == ["disk"]
            waiting = await it.get("/pending")
            assert [row["waiting_for"]["reason"] for row in waiting["pending"]] == ["disk", "disk"]
            holding.go.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(post_until, it, 200)
                await trio.sleep(0)
                assert (await it.status())["in_flight"] == IN_FLIGHT
                disk.free()
            await it.until_results(4)
            assert await unready(it) == []
            await the_ends_were_first(it)

            await until_in_flight(it, holding, "doubt-0", "doubt-1")
            disk.fill()
            taken += await post_until(it, 503)
            holding.go.set()
            assert await it.stop() == 1
            assert it.lines.endswith("whether they arrived is in doubt\n"), it.lines
            assert (
                "the ends of 2 attempts are not in the log (the disk is full)" in it.lines and "Trace" not in it.lines
            )
            await a_full_disk_is_one_line(it, "serve")
            await a_full_disk_is_one_line(it, "rebuild")
            disk.free()
            await it.start()
            await in_doubt(it, "doubt-0", "doubt-1")

            await until_in_flight(it, holding, "killed-0", "killed-1")
            disk.fill()
            taken += await post_until(it, 503)
            await it.kill()
            disk.free()
            await it.start()
            await in_doubt(it, "killed-0", "killed-1")
            for name in taken:
                assert (await it.message(name))["status"] == "deferred"
            assert await it.stop() == 0
            for words in (["rebuild", "--check"], ["verify"]):
                assert (await it.run(*words)).code == 0


async def the_ends_were_first(it: Service) -> None:
    events = [event for event in await it.events() if event["kind"] in ("AttemptEnded", "MessageAccepted")]
    late = next(at for at, event in enumerate(events) if str(event.get("message_id")).startswith("200-"))
    assert [event["kind"] for event in events[late - IN_FLIGHT : late]] == ["AttemptEnded"] * IN_FLIGHT, events


async def a_full_disk_is_one_line(it: Service, command: str) -> None:
    said = await it.run(command)
    last = said.err.splitlines()[-1]
    assert said.code == 1 and "the disk is full" in last and "letterbook.db" in last and "Trace" not in said.err, said


async def in_doubt(it: Service, *ids: str) -> None:
    for name in ids:
        record = await it.until(f"/messages/{name}", lambda found: found["status"] == "held")
        assert "AttemptInterrupted" in [fact["kind"] for fact in record["timeline"]]


async def test_a_first_start_on_a_full_disk_leaves_nothing_that_keeps_the_next_one_away(tmp_path):
    with small_disk(tmp_path / "disk", KILOBYTES) as disk:
        (tmp_path / "config.ini").touch()
        settings = {"storage_db_path": disk.folder / "l.db", "storage_key_file": disk.folder / "l.key"}
        it = Service(tmp_path, {**settings, "storage_min_free_mb": 0}, disk.within)
        for blocks in (0, 3, 40):
            disk.fill(blocks)
            said = await it.run("serve")
            assert said.code == 1 and "Trace" not in said.err and said.err.startswith("letterbook: "), said
            disk.free()
        try:
            await it.start()
            assert (await it.status())["ok"]
            assert await it.stop() == 0
        finally:
            await it.close()


async def test_little_space_stops_what_is_new_and_leaves_room_for_ends(tmp_path):
    with small_disk(tmp_path / "disk", KILOBYTES) as disk:
        async with on(disk, tmp_path / "service", storage_min_free_mb=2) as (it, holding):
            await until_in_flight(it, holding, "m0", "m1", "m2")
            disk.fill(leave_blocks=300)
            await it.until("/status", lambda status: status["reasons"] == ["disk"])
            answer = await it.client.post("/commands/add-messages", json={"messages": [mail("no", account_id="a")]})
            assert answer.status_code == 503 and "min_free_mb" in answer.json()["error"]
            holding.go.set()
            await it.until_results(2)
            (waiting,) = (await it.get("/pending"))["pending"]
            assert (waiting["id"], waiting["waiting_for"]) == ("m2", {"reason": "disk"})
            disk.free()
            await it.until_results(3)
