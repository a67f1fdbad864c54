"""Signals end the service as an operator expects, and what stands in the way of a start is one line that says what."""

import json
import shutil
import signal
import socket

import httpx
import trio

from letterbook.capture import CaptureRelay

from .service import LOOK_S, mail

STANDING: dict[str, object] = {}
DRAIN_S = 20


async def until_in_flight(it, relay):
    """Wait until the relay holds the message and has not answered."""
    with trio.fail_after(30):
        await relay.until_received(1)
    assert (await it.status())["in_flight"] == 1


async def until_heard(it):
    """It has heard the signal when it says that it is stopping, or takes nobody any more."""
    with trio.fail_after(30):
        try:
            while (await it.client.get("/ready")).status_code == 200:
                await trio.sleep(LOOK_S)
        except httpx.TransportError:
            return


async def test_sigterm_lets_an_attempt_under_way_end(service):
    it = await service(server_drain_seconds=DRAIN_S)
    answered = trio.Event()

    async def answer_late(message):
        await answered.wait()

    async with CaptureRelay(on_message=answer_late).listening() as relay:
        await it.account("a", relay.port)
        await it.add([mail("slow", account_id="a")])
        await until_in_flight(it, relay)
        await it.add([mail("next", account_id="a", deferred_ts=2_000_000_000)])
        it.signal(signal.SIGTERM)
        await until_heard(it)
        answered.set()
        assert await it.ended(DRAIN_S) == 0
        assert relay.received == 1
    said = await it.run("show", "slow", "--json")
    assert json.loads(said.out)["status"] == "sent"
    log = await it.run("log", "--json")
    assert json.loads(log.out.splitlines()[-1])["kind"] == "ServiceStopped"


async def test_a_second_sigterm_stops_at_once_and_the_end_is_recorded(service):
    it = await service(server_drain_seconds=600)

    async def never(message):
        await trio.sleep_forever()

    async with CaptureRelay(on_message=never).listening() as relay:
        await it.account("a", relay.port)
        await it.add([mail("m", account_id="a")])
        await until_in_flight(it, relay)
        it.signal(signal.SIGTERM)
        await until_heard(it)
        it.signal(signal.SIGTERM)
        assert await it.ended(within_s=10) == 0
    said = await it.run("log", "--message", "m", "--json")
    last = json.loads(said.out.splitlines()[-1])
    assert last["kind"] == "AttemptEnded"
    assert [outcome["status"] for outcome in json.loads(last["data"])["outcomes"]] == ["in_doubt"]
    assert (await it.run("rebuild", "--check")).code == 0


def is_one_line(said, *words):
    """Exit code 1, and one line of ours; lines of the log, which begin with a time, may stand before it."""
    own = [line for line in said.err.splitlines() if line.startswith("letterbook: ")]
    assert said.code == 1, said
    assert "Traceback" not in said.err and "Error" not in said.err.replace("ConfigError", ""), said.err
    assert len(own) == 1 and said.err.rstrip().endswith(own[0]), said.err
    for word in words:
        assert str(word) in own[0], own[0]


async def test_a_second_service_on_the_same_file_names_the_first(shared):
    is_one_line(await shared.run("serve"), shared.pid)
    assert (await shared.status())["ok"]


async def test_a_port_in_use(shared, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = await shared.run(
            "serve", server_port=port, storage_db_path=tmp_path / "new.db", storage_key_file=tmp_path / "new.key"
        )
    is_one_line(said, "in use", "[server] port")


def missing(key_file, another):
    key_file.unlink()


def malformed(key_file, another):
    key_file.write_text("no key\n")


def wrong(key_file, another):
    key_file.write_bytes(another)


def unreadable(key_file, another):
    key_file.unlink()
    key_file.mkdir()


KEY_FILES = {missing: "missing", malformed: "malformed", wrong: "was made with the key", unreadable: "directory"}
"""What has become of a key file, and a word by which the operator is told."""


async def test_a_key_file_that_is_missing_malformed_wrong_or_unreadable(service, shared, tmp_path):
    it = await service()
    assert await it.stop() == 0
    said = {}

    async def serve(spoil):
        db, key_file = tmp_path / f"{spoil.__name__}.db", tmp_path / f"{spoil.__name__}.key"
        shutil.copyfile(it.db, db)
        shutil.copyfile(it.key_file, key_file)
        spoil(key_file, shared.key_file.read_bytes())
        said[spoil] = await it.run("serve", storage_db_path=db, storage_key_file=key_file)

    async with trio.open_nursery() as nursery:
        for spoil in KEY_FILES:
            nursery.start_soon(serve, spoil)
    for spoil, word in KEY_FILES.items():
        is_one_line(said[spoil], tmp_path / f"{spoil.__name__}.key", word)
    assert not (tmp_path / "missing.key").exists(), "a key was made beside a log that has one"
    await it.start()
    assert (await it.status())["ok"]


async def test_an_unknown_key_of_the_configuration(shared, tmp_path):
    config = tmp_path / "other.ini"
    config.write_text("[server]\nprot = 8000\n")
    is_one_line(await shared.run("serve", "--config", config), "prot", "[server]")
    is_one_line(await shared.run("check-config", "--config", config), "prot", "[server]")
