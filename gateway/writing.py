"""Commands that change something: each is handed over, and answered by whoever decides.

Messages are passed on as the bytes that came, for ingest decodes each alone: a fault in one is that one's rejection.
"""

import re
from typing import Any

import msgspec
import trio
from msgspec import Raw, Struct

from events import commands, payloads
from events.commands import Decision
from events.lifecycle import ALREADY_SENT, IN_FLIGHT
from events.values import PRIORITY_LABELS
from store import reading
from store.views.messages import MessageRow

from . import answers, shapes
from .bodies import Lease
from .door import Door
from .errors import Answer, Trouble, bad

NOT_JSON = "not JSON"
"""The reason of an item that cannot be read at all."""

GENERATED_ID_BYTES = 16
ID_CHARACTERS_MAX = 200
"""An Idempotency-Key is a UUID or a digest; it becomes the message's id for ever."""


class Call(Struct, frozen=True, eq=False):
    """A command as it came: its payload, who asks, and what HTTP says beside it."""

    payload: Any
    by: str
    lease: Lease | None = None
    idempotency_key: str | None = None


# Dispatch and accounts


async def run_now(door: Door, call: Call) -> Answer:
    """Wakes scheduler, fetcher and reporter, and probes relays that could not be reached."""
    return Answer(await door.control(commands.RunNow(), call.by))


async def suspend(door: Door, call: Call) -> Answer:
    """Stops dispatch: after the answer no attempt starts. Accepting, fetching and reporting go on."""
    return Answer(await door.control(commands.Suspend(), call.by))


async def activate(door: Door, call: Call) -> Answer:
    """Starts dispatch again; after a restored backup `restored` says what becomes of the mail that waits."""
    return Answer(await door.control(commands.Activate(call.payload.restored, call.payload.trust_clock), call.by))


async def add_account(door: Door, call: Call) -> Answer:
    """Makes an account, or changes it."""
    return Answer(await door.control(commands.SaveAccount(call.payload), call.by))


async def delete_account(door: Door, call: Call) -> Answer:
    """Removes an account: it sends nothing more, and its open messages end as errors."""
    return Answer(await door.control(commands.RemoveAccount(call.payload.id), call.by))


async def pause_account(door: Door, call: Call) -> Answer:
    """Pauses an account: after the answer none of its attempts starts."""
    return Answer(await door.control(commands.PauseAccount(call.payload.id), call.by))


async def resume_account(door: Door, call: Call) -> Answer:
    """Lets a paused account send again."""
    return Answer(await door.control(commands.ResumeAccount(call.payload.id), call.by))


async def add_volume(door: Door, call: Call) -> Answer:
    """Makes a volume, from which attachments come, or changes it."""
    return Answer(await door.control(commands.SaveVolume(call.payload), call.by))


async def delete_volume(door: Door, call: Call) -> Answer:
    """Removes a volume."""
    return Answer(await door.control(commands.RemoveVolume(call.payload.name), call.by))


async def add_rule(door: Door, call: Call) -> Answer:
    """Makes a rule: in which hours mail goes, and how often."""
    return Answer(await door.control(commands.SaveRule(call.payload), call.by))


async def change_rule(door: Door, call: Call) -> Answer:
    """Changes what is given of a rule."""
    return Answer(await door.control(commands.ChangeRule(_rule_id(call.payload.id), call.payload), call.by))


async def delete_rule(door: Door, call: Call) -> Answer:
    """Removes a rule. Without enabled rules mail goes as it becomes due."""
    return Answer(await door.control(commands.RemoveRule(_rule_id(call.payload.id)), call.by))


def _rule_id(given: int | str) -> int:
    """Raises Trouble 404 for what can be the id of no rule."""
    if isinstance(given, str) and not _NUMBER.fullmatch(given):
        raise Trouble(404, "there is no such rule: the id of a rule is a number, GET /commands/rules lists them")
    return int(given)


async def schedule(door: Door, call: Call) -> Answer:
    """Replaces all rules, and suspends or activates dispatch."""
    return Answer(await door.control(commands.Schedule(call.payload.rules, call.payload.active), call.by))


async def delete_messages(door: Door, call: Call) -> Answer:
    """Withdraws what is open, and erases the content of what has ended."""
    _check_count(len(call.payload.ids), door.settings.max_batch, "delete")
    return Answer(await door.control(commands.DeleteMessages(call.payload.ids), call.by))


async def cleanup_messages(door: Door, call: Call) -> Answer:
    """Lets go of what has ended and was reported longer ago than that."""
    return Answer(await door.control(commands.CleanupMessages(call.payload.older_than_seconds), call.by))


async def resolve_message(door: Door, call: Call) -> Answer:
    """Decides what becomes of a held message."""
    wanted: payloads.Resolve = call.payload
    return Answer(await door.control(commands.ResolveMessage(wanted.id, wanted.resolution), call.by))


def _check_count(count: int, most: int, verb: str) -> None:
    if count > most:
        raise bad(f"Cannot {verb} more than {most} messages at once")


# Messages


async def add_messages(door: Door, call: Call) -> Answer:
    """Queues messages. A fault within one of them is its own rejection, and the answer is 200 all the same."""
    wanted: payloads.AddMessages = call.payload
    _check_count(len(wanted.messages), door.settings.max_batch, "enqueue")
    priority = default_priority(wanted.default_priority)
    if not wanted.messages:
        door.check_accepting()
        return Answer(added(()))
    decisions = await door.submit(wanted.messages, call.by, call.lease, default_priority=priority)
    return Answer(added(decisions))


_NUMBER = re.compile(r"-?\d{1,18}")
"""Python reads no number of more than 4,300 digits, and raises."""


def default_priority(wish: str | float | None) -> int | None:
    """The priority of messages that name none; a number outside is clamped. Raises Trouble for another word."""
    if wish is None:
        return None
    if isinstance(wish, str) and not _NUMBER.fullmatch(wish):
        if wish.lower() not in PRIORITY_LABELS:
            raise bad("default_priority is none of immediate, high, medium, low, and no number from 0 to 3")
        return PRIORITY_LABELS[wish.lower()]
    return min(max(int(wish), 0), 3)


def added(decisions: tuple[Decision, ...]) -> dict[str, Any]:
    """A message that came twice in one batch is counted once: its first coming is not recorded."""
    rejected = [decision for decision in decisions if decision.reason is not None]
    queued = sum(decision.reason is None and decision.recorded for decision in decisions)
    return {"ok": True, "queued": queued, "rejected": [rejection(decision) for decision in rejected]}


def rejection(decision: Decision) -> dict[str, Any]:
    """What the client is told."""
    known = {} if decision.id is None else {"id": decision.id}
    return {**known, "reason": decision.reason}


# One message, and its first outcome


async def send_message(door: Door, call: Call) -> Answer:
    """Sends one message ahead of the queue, and waits for its first outcome.

    The same id again answers with that message's result, or waits for it.
    """
    item, message_id = _single(door, call)
    (decision,) = await door.submit((item,), call.by, call.lease, default_priority=0, urgent=True)
    number = decision.number
    if decision.reason in (ALREADY_SENT, IN_FLIGHT):
        number = await door.store.read(reading.message_number, decision.id or message_id)
    elif decision.reason is not None:
        known = decision.id or message_id
        return Answer({"ok": False, "error": decision.reason, **({"id": known} if known else {})})
    return await _first_outcome(door, number or 0)


_encode_id = msgspec.json.encode
_decode_id = msgspec.json.Decoder(str | None).decode


def _single(door: Door, call: Call) -> tuple[bytes, str]:
    """The message with its id: the one it has, else the Idempotency-Key, else a new one."""
    fields: dict[str, Raw] = call.payload
    key = _key(call.idempotency_key)
    given = fields.get("id")
    if given is not None and bytes(given) != b"null":
        try:
            return msgspec.json.encode(fields), _decode_id(given) or ""
        except (msgspec.DecodeError, UnicodeDecodeError):
            return msgspec.json.encode(fields), ""  # ingest names the fault
    message_id = key or door.entropy(GENERATED_ID_BYTES).hex()
    return msgspec.json.encode({**fields, "id": Raw(_encode_id(message_id))}), message_id


def _key(key: str | None) -> str | None:
    if key and (len(key) > ID_CHARACTERS_MAX or not key.isprintable()):
        raise bad(f"the header Idempotency-Key is longer than {ID_CHARACTERS_MAX} characters, or not printable")
    return key


class _Outcome(Struct, frozen=True):
    """What is known of a message so far; `first` once its first outcome is."""

    first: bool
    result: answers.SendResult


def _outcome(connection: reading.Connection, number: int, now_us: int) -> _Outcome | None:
    row = reading.message(connection, number)
    if row is None:
        return None
    around, beside = reading.surroundings(connection), reading.beside(connection, (row,))
    status = first_outcome(row, around, now_us)
    return _Outcome(status != "pending", shapes.send_result(row, beside, around, now_us, status))


def first_outcome(row: MessageRow, around: reading.Surroundings, now_us: int) -> answers.SendStatus:
    """What a client who waits is told. More recipients of the first attempts to come are no outcome yet."""
    match row.state:
        case "sent":
            return "sent"
        case "failed" | "rejected" | "withdrawn":
            return "error"
        case "held":
            return "deferred"
        case "in_flight":
            return "pending"
    if row.due_us > now_us or shapes.throttled_until_us(row, around, now_us):
        return "deferred"
    return "deferred" if row.attempts and row.due_cause != "more" else "pending"


async def _first_outcome(door: Door, number: int) -> Answer:
    """Wait for the first outcome as long as is configured: 200 with it, or 202 with what is known."""
    outcome: _Outcome | None = None
    with trio.move_on_after(door.settings.send_wait_seconds), door.watch.waiting(number) as waiter:
        while True:
            waiter.arm()
            outcome = await door.store.read(_outcome, number, door.look().now_us)
            if outcome is None or outcome.first or door.stopping.is_set():
                break
            await waiter.wait()
    if outcome is None:
        outcome = await door.store.read(_outcome, number, door.look().now_us)
    if outcome is None:
        raise bad("the message is not known any more: retention took it away")
    return _sent(outcome)


def _sent(outcome: _Outcome) -> Answer:
    result = outcome.result
    if not outcome.first:
        return Answer({"ok": True, "status": "pending", "id": result.id, "result": result}, 202)
    return Answer({"ok": result.status == "sent", "result": result})
