"""Rules: when mail may go. Pure: whoever asks brings the rules, the time zone and the moment.

A rule covers some hours of some days, by the clock on the wall of its time zone; one that crosses midnight covers the
first hours of the day after, too. Of the enabled rules that cover a moment the first counts, by priority, then id.
While one does, there is a *tick* wherever the wall clock comes to a multiple of its interval, counted from local
midnight, and anew from each midnight. A tick lets go what is due by then; what becomes due later waits for the next.
So all that the rules say at a moment is a `Release`: mail that was due by the last tick may go, if a rule covers the
moment; nothing depends on whether anybody looked when the tick came, and a service that was down for it, suspended or
without a relay goes on with what it had let go.

Where the wall clock jumps forwards over multiples, there is one tick as it lands, if a rule covers that; where it goes
back, the repeated multiples are ticks again. An hour that the clock leaves out is covered by nobody.

Mail of priority immediate knows no rules. Without enabled rules everything may go as it becomes due.

The time zone is configuration, so no fold may ask this: only those who act and those who explain do.
"""

import datetime as dt
from collections.abc import Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from . import payloads
from .values import CONTROL

RULES_MAX = 100
"""A week has 168 hours, and nobody keeps more than a few apart; all of them are looked at for each hour."""

IMMEDIATE = 0
"""The priority of mail that knows no rules."""

MINUTE_US = 60_000_000
HOUR_MINUTES = 60
DAY_MINUTES = 1_440
EPOCH_WEEKDAY = 3
"""The first of January 1970 was a Thursday."""

HORIZON_MINUTES = 15 * DAY_MINUTES
"""A rule for one hour a week has a tick within two weeks, even if a change of the clock leaves that hour out once."""

ALWAYS_US = 2**62
"""A moment beyond all others."""

_NOTHING, _A_MINUTE = dt.timedelta(), dt.timedelta(minutes=1)

EVERY_DAY = (0, 1, 2, 3, 4, 5, 6)


class Rule(Struct, frozen=True):
    """A time window and how often mail goes within it. Days count from Monday 0; `end_hour` is the first hour that is
    not covered, on the day after where it crosses midnight."""

    id: int
    name: str
    enabled: bool
    priority: int
    days: tuple[int, ...]
    start_hour: int
    end_hour: int
    cross_midnight: bool
    interval_minutes: int

    def covers(self, weekday: int, hour: int) -> bool:
        """Whether an hour of a day lies within it."""
        if weekday in self.days and hour >= self.start_hour and (self.cross_midnight or hour < self.end_hour):
            return True
        return self.cross_midnight and (weekday - 1) % 7 in self.days and hour < self.end_hour

    @property
    def fault(self) -> str | None:
        """What keeps it from being a rule, as a sentence; each field by itself has been looked at already."""
        if CONTROL.search(self.name):
            return "name holds a control character: leave it out"
        if not self.days:
            return "days is empty: give some, or leave it out for every day"
        if self.cross_midnight and self.end_hour > self.start_hour:
            return "end_hour is after start_hour, so it does not cross midnight: leave out cross_midnight"
        if not self.cross_midnight and self.end_hour <= self.start_hour:
            return "end_hour is not after start_hour: give a later one, or cross_midnight"
        if not any(self._has_hour(at // HOUR_MINUTES) for at in range(0, DAY_MINUTES, self.interval_minutes)):
            return "interval_minutes is so long that no multiple of it from midnight lies within these hours"
        return None

    def _has_hour(self, hour: int) -> bool:
        return any(self.covers(weekday, hour) for weekday in EVERY_DAY)


ANY_HOUR = Rule(0, "", True, 0, EVERY_DAY, 0, 24, False, 1)
"""What a new rule is where nothing is said of it."""


def made(wish: payloads.Rule | payloads.RuleChange, rule: Rule = ANY_HOUR) -> Rule:
    """A rule with what is wished; it may have a fault."""
    given = {name: value for name in _WISHES if (value := getattr(wish, name)) is not None}
    if wish.days is not None:
        given["days"] = tuple(sorted(set(wish.days)))
    return replace(rule, **given)


_WISHES = Rule.__struct_fields__[1:]


class Release(Struct, frozen=True):
    """What the rules let go at a moment: mail that was due by `up_to_us`. `next_us` is the next tick, where one is
    known; until `until_us` all of this holds."""

    up_to_us: int = ALWAYS_US
    next_us: int | None = None
    until_us: int = ALWAYS_US

    def lets_go(self, priority: int, due_us: int) -> bool:
        """Whether mail that is due may go."""
        return priority == IMMEDIATE or due_us <= self.up_to_us


EVERYTHING = Release()
"""What holds without enabled rules."""


def in_force(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The enabled rules, in the order in which they count."""
    return tuple(sorted((rule for rule in rules if rule.enabled), key=lambda rule: (rule.priority, rule.id)))


def release(rules: Iterable[Rule], zone: dt.tzinfo, now_us: int, passed_us: int = -1) -> Release:
    """What may go at a moment. What was due by `passed_us` may go whatever the rules say: somebody was in a hurry."""
    enabled = in_force(rules)
    if not enabled:
        return EVERYTHING
    wall, minute = Wall(zone), now_us // MINUTE_US
    following = next_tick(enabled, wall, minute)
    _, end = wall.stretch(minute)
    last = last_tick(enabled, wall, minute) if rule_at(enabled, wall, minute) else None
    return Release(
        max(-1 if last is None else last * MINUTE_US, passed_us),
        None if following is None else following * MINUTE_US,
        min(end, end if following is None else following) * MINUTE_US,
    )


class Wall:
    """The clock on the wall of a time zone. Moments are whole minutes since 1970 in UTC; what it shows is a count of
    minutes too, so that a day is always 1,440 of them."""

    def __init__(self, zone: dt.tzinfo) -> None:
        self._zone = zone

    def offset(self, minute: int) -> int:
        """How far it is ahead of UTC; seconds, as in the local mean times of long ago, are cut off."""
        return (dt.datetime.fromtimestamp(minute * 60, self._zone).utcoffset() or _NOTHING) // _A_MINUTE

    def shows(self, minute: int) -> int:
        return minute + self.offset(minute)

    def stretch(self, minute: int) -> tuple[int, int]:
        """The minutes around this one, from the first to the one after the last, in which it shows the same hour of the
        same day and does not jump: every rule covers all of them, or none."""
        offset = self.offset(minute)
        begin = minute - (minute + offset) % HOUR_MINUTES
        end = begin + HOUR_MINUTES
        while self.offset(begin) != offset:
            begin = self._halfway(begin, minute, offset)
        while self.offset(end - 1) != offset:
            end = self._halfway(end - 1, minute, offset)
        return begin, end

    def _halfway(self, far: int, near: int, offset: int) -> int:
        """The minute nearest to `far` that is on the same side of a jump as `near`, or the one beyond it."""
        while abs(far - near) > 1:
            middle = (far + near) // 2
            far, near = (far, middle) if self.offset(middle) == offset else (middle, near)
        return max(far, near)


def rule_at(rules: Sequence[Rule], wall: Wall, minute: int) -> Rule | None:
    """The rule that counts; `rules` are those in force."""
    day, at = divmod(wall.shows(minute), DAY_MINUTES)
    weekday, hour = (day + EPOCH_WEEKDAY) % 7, at // HOUR_MINUTES
    return next((rule for rule in rules if rule.covers(weekday, hour)), None)


def is_tick(rule: Rule, wall: Wall, minute: int) -> bool:
    """Whether the wall clock comes to a multiple of the interval at this minute, or has just passed one in a jump."""
    shown = wall.shows(minute)
    beyond = shown % DAY_MINUTES % rule.interval_minutes
    return beyond == 0 or shown - beyond > wall.shows(minute - 1)


def next_tick(rules: Sequence[Rule], wall: Wall, after: int) -> int | None:
    """The first tick after a minute; None where none is near."""
    minute = after + 1
    while minute <= after + HORIZON_MINUTES:
        _, end = wall.stretch(minute)
        if rule := rule_at(rules, wall, minute):
            if is_tick(rule, wall, minute):
                return minute
            tick = minute + -(wall.shows(minute) % DAY_MINUTES) % rule.interval_minutes
            if tick < end:
                return tick
        minute = end
    return None


def last_tick(rules: Sequence[Rule], wall: Wall, by: int) -> int | None:
    """The last tick by a minute; None where none was near."""
    minute = by
    while minute > by - HORIZON_MINUTES:
        begin, _ = wall.stretch(minute)
        if rule := rule_at(rules, wall, minute):
            tick = minute - wall.shows(minute) % DAY_MINUTES % rule.interval_minutes
            if tick >= begin:
                return tick
            if is_tick(rule, wall, begin):
                return begin
        minute = begin - 1
    return None
