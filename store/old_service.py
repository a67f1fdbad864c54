"""The database of the service that this one replaces, read as it is found: accounts, messages, what was sent, volumes.

It was written by several releases and by hand, so little is taken for granted. A column that is missing is null in
every row, a table that is missing is empty; numbers come as text and text as numbers; moments are seconds, as integers,
floats or text, or ISO 8601. Only what would do harm if it were guessed is asked for: without the columns that say what
was sent, all of it would be sent again.

It must stand still while it is read. The old service does not lock its file between two writes, so that it runs cannot
always be seen; what can be seen (a journal or a write-ahead file beside it, a lock) is refused. Nothing is written.
"""

import datetime as dt
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from events.values import MICROSECONDS

BUSY_MS = 2_000
"""A lock that lasts longer is no single write of the old service."""

DAY_S = 86_400

MILLISECONDS_FROM = 100_000_000_000
"""As seconds this is the year 5138: a larger number counts milliseconds."""

LATEST_S = 253_402_300_799
"""The end of the year 9999."""

NEEDED = {"messages": ("id", "payload", "sent_ts", "error_ts"), "accounts": ("id", "host")}
"""Columns that a table must have, if it is there; one of the tables must be."""

MESSAGE = (
    *("id", "account_id", "priority", "created_at", "updated_at", "deferred_ts", "sent_ts", "error_ts", "error"),
    "reported_ts",
)
VOLUME = ("name", "backend", "config", "account_id")


class NoOldService(Exception):
    """There is no database of the old service that could be read; the text is one line that says what to do."""


class OldAccount(Struct, frozen=True):
    """A row of `accounts`; numbers that are none are None."""

    id: str
    host: str
    port: int | None
    user: str | None
    password: str | None
    ttl: int | None
    limit_per_minute: int | None
    limit_per_hour: int | None
    limit_per_day: int | None
    limit_behavior: str | None
    use_tls: bool | None
    batch_size: int | None


class OldMessage(Struct, frozen=True):
    """A row of `messages`. It was sent or had failed at `ended_us`, or waits (None), then with its `payload`."""

    id: str | None
    account_id: str | None
    priority: int | None
    created_us: int | None
    deferred_us: int | None
    ended_us: int | None = None
    sent: bool = False
    error: str | None = None
    reported: bool = False
    payload: str | None = None


class OldVolume(Struct, frozen=True):
    """A row of `volumes`."""

    name: str | None
    backend: str | None
    config: str | None
    account_id: str | None


class OldService:
    """The old database, open, in one read transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection, tables: dict[str, frozenset[str]]) -> None:
        self._path = path
        self._connection = connection
        self._tables = tables

    def rows(self) -> int:
        """How many messages there are."""
        return self._count("messages")

    def accounts(self) -> Iterator[OldAccount]:
        names = OldAccount.__struct_fields__
        for row in self._rows("accounts", names, "id"):
            yield _account(dict(zip(names, row, strict=True)))

    def messages(self) -> Iterator[OldMessage]:
        """Those that have ended, in the order of their ends, then those that wait; of these alone the payload."""
        columns = self._tables.get("messages")
        if columns is None:
            return iter(())
        names = ", ".join(name if name in columns else "null" for name in MESSAGE)
        waits = "(sent_ts is null and error_ts is null)"
        order = "created_at" if "created_at" in columns else "id"
        statement = (
            f"select {names}, case when {waits} then payload end from messages"
            f" order by {waits}, coalesce(sent_ts, error_ts), {order}"
        )
        return map(_message, self._read(statement))

    def sends(self, since_s: int, now_s: int) -> dict[str | None, dict[int, int]]:
        """By account, how many messages were sent in each second of a stretch of time; later ones count as now."""
        found: dict[str | None, dict[int, int]] = {}
        for account, timestamp in self._rows("send_log", ("account_id", "timestamp")):
            at_us = moment_us(timestamp)
            second = min(now_s, at_us // MICROSECONDS) if at_us is not None else None
            if second is not None and second > since_s:
                of_account = found.setdefault(_text(account), {})
                of_account[second] = of_account.get(second, 0) + 1
        return found

    def volumes(self) -> Iterator[OldVolume]:
        for row in self._rows("volumes", VOLUME, "name"):
            yield OldVolume(*map(_text, row))

    def _count(self, table: str) -> int:
        if table not in self._tables:
            return 0
        ((count,),) = self._read(f"select count(*) from {table}")
        return int(count)

    def _rows(self, table: str, wanted: Iterable[str], order: str = "1") -> Iterable[tuple[Any, ...]]:
        if (columns := self._tables.get(table)) is None:
            return ()
        names = ", ".join(name if name in columns else "null" for name in wanted)
        return self._read(f"select {names} from {table} order by {order}")

    def _read(self, statement: str) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(statement)
        except sqlite3.DatabaseError as error:
            raise _not_read(self._path, error) from error


@contextmanager
def open_old(path: Path, db_path: Path) -> Iterator[OldService]:
    """The old service's database, checked whole. Raises NoOldService where it is none, or does not stand still."""
    _see(path, db_path)
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as found:
        found.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        found.execute(f"pragma busy_timeout = {BUSY_MS}")
        try:
            found.execute("begin")
            tables = _tables(path, found)
            _see_whole(path, found)
        except sqlite3.DatabaseError as error:
            raise _not_read(path, error) from error
        yield OldService(path, found, tables)


def _see(path: Path, db_path: Path) -> None:
    if not path.is_file():
        raise NoOldService(f"{path} is no file: name the database of the old service")
    if db_path.exists() and path.samefile(db_path):
        raise NoOldService(
            f"{path} is also [storage] db_path: write another one, for the log is a file of its own, and import then"
        )
    for suffix in ("-wal", "-journal"):
        beside = Path(f"{path}{suffix}")
        if beside.exists() and beside.stat().st_size:
            raise NoOldService(
                f"{beside} holds a part of {path}: stop the old service, and if it has stopped already, open the"
                f" database once with `sqlite3 {path} 'pragma wal_checkpoint(truncate)'`"
            )
    if not os.access(path, os.R_OK):
        raise NoOldService(f"{path} cannot be read: let the user who imports read it")


def _tables(path: Path, connection: sqlite3.Connection) -> dict[str, frozenset[str]]:
    found = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    if {"log", "commits", "meta"} <= found:
        raise NoOldService(f"{path} is a log of ours: `letterbook restore` takes a backup")
    if not found & NEEDED.keys():
        raise NoOldService(f"{path} is no database of the old service: it has neither the table messages nor accounts")
    wanted = ("accounts", "messages", "send_log", "volumes")
    tables = {
        table: frozenset(name for _, name, *_ in connection.execute(f"pragma table_info({table})"))
        for table in wanted
        if table in found
    }
    for table, columns in NEEDED.items():
        if missing := [name for name in columns if table in tables and name not in tables[table]]:
            raise NoOldService(
                f"{path} has another layout than the service that this one replaces: its table {table} is without the"
                f" column {missing[0]}"
            )
    return tables


def _see_whole(path: Path, connection: sqlite3.Connection) -> None:
    (found,) = connection.execute("pragma quick_check(1)").fetchone()
    if found != "ok":
        raise NoOldService(
            f"{path} is damaged ({' '.join(str(found).split())}): take a backup of it, or `sqlite3 .recover`"
        )


def _not_read(path: Path, error: sqlite3.DatabaseError) -> NoOldService:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return NoOldService(f"{path} is locked by another program: stop the old service first")
    return NoOldService(f"{path} cannot be read as a database of the old service: {error}")


# Values


def _account(row: dict[str, Any]) -> OldAccount:
    return OldAccount(
        id=_text(row["id"]) or "",
        host=(_text(row["host"]) or "").strip(),
        port=_whole(row["port"]),
        user=_text(row["user"]) or None,
        password=_text(row["password"]) or None,
        ttl=_whole(row["ttl"]),
        limit_per_minute=_whole(row["limit_per_minute"]),
        limit_per_hour=_whole(row["limit_per_hour"]),
        limit_per_day=_whole(row["limit_per_day"]),
        limit_behavior=_text(row["limit_behavior"]),
        use_tls=_switch(row["use_tls"]),
        batch_size=_whole(row["batch_size"]),
    )


_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _switch(value: object) -> bool | None:
    number = _whole(value)
    return _SWITCH.get((_text(value) or "").strip().lower()) if number is None else bool(number)


def _message(row: tuple[Any, ...]) -> OldMessage:
    name, account, priority, created, updated, deferred, sent, error_ts, error, reported, payload = row
    ended_us = None
    if sent is not None or error_ts is not None:
        # That it has ended counts, also where nobody can read when.
        ended = (moment_us(sent if sent is not None else error_ts), moment_us(updated), moment_us(created))
        ended_us = next((each for each in ended if each is not None), 0)
    return OldMessage(
        id=_text(name),
        account_id=_text(account) or None,
        priority=_whole(priority),
        created_us=moment_us(created),
        deferred_us=moment_us(deferred),
        ended_us=ended_us,
        sent=sent is not None,
        error=_text(error),
        reported=reported is not None,
        payload=_text(payload),
    )


def _text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _whole(value: object) -> int | None:
    try:
        return int(float(_text(value) or ""))
    except (ValueError, OverflowError):
        return None


def moment_us(value: object) -> int | None:
    """Seconds or milliseconds as a number or as text, or ISO 8601 (UTC where it names no zone), in microseconds."""
    text = (_text(value) or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        return _iso_us(text)
    if not 0 <= seconds <= LATEST_S * 1000:
        return None
    return int(seconds * 1000) if seconds >= MILLISECONDS_FROM else int(seconds * MICROSECONDS)


def _iso_us(text: str) -> int | None:
    try:
        at = dt.datetime.fromisoformat(text)
        at = at if at.tzinfo else at.replace(tzinfo=dt.UTC)
        return max(0, int(at.timestamp() * MICROSECONDS))
    except (ValueError, OverflowError):
        return None
