"""A restored backup stands whole and is known for one, or the old database stands whole: at whatever moment it ends."""

import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
import trio

from events.fact import Draft
from events.schedule import DispatchActivated
from events.service import LogRestored
from store import restoring
from store.backups import BackupError, back_up, sum_path
from store.clock import TrioClock
from store.files import KeyMissing, Locked, WrongKey, hold_lock, mark_path, read_mark
from store.opening import open_store, page
from store.restoring import restore
from store.verifying import verify
from store.worklists import dispatch_row

from .building import T0_US, accepted, account_saved
from .killing import killed_at

NOW_US = T0_US + 72_000_000_000
KEPT = "l.db.replaced-20231115T181320Z"
KILLS_MAX = 300


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """What a service leaves that was killed: its files, with facts in the write-ahead file alone; and a backup of three
    messages, beside a log of five."""
    made, killed = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("killed")

    async def write() -> None:
        clock = TrioClock(T0_US)
        async with open_store(made / "l.db", made / "l.key", clock=clock, threaded=False) as store:
            await store.record([account_saved()])
            await store.record([accepted(name) for name in "abc"])
            back_up(made / "l.db", made / "b.db")
            await trio.sleep(2)
            await store.record([accepted(name) for name in "de"])
            for each in made.iterdir():
                if each.name != "l.db-shm":
                    shutil.copyfile(each, killed / each.name)

    trio.run(write, clock=trio.testing.MockClock(autojump_threshold=0))
    assert (killed / "l.db-wal").stat().st_size > 0
    return killed


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    shutil.copytree(prepared, tmp_path / "f")
    return tmp_path / "f"


def restored(folder: Path, name: str = "b.db", **options):
    return restore(folder / "l.db", folder / name, folder / "l.key", now_us=NOW_US, **options)


class Start:
    """What a start finds, and does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        trio.run(self._open)

    async def _open(self) -> None:
        path = self._folder / "l.db"
        async with open_store(path, self._folder / "l.key", clock=TrioClock(NOW_US), threaded=False) as store:
            self.log, self.restored, self.label = store.log_id, store.recovered.restored, store.recovered.label
            self.dispatch = await store.read(dispatch_row)
            self.facts = await store.read(page, 0, 1000)
            assert (await store.read(lambda connection: verify(connection, None))).damage is None
            quick = await store.read(lambda connection: connection.execute("pragma quick_check").fetchall())
            assert quick == [("ok",)]

    @property
    def ids(self) -> str:
        return "".join(getattr(entry.fact, "id", "") for entry in self.facts if entry.message)


def test_a_restored_backup_is_known_for_one_and_the_replaced_database_is_kept(folder):
    before = shutil.copytree(folder, folder.parent / "before")
    done = restored(folder)
    assert (done.found.backup.holding.seq, done.found.replaced.seq, done.found.came_to) == (4, 6, 6)
    assert done.kept == folder / KEPT and done.found.summed
    assert {each.name for each in folder.iterdir()} == {
        "l.db", "l.key", "l.db.lock", "l.db.mark", "b.db", "b.db.sha256", KEPT,
    }  # fmt: skip
    assert stat.S_IMODE((folder / "l.db").stat().st_mode) == 0o600
    old, new = Start(before), Start(folder)
    assert (old.ids, old.restored) == ("abcde", False)
    assert (new.ids, new.restored, new.label) == ("abc", True, "unclean stop, put back")
    assert new.log != old.log
    assert new.facts[4].fact == LogRestored(previous_log=old.log, marked_seq=6)
    assert (new.dispatch.active, new.dispatch.restored) == (False, True)
    shutil.copyfile(folder / KEPT, before / "l.db")
    assert Start(before).ids == "abcde", "what was kept is the whole database, with what its write-ahead file held"


@pytest.mark.parametrize("mark", ["kept", "lost", "of another log", "at the backup's end", "broken"])
def test_no_mark_and_no_lost_mark_hides_it(folder, mark):
    restored(folder)
    match mark:
        case "lost":
            mark_path(folder / "l.db").unlink()
        case "of another log":
            mark_path(folder / "l.db").write_bytes(b'{"log":"b2","seq":1}')
        case "at the backup's end":
            own = read_mark(folder / "l.db").log
            mark_path(folder / "l.db").write_text(f'{{"log":"{own}","seq":4}}')
        case "broken":
            mark_path(folder / "l.db").write_bytes(b"\0")
    start = Start(folder)
    assert start.restored and start.dispatch.restored and not start.dispatch.active
    again = Start(folder)
    assert not again.restored and again.log == start.log, "once is enough"
    assert again.dispatch.restored, "but what waits still waits for the choice"


def test_after_the_choice_it_is_a_log_like_any_other(folder):
    restored(folder)
    Start(folder)

    async def choose() -> None:
        clock = TrioClock(NOW_US)
        async with open_store(folder / "l.db", folder / "l.key", clock=clock, threaded=False) as store:
            await store.record([Draft(DispatchActivated(by="test", restored="send"))])

    trio.run(choose)
    start = Start(folder)
    assert (start.restored, start.dispatch.active, start.dispatch.restored) == (False, True, False)


def test_on_a_new_machine_there_is_nothing_to_replace(folder):
    for name in ("l.db", "l.db-wal", "l.db.mark", "l.db.lock"):
        (folder / name).unlink(missing_ok=True)
    done = restored(folder)
    assert (done.kept, done.found.replaced, done.found.came_to) == (None, None, 0)
    start = Start(folder)
    assert start.restored and start.ids == "abc"


def test_a_copy_made_by_hand_after_a_stop_in_order_can_be_restored_too(folder):
    Start(folder)
    shutil.copyfile(folder / "l.db", folder / "hand.db")
    assert not restored(folder, "hand.db").found.summed
    assert Start(folder).ids == "abcde"


def test_what_was_replaced_can_be_put_back(folder):
    restored(folder)
    Start(folder)
    assert restore(folder / "l.db", folder / KEPT, folder / "l.key", now_us=NOW_US + 1_000_000)
    start = Start(folder)
    assert start.restored and start.ids == "abcde"


def test_who_does_not_agree_changes_nothing(folder):
    names = set(os.listdir(folder))
    assert restored(folder, agree=lambda found: False) is None
    assert set(os.listdir(folder)) <= names
    assert Start(folder).ids == "abcde"


# A kill at every step


def test_a_kill_at_any_step_leaves_the_old_or_the_new_database_whole(prepared, tmp_path):
    fates, seen = [], set()
    for nth in range(1, KILLS_MAX):
        folder = shutil.copytree(prepared, tmp_path / f"{nth}")
        killed = killed_at(nth, lambda folder=folder: restored(folder))
        names = frozenset(os.listdir(folder))
        start = Start(shutil.copytree(folder, tmp_path / f"{nth}-start"))
        assert (start.ids, start.restored) in {("abcde", False), ("abc", True)}, nth
        assert start.dispatch.active != start.restored
        fates.append(start.restored)
        if names not in seen:
            _restore_once_more(folder)
        seen.add(names)
        if not killed:
            break
    assert not killed and len(seen) > 4
    assert fates == sorted(fates), "there is one step that counts"
    assert fates.count(False) > 5 and fates.count(True) > 1


def _restore_once_more(folder: Path) -> None:
    """What the broken one left is cleared away."""
    done = restore(folder / "l.db", folder / "b.db", folder / "l.key", now_us=NOW_US + 1_000_000)
    left = set(os.listdir(folder)) - {"l.key", "b.db", "b.db.sha256", "l.db.lock", "l.db.mark"}
    assert left - {KEPT} == {"l.db", done.kept.name}
    assert Start(folder).ids == "abc"


def test_a_kill_at_any_step_of_the_first_start_cannot_hide_it(folder, tmp_path):
    restored(folder)
    mark_path(folder / "l.db").unlink()
    for nth in range(1, KILLS_MAX):
        killed_folder = shutil.copytree(folder, tmp_path / f"{nth}")
        killed = killed_at(nth, lambda at=killed_folder: Start(at))
        start = Start(killed_folder)
        assert start.dispatch.restored and not start.dispatch.active, nth
        assert start.ids == "abc"
        if not killed:
            break
    assert not killed and nth > 10


def test_a_kill_at_any_step_of_a_backup_leaves_a_whole_one_or_none(prepared, tmp_path):
    fates = []
    for nth in range(1, KILLS_MAX):
        folder = shutil.copytree(prepared, tmp_path / f"{nth}")
        (folder / "b.db").unlink()
        killed = killed_at(nth, lambda at=folder: back_up(at / "l.db", at / "b.db"))
        fates.append((folder / "b.db").exists())
        if fates[-1]:
            assert restored(folder).found.backup.holding.seq == 6
            assert Start(folder).ids == "abcde"
        if not killed:
            break
    assert not killed and fates == sorted(fates) and fates.count(False) > 5 and fates.count(True) > 1


# What is refused, before anything is touched


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def cut_within_a_page(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def text(file: Path) -> None:
    file.write_text("Dear Sir or Madam\n" * 1000)


def of_another_program(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("create table meta (name, value)")


def gone(file: Path) -> None:
    file.unlink()


def a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def still_in_use(file: Path) -> None:
    Path(f"{file}-wal").write_bytes(bytes(100))


SPOILT = {
    cut: "damaged|cannot|no backup",
    cut_within_a_page: "damaged|no backup",
    flip_a_byte: "damaged",
    emptied: "another program",
    text: "not a database",
    of_another_program: "another program",
    gone: "is not there",
    a_directory: "is no file",
    still_in_use: "in use",
}


@pytest.mark.parametrize("summed", [True, False], ids=["with its sum", "without its sum"])
@pytest.mark.parametrize("spoil", SPOILT, ids=lambda spoil: spoil.__name__)
def test_a_backup_that_is_none_is_refused_in_one_line_and_nothing_is_touched(folder, spoil, summed):
    spoil(folder / "b.db")
    if not summed:
        sum_path(folder / "b.db").unlink()
    before = _files(folder)
    wanted = SPOILT[spoil] if not summed else f"{SPOILT[spoil]}|is damaged: it is not what"
    if spoil is flip_a_byte and not summed:
        _flip_in_the_log(folder / "b.db")
        before = _files(folder)
    with pytest.raises(BackupError, match=wanted) as raised:
        restored(folder)
    assert "\n" not in str(raised.value) and str(folder / "b.db") in str(raised.value)
    assert _files(folder) == before
    assert Start(folder).ids == "abcde"


def _files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file() and each.suffix != ".lock"}


def _flip_in_the_log(file: Path) -> None:
    """Without its sum only a flipped byte in a fact, or in the structure, can be noticed."""
    data = bytearray(file.read_bytes())
    data[data.index(b'{"id":"b"') + 7] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("part", [b'{"id":"b"', b"MessageAccepted", b"d" * 16])
def test_a_flipped_byte_in_a_fact_is_named_by_its_place(folder, part):
    sum_path(folder / "b.db").unlink()
    data = bytearray((folder / "b.db").read_bytes())
    data[data.index(part) + 1] ^= 1
    (folder / "b.db").write_bytes(data)
    with pytest.raises(BackupError, match="is damaged"):
        restored(folder)


def test_another_logs_key_and_a_missing_one(folder, tmp_path):
    before = _files(folder)

    async def another() -> None:
        async with open_store(tmp_path / "o.db", tmp_path / "o.key", clock=TrioClock(T0_US), threaded=False):
            pass

    trio.run(another)
    with pytest.raises(WrongKey, match=r"o\.key"):
        restore(folder / "l.db", folder / "b.db", tmp_path / "o.key", now_us=NOW_US)
    with pytest.raises(KeyMissing):
        restore(folder / "l.db", folder / "b.db", tmp_path / "no.key", now_us=NOW_US)
    assert not (tmp_path / "no.key").exists() and _files(folder) == before


def test_a_running_service_is_named(folder):
    before = _files(folder)
    with hold_lock(folder / "l.db"), pytest.raises(Locked, match=f"process {os.getpid()}"):
        restored(folder)
    assert _files(folder) == before


def test_the_database_is_no_backup_of_itself(folder):
    with pytest.raises(BackupError, match="is the database itself"):
        restored(folder, "l.db")
    (folder / "link.db").symlink_to(folder / "l.db")
    with pytest.raises(BackupError, match="is the database itself"):
        restored(folder, "link.db")


def test_whoever_has_the_old_database_open_is_not_given_another_under_its_feet(folder):
    """When SQLite closes a file it believes to be alone with, it deletes what has the name of its write-ahead file."""
    child_ready, parent_done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        connection = sqlite3.connect(folder / "l.db")
        connection.execute("select count(*) from log").fetchone()
        os.write(child_ready[1], b"!")
        os.read(parent_done[0], 1)
        os._exit(0)
    os.read(child_ready[0], 1)
    try:
        with pytest.raises(BackupError, match="open in another process"):
            restored(folder)
    finally:
        os.write(parent_done[1], b"!")
        os.waitpid(child, 0)
        for each in (*child_ready, *parent_done):
            os.close(each)
    assert Start(folder).ids == "abcde"


def test_without_room_for_both_nothing_is_begun(folder, monkeypatch):
    before = _files(folder)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1_000_000))
    with pytest.raises(BackupError, match="1 MB free, and 17 MB are needed"):
        restored(folder)
    assert _files(folder) == before


def test_an_old_database_that_cannot_be_read_is_kept_all_the_same_with_its_write_ahead_file(folder):
    (folder / "l.db").write_bytes(b"not a page of it left" * 500)
    wal = (folder / "l.db-wal").read_bytes()
    done = restored(folder)
    assert done.found.replaced is None and done.found.came_to == read_mark(folder / "l.db").seq == 6
    assert (folder / KEPT).read_bytes() == b"not a page of it left" * 500
    assert (folder / f"{KEPT}-wal").read_bytes() == wal
    assert Start(folder).ids == "abc"


def test_where_a_second_name_cannot_be_given_nothing_is_replaced(folder, monkeypatch):
    def no_links(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(restoring.os, "link", no_links)
    with pytest.raises(BackupError, match=r"cannot be kept as .*Operation not permitted"):
        restored(folder)
    monkeypatch.undo()
    start = Start(folder)
    assert (start.ids, start.restored) == ("abcde", False)


def test_the_mark_that_was_never_written_is_no_mark(folder):
    mark_path(folder / "l.db").unlink()
    assert restored(folder).found.came_to == 6
    assert read_mark(folder / "l.db") is None
    start = Start(folder)
    mark = read_mark(folder / "l.db")
    assert mark is not None and (mark.log, mark.seq) == (start.log, 6)
