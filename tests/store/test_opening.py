"""The store as it is opened: whose its files are, how many connections read, and what a start believes."""

import random
import sqlite3
import stat
import time
from pathlib import Path

import trio

from store.clock import SystemClock
from store.housekeeping import Housekeeper
from store.opening import READERS_MAX, Readers, connect, open_store


async def test_the_files_are_their_owners_alone(tmp_path: Path):
    async with open_store(
        tmp_path / "l.db", tmp_path / "l.key", clock=SystemClock(), entropy=random.Random(1).randbytes
    ) as store:
        await store.read(lambda connection: connection.execute("select 1").fetchone())
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert {name: mode for name, mode in modes.items() if not name.endswith((".lock", ".mark"))} == dict.fromkeys(
        ("l.db", "l.db-shm", "l.db-wal", "l.key"), 0o600
    )


async def test_many_reads_at_once_open_few_connections(tmp_path: Path):
    with connect(tmp_path / "l.db") as made:
        made.execute("create table t (x)")
    readers = Readers(tmp_path / "l.db", threaded=True)
    held: list[int] = []

    def reading(connection: sqlite3.Connection) -> None:
        held.append(id(connection))
        time.sleep(0.002)  # within a reader's thread, so that the others come meanwhile

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(readers.read, reading)
    readers.close()
    made.close()
    assert len(held) == 50
    assert len(set(held)) <= READERS_MAX


class Full(Housekeeper):
    """A housekeeper whose every chore finds the disk full."""

    def _tick(self):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error


def test_a_full_disk_only_puts_housekeeping_off(tmp_path: Path, caplog):
    with connect(tmp_path / "l.db") as connection:
        assert Full(tmp_path / "l.db", connection, threaded=False).tick() is None
    connection.close()
    assert "put off" in caplog.text
