"""Within an account that has one connection, mail goes by priority, then due moment, then number.

What waited, due, when an attempt began goes at the next attempt, before what is behind it in that order: the next
grant comes only when the connection is free again. (It may come before the end is on disk, so ends say nothing here.)
Runs in which somebody moved the clock are left out, for then a stamp does not say what was due. Where there are
rules, they let go what was due by some moment, so nothing that came due later had to go before it.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from events.account import AccountSaved
from events.attempt import AttemptStarted
from events.lifecycle import Refusal
from events.message import MessageAccepted, MessageRevised
from events.schedule import RuleSaved
from events.service import ServiceStarted
from tests.simulation.observed import Observed

from .facts import moves

IMMEDIATE = 0


class _Waiting(NamedTuple):
    priority: int
    due_us: int
    number: int
    since_seq: int


def check(observed: Observed) -> Iterator[str]:
    if observed.jumps:
        return
    single = _single(observed)
    ruled = any(isinstance(entry.fact, RuleSaved) for entry in observed.log)
    waiting: dict[int, dict[int, _Waiting]] = defaultdict(dict)
    priority: dict[int, int] = {}
    before: dict[int, tuple[int, int]] = {}
    started = (0, 0)
    after = {entry.seq: state for _, _, state, entry in moves(observed.log)}
    for entry in observed.log:
        account, number, fact = entry.account or 0, entry.message or 0, entry.fact
        match fact:
            case ServiceStarted():
                started = (entry.seq, entry.at_us)
            case AttemptStarted() if account in single:
                since = max(before.get(account, (0, 0)), started)
                yield from _overtaken(entry.seq, waiting[account], number, since, ruled=ruled)
                before[account] = (entry.seq, entry.at_us)
        state = after.get(entry.seq)
        if state is None or isinstance(state, Refusal):
            continue
        for others in waiting.values():
            others.pop(number, None)
        if isinstance(fact, MessageAccepted | MessageRevised):
            priority[number] = fact.priority
        if state == "waiting":
            due_us = getattr(fact, "due_us", None) or entry.at_us
            waiting[account][number] = _Waiting(priority[number], due_us, number, entry.seq)


def _single(observed: Observed) -> set[int]:
    """Accounts that never had more than one connection, and never changed."""
    saved = defaultdict(list)
    for entry in observed.log:
        if isinstance(entry.fact, AccountSaved):
            saved[entry.account].append(entry.fact.max_connections)
    return {account for account, counts in saved.items() if account and counts == [1]}


def _overtaken(
    seq: int, waiting: dict[int, _Waiting], number: int, before: tuple[int, int], *, ruled: bool
) -> Iterator[str]:
    mine = waiting[number]
    for other in waiting.values():
        kept = ruled and other.priority > IMMEDIATE and other.due_us > mine.due_us
        if other.since_seq < before[0] and other.due_us < before[1] and other[:3] < mine[:3] and not kept:
            yield f"attempt {seq} is for message {number} {mine}, and {other} waited before it"
            return
