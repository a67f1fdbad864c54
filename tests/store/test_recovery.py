"""Every combination of what can be found at a start is walked, and each has exactly one answer."""

from itertools import product

import pytest
from msgspec.structs import replace

from events.fact import Draft
from events.schedule import DispatchSuspended
from events.service import ClockStepped, LogRestored, ServiceStopped
from store.files import Mark
from store.recovery import (
    ANY,
    ASPECTS,
    CLOCK,
    CLOCK_AHEAD_US,
    END,
    MARK,
    REFOLDED_MAX,
    VIEWS,
    Aspect,
    Situation,
    decide,
)
from store.schema import VIEW_VERSIONS
from store.surveying import survey
from store.views.clock import LARGE_US

from .building import T0_US, accepted, account_saved, database, record, started, writer

NAMES = {"end": END, "mark": MARK, "views": VIEWS, "clock": CLOCK}

USUAL = Situation(
    log="a1",
    last_seq=100,
    last_at_us=T0_US,
    stopped=True,
    mark=Mark("a1", 100),
    stale_views=(),
    open_attempts=0,
    now_us=T0_US + 1,
)

LOGS = ({"last_seq": 0}, {"last_seq": 100}, {"last_seq": REFOLDED_MAX}, {"last_seq": REFOLDED_MAX + 1})
MARKS = tuple(
    {"mark": mark}
    for mark in (None, Mark("a1", 0), Mark("a1", 99), Mark("a1", 100), Mark("a1", 2 * REFOLDED_MAX), Mark("b2", 7))
)
PUTS = ({"put_back": None}, {"put_back": 120})
ENDS = ({"stopped": True}, {"stopped": False})
ATTEMPTS = ({"open_attempts": 0}, {"open_attempts": 3})
STALE = ({"stale_views": ()}, {"stale_views": ("messages", "totals")})
CLOCKS = tuple({"now_us": T0_US + by} for by in (-LARGE_US - 1, -LARGE_US, 0, CLOCK_AHEAD_US, CLOCK_AHEAD_US + 1))

EVERY_SITUATION = [
    replace(USUAL, **{key: value for part in parts for key, value in part.items()})
    for parts in product(LOGS, MARKS, PUTS, ENDS, ATTEMPTS, STALE, CLOCKS)
]


def combinations(aspect: Aspect):
    return product(*aspect.columns.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_combination_has_exactly_one_case(name):
    aspect = NAMES[name]
    for words in combinations(aspect):
        assert len([case for case in aspect.cases if case.matches(words)]) == 1, words


@pytest.mark.parametrize("name", NAMES)
def test_every_case_is_some_combination_and_uses_its_columns_words(name):
    aspect = NAMES[name]
    for case in aspect.cases:
        assert any(case.matches(words) for words in combinations(aspect)), case.label
        for word, known in zip(case.words, aspect.columns.values(), strict=True):
            assert word == ANY or word in known


@pytest.mark.parametrize("name", NAMES)
def test_what_is_seen_of_real_situations_is_every_combination_and_no_other(name):
    aspect = NAMES[name]
    seen = {aspect.see(situation) for situation in EVERY_SITUATION}
    possible = set(combinations(aspect))
    # An empty log cannot be past a mark, as long as nobody writes a negative seq into one.
    assert possible - seen <= {("empty", "made", "behind"), ("empty", "put back", "behind")}
    assert seen <= possible


def test_labels_are_told_apart():
    labels = [case.label for aspect in ASPECTS for case in aspect.cases]
    assert len(labels) == len(set(labels))


def test_every_situation_is_decided_with_one_line_an_eventful_aspect():
    for situation in EVERY_SITUATION:
        decision = decide(situation)
        assert decision.label
        assert all(line and "\n" not in line and "{" not in line for line in decision.lines)
        assert len(decision.lines) <= len(ASPECTS)


def test_an_uneventful_start_says_nothing_and_decides_nothing():
    decision = decide(USUAL)
    assert (decision.label, decision.lines) == ("clean stop", ())
    assert not (decision.refuse or decision.refold or decision.facts or decision.stepped_us)


def test_a_first_start_says_nothing():
    decision = decide(replace(USUAL, last_seq=0, last_at_us=0, stopped=False, mark=None))
    assert (decision.label, decision.lines) == ("first start", ())


def test_a_mark_beyond_the_log_restores_and_suspends():
    decision = decide(replace(USUAL, last_seq=40))
    assert decision.restored
    assert decision.facts == (
        LogRestored(previous_log="a1", marked_seq=100),
        DispatchSuspended(by="recovery", restored=True),
    )
    assert decision.label == "clean stop, restored"
    assert "40" in decision.lines[0] and "100" in decision.lines[0]


def test_the_mark_of_another_log_restores_where_there_is_mail_to_be_sent_twice():
    assert decide(replace(USUAL, mark=Mark("b2", 5))).restored
    begun_anew = decide(replace(USUAL, mark=Mark("b2", 5), last_seq=0))
    assert not begun_anew.restored and "b2" in begun_anew.lines[0]


def test_what_restore_has_put_in_place_says_so_itself_whatever_the_mark():
    for mark in (None, Mark("a1", 99), Mark("a1", 100), Mark("a1", 120), Mark("b2", 300)):
        decision = decide(replace(USUAL, mark=mark, put_back=120))
        assert decision.facts == (
            LogRestored(previous_log="a1", marked_seq=120),
            DispatchSuspended(by="recovery", restored=True),
        )
        assert decision.label == "clean stop, put back"
        (line,) = decision.lines
        assert "ends at 100" in line and "activate --restored hold" in line


def test_restored_is_decided_by_the_mark_and_by_what_restore_has_said():
    for situation in EVERY_SITUATION:
        mark = situation.mark
        beyond = mark is not None and mark.log == situation.log and mark.seq > situation.last_seq
        other = mark is not None and mark.log != situation.log and situation.last_seq > 0
        assert decide(situation).restored == (beyond or other or situation.put_back is not None)


def test_a_missing_mark_beside_a_log_is_one_warning():
    decision = decide(replace(USUAL, mark=None))
    assert not decision.restored and len(decision.lines) == 1 and "mark file is missing" in decision.lines[0]


def test_stale_views_are_refolded_up_to_a_size_and_then_refused():
    for situation in EVERY_SITUATION:
        decision = decide(situation)
        stale, long = bool(situation.stale_views), situation.last_seq > REFOLDED_MAX
        assert (decision.refold, decision.refuse) == (stale and not long, stale and long)
        if decision.refuse:
            assert any("letterbook rebuild" in line for line in decision.lines)


def test_open_attempts_are_said_however_the_last_run_ended():
    for stopped in (True, False):
        decision = decide(replace(USUAL, stopped=stopped, open_attempts=3))
        assert decision.lines == ("attempts under way when the last run ended: 3; whether they arrived is in doubt",)


@pytest.mark.parametrize(
    ("by_us", "paused"),
    [
        (-LARGE_US - 1, True),
        (-LARGE_US, False),
        (0, False),
        (CLOCK_AHEAD_US, False),
        (CLOCK_AHEAD_US + 1, True),
    ],
)
def test_a_clock_that_cannot_be_believed_has_stepped(by_us, paused):
    decision = decide(replace(USUAL, now_us=T0_US + by_us))
    assert decision.stepped_us == (by_us if paused else 0)
    assert bool(decision.lines) == paused


def test_the_mark_says_better_than_a_stamp_what_the_clock_showed():
    """After a year backwards the last stamp stays a year ahead, and is no reason to doubt the clock at every start."""
    behind = replace(USUAL, mark=Mark("a1", 100, T0_US), last_at_us=T0_US + 365 * CLOCK_AHEAD_US)
    assert decide(behind).stepped_us == 0
    assert decide(replace(behind, now_us=T0_US + 2 * CLOCK_AHEAD_US)).stepped_us == 2 * CLOCK_AHEAD_US
    assert decide(replace(behind, mark=Mark("b2", 100, T0_US))).stepped_us == behind.now_us - behind.last_at_us


def test_a_step_that_the_mark_does_not_know_of_is_not_found_twice():
    stepped = replace(USUAL, mark=Mark("a1", 99, T0_US), now_us=T0_US + 365 * CLOCK_AHEAD_US)
    assert decide(stepped).stepped_us == 365 * CLOCK_AHEAD_US
    assert decide(replace(stepped, stepped_to_us=stepped.now_us - 1)).stepped_us == 0


def test_the_mark_of_the_log_that_a_backup_has_replaced_says_nothing_of_its_clock():
    """The backup is of a day on which the clock was a year ahead, and not found out yet."""
    year_us = 365 * CLOCK_AHEAD_US
    backup = replace(USUAL, last_at_us=T0_US + year_us, stepped_to_us=T0_US + year_us, stepped_at_us=T0_US + year_us)
    beyond = replace(backup, mark=Mark("a1", 140, T0_US))
    for found in (beyond, replace(beyond, put_back=140), replace(backup, mark=Mark("a1", 90, T0_US), put_back=140)):
        assert decide(found).restored
        assert decide(found).stepped_us == found.now_us - backup.last_at_us


def test_without_a_mark_a_step_of_long_ago_is_no_step_of_today():
    """What came after it was stamped by the clock that is still right."""
    weeks_ago = T0_US - 21 * CLOCK_AHEAD_US
    unmarked = replace(USUAL, mark=None, stepped_to_us=weeks_ago, stepped_at_us=weeks_ago)
    assert decide(unmarked).stepped_us == 0
    assert decide(replace(unmarked, now_us=T0_US - LARGE_US - 1)).stepped_us == -LARGE_US - 1


@pytest.mark.parametrize(("now_days", "stepped_days"), [(0, 0), (21, 0), (365, 0), (367, 2), (-3, -3)])
def test_without_a_mark_stamps_that_stand_still_since_a_step_backwards_leave_the_clock_its_range(
    now_days, stepped_days
):
    ahead_us = T0_US + 365 * CLOCK_AHEAD_US
    still = replace(USUAL, mark=None, last_at_us=ahead_us, stepped_to_us=T0_US, stepped_at_us=ahead_us)
    decision = decide(replace(still, now_us=T0_US + now_days * CLOCK_AHEAD_US))
    assert decision.stepped_us == stepped_days * CLOCK_AHEAD_US


def test_an_empty_log_says_nothing_about_the_clock():
    assert decide(replace(USUAL, last_seq=0, last_at_us=0, mark=None)).stepped_us == 0


def test_the_survey_reads_what_is_there():
    with database() as connection:
        meta = {"log": "a1"} | {f"view:{name}": str(version) for name, version in VIEW_VERSIONS.items()}
        connection.executemany("insert into meta values (?, ?)", list(meta.items()))
        empty = survey(connection, None, 5)
        assert (empty.log, empty.last_seq, empty.stopped, empty.open_attempts, empty.now_us) == ("a1", 0, False, 0, 5)
        to = writer(connection)
        record(to, [account_saved(), accepted("m")])
        record(to, [started(2)])
        found = survey(connection, Mark("a1", 3), T0_US)
        assert (found.last_seq, found.open_attempts, found.stopped) == (3, 1, False)
        assert found.last_at_us >= T0_US and found.mark == Mark("a1", 3) and found.stale_views == ()
        record(to, [Draft(ClockStepped(by_us=5, to_us=T0_US + 9))])
        stamp = connection.execute("select max(at_us) from log").fetchone()[0]
        for mark, known in ((None, True), (Mark("a1", 3, T0_US), True), (Mark("a1", 4, T0_US), False)):
            found = survey(connection, mark, T0_US)
            assert (found.stepped_to_us, found.stepped_at_us) == ((T0_US + 9, stamp) if known else (0, 0))
        beyond = survey(connection, Mark("a1", 40, T0_US), T0_US)
        assert (beyond.stepped_to_us, beyond.stepped_at_us) == (T0_US + 9, stamp)
        record(to, [Draft(ServiceStopped())])
        connection.execute("update meta set value = '0' where name = 'view:totals'")
        connection.execute("delete from meta where name = 'view:slots'")
        stopped = survey(connection, None, T0_US)
        assert stopped.stopped and set(stopped.stale_views) == {"totals", "slots"}
