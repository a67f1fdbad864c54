"""The files beside the database: the lock, the mark and the key.

`<db_path>.lock` is held (flock) by the one process that writes, for as long as it lives; the kernel lets go of it
when the process ends, however it ends. It holds the pid for whoever comes second.

`<db_path>.mark` says how far the log is known to have come: the log's id and a seq that was on disk. It is written
after commits, at most once a second, so the log is at the mark or a little past it. A log that ends before its mark
is a backup that was restored, or was cut off.

The key file holds the 32 random bytes that `store.secrets` derives its keys from. It is made once, with a new log,
and never beside a log that is there already: a new key could not open what the old one sealed.
"""

import binascii
import contextlib
import fcntl
import os
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from .secrets import Secrets

KEY_BYTES = 32

MARK_EVERY_US = 1_000_000
"""A mark costs two fsyncs, as much as a commit: once a second is nothing, and what it may miss is a backup restored
within a second of being taken."""


class FileError(Exception):
    """A file beside the database keeps the service from starting; the text is one line that says what to do."""


class Locked(FileError):
    """Another process writes to this database; `pid` is 0 where it could not be read."""

    def __init__(self, path: Path, pid: int) -> None:
        self.pid = pid
        who = f"the process {pid}" if pid else "another process"
        super().__init__(f"{path} is in use by {who}: stop it first, or ask it")


class LockUnusable(FileError):
    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"the lock file {path} cannot be used ({error.strerror}): let the service's user read and write it"
        )


class KeyMissing(FileError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"the key file {path} is missing beside a log: put back the one that was made with this log")


class KeyMalformed(FileError):
    def __init__(self, path: Path) -> None:
        super().__init__(f"the key file {path} is malformed: put back the one that was made with this log")


class KeyUnreadable(FileError):
    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"the key file {path} cannot be read or made ({error.strerror}): let the service's user do both"
        )


class WrongKey(FileError):
    def __init__(self, path: Path, key_id: str, wanted_id: str) -> None:
        super().__init__(
            f"the key file {path} holds the key {key_id}, but this log was made with the key {wanted_id}: put that one"
            " back"
        )


class MarkUnreadable(FileError):
    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"the mark file {path} cannot be read ({error.strerror}): let the service's user read it")


class Mark(Struct, frozen=True):
    """How far a log is known to have come: its id, the seq of a fact that was on disk, and what the clock showed then.
    (A stamp in the log may be ahead of the clock: stamps never decrease.) 0 in a mark of an earlier release."""

    log: str
    seq: int
    now_us: int = 0


# The lock


def lock_path(db_path: Path) -> Path:
    return Path(f"{db_path}.lock")


def see_unlocked(db_path: Path) -> None:
    """Raises Locked where another process holds the lock now; nothing is made."""
    try:
        descriptor = os.open(lock_path(db_path), os.O_RDWR)
    except OSError:
        return
    try:
        _take(descriptor, db_path)
    finally:
        os.close(descriptor)


@contextmanager
def hold_lock(db_path: Path) -> Iterator[None]:
    """Hold the database's lock, or raise Locked. The file stays: removing it would let two processes hold two files."""
    path = lock_path(db_path)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LockUnusable(path, error) from error
    try:
        _take(descriptor, db_path)
        # The pid is for whoever comes second; on a full disk that one hears only of another process.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, db_path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 20, 0).strip()
        raise Locked(db_path, int(text) if text.isdigit() else 0) from None
    except OSError as error:
        raise LockUnusable(lock_path(db_path), error) from error


# The mark


def mark_path(db_path: Path) -> Path:
    return Path(f"{db_path}.mark")


def read_mark(db_path: Path) -> Mark | None:
    """The mark; None where there is none, or where it is no mark: it is written whole, so somebody else wrote that."""
    path = mark_path(db_path)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mark)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    except OSError as error:
        raise MarkUnreadable(path, error) from error


def write_mark(db_path: Path, mark: Mark) -> None:
    """Replace the mark, whole and on disk when this returns. Raises OSError, and then the old one still stands."""
    write_whole(mark_path(db_path), msgspec.json.encode(mark) + b"\n", 0o644)


class MarkKeeper:
    """Keeps the mark close behind the log. Only the writer uses it, and only for what it has committed."""

    def __init__(self, db_path: Path, log: str) -> None:
        self._db_path = db_path
        self._log = log
        self._written = 0
        self._next_us: int | None = None
        self.failing = False

    def keep(self, seq: int, monotonic_us: int, now_us: int) -> OSError | None:
        """Write the mark if it is a second old; what kept it from being written is only worth a line in the log."""
        if seq == self._written or (self._next_us is not None and monotonic_us < self._next_us):
            return None
        self._next_us = monotonic_us + MARK_EVERY_US
        return self.finish(seq, now_us)

    def finish(self, seq: int, now_us: int) -> OSError | None:
        """Write the mark now: the last one before the database is closed."""
        try:
            write_mark(self._db_path, Mark(self._log, seq, now_us))
        except OSError as error:
            self.failing = True
            return error
        self._written, self.failing = seq, False
        return None


# The key

_KEY_FILE = """\
# The key of a Letterbook log: its passwords and digests cannot be read without it.
# Keep a copy with every backup, and show it to nobody.
letterbook-key-1 {id} {key}
"""

_KEY_LINE = re.compile(r"letterbook-key-1 (?P<id>[0-9a-f]{8}) (?P<key>[A-Za-z0-9_-]{43}=)")


def read_or_make_key(path: Path, log_exists: bool, entropy: Callable[[int], bytes]) -> bytes:
    """The 32 bytes of the key file. Where there is neither file nor log, it is made (mode 0600).

    Raises KeyMissing, KeyMalformed or KeyUnreadable. Whether it is this log's key is for the caller to compare
    (`Secrets.key_id`), and then WrongKey.
    """
    try:
        return parse_key(path, path.read_bytes())
    except FileNotFoundError:
        if log_exists:
            raise KeyMissing(path) from None
    except OSError as error:
        raise KeyUnreadable(path, error) from error
    key = entropy(KEY_BYTES)
    try:
        write_whole(path, _KEY_FILE.format(id=_key_id(key), key=urlsafe_b64encode(key).decode()).encode(), 0o600)
    except OSError as error:
        raise KeyUnreadable(path, error) from error
    return key


def parse_key(path: Path, text: bytes) -> bytes:
    """The key in a key file's text. Its id is derived from it, so a key with one wrong letter is malformed."""
    lines = [line for line in text.decode("ascii", "replace").splitlines() if line and not line.startswith("#")]
    match = _KEY_LINE.fullmatch(lines[0].strip()) if len(lines) == 1 else None
    if match is None:
        raise KeyMalformed(path)
    try:
        key = urlsafe_b64decode(match["key"])
    except binascii.Error:
        raise KeyMalformed(path) from None
    if _key_id(key) != match["id"]:
        raise KeyMalformed(path)
    return key


def _key_id(key: bytes) -> str:
    return Secrets(key, os.urandom).key_id


# Writing


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Write a file so that after a crash it is there whole, as before or as now: a new file takes its place."""
    new = Path(f"{path}.new")
    new.unlink(missing_ok=True)
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Renaming is a change of the directory: without this a crash may bring the old name back."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
