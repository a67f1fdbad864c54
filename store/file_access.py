"""The database of a running or a stopped service, opened from outside of it: to read, or to rebuild its views.

Reading needs no lock: in WAL mode a reader sees one moment and holds nobody up. It must not last, though: while a
read transaction is open the write-ahead file cannot be begun anew, so long readings take one a page (`moment`).
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from . import replay, verifying
from .faults import faults_of
from .files import FileError, hold_lock, read_mark, read_or_make_key
from .opening import connect
from .schema import applied, migrate
from .secrets import Secrets
from .surveying import stale_views

_META = "select value from meta where name = ?"
"""The log's random id (`log`), and the id of its key (`key`)."""

_META_ALL = "select name, value from meta"
"""The versions of the views too: a dozen rows."""


class NoLog(FileError):
    """There is no log to read; the text is one line that says what to do."""


class StaleViews(FileError):
    """Only the log itself can be read; the text is one line that says what to do."""


@contextmanager
def open_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in autocommit that can only read. Raises NoLog, and Fault also for what SQLite says later."""
    _find(path)
    with faults_of(path), closing(connect(path, read_only=True)) as connection:
        _see_ours(path, connection)
        yield connection


def see_views(path: Path, connection: sqlite3.Connection) -> None:
    """Raises StaleViews where this release folds its views in another way, and so cannot read them."""
    if stale_views(dict(connection.execute(_META_ALL))):
        raise StaleViews(f"{path} has views of another release: start the service, or run `letterbook rebuild`")


@contextmanager
def moment(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One read transaction: everything within is of one moment."""
    connection.execute("begin")
    try:
        yield connection
    finally:
        connection.execute("rollback")


def log_id(connection: sqlite3.Connection) -> str:
    """The log's id."""
    return str(connection.execute(_META, ("log",)).fetchone()[0])


def secrets_of(connection: sqlite3.Connection, key_file: Path) -> Secrets | None:
    """The log's secrets; None where its key cannot be read here, as when somebody else than the service looks."""
    try:
        secrets = Secrets(read_or_make_key(key_file, True, os.urandom), os.urandom)
    except FileError:
        return None
    return secrets if connection.execute(_META, ("key",)).fetchone() == (secrets.key_id,) else None


def verify(path: Path, progress: verifying.Progress | None = None) -> tuple[verifying.Verdict, bool]:
    """(the verdict, whether a mark of this log stood beside it: without one, a log cut off at its end looks whole).

    The mark is read first, for the log of a running service goes on meanwhile. Raises NoLog.
    """
    mark = read_mark(path)
    with open_to_read(path) as connection:
        marked = mark is not None and mark.log == log_id(connection)
        return verifying.verify(connection, mark.seq if mark and marked else None, progress), marked


def rebuild(path: Path, progress: replay.Progress | None = None) -> int:
    """Fold all views anew, in place; how many facts were folded. Raises Locked where a service runs, and NoLog."""
    with open_to_read(path):
        pass
    with hold_lock(path), faults_of(path), closing(connect(path)) as connection:
        migrate(connection)
        return replay.rebuild(connection, progress)


def _find(path: Path) -> None:
    """SQLite would say only that it is unable to open it."""
    if not os.path.isfile(path):
        raise NoLog(f"{path} is no file: name the database by --db, or its configuration by --config")


def _see_ours(path: Path, connection: sqlite3.Connection) -> None:
    if not applied(connection) or connection.execute(_META, ("log",)).fetchone() is None:
        raise NoLog(f"{path} holds no log of ours: name the database by --db, or its configuration by --config")
