"""A limit of N in W seconds holds at the relay, wherever within a transaction the relay counts it.

A transaction counts from the first byte of MAIL to the relay's last word; it may begin only when fewer than N of those
that were taken reach into the W seconds before. Left out is what no sender can know: a message taken after its
connection was gone, and windows in which somebody set the clock forward by so little that a start takes it for the time
that has passed since the last stop.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from events.account import AccountSaved
from tests.simulation.observed import Observed, Transaction

from .facts import attempts

WINDOWS = (("limit_per_minute", 60), ("limit_per_hour", 3_600), ("limit_per_day", 86_400))
GRANTED_BEFORE_US = 2_000_000
"""A grant that was given under the limits before may begin within a moment of the change."""

CLOCK_S = 0.000_01
"""The service counts microseconds, the clock of the simulation is a float."""

UNNOTICED_S_MAX = 86_400

FOLLOWED_WITHIN_S = 15
"""The service compares its clocks every ten seconds."""


@dataclass(frozen=True)
class _Saved:
    seq: int
    at_us: int
    limits: dict[str, int | None]


def check(observed: Observed) -> Iterator[str]:
    saved = _saved(observed)
    forward = [at for at, by_s in observed.jumps if 0 < by_s <= UNNOTICED_S_MAX]
    for account, taken in _taken(observed).items():
        for index, (start_seq, start_at_us, transaction) in enumerate(taken):
            for field, window_s in WINDOWS:
                limit = _limit(saved[account], field, start_seq, start_at_us)
                since = transaction.mail_at - window_s + CLOCK_S
                if limit is None or any(since - FOLLOWED_WITHIN_S <= at <= transaction.mail_at for at in forward):
                    continue
                before = [other for _, _, other in taken[:index] if (other.over_at or other.took_at or 0) > since]
                if len(before) >= limit:
                    yield (
                        f"account {account} sent {transaction.id} at {transaction.mail_at:.3f}, and {len(before)}"
                        f" had counted in the {window_s} s before; its limit is {limit}"
                    )


def _taken(observed: Observed) -> dict[int, list[tuple[int, int, Transaction]]]:
    found: dict[int, list[tuple[int, int, Transaction]]] = defaultdict(list)
    for seq, attempt in attempts(observed).items():
        for transaction in attempt.transactions:
            if transaction.took_at is not None and not transaction.late:
                found[attempt.started.account or 0].append((seq, attempt.started.at_us, transaction))
    for taken in found.values():
        taken.sort(key=lambda each: each[2].mail_at)
    return found


def _saved(observed: Observed) -> dict[int, list[_Saved]]:
    found: dict[int, list[_Saved]] = defaultdict(list)
    for entry in observed.log:
        if isinstance(entry.fact, AccountSaved):
            limits = {field: getattr(entry.fact, field) for field, _ in WINDOWS}
            found[entry.account or 0].append(_Saved(entry.seq, entry.at_us, limits))
    return found


def _limit(saved: list[_Saved], field: str, seq: int, at_us: int) -> int | None:
    """The limit in force; the more generous one where it had just been changed."""
    before = [each for each in saved if each.seq < seq]
    in_force = [before[-1]] + [
        earlier for earlier, later in pairwise(before) if at_us - later.at_us < GRANTED_BEFORE_US
    ]
    limits = [each.limits[field] for each in in_force]
    return None if None in limits else max(each for each in limits if each is not None)
