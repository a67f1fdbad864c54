"""Operations in bulk: a command of many steps, each of them handed over and answered before the next.

So other commands, and all mail, go between two steps, and what breaks off (a stop, a client that leaves) has done what
the log says. Nothing that comes in after the beginning is meant: the steps go up to the log's end as it was then.
"""

from typing import Any

from msgspec import structs

from events import commands, payloads
from events.values import MICROSECONDS, PRIORITY_LABELS, Priority

from .door import Door
from .errors import Answer, Trouble, bad
from .writing import Call

COUNTS = ("matched", "changed", "without_content", "in_doubt")
ALWAYS = ("matched", "changed")
"""The other counts are left out where they are 0."""

NAMES = ", ".join(payloads.BulkWhere.__struct_fields__)
EMPTY = f"the body does not fit: where is empty - say which messages are meant, by one or more of {NAMES}"

_PRIORITIES: dict[str | int, Priority] = {**PRIORITY_LABELS, **{each: each for each in (0, 1, 2, 3)}}  # type: ignore[dict-item]


async def bulk(door: Door, call: Call) -> Answer:
    """One action for all messages for which everything in `where` holds, in steps of a thousand.

    With `after` only one step is done, and `next` says where the following one begins.
    """
    wanted: payloads.Bulk = call.payload
    where = where_of(wanted.where)
    up_to = door.store.last_seq if wanted.up_to is None else wanted.up_to
    step = commands.Bulk(wanted.action, where, wanted.after or 0, up_to, dry_run=bool(wanted.dry_run))
    if wanted.after is not None:
        found = await door.control(step, call.by)
        following = {} if found["next"] is None else {"next": found["next"]}
        return Answer({"ok": True, **_shown(found), **following, "up_to": up_to})
    return await _all_steps(door, step, call.by)


async def _all_steps(door: Door, step: commands.Bulk, by: str) -> Answer:
    total = dict.fromkeys(COUNTS, 0)
    while True:
        try:
            found = await door.control(step, by)
        except Trouble as trouble:
            # What was done is done: whoever asks again does the rest.
            raise Trouble(trouble.status, trouble.sentence, **_shown(total)) from None
        for name in COUNTS:
            total[name] += found[name]
        if found["next"] is None:
            return Answer({"ok": True, **_shown(total)})
        step = structs.replace(step, after=found["next"])


def _shown(counts: dict[str, Any]) -> dict[str, int]:
    return {name: counts[name] for name in COUNTS if counts[name] or name in ALWAYS}


def where_of(given: payloads.BulkWhere) -> commands.Where:
    """What is meant. Raises Trouble 400 where that is everything, or says nothing."""
    if all(value is None for value in structs.astuple(given)):
        raise bad(EMPTY)
    for name in ("to_domain", "subject_contains"):
        value = getattr(given, name)
        if value is not None and not value.strip():
            raise bad(f"the body does not fit: where.{name} is empty, and would mean every message")
    return commands.Where(
        account_id=given.account_id,
        status=given.status,
        priority=_priority(given.priority),
        before_us=None if given.before_ts is None else int(given.before_ts * MICROSECONDS),
        to_domain=None if given.to_domain is None else given.to_domain.strip().removeprefix("@"),
        subject=given.subject_contains,
    )


def _priority(given: str | int | None) -> Priority | None:
    if given is None:
        return None
    word = given.lower() if isinstance(given, str) else given
    if word not in _PRIORITIES:
        raise bad("the body does not fit: where.priority is immediate, high, medium or low, or 0 to 3")
    return _PRIORITIES[word]
