"""Rows in the words of the HTTP contract. Pure: everything that an answer needs is an argument.

Moments become Unix seconds here, once; "until" is rounded up, so that whoever waits until then has waited enough.
A field that is None is left out of the answer.
"""

import datetime as dt
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw

from events.letter import Envelope
from events.rules import Release
from events.values import MICROSECONDS
from events.waiting import WaitingFor, why
from store.reading import Beside, Counts, Surroundings
from store.results_text import HELD_TEXT, error_text, last_error, result_code, result_error, states_of
from store.views.accounts import AccountRow
from store.views.counts import ResultRow
from store.views.messages import MessageRow, RecipientState

from .answers import (
    Account,
    AccountState,
    Deferred,
    Held,
    Pending,
    Recipient,
    Result,
    SendResult,
    SendStatus,
    StatusAnswer,
    Waiting,
)

_envelope = msgspec.json.Decoder(Envelope).decode


# Moments


def seconds(at_us: int) -> int:
    """When something happened, in Unix seconds."""
    return at_us // MICROSECONDS


def until_seconds(at_us: int) -> int:
    """Until when something holds, in Unix seconds, rounded up."""
    return -(-at_us // MICROSECONDS)


def iso(at_us: int) -> str:
    """ISO 8601 in UTC, to the second."""
    return dt.datetime.fromtimestamp(at_us // MICROSECONDS, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# Parts


def envelope_of(beside: Beside, letter: int) -> Envelope | None:
    data = beside.envelopes.get(letter)
    return _envelope(data) if data else None


def account_id(around: Surroundings, number: int | None) -> str | None:
    account = around.accounts.get(number or 0)
    return account.id if account else None


def recipients(
    states: tuple[RecipientState, ...], envelope: Envelope | None, beside: Beside, *, final: bool
) -> tuple[Recipient, ...]:
    """Every recipient's last outcome; in a final message, what was never tried counts as deferred. Whom the new content
    passes by is in doubt, and called so."""
    addresses = envelope.recipients if envelope else ()
    states = states or (RecipientState(),) * len(addresses)
    return tuple(
        _recipient(state, index, addresses[index] if index < len(addresses) else None, beside, final)
        for index, state in enumerate(states)
    )


def _recipient(state: RecipientState, index: int, address: str | None, beside: Beside, final: bool) -> Recipient:
    status = "in_doubt" if state.status == "passed_by" else state.status
    return Recipient(
        address=address,
        status="deferred" if final and status == "open" else status,
        code=state.code,
        enhanced=state.enhanced,
        reply=None if state.status == "delivered" else beside.replies.get((state.ended, index)),
        queue_id=state.queue_id,
    )


def throttled_until_us(row: MessageRow, around: Surroundings, now_us: int) -> int | None:
    """Until when the message's account is throttled, if it is."""
    account = around.accounts.get(row.account or 0)
    until_us = account.throttled_until_us if account else None
    return until_us if until_us is not None and until_us > now_us else None


def status_of(row: MessageRow, around: Surroundings, now_us: int) -> str:
    """The status in the words of the contract: time and quota tell deferred from pending."""
    match row.state:
        case "waiting":
            return "deferred" if row.due_us > now_us or throttled_until_us(row, around, now_us) else "pending"
        case "failed" | "rejected":
            return "error"
    return row.state


def deferred_until_us(row: MessageRow, around: Surroundings, now_us: int) -> int:
    return max(row.due_us, throttled_until_us(row, around, now_us) or 0)


def waiting_for(row: MessageRow, around: Surroundings, now_us: int, disk_low: bool, release: Release) -> Waiting | None:
    """Why the message has not gone; None for one that is in flight or has ended."""
    account = around.accounts.get(row.account or 0)
    if account is None:
        return None
    reason = why(row, account, around.relay_of(account), around.dispatch, now_us, disk_low=disk_low, release=release)
    return _waiting(reason) if reason else None


def _waiting(reason: WaitingFor) -> Waiting:
    return Waiting(reason=reason.reason, until=None if reason.until_us is None else until_seconds(reason.until_us))


# Rows


def pending(row: MessageRow, beside: Beside, around: Surroundings, reason: Waiting | None) -> Pending:
    envelope = envelope_of(beside, row.revision)
    return Pending(
        id=row.id,
        to_addr=", ".join(envelope.recipients) if envelope else None,
        subject=envelope.subject if envelope else None,
        started_at=iso(row.created_us),
        started_ts=seconds(row.created_us),
        account_id=account_id(around, row.account),
        priority=row.priority,
        waiting_for=reason,
    )


_DUE_CAUSES = {"retry": "retry", "relay": "relay_unreachable"}


def deferred(row: MessageRow, beside: Beside, around: Surroundings, now_us: int) -> Deferred:
    until_us = deferred_until_us(row, around, now_us)
    cause = "quota" if until_us > row.due_us else _DUE_CAUSES.get(row.due_cause or "", "due_later")
    return Deferred(
        id=row.id,
        account_id=account_id(around, row.account),
        deferred_until=until_seconds(until_us),
        cause=cause,
        attempts=row.attempts,
        created_at=iso(row.created_us),
        created_ts=seconds(row.created_us),
        last_error=last_error(row, beside.replies),
    )


def held(row: MessageRow, beside: Beside, around: Surroundings) -> Held:
    """Nothing changes a held message but its end, so it was held when it was last updated."""
    envelope = envelope_of(beside, row.revision)
    return Held(
        id=row.id,
        account_id=account_id(around, row.account),
        cause=row.cause or "held",
        held_at=iso(row.updated_us),
        held_ts=seconds(row.updated_us),
        attempts=row.attempts,
        created_at=iso(row.created_us),
        created_ts=seconds(row.created_us),
        last_error=last_error(row, beside.replies),
        recipients=recipients(states_of(row.recipients), envelope, beside, final=False),
    )


def result(row: ResultRow, beside: Beside, around: Surroundings) -> Result:
    states = states_of(row.recipients)
    at = seconds(row.at_us)
    return Result(
        seq=row.seq,
        id=row.id,
        account_id=account_id(around, row.account),
        status=row.status,
        sent_ts=at if row.status == "sent" else None,
        error_ts=at if row.status == "error" else None,
        error=result_error(row, beside.replies),
        smtp_code=result_code(states),
        attempts=row.attempts,
        recipients=recipients(states, envelope_of(beside, row.revision), beside, final=True),
    )


def message_fields(
    row: MessageRow, beside: Beside, around: Surroundings, now_us: int, reported_us: int | None, content: bytes | None
) -> dict[str, Any]:
    """The fields of a message, in lists and alone."""
    status = status_of(row, around, now_us)
    at = None if row.final_us is None else seconds(row.final_us)
    return {
        "id": row.id,
        "priority": row.priority,
        "account_id": account_id(around, row.account),
        "status": status,
        "deferred_ts": until_seconds(deferred_until_us(row, around, now_us)) if status == "deferred" else None,
        "sent_ts": at if status == "sent" else None,
        "error_ts": at if status == "error" else None,
        "error": message_error(row, beside.replies) if status == "error" else None,
        "reported_ts": None if reported_us is None else seconds(reported_us),
        "created_at": iso(row.created_us),
        "updated_at": iso(row.updated_us),
        "created_ts": seconds(row.created_us),
        "updated_ts": seconds(row.updated_us),
        "message": Raw(content) if content else None,
    }


def message_error(row: MessageRow, replies: Mapping[tuple[int, int], str]) -> str | None:
    return error_text(row.cause, row.detail, states_of(row.recipients), replies)


def account(row: AccountRow, user: str | None, now_us: int) -> Account:
    """An account without its password."""
    fields = {name: getattr(row, name) for name in _SHOWN}
    until_us = row.throttled_until_us
    return Account(
        **fields,
        user=user,
        has_password=bool(row.has_password),
        use_tls=None if row.use_tls is None else bool(row.use_tls),
        tls_verify=bool(row.tls_verify),
        paused=bool(row.paused),
        throttled_until=until_seconds(until_us) if until_us is not None and until_us > now_us else None,
    )


_NOT_SHOWN_AS_STORED = {"user", "has_password", "use_tls", "tls_verify", "paused", "throttled_until"}
_SHOWN = tuple(name for name in Account.__struct_fields__ if name not in _NOT_SHOWN_AS_STORED)


def account_state(row: AccountRow, around: Surroundings, now_us: int) -> AccountState:
    relay = around.relay_of(row)
    until_us = row.throttled_until_us
    return AccountState(
        paused=bool(row.paused),
        throttled_until=until_seconds(until_us) if until_us is not None and until_us > now_us else None,
        unreachable_until=until_seconds(relay.until_us) if relay else None,
        reason=relay.reason if relay else None,
    )


def status_answer(
    counts: Counts, around: Surroundings, now_us: int, reasons: tuple[str, ...], version: str, log: str, seq: int
) -> StatusAnswer:
    return StatusAnswer(
        ok=True,
        active=bool(around.dispatch.active),
        reasons=reasons,
        version=version,
        log=log,
        seq=seq,
        pending=counts.pending,
        deferred=counts.deferred,
        in_flight=counts.in_flight,
        held=counts.held,
        accounts={row.id: account_state(row, around, now_us) for row in around.accounts.values() if not row.removed},
    )


def send_result(row: MessageRow, beside: Beside, around: Surroundings, now_us: int, status: SendStatus) -> SendResult:
    """What send-message tells of a message's first outcome."""
    states = states_of(row.recipients)
    texts = {
        "error": lambda: message_error(row, beside.replies),
        "deferred": lambda: last_error(row, beside.replies) or (HELD_TEXT if row.state == "held" else None),
    }
    open_until = status == "deferred" and row.state == "waiting"
    return SendResult(
        id=row.id,
        status=status,
        deferred_until=until_seconds(deferred_until_us(row, around, now_us)) if open_until else None,
        error=texts[status]() if status in texts else None,
        smtp_code=result_code(states),
        timestamp=iso(row.updated_us),
        account=account_id(around, row.account),
        recipients=recipients(states, envelope_of(beside, row.revision), beside, final=status in ("sent", "error")),
    )
