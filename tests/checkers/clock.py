"""A wrong clock expires nothing and lets nothing go early, and every large step of it is in the log once.

Until the end of a doubt, by the fact that says so, nothing fails as expired, and mail that was asked for later leaves
only when the believed clock shows its moment. What the clock jumped by, by hours, days and years, is what the log says
in all, except for a start that takes up to a day forwards for the time that has passed.
"""

import math
from collections.abc import Iterator

from events.attempt import AttemptStarted
from events.fact import Entry
from events.message import MessageAccepted, MessageFailed, MessageRevised
from events.service import ClockStepped
from tests.simulation.observed import Observed

TOLERANCE_S = 3_000.0
"""Less than the smallest of the large jumps; a start also counts the time for which the service was gone."""

UNNOTICED_S_MAX = 86_400.0
MOMENT_S = 2.0


def check(observed: Observed) -> Iterator[str]:
    written = list(_written(observed))
    yield from _doubted(written)
    yield from _counted(observed, written)


def _written(observed: Observed) -> Iterator[tuple[float, Entry]]:
    """Each fact with the true moment at which it was written; those of an opening were written when its life began."""
    now_s = 0.0
    began = {life.first_seq: life.began_at for life in observed.lives}
    for entry in observed.log:
        now_s = observed.true_at.get(entry.seq, began.get(entry.seq, now_s))
        yield now_s, entry


def _doubted(written: list[tuple[float, Entry]]) -> Iterator[str]:
    stepped, at_s, asked = ClockStepped(by_us=0), 0.0, dict[int, int]()
    for now_s, entry in written:
        clock_us = stepped.to_us + (now_s - at_s + MOMENT_S) * 1e6
        doubted, number = clock_us < stepped.doubted_until_us, entry.message or entry.seq
        match entry.fact:
            case ClockStepped() as fact:
                stepped, at_s = fact, now_s
            case MessageAccepted() | MessageRevised() as fact:
                asked[number] = fact.asked_us or 0
            case MessageFailed(cause="expired") if doubted:
                yield f"message {number} expired at {now_s:.3f}, while the clock was doubted"
            case AttemptStarted():
                if asked.pop(number, 0) > clock_us - max(0, stepped.ahead_us) and doubted:
                    yield f"message {number} went at {now_s:.3f}, before its moment by the believed clock"


def _counted(observed: Observed, written: list[tuple[float, Entry]]) -> Iterator[str]:
    jumps, starts = list(observed.jumps), [life.began_at for life in observed.lives]
    pending_s = 0.0
    for now_s, entry in written:
        if entry.kind == "ServiceStarted":
            # It looked at the clock when its life began, and so at no jump from after that.
            while starts and starts[0] <= now_s:
                pending_s += _jumped(jumps, before_s=starts.pop(0))
            pending_s = 0.0 if 0 <= pending_s <= UNNOTICED_S_MAX else pending_s
        elif isinstance(entry.fact, ClockStepped):
            pending_s += _jumped(jumps, before_s=now_s)
            if abs(entry.fact.by_us / 1e6 - pending_s) > TOLERANCE_S:
                yield f"fact {entry.seq}: a step of {entry.fact.by_us / 1e6} s, and {pending_s} s had been jumped"
            pending_s = 0.0
    pending_s += _jumped(jumps, before_s=math.inf)
    if abs(pending_s) > TOLERANCE_S:
        yield f"the clock jumped by {pending_s} s, and the log does not say so"


def _jumped(jumps: list[tuple[float, float]], before_s: float) -> float:
    """By how much the clock jumped before this moment; those jumps are counted then."""
    by_s = 0.0
    while jumps and jumps[0][0] < before_s:
        by_s += jumps.pop(0)[1]
    return by_s
