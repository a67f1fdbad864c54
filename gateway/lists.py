"""The lists and records that are asked for: a reading and its shaping in one step, within one read transaction.

Each takes a connection and a `Look`: the live one, or, for `audit/at`, the refolded one of a past moment.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from msgspec import Raw, Struct

from events.fact import Entry
from events.places import shown
from events.rules import Release, release
from events.values import Status
from store import reading
from store.beside import Credentials
from store.results_text import states_of
from store.secrets import Secrets
from store.views.messages import MessageRow
from store.views.volumes import VolumeRow

from . import answers, shapes
from .event_json import event_json, expansions


class Look(Struct, frozen=True):
    """As of when, and what is not in the views: the log's id, whether the disk is nearly full, the rules' time zone and
    when somebody was in a hurry last. A look back says nothing of why mail waited, for what it waited for is not all in
    the log."""

    now_us: int
    log: str
    disk_low: bool = False
    back: bool = False
    zone: dt.tzinfo = dt.UTC
    passed_us: int = -1

    def release(self, around: reading.Surroundings) -> Release:
        """What the rules let go at this moment."""
        return release(around.rules, self.zone, self.now_us, self.passed_us)


def pending(connection: reading.Connection, look: Look, after: int, limit: int) -> answers.PendingList:
    page = reading.pending(connection, look.now_us, after, limit)
    around, beside = reading.surroundings(connection), reading.beside(connection, page.rows)
    released = look.release(around)
    return answers.PendingList(
        ok=True,
        pending=tuple(shapes.pending(row, beside, around, _reason(row, around, look, released)) for row in page.rows),
        next=page.next,
    )


def _reason(row: MessageRow, around: reading.Surroundings, look: Look, released: Release) -> answers.Waiting | None:
    return None if look.back else shapes.waiting_for(row, around, look.now_us, look.disk_low, released)


def deferred(connection: reading.Connection, look: Look, after: int, limit: int) -> answers.DeferredList:
    page = reading.deferred(connection, look.now_us, after, limit)
    around, beside = reading.surroundings(connection), reading.beside(connection, page.rows)
    rows = tuple(shapes.deferred(row, beside, around, look.now_us) for row in page.rows)
    return answers.DeferredList(ok=True, deferred=rows, next=page.next)


def held(connection: reading.Connection, look: Look, after: int, limit: int) -> answers.HeldList:
    page = reading.held(connection, after, limit)
    around, beside = reading.surroundings(connection), reading.beside(connection, page.rows)
    return answers.HeldList(ok=True, held=tuple(shapes.held(row, beside, around) for row in page.rows), next=page.next)


def results(connection: reading.Connection, look: Look, after: int, limit: int) -> answers.ResultList:
    rows = reading.results(connection, after, limit)
    around, beside = reading.surroundings(connection), reading.beside(connection, rows)
    return answers.ResultList(
        ok=True,
        log=look.log,
        results=tuple(shapes.result(row, beside, around) for row in rows),
        next=rows[-1].seq if rows else after,
    )


def messages(
    connection: reading.Connection,
    look: Look,
    after: int,
    limit: int,
    status: Status | None,
    active_only: bool,
    account_id: str | None,
) -> answers.MessageList:
    page = reading.messages(
        connection, look.now_us, after, limit, status=status, active_only=active_only, account_id=account_id
    )
    page, contents = reading.with_contents(connection, page)
    around, beside = reading.surroundings(connection), reading.beside(connection, page.rows)
    rows = tuple(
        answers.Message(
            **shapes.message_fields(
                row, beside, around, look.now_us, _reported(connection, row), contents.get(row.revision)
            )
        )
        for row in page.rows
    )
    return answers.MessageList(ok=True, messages=rows, next=page.next)


def _reported(connection: reading.Connection, row: MessageRow) -> int | None:
    if row.final_seq is None or row.state == "withdrawn":
        return None
    return reading.reported_us(connection, row.final_seq)


def message(connection: reading.Connection, look: Look, message_id: str) -> answers.MessageRecord | None:
    """Everything about one message; None where the log does not know it."""
    row = reading.message_by_id(connection, message_id)
    if row is None:
        return None
    _, contents = reading.with_contents(connection, reading.Page((row,)))
    around, beside = reading.surroundings(connection), reading.beside(connection, (row,))
    content = contents.get(row.revision)
    return answers.MessageRecord(
        **shapes.message_fields(row, beside, around, look.now_us, _reported(connection, row), content),
        ok=True,
        recipients=shapes.recipients(
            states_of(row.recipients), shapes.envelope_of(beside, row.revision), beside, final=row.final_seq is not None
        ),
        timeline=_timeline(connection, row, around),
        waiting_for=_reason(row, around, look, look.release(around)),
    )


def _timeline(connection: reading.Connection, row: MessageRow, around: reading.Surroundings) -> tuple[Raw, ...]:
    names = {number: account.id for number, account in around.accounts.items()}
    ids = {row.number: row.id}
    return tuple(Raw(event_json(entry, ids, names)) for entry in reading.timeline(connection, row.number))


def events(
    connection: reading.Connection,
    log: str,
    after: int,
    limit: int,
    kind: str | None,
    account_id: str | None,
    message_id: str | None,
    expand: bool,
) -> tuple[answers.EventList, int]:
    """A page of the log, and the log's last seq as the page was read."""
    page = reading.events(connection, after, limit, kind=kind, account_id=account_id, message_id=message_id)
    encoded = _encoded(connection, page.entries, expand)
    return answers.EventList(ok=True, log=log, events=encoded, next=page.next), page.last


def _encoded(connection: reading.Connection, entries: Sequence[Entry], expand: bool) -> tuple[Raw, ...]:
    ids = reading.ids_of(connection, {entry.message for entry in entries if entry.message is not None})
    _, names = reading.account_names(connection)
    beside = expansions(connection, entries) if expand else {}
    return tuple(Raw(event_json(entry, ids, names, beside.get(entry.seq))) for entry in entries)


def status(connection: reading.Connection, look: Look, reasons: tuple[str, ...], version: str) -> answers.StatusAnswer:
    counts, around = reading.counts(connection, look.now_us), reading.surroundings(connection)
    seq = reading.last_seq(connection)
    return shapes.status_answer(counts, around, look.now_us, reasons, version, look.log, seq)


def rules(connection: reading.Connection) -> answers.RuleList:
    return answers.RuleList(ok=True, rules=reading.rules(connection))


def accounts(connection: reading.Connection, look: Look, secrets: Secrets | None) -> answers.AccountList:
    """The living accounts; who looks back sees no users, since credentials are kept as they are now only."""
    rows = [row for row in reading.accounts(connection) if not row.removed]
    sealed = reading.sealed_credentials(connection, [row.number for row in rows]) if secrets else {}
    users = {number: _user(secrets, data) for number, data in sealed.items()} if secrets else {}
    return answers.AccountList(
        ok=True, accounts=tuple(shapes.account(row, users.get(row.number), look.now_us) for row in rows)
    )


def volumes(
    connection: reading.Connection, secrets: Secrets | None, account_id: str | None = None
) -> answers.VolumeList:
    """The volumes, or those that an account may use: its own and the shared ones."""
    rows = [row for row in reading.volumes(connection) if account_id is None or row.serves(account_id)]
    sealed = reading.sealed_volumes(connection, [row.name for row in rows]) if secrets else {}
    return answers.VolumeList(
        ok=True, volumes=tuple(answers.Volume(**_volume(row, secrets, sealed.get(row.name))) for row in rows)
    )


def volume(connection: reading.Connection, secrets: Secrets, name: str) -> answers.VolumeRecord | None:
    """One volume; None where there is none of this name."""
    row = reading.volume(connection, name)
    if row is None:
        return None
    sealed = reading.sealed_volumes(connection, (name,)).get(name)
    return answers.VolumeRecord(ok=True, **_volume(row, secrets, sealed))


def _volume(row: VolumeRow, secrets: Secrets | None, sealed: bytes | None) -> dict[str, Any]:
    config = _config(secrets, sealed) if secrets and sealed else None
    return {"name": row.name, "backend": row.backend, "config": config, "account_id": row.account_id}


def _config(secrets: Secrets, sealed: bytes) -> dict[str, str] | None:
    """What may be shown; None where it cannot be unsealed."""
    try:
        return shown(msgspec.json.decode(secrets.unseal(sealed), type=dict[str, str]))
    except (InvalidTag, ValueError):
        return None


def _user(secrets: Secrets, sealed: bytes) -> str | None:
    """None also where it cannot be unsealed (another key, or damage): the other accounts are shown all the same."""
    try:
        return msgspec.json.decode(secrets.unseal(sealed), type=Credentials).user
    except (InvalidTag, ValueError):
        return None
