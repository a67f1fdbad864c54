"""The wired system where SQLite itself finds the disk full, at every commit for as long as the test says."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.commands import handle_command
from letterbook import system as wiring
from letterbook.capture import CaptureRelay
from letterbook.config import load
from letterbook.system import Disk, Stop, System, real_world, running
from store import housekeeping, opening, recorder, replay
from store.housekeeping import MB
from store.recorder import EndsGivenUp

LOOK_S = 0.02


class Connection(sqlite3.Connection):
    """On a full disk a commit asks for pages that there are not: what SQLite does then is its own."""

    full = False
    full_for_erasing = False
    _erases = False

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        if sql == "pragma secure_delete = on":
            # What a step of erasing begins with.
            self._erases = type(self).full_for_erasing
        if sql == "commit" and (type(self).full or self._erases):
            self._erases = False
            (pages,) = super().execute("pragma page_count").fetchone()
            super().execute(f"pragma max_page_count = {pages}").close()
            try:
                super().execute("insert into secrets values ('more', zeroblob(50000000))")
            finally:
                super().execute("pragma max_page_count = 1073741823").close()
        return super().execute(sql, *parameters)


@pytest.fixture
def disk(monkeypatch) -> type[Connection]:
    """A disk that is full when the test says so, and is looked at more often than in the service."""

    class Here(Connection):
        pass

    monkeypatch.setattr(opening.sqlite3, "connect", partial(sqlite3.connect, factory=Here))
    monkeypatch.setattr(recorder, "RETRY_S", LOOK_S)
    monkeypatch.setattr(wiring, "DISK_LOOK_S", LOOK_S)
    return Here


def environment(folder: Path, **more: object) -> dict[str, str]:
    settings = {
        "storage_db_path": folder / "l.db",
        "storage_key_file": folder / "l.key",
        "storage_min_free_mb": 0,
        "delivery_max_connections": 2,
        "server_drain_seconds": 0.1,
        **more,
    }
    return {f"LETTERBOOK_{name}".upper(): str(value) for name, value in settings.items()}


@asynccontextmanager
async def service(folder: Path, **more: object) -> AsyncIterator[System]:
    async with (
        real_world() as world,
        running(load(None, environment(folder, **more)), world, Stop()) as it,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(it.door.watch.run)
        yield it
        nursery.cancel_scope.cancel()


async def ask(it: System, name: str, **payload: object) -> dict[str, Any]:
    return await handle_command(it.door, name, payload)


async def add(it: System, *ids: str) -> dict[str, Any]:
    letter = {"from": "a@example.com", "to": "b@example.org", "subject": "s", "body": "b", "account_id": "a"}
    return await ask(it, "addMessages", messages=[{**letter, "id": name} for name in ids])


async def until(look: Any) -> None:
    with trio.fail_after(60):
        while not look():
            await trio.sleep(LOOK_S)


def ends(it: System) -> list[str]:
    with sqlite3.connect(f"file:{it.store.path}?mode=ro", uri=True) as connection:
        return [
            kind for (kind,) in connection.execute("select kind from log where kind like 'Attempt%ed' order by seq")
        ]


@asynccontextmanager
async def held_relay() -> AsyncIterator[tuple[CaptureRelay, trio.Event]]:
    go = trio.Event()

    async def wait(message: object) -> None:
        await go.wait()

    async with CaptureRelay(on_message=wait).listening() as relay:
        yield relay, go


async def test_nothing_new_is_begun_ends_wait_and_all_goes_on_by_itself(tmp_path, disk):
    async with held_relay() as (relay, go), service(tmp_path) as it:
        await ask(it, "addAccount", id="a", host="127.0.0.1", port=relay.port)
        await add(it, "m0", "m1", "m2")
        with trio.fail_after(60):
            await relay.until_received(2)
        disk.full = True
        refused = await add(it, "late")
        assert refused["ok"] is False and refused["error"].startswith("the disk is full: "), refused
        assert it.door.reasons() == ("disk",)
        (waiting,) = (await ask(it, "pendingMessages"))["pending"]
        assert (waiting["id"], waiting["waiting_for"]["reason"]) == ("m2", "disk")
        go.set()
        await until(lambda: it.store.recorder.waiting == 2)
        assert (await add(it, "late"))["error"].startswith("the disk is full: ")
        assert (await ask(it, "suspend"))["error"].startswith("the disk is full: ")
        disk.full = False
        await until(lambda: it.door.reasons() == ())
        assert (await add(it, "late"))["queued"] == 1
        with trio.fail_after(60):
            await relay.until_received(4)
        await until(lambda: it.store.recorder.waiting == 0 and ends(it).count("AttemptEnded") == 4)
        # The two that waited were the first to be recorded.
        assert ends(it)[:5] == ["AttemptStarted"] * 2 + ["AttemptEnded"] * 2 + ["AttemptStarted"]
    views_are_the_refold(tmp_path / "l.db")


async def test_a_stop_counts_the_ends_it_had_to_give_up_and_the_next_start_finds_them_open(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(wiring, "END_RECORDING_S", 0.1)
    async with held_relay() as (relay, go):
        with pytest.raises(
            EndsGivenUp, match=r"the ends of 2 attempts are not in the log \(the disk is full\)"
        ) as raised:
            async with service(tmp_path, delivery_in_doubt="hold") as it:
                await ask(it, "addAccount", id="a", host="127.0.0.1", port=relay.port)
                await add(it, "m0", "m1")
                with trio.fail_after(60):
                    await relay.until_received(2)
                disk.full = True
                go.set()
                await until(lambda: it.store.recorder.waiting == 2)
        assert raised.value.attempts == 2
        disk.full = False
        async with service(tmp_path, delivery_in_doubt="hold") as it:
            await until(lambda: ends(it).count("AttemptInterrupted") == 2)
    views_are_the_refold(tmp_path / "l.db")


async def test_what_is_erased_on_a_full_disk_is_erased_when_there_is_room(tmp_path, disk, monkeypatch, caplog):
    monkeypatch.setattr(opening, "ERASE_LOOK_S", LOOK_S)
    async with service(tmp_path) as it:
        await ask(it, "addAccount", id="a", host="127.0.0.1", port=9)
        await ask(it, "suspend")
        await add(it, "m0")

        assert (await ask(it, "deleteMessages", ids=["m0"]))["removed"] == 1, "withdrawn"
        disk.full_for_erasing = True
        assert (await ask(it, "deleteMessages", ids=["m0"]))["removed"] == 1
        await until(lambda: "housekeeping between two turns failed" in caplog.text)
        assert (await add(it, "m1"))["queued"] == 1
        assert len(rows(tmp_path / "l.db", "erasures")) == 1
        disk.full_for_erasing = False
        await until(lambda: not rows(tmp_path / "l.db", "erasures"))
    views_are_the_refold(tmp_path / "l.db")


def rows(path: Path, table: str) -> list[Any]:
    with sqlite3.connect(path) as connection:
        return connection.execute(f"select * from {table}").fetchall()


def views_are_the_refold(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    assert replay.check(connection) == []
    connection.close()


def test_a_refold_on_a_full_disk_leaves_the_old_views(tmp_path, disk):
    with opening.connect(tmp_path / "l.db") as connection:
        opening.migrate(connection)
        connection.execute("insert into accounts (number, id) values (1, 'as it was')")
        disk.full = True
        with pytest.raises(sqlite3.OperationalError, match="full"):
            replay.rebuild(connection)
        disk.full = False
        assert connection.execute("select id from accounts").fetchall() == [("as it was",)]
    connection.close()


async def test_a_disk_that_was_low_is_so_until_there_is_a_tenth_more(tmp_path, monkeypatch):
    free_mb = 100.0
    monkeypatch.setattr(housekeeping, "disk_free_bytes", lambda path: free_mb * MB)
    async with service(tmp_path) as it:
        watched = Disk(load(None, environment(tmp_path, storage_min_free_mb=50)), it.store)
        found = []
        for free_mb in (50.0, 49.9, 50.1, 54.9, 55.1, 50.1, 49.9):  # noqa: B007 - what the disk says, one look after the other
            watched.look()
            found.append(watched.low())
    assert found == [False, True, True, True, False, False, True]
