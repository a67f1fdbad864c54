"""The database of the service before this one, as that service makes it, filled by the tests."""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

TABLES = """
create table accounts (id text primary key, host text not null, port integer not null, user text, password text,
  ttl integer default 300, limit_per_minute integer, limit_per_hour integer, limit_per_day integer,
  limit_behavior text, use_tls integer, created_at text default current_timestamp, batch_size integer);
create table send_log (account_id text, timestamp integer);
create table messages (id text primary key, account_id text, priority integer not null default 2,
  payload text not null, created_at text default current_timestamp, updated_at text default current_timestamp,
  deferred_ts integer, sent_ts integer, error_ts integer, error text, reported_ts integer);
create table volumes (id integer primary key autoincrement, name text unique not null, backend text not null,
  config text not null, account_id text, created_at text default current_timestamp);
"""


class Old:
    """The old database, open."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.now_s = int(time.time())

    def account(self, name: str, host: object = "127.0.0.1", port: object = 2525, **columns: object) -> None:
        self.insert("accounts", id=name, host=host, port=port, **columns)

    def message(self, name: object, account: str | None = "a", payload: object = None, **columns: object) -> None:
        """A row; without a `payload` of its own, one that can be sent."""
        if payload is None:
            payload = json.dumps(self.payload(str(name), account))
        self.insert("messages", id=name, account_id=account, payload=payload, **columns)

    def payload(self, name: str, account: str | None = "a", **fields: object) -> dict[str, object]:
        about = {"subject": f"About {name}", "body": f"This is {name}.\n"}
        people = {"from": "clerk@letterbook.test", "to": ["ann@example.org"]}
        return {"id": name, "account_id": account, "priority": 2, "retry_count": 1, **people, **about, **fields}

    def sends(self, account: str | None, *seconds_ago: int) -> None:
        for ago in seconds_ago:
            self.insert("send_log", account_id=account, timestamp=self.now_s - ago)

    def insert(self, table: str, **columns: object) -> None:
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        self.connection.execute(f"insert into {table} ({names}) values ({marks})", tuple(columns.values()))


@contextmanager
def old_service(path: Path, tables: str = TABLES) -> Iterator[Old]:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(tables)
        yield Old(connection)
        connection.commit()
