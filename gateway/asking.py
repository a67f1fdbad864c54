"""Commands that only ask: each is one reading of one moment."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio
from msgspec import Struct

from events.values import MICROSECONDS
from events.wire import KINDS
from store import reading, replay
from store.faults import Fault, faults_of

from . import answers, lists, metrics, queries
from .door import Door
from .errors import Answer, Trouble, bad, unavailable
from .lists import Look
from .tickets import EXPIRES_S
from .writing import Call

logger = logging.getLogger("letterbook.gateway")


async def health(door: Door, call: Call) -> Answer:
    """The process answers."""
    return Answer(answers.Health())


async def ready(door: Door, call: Call) -> Answer:
    """Whether mail is taken and sent; 503 with the reasons why not."""
    reasons = door.reasons()
    return Answer(answers.Ready(False, reasons), 503) if reasons else Answer(answers.Ready(True))


async def status(door: Door, call: Call) -> Answer:
    """What the service does at this moment: whether it dispatches, how much waits, and how each account stands."""
    reasons = (*door.reasons(), *door.remarks())
    return Answer(await door.store.read(lists.status, door.look(), reasons, door.version))


async def pending(door: Door, call: Call) -> Answer:
    """Messages that are due and not behind a throttled account, with what each waits for."""
    asked: queries.Listing = call.payload
    return Answer(await door.store.read(lists.pending, door.look(), asked.after, asked.limit))


async def deferred(door: Door, call: Call) -> Answer:
    """Messages that are due later, or wait behind a throttled account."""
    asked: queries.Listing = call.payload
    return Answer(await door.store.read(lists.deferred, door.look(), asked.after, asked.limit))


async def held(door: Door, call: Call) -> Answer:
    """Messages that wait for a person to decide."""
    asked: queries.Listing = call.payload
    return Answer(await door.store.read(lists.held, door.look(), asked.after, asked.limit))


async def results(door: Door, call: Call) -> Answer:
    """Final results in the order of the log, by cursor."""
    asked: queries.Results = call.payload
    await check_cursor(door, asked.after, asked.log)
    return Answer(await door.store.read(lists.results, door.look(), asked.after, asked.limit))


async def messages(door: Door, call: Call) -> Answer:
    """All messages, open and ended, the oldest first."""
    asked: queries.Messages = call.payload
    filters = asked.status, asked.active_only, asked.account_id
    return Answer(await door.store.read(lists.messages, door.look(), asked.after, asked.limit, *filters))


async def message(door: Door, call: Call) -> Answer:
    """One message with everything that is known of it: recipients, every fact about it, and why it waits."""
    record = await door.store.read(lists.message, door.look(), call.payload.id)
    if record is None:
        raise Trouble(404, UNKNOWN_MESSAGE)
    return Answer(record)


UNKNOWN_MESSAGE = "No message with this id is known"


async def accounts(door: Door, call: Call) -> Answer:
    """All accounts, without their passwords."""
    return Answer(await door.store.read(lists.accounts, door.look(), door.store.secrets))


async def volumes(door: Door, call: Call) -> Answer:
    """All volumes, or those that one account may use, without their secrets."""
    asked: queries.Volumes = call.payload
    return Answer(await door.store.read(lists.volumes, door.store.secrets, asked.account_id))


async def volume(door: Door, call: Call) -> Answer:
    """One volume, without its secrets."""
    found = await door.store.read(lists.volume, door.store.secrets, call.payload.name)
    if found is None:
        raise Trouble(404, f"There is no volume {call.payload.name!r}: GET /volumes lists them")
    return Answer(found)


async def rules(door: Door, call: Call) -> Answer:
    """All rules."""
    return Answer(await door.store.read(lists.rules))


async def ticket(door: Door, call: Call) -> Answer:
    """A ticket for one websocket, for browsers, which cannot show a token there."""
    return Answer(answers.Ticket(True, door.tickets.give(), EXPIRES_S))


# The log


async def check_cursor(door: Door, after: int, log: str | None) -> None:
    """Raises Trouble 409 for a cursor of another log, or one past the end of this.

    A page may show what is on disk and not published to followers yet, so only the log itself says where it ends.
    """
    own = door.store.log_id
    last = door.store.last_seq
    if after > last:
        last = await door.store.read(reading.last_seq)
    if log is not None and log != own:
        raise Trouble(409, f"The cursor is of another log; this is {own}, its last seq is {last}", log=own, seq=last)
    if after > last:
        raise Trouble(
            409, f"after={after} is past the end of the log {own}, whose last seq is {last}", log=own, seq=last
        )


def check_kind(kind: str | None) -> None:
    if kind is not None and kind not in KINDS:
        raise bad(f"the parameters do not fit: kind is none of {', '.join(sorted(KINDS))}")


async def events(door: Door, call: Call) -> Answer:
    """A page of the log; at its end, with `wait`, as soon as there is something, or after that time.

    A filtered page may be empty before the end: go on from its `next`. So no request reads the whole log.
    """
    asked: queries.Events = call.payload
    await check_cursor(door, asked.after, asked.log)
    check_kind(asked.kind)
    after = asked.after
    deadline = trio.current_time() + asked.wait
    while True:
        page, last = await door.store.read(
            lists.events, door.store.log_id, after, asked.limit, asked.kind, asked.account_id, asked.message_id,
            asked.expand,
        )  # fmt: skip
        if page.events or page.next < last or trio.current_time() >= deadline or door.stopping.is_set():
            return Answer(page)
        after = page.next
        with trio.move_on_at(deadline):
            await door.watch.after(last)


# The past


View = Callable[[reading.Connection, Look, queries.At], Any]

VIEWS: dict[str, View] = {
    "pending": lambda connection, look, asked: lists.pending(connection, look, asked.after, asked.limit),
    "deferred": lambda connection, look, asked: lists.deferred(connection, look, asked.after, asked.limit),
    "held": lambda connection, look, asked: lists.held(connection, look, asked.after, asked.limit),
    "results": lambda connection, look, asked: lists.results(connection, look, asked.after, asked.limit),
    "accounts": lambda connection, look, _: lists.accounts(connection, look, None),
    "message": lambda connection, look, asked: lists.message(connection, look, asked.id or ""),
}
"""The views that can be seen as of a moment."""


async def audit_at(door: Door, call: Call) -> Answer:
    """A view as it was at a past moment, refolded from the log."""
    asked: queries.At = call.payload
    if (asked.seq is None) == (asked.time is None):
        raise bad("the parameters do not fit: give one of seq and time")
    if asked.view == "message" and asked.id is None:
        raise bad("the parameters do not fit: view=message needs id")
    look_back = partial(_look_back, door.store.path, door.store.log_id, asked)
    found = await trio.to_thread.run_sync(look_back, limiter=door.audits, abandon_on_cancel=False)
    if found is None:
        raise Trouble(404, UNKNOWN_MESSAGE)
    return Answer(found)


def _look_back(path: Path, log: str, asked: queries.At) -> Any:
    """The view as of the moment. Raises Trouble 404 outside the log, 503 where the file cannot be read.

    A page of long ago may be damaged, or the disk full of what is refolded: no reason to end what delivers today.
    """
    time_us = None if asked.time is None else int(asked.time * MICROSECONDS)
    try:
        with faults_of(path), replay.at(path, seq=asked.seq, time_us=time_us, progress=_breathe) as moment:
            look = Look(moment.at_us, log, back=True)
            return VIEWS[asked.view](moment.connection, look, asked)
    except replay.OutsideLogError as error:
        raise Trouble(404, f"{error}") from None
    except Fault as fault:
        if not fault.known:
            raise
        logger.error("a past moment cannot be looked at: %s", fault)
        raise unavailable("the log cannot be read as of that moment: the service's own lines say why") from None


def _breathe(seq: int, of: int) -> None:
    """Between two pages: a look back whose client is gone, or whom the stop has overtaken, ends here."""
    trio.from_thread.check_cancelled()
    replay.breathe(seq, of)


# Numbers


class _Numbers(Struct, frozen=True):
    counts: reading.Counts
    oldest_due_us: int | None
    around: reading.Surroundings


def _numbers(connection: reading.Connection, now_us: int) -> _Numbers:
    counts = reading.counts(connection, now_us)
    return _Numbers(counts, reading.oldest_due_us(connection), reading.surroundings(connection))


def _by_account(around: reading.Surroundings, now_us: int) -> dict[str, dict[str, float]]:
    """Of the accounts that something keeps from sending, what it is; most have nothing."""
    living = [account for account in around.accounts.values() if not account.removed]
    return {
        "relay_unreachable": {account.id: 1 for account in living if around.relay_of(account)},
        "account_paused": {account.id: 1 for account in living if account.paused},
        "account_throttled": {account.id: 1 for account in living if (account.throttled_until_us or 0) > now_us},
    }


async def show_metrics(door: Door, call: Call) -> Answer:
    """Metrics as Prometheus text."""
    now_us = door.store.clock.now_us()
    numbers = await door.store.read(_numbers, now_us)
    due_us = numbers.oldest_due_us
    gauges = {
        **door.gauges(),
        "queue_age_seconds": max(0, now_us - due_us) / MICROSECONDS if due_us is not None else 0.0,
        "in_flight": numbers.counts.in_flight,
        "log_bytes": _size(door.store.path),
        "wal_bytes": _size(Path(f"{door.store.path}-wal")),
    }
    labelled = {**door.labelled(), **_by_account(numbers.around, now_us), "info": {door.version: 1.0}}
    data = door.metrics.render(numbers.counts, gauges, labelled)
    return Answer(data, content_type=metrics.CONTENT_TYPE)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
