"""What an import asks of the log: which ids it knows, and up to when what was sent elsewhere has been counted."""

import sqlite3
from collections.abc import Collection

import msgspec

from events.account import AccountSendsImported
from events.wire import decode_row

KNOWN_IDS = "select id from ids where id in (select value from json_each(?))"
"""Of these ids those that the log knows."""

SENDS_IMPORTED = (
    "select seq, at_us, kind, version, message, account, data from log where kind = 'AccountSendsImported' order by seq"
)
"""All of the log is looked through, once an import: a second for some million facts, and without a service."""


def known_ids(connection: sqlite3.Connection, ids: Collection[str]) -> set[str]:
    return {known for (known,) in connection.execute(KNOWN_IDS, (msgspec.json.encode(list(ids)).decode(),))}


def sends_imported_up_to(connection: sqlite3.Connection) -> dict[int, int]:
    """By account, the last second that was counted."""
    found: dict[int, int] = {}
    for entry in map(decode_row, connection.execute(SENDS_IMPORTED)):
        if isinstance(entry.fact, AccountSendsImported) and entry.fact.seconds:
            account = entry.account or 0
            found[account] = max(found.get(account, 0), *(second for second, _ in entry.fact.seconds))
    return found
