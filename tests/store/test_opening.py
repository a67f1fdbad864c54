"""The store as it is opened: whose its files are, how many connections read, and what a start believes."""

import random
import sqlite3
import stat
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import trio

from events.fact import Draft
from events.message import ContentErased, MessageHeld, MessageWithdrawn
from store.beside import LetterRow
from store.clock import SystemClock, TrioClock
from store.erasing import LETTERS_PER_STEP
from store.housekeeping import MB, Housekeeper, WalIndex, figures
from store.opening import READERS_MAX, WAL_KEPT_BYTES, Readers, Store, connect, open_store

from .building import T0_US, accepted, account_saved, letter


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
        assert Full(WalIndex(tmp_path / "l.db"), connection, threaded=False).tick() is None
    connection.close()
    assert "put off" in caplog.text


async def test_looking_at_the_write_ahead_file_keeps_sqlites_locks(tmp_path: Path):
    """POSIX drops all of a process's locks on a file when it closes any descriptor of it. Without them a reader in
    another process takes itself for the first and cuts the index under our feet."""
    path = tmp_path / "x.db"
    async with open_store(path, tmp_path / "x.key", clock=SystemClock()) as store:
        await store.record([account_saved()])
        while not store.wal_index.look().bytes:
            # The first tick cuts the file, in a thread, at a moment of its own.
            await store.record([accepted(f"after {store.last_seq}")])
        assert _locked_by_us(Path(f"{path}-shm")) and _locked_by_us(path)
        figures(path, store.wal_index, store.growth)
        assert _locked_by_us(Path(f"{path}-shm")) and _locked_by_us(path)


def _locked_by_us(path: Path) -> bool:
    """Whether another process would find a lock on this file: only another can ask, for one's own are no hindrance."""
    program = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    try: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    except OSError: print('locked')\n"
    )
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    return run.stdout == "locked\n"


async def test_erasing_goes_on_beside_other_turns_and_is_no_part_of_them(tmp_path: Path, autojump_clock):
    """Each step is asked for by itself: an attempt's turn carries none, and its facts go before the next step."""
    async with open_store(
        tmp_path / "x.db",
        tmp_path / "x.key",
        clock=TrioClock(T0_US),
        entropy=random.Random(1).randbytes,
        threaded=False,
    ) as store:
        await store.record([account_saved()])
        many = 4 * LETTERS_PER_STEP
        drafts = [accepted(f"m{index}") for index in range(many)]
        numbers = [
            answer.seq
            for answer in (await store.record(drafts, beside=dict.fromkeys(range(many), letter("x")))).answers
        ]
        await store.record([Draft(MessageWithdrawn(), message=number, account=1) for number in numbers])
        await store.record([Draft(ContentErased(letters=tuple((number, number) for number in numbers)))])
        left = [await store.read(_to_erase)]
        for number in numbers[:20]:
            await store.record([Draft(MessageHeld(cause="x"), message=number, account=1)], urgent=True)
            left.append(await store.read(_to_erase))
        assert left[0] == many
        assert max(before - after for before, after in pairwise(left)) <= LETTERS_PER_STEP
        await trio.sleep(10)
        assert await store.read(_to_erase) == 0


def _to_erase(connection: sqlite3.Connection) -> int:
    return connection.execute("select count(*) from erasures").fetchone()[0]


# The write-ahead file under load


async def load(store: Store, turns: int, name: str) -> int:
    """Turns of a tenth of a second of virtual time each, with letters of 100 KB; the file's largest size meanwhile."""
    largest = 0
    content = LetterRow(b"envelope", bytes(100_000), b"salt")
    for turn in range(turns):
        drafts = [accepted(f"{name}-{turn}-{n}") for n in range(10)]
        await store.record(drafts, beside=dict.fromkeys(range(10), content))
        await trio.sleep(0.1)
        largest = max(largest, Path(f"{store.path}-wal").stat().st_size)
    return largest


async def test_the_write_ahead_file_stays_near_its_limit_and_shrinks_again_after_a_long_reader(
    tmp_path: Path, autojump_clock
):
    clock = TrioClock(T0_US)
    async with open_store(tmp_path / "l.db", tmp_path / "l.key", clock=clock, threaded=False, wal_mb_max=5) as store:
        await store.record([account_saved()])
        assert await load(store, 50, "before") < 10 * MB
        reader = sqlite3.connect(tmp_path / "l.db", isolation_level=None)
        reader.execute("begin")
        reader.execute("select count(*) from log").fetchone()
        # Nothing that the reader may still need is overwritten: it grows by what is written meanwhile, and no faster.
        assert WAL_KEPT_BYTES < await load(store, 45, "pinned") < 10 * MB + 45 * 1.3 * MB
        reader.close()
        await load(store, 8, "after")
        assert Path(f"{store.path}-wal").stat().st_size <= WAL_KEPT_BYTES
        assert store.wal_index.look().bytes < 10 * MB
