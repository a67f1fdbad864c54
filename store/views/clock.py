"""The view `clock`: one row that says whether the wall clock is believed, and where the log's stamps have jumped.

A clock that has just moved by much is doubted for an hour. It says how late it is, and it may be wrong by as much as it
moved; so two moments count meanwhile, its own and the *believed* one, which goes on from before the step. What the
difference means is written into the fact by `step`, and whoever folds it only reads:

    a step that takes back what was doubted (a year forwards, a year back) ends the doubt at once;
    several that do not are added up, and the hour begins anew;
    a small one (up to LARGE_US, yet more than drift) is no reason to doubt and moves nobody's wait.

Mail that was asked for at a moment is due by its own clock, but while that is ahead of the believed one, only when the
believed one has come there too, or the hour is over (`asked_due_us`). A clock that is behind needs no such care: by it
mail goes later, never earlier.
"""

from msgspec import Struct
from msgspec.structs import replace

from events.fact import Entry
from events.service import ClockStepped, ClockTrusted

from .rows import View

ONLY = 0
"""The key of the only row."""

LARGE_US = 60 * 1_000_000
"""A healthy clock is corrected by less, and a minute more or less does no harm to a wait."""

DOUBT_US = 3600 * 1_000_000
"""Time for an operator to see /status and set the clock, before anything expires or goes by it."""


class ClockRow(Struct, frozen=True):
    """`from_us` and `to_us` are the clock before and after its last large step; stamps up to `from_us` are of the time
    before it. `seq` is the fact that moved what waits, the last one."""

    key: int = ONLY
    seq: int = 0
    from_us: int = 0
    to_us: int = 0
    ahead_us: int = 0
    doubted_until_us: int = 0

    def doubted(self, now_us: int) -> bool:
        return now_us < self.doubted_until_us

    def believed_us(self, now_us: int) -> int:
        """The earlier of the clock's moment and of the one that is believed."""
        return now_us - max(0, self.ahead_us) if self.doubted(now_us) else now_us

    def asked_due_us(self, asked_us: int, now_us: int) -> int:
        """When mail is due that was asked for at this moment."""
        if not self.doubted(now_us) or asked_us <= self.believed_us(now_us):
            return asked_us
        return max(asked_us, min(asked_us + max(0, self.ahead_us), self.doubted_until_us))


BELIEVED = ClockRow()
"""What holds before any fact says otherwise."""


def step(row: ClockRow, by_us: int, to_us: int) -> ClockStepped:
    """The fact about a clock that moved by so much, to this moment."""
    doubted = row.doubted(to_us - by_us)
    ahead_us = by_us + (row.ahead_us if doubted else 0)
    if abs(by_us) <= LARGE_US:
        until_us = row.doubted_until_us + by_us if doubted else 0
        return ClockStepped(by_us=by_us, to_us=to_us, ahead_us=ahead_us if doubted else 0, doubted_until_us=until_us)
    if abs(ahead_us) <= LARGE_US:
        return ClockStepped(by_us=by_us, to_us=to_us, waits_us=by_us)
    return ClockStepped(by_us=by_us, to_us=to_us, waits_us=by_us, ahead_us=ahead_us, doubted_until_us=to_us + DOUBT_US)


def keys(entry: Entry) -> tuple[int, ...]:
    return (ONLY,) if isinstance(entry.fact, ClockStepped | ClockTrusted) else ()


def evolve(row: ClockRow | None, entry: Entry) -> ClockRow | None:
    match entry.fact:
        case ClockStepped() as fact:
            row = replace(row or BELIEVED, ahead_us=fact.ahead_us, doubted_until_us=fact.doubted_until_us)
            if fact.waits_us:
                row = replace(row, seq=entry.seq, from_us=fact.to_us - fact.by_us, to_us=fact.to_us)
            return row
        case ClockTrusted() if row is not None and row.doubted_until_us:
            return replace(row, seq=entry.seq, ahead_us=0, doubted_until_us=0)
    return row


CLOCK = View("clock", 1, ClockRow, (ClockStepped, ClockTrusted), keys, evolve)
