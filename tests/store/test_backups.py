"""A backup is of one moment, whole or not there at all, and holds up nobody who writes meanwhile."""

import shutil
import sqlite3
import stat
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from store import backups
from store.backups import BackupError, back_up, holding, read_sum, sum_path
from store.faults import Fault
from store.file_access import NoLog
from store.housekeeping import checkpoint
from store.verifying import verify

from .building import accepted, account_saved, database, record, writer

ID = "insert into meta values (?, ?)"


@pytest.fixture
def path(tmp_path) -> Path:
    """A log of forty messages, of a service that still has it open."""
    with database(tmp_path / "l.db") as connection:
        connection.execute("pragma synchronous = off").close()
        connection.executemany(ID, [("log", "a1"), ("key", "k1")])
        write(writer(connection), 40)
        yield tmp_path / "l.db"


def write(to, count: int, start: int = 0) -> None:
    if not start:
        record(to, [account_saved()])
    for number in range(start, start + count):
        record(to, [accepted(f"m{number}")])


@contextmanager
def opened(file: Path):
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as connection:
        yield connection


def folder(path: Path) -> set[str]:
    """What stands beside the database, apart from SQLite's own files."""
    return {each.name for each in path.parent.iterdir()} - {"l.db", "l.db-wal", "l.db-shm"}


def test_a_backup_is_the_whole_log_in_one_file(path):
    file = path.parent / "b.db"
    made = back_up(path, file)
    with opened(file) as connection:
        assert holding(connection) == made.holding
        verdict = verify(connection, None)
        assert connection.execute("select count(*) from messages").fetchone() == (40,)
    assert (verdict.damage, verdict.facts, verdict.hash) == (None, 41, made.holding.hash)
    assert (made.holding.log, made.holding.key, made.holding.seq) == ("a1", "k1", 41)
    assert made.bytes == file.stat().st_size
    assert folder(path) == {"b.db", "b.db.sha256"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_its_sum_is_what_sha256sum_reads(path):
    file = path.parent / "b.db"
    made = back_up(path, file)
    assert read_sum(file) == made.sha256
    done = subprocess.run(["sha256sum", "--check", "b.db.sha256"], cwd=path.parent, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"b.db: OK\n")


def test_an_empty_log_has_a_backup_too(tmp_path):
    with database(tmp_path / "l.db") as connection:
        connection.executemany(ID, [("log", "a1"), ("key", "k1")])
        made = back_up(tmp_path / "l.db", tmp_path / "b.db")
    assert (made.holding.log, made.holding.seq, made.holding.hash) == ("a1", 0, b"")


class Busy:
    """Writes while a backup is made: after each step of it, two commits and what the housekeeper does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.steps = 0
        self.restarted: set[bool] = set()

    @contextmanager
    def watch(self, stage: str):
        if stage != "copying":
            yield None
            return
        with database(self._path) as connection:
            connection.execute("pragma synchronous = off").close()
            connection.execute("pragma busy_timeout = 1").close()
            to = writer(connection)

            def advance(done: int, of: int) -> None:
                self.steps += 1
                write(to, 2, start=1000 + 2 * self.steps)
                checkpoint(connection, "passive")
                self.restarted.add(checkpoint(connection, "restart"))

            yield advance


def test_commits_and_checkpoints_go_on_beside_it_and_it_is_of_the_moment_at_which_it_began(path, monkeypatch):
    monkeypatch.setattr(backups, "STEP_PAGES", 1)
    busy = Busy(path)
    made = back_up(path, path.parent / "b.db", watch=busy.watch)
    assert busy.steps > 20, "the backup did not begin anew, nor end before there was something beside it"
    assert busy.restarted == {False}, "a checkpoint gives up on it after the wait that it was given"
    assert made.holding.seq == 41
    with opened(path.parent / "b.db") as connection:
        assert verify(connection, None).facts == 41
    with closing(sqlite3.connect(path)) as connection:
        assert holding(connection).seq == 41 + 2 * busy.steps
        assert checkpoint(connection, "truncate"), "and afterwards nothing is in the way"


def test_it_is_given_up_rather_than_fill_the_services_disk(path, monkeypatch):
    monkeypatch.setattr(backups, "STEP_PAGES", 1)
    monkeypatch.setattr(backups, "WAL_BYTES_MAX", 2_000_000)
    with pytest.raises(BackupError, match=r"given up, for .*-wal has grown past 2 MB"):
        back_up(path, path.parent / "b.db", watch=Busy(path).watch)
    assert folder(path) == set()


def test_what_was_erased_is_not_in_it(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("insert into letters values (1, 2, x'', ?, x'')", (b"dear Ann" * 1000,))
        connection.commit()
    back_up(path, path.parent / "before.db")
    with closing(sqlite3.connect(path)) as connection:
        with connection.blobopen("letters", "content", 1) as blob:
            blob.write(bytes(8000))
        connection.commit()
    back_up(path, path.parent / "after.db")
    assert b"dear Ann" in (path.parent / "before.db").read_bytes()
    assert b"dear Ann" not in (path.parent / "after.db").read_bytes()


# What stands in the way


def test_a_backup_that_is_there_is_replaced_only_by_force(path):
    file = path.parent / "b.db"
    first = back_up(path, file)
    with pytest.raises(BackupError, match="there already"):
        back_up(path, file)
    with database(path) as connection:
        record(writer(connection), [accepted("later")])
    second = back_up(path, file, force=True)
    assert (first.holding.seq, second.holding.seq) == (41, 42)
    assert read_sum(file) == second.sha256


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["l.db", "l.db-wal", "l.db-shm", "l.db.lock", "l.db.mark", "../{folder}/l.db"])
def test_the_database_and_what_belongs_to_it_are_never_replaced(path, name, force):
    before = path.read_bytes()
    with pytest.raises(BackupError, match="belongs to the database"):
        back_up(path, path.parent / name.format(folder=path.parent.name), force=force)
    assert path.read_bytes() == before


def test_another_name_of_the_database_is_the_database(path):
    (path.parent / "other.db").symlink_to(path)
    with pytest.raises(BackupError, match="belongs to the database"):
        back_up(path, path.parent / "other.db", force=True)


def test_no_force_takes_another_file_for_a_backup(path):
    key = path.parent / "l.key"
    key.write_text("the key")
    with pytest.raises(BackupError, match="is no backup"):
        back_up(path, key, force=True)
    assert key.read_text() == "the key"


def test_a_directory_and_a_missing_one_are_named(path):
    with pytest.raises(BackupError, match="is a directory"):
        back_up(path, path.parent)
    with pytest.raises(BackupError, match="is no directory"):
        back_up(path, path.parent / "none" / "b.db")


def test_only_a_log_of_ours_is_backed_up(tmp_path):
    (tmp_path / "text").write_text("no database" * 1000)
    for name in ("none", "text"):
        with pytest.raises((NoLog, Fault)):
            back_up(tmp_path / name, tmp_path / "b.db")
    assert not (tmp_path / "b.db").exists()


def test_a_damaged_log_gives_no_backup(path):
    with closing(sqlite3.connect(path)) as connection:
        checkpoint(connection, "truncate")
        (root,) = connection.execute("select rootpage from sqlite_master where name = 'log'").fetchone()
    damaged = path.parent / "damaged.db"
    shutil.copyfile(path, damaged)
    with damaged.open("r+b") as file:
        file.seek((root - 1) * 4096 + 3)
        file.write(b"\xff\xff")
    with pytest.raises((BackupError, Fault)) as raised:
        back_up(damaged, path.parent / "b.db")
    assert "damaged" in str(raised.value) or "malformed" in str(raised.value)
    assert not (path.parent / "b.db").exists() and not list(path.parent.glob(".b.db*"))


# A full disk


def test_without_room_nothing_is_begun(path, monkeypatch):
    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1000))
    with pytest.raises(BackupError, match=r"b\.db needs .* are free there"):
        back_up(path, path.parent / "b.db")
    assert folder(path) == set()


def test_a_disk_that_fills_up_meanwhile_leaves_the_older_backup(path, monkeypatch):
    """SQLite's own limit of pages stands for the disk: it says the same error at the same place."""
    file = path.parent / "b.db"
    first = back_up(path, file)
    connect = sqlite3.connect

    def small(name, **options):
        connection = connect(name, **options)
        if str(name).endswith(".partial"):
            connection.execute("pragma max_page_count = 8").close()
        return connection

    monkeypatch.setattr(backups.sqlite3, "connect", small)
    with pytest.raises(BackupError, match=r"b\.db cannot be written: .*full"):
        back_up(path, file, force=True)
    assert folder(path) == {"b.db", "b.db.sha256"}
    assert backups.sum_of(file) == first.sha256 == read_sum(file)
    assert sum_path(file).read_text() == f"{first.sha256}  b.db\n"
