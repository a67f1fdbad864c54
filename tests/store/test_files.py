"""The lock, the mark and the key file, on a real file system."""

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.files import (
    MARK_EVERY_US,
    KeyMalformed,
    KeyMissing,
    KeyUnreadable,
    Locked,
    LockUnusable,
    Mark,
    MarkKeeper,
    MarkUnreadable,
    WrongKey,
    hold_lock,
    lock_path,
    mark_path,
    read_mark,
    read_or_make_key,
    write_mark,
)

KEY = bytes(range(32))


@pytest.fixture
def db(tmp_path) -> Path:
    return tmp_path / "letterbook.db"


def one_line(error: BaseException, path: Path) -> bool:
    text = str(error)
    return "\n" not in text and str(path) in text


# The lock


def test_a_second_holder_is_told_the_pid_of_the_first(db):
    with hold_lock(db):
        with pytest.raises(Locked) as caught, hold_lock(db):
            pass
        assert caught.value.pid == os.getpid()
        assert str(os.getpid()) in str(caught.value) and one_line(caught.value, db)


def test_the_lock_is_free_again_however_the_holder_left(db):
    with pytest.raises(ZeroDivisionError), hold_lock(db):
        raise ZeroDivisionError
    with hold_lock(db):
        assert lock_path(db).read_text() == f"{os.getpid()}\n"


def test_a_refused_holder_leaves_the_pid_alone(db):
    with hold_lock(db):
        with pytest.raises(Locked), hold_lock(db):
            pass
        assert lock_path(db).read_text() == f"{os.getpid()}\n"


def test_a_killed_holder_holds_nothing(db):
    program = f"""
from pathlib import Path
from store.files import hold_lock
with hold_lock(Path({str(db)!r})):
    print("held", flush=True)
    input()
"""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == b"held\n"
        with pytest.raises(Locked) as caught, hold_lock(db):
            pass
        assert caught.value.pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
        with hold_lock(db):
            assert lock_path(db).read_text() == f"{os.getpid()}\n"


def test_a_holder_whose_pid_cannot_be_read_is_still_a_holder(db):
    with hold_lock(db):
        lock_path(db).write_text("")
        with pytest.raises(Locked) as caught, hold_lock(db):
            pass
        assert caught.value.pid == 0 and "another process" in str(caught.value)


def test_a_lock_file_that_cannot_be_opened_is_named(db):
    lock_path(db).mkdir()
    with pytest.raises(LockUnusable) as caught, hold_lock(db):
        pass
    assert one_line(caught.value, lock_path(db))


# The mark


def test_a_mark_is_read_as_it_was_written(db):
    assert read_mark(db) is None
    write_mark(db, Mark("a1b2", 17))
    write_mark(db, Mark("a1b2", 18))
    assert read_mark(db) == Mark("a1b2", 18)
    assert [path.name for path in db.parent.iterdir()] == ["letterbook.db.mark"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"log":"a"}', b'{"log":1,"seq":2}', b"\xff\xfe", b"17"])
def test_what_is_no_mark_counts_as_none(db, content):
    mark_path(db).write_bytes(content)
    assert read_mark(db) is None


def test_a_mark_that_cannot_be_read_is_named(db):
    mark_path(db).mkdir()
    with pytest.raises(MarkUnreadable) as caught:
        read_mark(db)
    assert one_line(caught.value, mark_path(db))


@pytest.fixture
def no_room() -> Iterator[None]:
    """No file of this process may hold a byte more, as on a full disk."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, usual[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, usual)


def test_a_mark_that_cannot_be_written_leaves_the_old_one(db, request):
    write_mark(db, Mark("a1b2", 17))
    request.getfixturevalue("no_room")
    with pytest.raises(OSError, match="too large"):
        write_mark(db, Mark("a1b2", 18))
    assert read_mark(db) == Mark("a1b2", 17)
    assert [path.name for path in db.parent.iterdir()] == ["letterbook.db.mark"]


def test_a_key_that_cannot_be_written_leaves_no_half_of_it(tmp_path, no_room):
    with pytest.raises(KeyUnreadable, match="too large"):
        read_or_make_key(tmp_path / "letterbook.key", False, os.urandom)
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_half_written_is_no_hindrance(db):
    Path(f"{mark_path(db)}.new").write_text("half of")
    write_mark(db, Mark("a1b2", 18))
    assert read_mark(db) == Mark("a1b2", 18)


def test_the_keeper_writes_at_most_once_a_second_and_at_the_end(db):
    keeper = MarkKeeper(db, "a1b2")
    seen = []
    for seq, now_us in ((1, 0), (2, 10), (3, MARK_EVERY_US - 1), (4, MARK_EVERY_US), (5, MARK_EVERY_US + 1)):
        assert keeper.keep(seq, now_us, 7) is None
        seen.append(read_mark(db).seq)
    assert seen == [1, 1, 1, 4, 4]
    assert keeper.finish(5, 8) is None
    assert read_mark(db) == Mark("a1b2", 5, 8)


def test_the_keeper_writes_nothing_while_nothing_happens(db):
    keeper = MarkKeeper(db, "a1b2")
    keeper.keep(1, 0, 7)
    mark_path(db).unlink()
    assert keeper.keep(1, 10 * MARK_EVERY_US, 7) is None
    assert read_mark(db) is None


def test_the_keeper_gives_back_what_kept_it_from_writing(db):
    keeper = MarkKeeper(db.parent / "gone" / "x.db", "a1b2")
    assert isinstance(keeper.keep(1, 0, 7), FileNotFoundError)
    assert keeper.keep(2, 1, 7) is None, "it is tried again a second later, not at every commit"
    assert isinstance(keeper.keep(2, MARK_EVERY_US, 7), FileNotFoundError)


# The key


def test_a_key_is_made_with_a_new_log_for_its_owner_alone(tmp_path):
    path = tmp_path / "letterbook.key"
    assert read_or_make_key(path, log_exists=False, entropy=lambda n: KEY[:n]) == KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().isascii() and path.read_text().endswith("\n")


@pytest.mark.parametrize("log_exists", [True, False])
def test_a_key_that_is_there_is_read_and_never_made_again(tmp_path, log_exists):
    path = tmp_path / "letterbook.key"
    read_or_make_key(path, False, lambda n: KEY[:n])
    text = path.read_bytes()
    assert read_or_make_key(path, log_exists, bytes) == KEY
    assert path.read_bytes() == text


def test_beside_a_log_no_key_is_made(tmp_path):
    path = tmp_path / "letterbook.key"
    with pytest.raises(KeyMissing) as caught:
        read_or_make_key(path, True, os.urandom)
    assert one_line(caught.value, path) and not path.exists()


def test_any_one_changed_character_of_the_key_line_makes_it_malformed(tmp_path):
    path = tmp_path / "letterbook.key"
    read_or_make_key(path, False, lambda n: KEY[:n])
    good = path.read_text()
    start = good.index("letterbook-key")
    for index in range(start, len(good) - 1):
        path.write_text(good[:index] + ("A" if good[index] != "A" else "B") + good[index + 1 :])
        with pytest.raises(KeyMalformed) as caught:
            read_or_make_key(path, True, os.urandom)
        assert one_line(caught.value, path) and good[start:].split()[2] not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"# only words\n", b"letterbook-key-1 00000000\n"])
def test_what_is_no_key_file_is_malformed(tmp_path, content):
    path = tmp_path / "letterbook.key"
    path.write_bytes(content)
    with pytest.raises(KeyMalformed):
        read_or_make_key(path, False, os.urandom)
    assert path.read_bytes() == content


def test_a_key_survives_being_pasted_with_blank_lines_and_without_its_comments(tmp_path):
    path = tmp_path / "letterbook.key"
    read_or_make_key(path, False, lambda n: KEY[:n])
    line = path.read_text().splitlines()[-1]
    path.write_text(f"\n  {line}\r\n\n")
    assert read_or_make_key(path, True, os.urandom) == KEY


@pytest.mark.parametrize("log_exists", [True, False])
def test_a_key_file_that_cannot_be_read_or_made_is_named(tmp_path, log_exists):
    path = tmp_path / "letterbook.key"
    path.mkdir()
    with pytest.raises(KeyUnreadable) as caught:
        read_or_make_key(path, log_exists, os.urandom)
    assert one_line(caught.value, path)
    with pytest.raises(KeyUnreadable):
        read_or_make_key(tmp_path / "no such folder" / "key", False, os.urandom)


def test_a_wrong_key_names_both_ids(tmp_path):
    error = WrongKey(tmp_path / "k", "aaaaaaaa", "bbbbbbbb")
    assert "aaaaaaaa" in str(error) and "bbbbbbbb" in str(error) and one_line(error, tmp_path / "k")
