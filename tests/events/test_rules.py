"""Rules: which one counts, and where its ticks are, held against a model that looks at every minute of a year."""

import datetime as dt
import random
from zoneinfo import ZoneInfo

import pytest

from events.rules import (
    ALWAYS_US,
    EVERYTHING,
    MINUTE_US,
    Rule,
    Wall,
    in_force,
    is_tick,
    last_tick,
    next_tick,
    release,
    rule_at,
)

YEAR_MINUTES = 365 * 1_440
YEAR = int(dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp()) // 60

ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu")
"""Lord Howe jumps by half an hour."""

STEADY = ("UTC", "Asia/Kathmandu")
WEEKS_MINUTES = 60 * 1_440


def rule(days=range(7), start=0, end=24, interval=60, *, cross=False, priority=0, number=1, enabled=True) -> Rule:
    return Rule(number, f"r{number}", enabled, priority, tuple(days), start, end, cross, interval)


def at(zone: str, *moment: int, fold: int = 0) -> int:
    """A moment of a wall clock as a minute of UTC."""
    return int(dt.datetime(*moment, tzinfo=ZoneInfo(zone), fold=fold).timestamp()) // 60


def shown(zone: str, minute: int | None) -> str:
    return "" if minute is None else f"{dt.datetime.fromtimestamp(minute * 60, ZoneInfo(zone)):%a %H:%M %z}"


# The model: every minute of a year, one after another.


def wall_of_a_year(zone: str) -> list[tuple[int, int, int]]:
    """(date, weekday, minute of the day) that the wall clock shows at each minute, and at the one before the year; of a
    clock that never jumps some weeks are as good as a year."""
    tz, moments = ZoneInfo(zone), []
    for minute in range(YEAR - 1, YEAR + (WEEKS_MINUTES if zone in STEADY else YEAR_MINUTES)):
        local = dt.datetime.fromtimestamp(minute * 60, tz)
        moments.append((local.toordinal(), local.weekday(), local.hour * 60 + local.minute))
    return moments


def covered_hours(each: Rule) -> set[tuple[int, int]]:
    """All (weekday, hour) of a week that a rule covers, by walking through its hours."""
    hours = set()
    for day in each.days:
        length = (each.end_hour - each.start_hour) % 24 or 24
        hours |= {((day + hour // 24) % 7, hour % 24) for hour in range(each.start_hour, each.start_hour + length)}
    return hours


def ticks_of_a_year(rules: list[Rule], moments: list[tuple[int, int, int]]) -> list[int]:
    first: dict[tuple[int, int], Rule] = {}
    for each in sorted(rules, key=lambda each: (each.priority, each.id), reverse=True):
        if each.enabled:
            first.update(dict.fromkeys(covered_hours(each), each))
    intervals = {hours: each.interval_minutes for hours, each in first.items()}
    found = []
    before_date, _, before = moments[0]
    for index in range(1, len(moments)):
        date, weekday, now = moments[index]
        interval = intervals.get((weekday, now // 60))
        if interval and (now % interval == 0 or _passed(before_date, before, date, now, interval)):
            found.append(YEAR + index - 1)
        before_date, before = date, now
    return found


def _passed(before_date: int, before: int, date: int, now: int, interval: int) -> bool:
    """Whether a multiple lies between two minutes that the clock has shown one after another."""
    return (date == before_date and now > before and now // interval > before // interval) or date > before_date


def any_rules(chance: random.Random) -> list[Rule]:
    rules = []
    for number in range(1, chance.randint(2, 4)):
        cross, start = chance.random() < 0.5, chance.randint(0, 23)
        end = chance.randint(0, start) if cross else chance.randint(start + 1, 24)
        days = sorted(chance.sample(range(7), chance.randint(1, 7)))
        interval = chance.choice((1, 7, 15, 30, 45, 60, 61, 90, 240, 1_000, 1_440, 5_000))
        rules.append(
            rule(
                days, start, end, interval,
                cross=cross, priority=chance.randint(0, 2), number=number, enabled=chance.random() < 0.8,
            )
        )  # fmt: skip
    return rules


@pytest.mark.parametrize("zone", ZONES)
def test_every_tick_of_a_year_is_where_the_model_finds_it(zone):
    chance, wall, moments = random.Random(f"ticks in {zone}"), Wall(ZoneInfo(zone)), wall_of_a_year(zone)
    sets = [[rule(interval=90)], any_rules(chance)]
    for rules in sets:
        wanted, known = ticks_of_a_year(rules, moments), in_force(rules)
        for index in sorted(chance.sample(range(len(wanted)), min(60, len(wanted)))):
            before = wanted[index - 1] if index else YEAR - 1
            assert shown(zone, next_tick(known, wall, chance.randint(before, wanted[index] - 1))) == shown(
                zone, wanted[index]
            ), rules
            if index:
                assert last_tick(known, wall, chance.randint(before, wanted[index] - 1)) == before, rules
        jumps = [YEAR + i - 1 for i in range(1, len(moments)) if (moments[i][2] - moments[i - 1][2]) % 1_440 != 1]
        of_a_year = set(wanted)
        for minute in [near + step for near in jumps for step in range(-130, 130)]:
            found = rule_at(known, wall, minute)
            assert (found is not None and is_tick(found, wall, minute)) == (minute in of_a_year), shown(zone, minute)


# By hand.

BERLIN = "Europe/Berlin"


def ticks(zone: str, rules: list[Rule], after: int, count: int) -> list[str]:
    found = []
    for _ in range(count):
        after = next_tick(in_force(rules), Wall(ZoneInfo(zone)), after)
        found.append(shown(zone, after))
    return found


def test_a_skipped_hour_is_left_out_and_a_multiple_in_it_is_a_tick_where_the_clock_lands():
    before = at(BERLIN, 2026, 3, 29, 1, 1)
    assert ticks(BERLIN, [rule(interval=30)], before, 2) == ["Sun 01:30 +0100", "Sun 03:00 +0200"]
    assert ticks(BERLIN, [rule(interval=50)], before, 3) == ["Sun 01:40 +0100", "Sun 03:00 +0200", "Sun 03:20 +0200"]
    assert ticks(BERLIN, [rule(start=2, end=3)], before, 1) == ["Mon 02:00 +0200"]


def test_a_doubled_hour_has_its_ticks_twice():
    before = at(BERLIN, 2026, 10, 25, 2, 1)
    wanted = ["Sun 02:30 +0200", "Sun 02:00 +0100", "Sun 02:30 +0100", "Sun 03:00 +0100"]
    assert ticks(BERLIN, [rule(interval=30)], before, 4) == wanted


def test_a_daily_tick_at_a_midnight_that_is_left_out_comes_as_the_day_begins():
    before = at("Africa/Cairo", 2026, 4, 23, 12, 0)
    assert ticks("Africa/Cairo", [rule(interval=1_440)], before, 2) == ["Fri 01:00 +0300", "Sat 00:00 +0300"]


def test_multiples_count_from_each_midnight():
    wanted = ["Thu 17:30 +0000", "Thu 19:15 +0000", "Thu 21:00 +0000", "Thu 22:45 +0000", "Fri 00:00 +0000"]
    assert ticks("UTC", [rule(interval=105)], at("UTC", 2026, 1, 1, 17, 0), 5) == wanted


def test_a_rule_that_crosses_midnight_covers_the_morning_after_its_day():
    monday = [rule([0], 22, 2, cross=True)]
    wall = Wall(ZoneInfo("UTC"))
    for moment, covered in (((5, 21), False), ((5, 22), True), ((6, 1), True), ((6, 2), False), ((5, 1), False)):
        assert (rule_at(monday, wall, at("UTC", 2026, 1, *moment)) is not None) == covered, moment
    around = rule([0], 9, 9, cross=True)
    assert sum(around.covers(day, hour) for day in range(7) for hour in range(24)) == 24


def test_the_first_enabled_rule_by_priority_then_id_counts():
    rules = [rule(number=1, priority=2), rule(number=2, priority=1, enabled=False), rule(number=4), rule(number=3)]
    assert [each.id for each in in_force(rules)] == [3, 4, 1]


def us(*moment: int) -> int:
    return at("UTC", *moment) * MINUTE_US


def test_what_was_due_by_the_last_tick_may_go_while_a_rule_covers_the_moment():
    rules, zone = [rule(start=8, end=18, interval=30)], ZoneInfo("UTC")
    inside = release(rules, zone, us(2026, 1, 1, 9, 41) + 5)
    assert inside.up_to_us == us(2026, 1, 1, 9, 30) and inside.next_us == inside.until_us == us(2026, 1, 1, 10, 0)
    assert release(rules, zone, us(2026, 1, 1, 10, 0)).up_to_us == us(2026, 1, 1, 10, 0)
    outside = release(rules, zone, us(2026, 1, 1, 18, 0))
    assert outside.up_to_us == -1 and outside.next_us == us(2026, 1, 2, 8, 0)
    assert release(rules, zone, us(2026, 1, 1, 17, 45)).until_us == us(2026, 1, 1, 18, 0)


def test_a_release_holds_until_it_says():
    """Asked at any minute of a week, it is what was said at the beginning of its time."""
    chance, zone = random.Random(5), ZoneInfo(BERLIN)
    for _ in range(3):
        rules = any_rules(chance)
        said = release(rules, zone, at(BERLIN, 2026, 3, 27, 0, 0) * MINUTE_US)
        for minute in range(at(BERLIN, 2026, 3, 27, 0, 0), at(BERLIN, 2026, 3, 30, 0, 0)):
            if minute * MINUTE_US >= said.until_us:
                said = release(rules, zone, minute * MINUTE_US)
            elif minute % 17 == 0:
                assert release(rules, zone, minute * MINUTE_US + 59_999_999) == said


def test_immediate_mail_and_what_somebody_is_in_a_hurry_for_pass():
    rules, zone, now = [rule(start=8, end=9)], ZoneInfo("UTC"), us(2026, 1, 1, 12, 0)
    closed = release(rules, zone, now)
    assert closed.lets_go(0, now) and not any(closed.lets_go(priority, now) for priority in (1, 2, 3))
    hurried = release(rules, zone, now + 10, passed_us=now)
    assert hurried.lets_go(2, now) and not hurried.lets_go(2, now + 1)


def test_without_enabled_rules_everything_goes():
    assert release([], dt.UTC, 0) is EVERYTHING
    assert release([rule(enabled=False)], dt.UTC, 0).lets_go(3, ALWAYS_US)


FAULTS = [
    (rule(()), "days"),
    (rule(start=9, end=9), "end_hour"),
    (rule(start=9, end=8), "cross_midnight"),
    (rule(start=9, end=10, cross=True), "cross_midnight"),
    (rule(start=12, end=18, interval=600), "interval_minutes"),
]


@pytest.mark.parametrize(("each", "named"), FAULTS)
def test_what_cannot_be_a_rule_is_named(each, named):
    assert named in (each.fault or "")


def test_what_can_be_a_rule_has_no_fault():
    assert not any(each.fault for each in (rule(), rule(start=22, end=6, cross=True), rule(start=9, end=9, cross=True)))
    assert not rule(start=9, end=12, interval=600).fault
