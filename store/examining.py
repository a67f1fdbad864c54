"""What a start can see of its files before it makes any: whether it may write them, and whose they are.

`letterbook check-config` says the same, and neither leaves anything behind: a log that nobody has open is looked at as
an immutable file, for else SQLite would make its two files beside it.
"""

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .faults import faults_of
from .files import FileError, KeyUnreadable, WrongKey, lock_path, mark_path, parse_key, read_or_make_key
from .old_service import NEEDED
from .schema import applied, known
from .secrets import Secrets

_TABLES = "select name from sqlite_master where type = 'table' order by name"
"""Reading the schema also shows whether this is a database at all."""

_KEY = "select value from meta where name = 'key'"
"""The id of the key that the log was made with."""

OTHERS_MAY = stat.S_IWGRP | stat.S_IRWXO
"""Who is neither the owner nor of a group that was let in on purpose reads it, or somebody else writes it."""

TABLES_SHOWN_MAX = 3

OLD_SERVICE = " (is it the old service's? `letterbook import` takes it over into a log of its own)"


class NotOurs(FileError):
    """What is there is another program's, or a newer release's."""


def examine(path: Path, key_file: Path) -> tuple[str, ...]:
    """What is worth a warning. Raises FileError or Fault where the start could not go on; nothing is made."""
    _see_folder(path)
    _see_file(path, "database")
    for beside in (Path(f"{path}-wal"), Path(f"{path}-shm"), lock_path(path), mark_path(path)):
        _see_file(beside, "file")
    if is_log(path):
        key = read_or_make_key(key_file, True, os.urandom)
        _see_log(path, key_file, Secrets(key, os.urandom).key_id)
    elif key_file.exists():
        parse_key(key_file, _read(key_file))
    else:
        _see_key_folder(key_file)
    return _too_open(key_file)


def is_log(path: Path) -> bool:
    """SQLite makes an empty file before the first table: that is no log yet."""
    return path.exists() and path.stat().st_size > 0


def _see_folder(path: Path) -> None:
    folder = path.absolute().parent
    if not os.path.isdir(folder):
        raise FileError(f"there is no folder {folder}: create it, or write another [storage] db_path")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FileError(
            f"the folder {folder} cannot be written, and SQLite makes files beside the database: let the service's"
            " user write it, or write another [storage] db_path"
        )


def _see_file(path: Path, what: str) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise FileError(f"the {what} {path} is no file: write another [storage] db_path, or move away what is there")
    if not os.access(path, os.R_OK | os.W_OK):
        raise FileError(f"the {what} {path} cannot be read and written: let the service's user do both")


def _read(key_file: Path) -> bytes:
    try:
        return key_file.read_bytes()
    except OSError as error:
        raise KeyUnreadable(key_file, error) from error


def _see_key_folder(key_file: Path) -> None:
    folder = key_file.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        why = "cannot be written: let the service's user write it" if folder.is_dir() else "is not there: create it"
        raise FileError(f"the key file {key_file} cannot be made, for its folder {why}, or write another path")


def _too_open(key_file: Path) -> tuple[str, ...]:
    mode = key_file.stat().st_mode if key_file.exists() else 0
    if not mode & OTHERS_MAY:
        return ()
    return (f"the key file {key_file} is open to others (mode {stat.S_IMODE(mode):04o}): run `chmod 600` on it",)


# The database


def _see_log(path: Path, key_file: Path, key_id: str) -> None:
    with faults_of(path), _looking(path) as connection:
        tables = [name for (name,) in connection.execute(_TABLES)]
        if not tables:
            return
        migrations = applied(connection)
        if not migrations and tables != ["_sqlite_migrations"]:
            shown = ", ".join(tables[:TABLES_SHOWN_MAX])
            hint = OLD_SERVICE if NEEDED.keys() <= set(tables) else ""
            raise NotOurs(
                f"{path} is the database of another program, with the tables {shown}: "
                f"write another [storage] db_path{hint}"
            )
        if newer := [name for name in migrations if name not in known()]:
            raise NotOurs(
                f"{path} was written by a newer release (its tables have the change {newer[0]!r}): install that one"
            )
        wanted = connection.execute(_KEY).fetchone() if "meta" in tables else None
    if wanted and wanted[0] != key_id:
        raise WrongKey(key_file, key_id, wanted[0])


@contextmanager
def _looking(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads."""
    how = "mode=ro" if os.path.exists(f"{path}-wal") else "mode=ro&immutable=1"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, isolation_level=None)) as connection:
        yield connection
