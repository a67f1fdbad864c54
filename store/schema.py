"""The tables of the one SQLite file, made and moved on by migrations; the views' columns are those of their rows.

Beside the log and its commits stand what can be erased (letters, replies, secrets), the insert-only `ids`, the
work list `erasures`, and the views. The log is append-only by triggers.
"""

import sqlite3
import types
import typing
from contextlib import closing
from typing import Any

from msgspec import Struct
from sqlite_utils import Database, Migrations

from .views import ROW_VIEWS, VOLUMES
from .views.counts import DueDayRow, DueHourRow, DueMinuteRow, ResultRow, SlotRow, TotalRow

DERIVED: dict[str, tuple[type[Struct], tuple[str, ...], int]] = {
    "totals": (TotalRow, ("account", "state"), 1),
    "due_minutes": (DueMinuteRow, ("account", "minute"), 1),
    "due_hours": (DueHourRow, ("account", "hour"), 1),
    "due_days": (DueDayRow, ("account", "day"), 1),
    "slots": (SlotRow, ("account", "slot"), 1),
    "results": (ResultRow, ("seq",), 1),
}
"""The derived views: row, key columns and version."""

VIEW_TABLES: tuple[str, ...] = tuple(view.name for view in ROW_VIEWS) + tuple(DERIVED)

VIEW_VERSIONS: dict[str, int] = {
    **{view.name: view.version for view in ROW_VIEWS},
    **{name: version for name, (_, _, version) in DERIVED.items()},
}

APPEND_ONLY = """
create trigger log_is_append_only_update before update on log
  begin select raise(abort, 'the log is append-only'); end;
create trigger log_is_append_only_delete before delete on log
  begin select raise(abort, 'the log is append-only'); end;
create trigger commits_are_append_only_update before update on commits
  begin select raise(abort, 'the log is append-only'); end;
create trigger commits_are_append_only_delete before delete on commits
  begin select raise(abort, 'the log is append-only'); end;
"""

LOG_INDEX = "create index log_by_message on log(message, seq) where message is not null"

QUEUE_INDEX = "create index messages_queue on messages(account, priority, due_us, number) where state = 'waiting'"

MESSAGE_INDEXES = f"""
{QUEUE_INDEX};
create index messages_waiting on messages(number) where state = 'waiting';
create index messages_expiring on messages(expires_us) where state = 'waiting';
create index messages_held on messages(number) where state = 'held';
create index messages_final on messages(final_seq) where final_seq is not null;
create index results_by_message on results(message);
create index refused_again on refused(again_us) where settled_us is null;
create index refused_open on refused(seq) where settled_us is null;
create index tokens_by_age on tokens(at_us);
"""
"""queue: the scheduler's order, one range scan a refill. waiting, held: the lists. expiring, final: retention.
refused_again: what is offered again. refused_open: what retention must not pass. tokens_by_age: its tokens."""

PUT_BACK = "restored"
"""The name in `meta` by which a backup says that `letterbook restore` has put it in place, until a start has heard it;
the value is how far the log had come that it replaces."""

migrations = Migrations("letterbook")


def migrate(connection: sqlite3.Connection) -> None:
    """Make the tables, or bring them to today's shape."""
    migrations.apply(Database(connection, execute_plugins=False))


def applied(connection: sqlite3.Connection) -> list[str]:
    """The names of the migrations that have made its tables what they are; none where they are another program's."""
    return [each.name for each in migrations.applied(Database(connection, execute_plugins=False))]


def known() -> list[str]:
    """The names of the migrations of this release."""
    with closing(sqlite3.connect(":memory:")) as empty:
        return [each.name for each in migrations.pending(Database(empty, execute_plugins=False))]


@migrations()
def log(db: Database) -> None:
    db.table("log").create(
        {"seq": int, "at_us": int, "kind": str, "version": int, "message": int, "account": int, "data": bytes},
        pk="seq",
        not_null={"at_us", "kind", "version", "data"},
    )
    db.execute(LOG_INDEX)
    db.table("commits").create(
        {"last_seq": int, "format": int, "hash": bytes}, pk="last_seq", not_null={"format", "hash"}
    )
    for statement in _statements(APPEND_ONLY):
        db.execute(statement)
    db.table("meta").create({"name": str, "value": str}, pk="name", not_null={"value"})


@migrations()
def beside_the_log(db: Database) -> None:
    db.execute("create table ids (id text primary key, number integer not null) without rowid")
    db.table("letters").create(
        {"letter": int, "message": int, "envelope": bytes, "content": bytes, "salt": bytes},
        pk="letter",
        not_null={"message", "envelope", "content", "salt"},
    )
    db.table("letters").create_index(["message"])
    db.execute(
        "create table replies (ended integer, recipient integer, message integer not null, text blob not null,"
        " primary key (ended, recipient)) without rowid"
    )
    db.table("replies").create_index(["message"])
    db.table("secrets").create({"name": str, "sealed": bytes}, pk="name", not_null={"sealed"})
    db.execute("create table erasures (message integer primary key, up_to integer not null)")


@migrations()
def views(db: Database) -> None:
    create_views(db)


@migrations()
def volumes_view(db: Database) -> None:
    """A log from before there were volumes holds no fact about any: the empty view is its fold."""
    if not db.table(VOLUMES.name).exists():
        db.table(VOLUMES.name).create(columns_of(VOLUMES.row), pk=VOLUMES.key)
        db.execute("insert into meta values (?, ?)", (f"view:{VOLUMES.name}", str(VOLUMES.version)))


def create_views(db: Database) -> None:
    """The views' tables, empty: at the first start, and for refolding beside the live ones."""
    for view in ROW_VIEWS:
        db.table(view.name).create(columns_of(view.row), pk=view.key)
    for name, (row, key, _) in DERIVED.items():
        db.table(name).create(columns_of(row), pk=key[0] if len(key) == 1 else key)
    for statement in _statements(MESSAGE_INDEXES):
        db.execute(statement)


def drop_views(db: Database) -> None:
    for name in VIEW_TABLES:
        db.table(name).drop(ignore=True)


def columns_of(row: type[Struct]) -> dict[str, type]:
    """A row's fields as columns: bool is kept as an integer, and a field that may be None as its other type."""
    hints = typing.get_type_hints(row)
    return {name: _column_type(hints[name]) for name in row.__struct_fields__}


def _column_type(hint: Any) -> type:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(choice for choice in typing.get_args(hint) if choice is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return str
    return int if hint is bool else hint


def _statements(script: str) -> list[str]:
    """The statements of a script: a trigger's body ends with `end`, so only `;` at a line's end divides."""
    statements, current = [], ""
    for line in script.strip().splitlines():
        current += line + "\n"
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements
