"""Restoring: a backup takes the database's place, and the next start knows it.

Whatever the moment at which it ends, the database that stands is the old one or the new one, whole:

1. The backup is copied beside the database (`<db_path>.restoring`) and judged there: its sum, its structure, its chain,
   its key. Nothing else has been touched, and what fails is thrown away.
2. Into the copy goes a mark that it was put back (`meta`, name `restored`). The start goes by it (`store/recovery.py`):
   new log id, LogRestored, dispatch suspended. So it does not matter what has become of the mark file.
3. What is still in the old database's write-ahead file is copied into the database, and the file is removed: SQLite
   would read it into the new one. Where SQLite cannot read the old database, the file is put aside with it.
4. The old database gets a second name, `<db_path>.replaced-<time>`.
5. The copy is renamed to the database's name: the one step that counts.

The lock is held all the time, so no service runs, and none starts meanwhile. After a crash the steps before the last
have changed nothing that a start would notice; what they left is cleared away by the next `restore`.
"""

import datetime as dt
import glob
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from msgspec import Struct

from . import verifying
from .backups import BLOCK_BYTES, Backup, BackupError, Holding, Watch, holding, read_sum, sum_path, unwatched
from .files import WrongKey, hold_lock, lock_path, read_mark, read_or_make_key, sync_directory
from .schema import PUT_BACK
from .secrets import Secrets

MICROSECONDS = 1_000_000

ROOM_KEPT_BYTES = 16 * MICROSECONDS
"""What a start needs at once, for its first facts and their write-ahead file."""

_TABLES = "select count(*) from sqlite_master where type = 'table' and name in ('log', 'commits', 'meta')"
"""A log of ours has all three."""

_MARK = "insert or replace into meta values (?, ?)"


class Found(Struct, frozen=True):
    """What is about to be done: the backup, whether its sum stood beside it, what is to be replaced (None: nothing is
    there, or nothing that can be read), and how far the log is known to have come."""

    backup: Backup
    summed: bool
    replaced: Holding | None
    came_to: int


class Restored(Struct, frozen=True):
    """What was done, and under which name the replaced database is kept."""

    found: Found
    kept: Path | None


def restore(
    db_path: Path,
    file: Path,
    key_file: Path,
    *,
    now_us: int,
    agree: Callable[[Found], bool] = lambda found: True,
    watch: Watch = unwatched,
) -> Restored | None:
    """Put a backup in the database's place; None where `agree` says no. Raises FileError and OSError: then all is as
    it was."""
    _see_backup(db_path, file)
    with hold_lock(db_path):
        staged = Path(f"{db_path}.restoring")
        try:
            _see_room(db_path, file)
            sha256 = _stage(file, staged, watch)
            found = _judge(db_path, file, staged, sha256, key_file, watch)
            if not agree(found):
                return None
            _mark(staged, found)
            return Restored(found, _put(db_path, staged, now_us))
        finally:
            _clear(staged)


# The backup


def _see_backup(db_path: Path, file: Path) -> None:
    if not file.exists():
        raise BackupError(f"{file} is not there: name a backup made by `letterbook backup`")
    if not file.is_file():
        raise BackupError(f"{file} is no file: name a backup made by `letterbook backup`")
    if db_path.exists() and file.samefile(db_path):
        raise BackupError(f"{file} is the database itself: name a backup of it")
    wal = Path(f"{file}-wal")
    if wal.exists() and wal.stat().st_size:
        raise BackupError(f"{file} is a database in use, or was copied from one by hand ({wal} holds a part of it)")


def _see_room(db_path: Path, file: Path) -> None:
    """The replaced database is kept, so there must be room for both."""
    wanted, free = file.stat().st_size + ROOM_KEPT_BYTES, shutil.disk_usage(db_path.absolute().parent).free
    if free < wanted:
        raise BackupError(
            f"{db_path.absolute().parent} has {free // MICROSECONDS} MB free, and {-(-wanted // MICROSECONDS)} MB are"
            " needed beside the database, which is kept: make room first"
        )


def _stage(file: Path, staged: Path, watch: Watch) -> str:
    """Copy the backup beside the database, for its owner alone; the sum of what was copied."""
    _clear(staged)
    added, size, done = hashlib.sha256(), file.stat().st_size, 0
    with (
        watch("copying") as advance,
        open(file, "rb") as source,
        open(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target,
    ):
        while block := source.read(BLOCK_BYTES):
            added.update(block)
            target.write(block)
            done += len(block)
            if advance:
                advance(done, size)
        target.flush()
        os.fsync(target.fileno())
    return added.hexdigest()


def _judge(db_path: Path, file: Path, staged: Path, sha256: str, key_file: Path, watch: Watch) -> Found:
    """Whether the backup is whole and ours. Raises BackupError, and FileError about the key."""
    noted = read_sum(file)
    if noted is not None and noted != sha256:
        raise BackupError(f"{file} is damaged: it is not what {sum_path(file)} was written for; take another backup")
    try:
        with closing(_open_alone(staged)) as connection:
            held = _holding(file, connection)
            _see_whole(file, connection, watch)
            _see_chain(file, connection, watch)
    except sqlite3.DatabaseError as error:
        raise BackupError(f"{file} is no backup that can be read ({error}): take another one") from error
    key_id = Secrets(read_or_make_key(key_file, True, os.urandom), os.urandom).key_id
    if key_id != held.key:
        raise WrongKey(key_file, key_id, held.key)
    replaced, mark = _replaced(db_path), read_mark(db_path)
    came_to = max(replaced.seq if replaced else 0, mark.seq if mark else 0)
    return Found(Backup(held, staged.stat().st_size, sha256), noted is not None, replaced, came_to)


def _open_alone(path: Path) -> sqlite3.Connection:
    """A connection without a shared index beside the file: nobody else knows of it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma locking_mode = exclusive").close()
    connection.execute("pragma synchronous = full").close()
    return connection


def _holding(file: Path, connection: sqlite3.Connection) -> Holding:
    if connection.execute(_TABLES).fetchone() != (3,):
        raise BackupError(f"{file} is a database of another program: name a backup made by `letterbook backup`")
    return holding(connection)


def _see_whole(file: Path, connection: sqlite3.Connection, watch: Watch) -> None:
    with watch("checking"):
        (found,) = connection.execute("pragma integrity_check(1)").fetchone()
    if found != "ok":
        raise BackupError(f"{file} is damaged ({' '.join(found.split())}): take another backup")


def _see_chain(file: Path, connection: sqlite3.Connection, watch: Watch) -> None:
    with watch("verifying") as advance:
        damage = verifying.verify(connection, None, advance).damage
    if damage:
        raise BackupError(f"{file} is damaged at {damage.line}; take another backup")


def _replaced(db_path: Path) -> Holding | None:
    """What the database holds that is to be replaced; it may be what made a restoration necessary."""
    if not db_path.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{db_path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            return holding(connection)
    except (sqlite3.Error, KeyError):
        return None


def _mark(staged: Path, found: Found) -> None:
    """Say within the copy that it was put back; and nothing stands beside it when it is closed."""
    with closing(_open_alone(staged)) as connection:
        connection.execute("pragma journal_mode = delete").close()
        connection.execute(_MARK, (PUT_BACK, str(found.came_to)))


# Its place


def _put(db_path: Path, staged: Path, now_us: int) -> Path | None:
    """Keep what is there under another name, and give the copy its own."""
    kept = Path(f"{db_path}.replaced-{dt.datetime.fromtimestamp(now_us / MICROSECONDS, dt.UTC):%Y%m%dT%H%M%SZ}")
    _settle(db_path, kept)
    is_there = db_path.exists()
    if is_there:
        _keep(db_path, kept)
    _give(db_path, staged, is_there)
    os.replace(staged, db_path)
    sync_directory(db_path.absolute().parent)
    return kept if is_there else None


def _settle(db_path: Path, kept: Path) -> None:
    """See that no write-ahead file is left beside the database."""
    wal, index = Path(f"{db_path}-wal"), Path(f"{db_path}-shm")
    if db_path.exists() and _checkpoint(db_path) and wal.exists():
        raise BackupError(f"{db_path} is open in another process: end it first, then restore")
    if wal.exists() and wal.stat().st_size:
        os.replace(wal, f"{kept}-wal")
    wal.unlink(missing_ok=True)
    index.unlink(missing_ok=True)
    sync_directory(db_path.absolute().parent)


def _checkpoint(db_path: Path) -> bool:
    """Copy the write-ahead file into the database; whether SQLite could read them. The last connection to be closed
    removes the file: where it is left, somebody else has the database open, and would remove it from under the new
    one."""
    try:
        with closing(sqlite3.connect(f"{db_path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute("pragma wal_checkpoint(truncate)").fetchone()
    except sqlite3.DatabaseError:
        return False
    return True


def _keep(db_path: Path, kept: Path) -> None:
    """A second name, so that the first is never without a database. One left by a restoration that broke off goes."""
    for earlier in db_path.parent.glob(f"{glob.escape(db_path.name)}.replaced-*"):
        if earlier.samefile(db_path):
            earlier.unlink()
    try:
        os.link(db_path, kept)
    except OSError as error:
        raise BackupError(
            f"{db_path} cannot be kept as {kept} ({error.strerror}): move it away yourself, then restore"
        ) from error


def _give(db_path: Path, staged: Path, is_there: bool) -> None:
    """Where the superuser restores, the files belong to whoever runs the service."""
    if os.geteuid() == 0:
        owner = (db_path if is_there else db_path.absolute().parent).stat()
        for each in (staged, lock_path(db_path)):
            os.chown(each, owner.st_uid, owner.st_gid)


def _clear(staged: Path) -> None:
    for suffix in ("", "-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(f"{staged}{suffix}")
