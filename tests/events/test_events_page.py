from events.wire import KINDS

from .events_page import EVENTS_PAGE, LIFECYCLE_PAGE, events_page, lifecycle_page

HOW = "run `python -m tests.events.events_page`"


def test_the_page_of_events_is_made_from_the_facts():
    assert EVENTS_PAGE.read_text(encoding="utf-8") == events_page(), HOW


def test_the_page_of_the_lifecycle_is_drawn_from_the_table():
    assert LIFECYCLE_PAGE.read_text(encoding="utf-8") == lifecycle_page(), HOW


def test_every_kind_has_its_section():
    lines = events_page().splitlines()
    assert [kind for kind in KINDS if f"### {kind}" not in lines] == []
