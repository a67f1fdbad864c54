"""Which messages a bulk command means: by what the view says, and by what stands in the envelopes, a step at a time."""

import msgspec
import pytest

from events.commands import Where
from events.fact import Draft
from events.letter import Envelope
from events.message import ContentErased, MessageHeld
from store import choosing, erasing, reading
from store.beside import LetterRow
from store.choosing import chosen, folded_domain

from .building import T0_US, accepted, account_saved
from .telling import Story, end, start, story

ALL = frozenset({"waiting", "held", "failed", "in_flight"})
NOW_US = T0_US
LATER_US = T0_US + 60_000_000


def envelope(*to: str, subject: str = "s") -> LetterRow:
    return LetterRow(msgspec.json.encode(Envelope("shop@example.com", to, subject)), b"{}", b"salt")


def accept(s: Story, name: str, *to: str, subject: str = "s", account: int = 1, **fields) -> int:
    to = to or ("a@example.org",)
    return s.given(accepted(name, account, recipients=len(to), **fields), envelope(*to, subject=subject))


def found(s: Story, where: Where, states=ALL, after: int = 0, up_to: int = 10_000, **fields) -> list[str]:
    return [row.id for row in chosen(s.connection, where, states, NOW_US, after, up_to, **fields).rows]


def end_of(s: Story, number: int, then: str, status: str, **fields) -> int:
    s.given(end(number, s.given(start(number)), then, status, **fields))
    return number


@pytest.fixture
def filled():
    """A message in every state, and one of another account."""
    with story() as s:
        other = s.given(account_saved("other"))
        accept(s, "due")
        accept(s, "later", due_us=LATER_US, priority=0)
        end_of(s, accept(s, "held"), "held", "in_doubt")
        end_of(s, accept(s, "failed"), "failed", "refused")
        end_of(s, accept(s, "sent"), "done", "delivered")
        s.given(start(accept(s, "flying")))
        accept(s, "elsewhere", account=other)
        yield s


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        (Where(account_id="default"), ["due", "later", "held", "failed", "flying"]),
        (Where(account_id="other"), ["elsewhere"]),
        (Where(account_id="nobody"), []),
        (Where(status="pending"), ["due", "elsewhere"]),
        (Where(status="deferred"), ["later"]),
        (Where(status="held"), ["held"]),
        (Where(status="error"), ["failed"]),
        (Where(status="in_flight"), ["flying"]),
        (Where(status="sent"), []),
        (Where(status="withdrawn"), []),
        (Where(priority=0), ["later"]),
        (Where(before_us=1), []),
        (Where(priority=2, status="pending", account_id="other"), ["elsewhere"]),
    ],
)
def test_all_that_is_given_must_hold(filled, where, ids):
    assert found(filled, where) == ids


@pytest.mark.parametrize("state", sorted(ALL))
def test_only_states_that_are_asked_for_are_looked_at(filled, state):
    rows = chosen(filled.connection, Where(before_us=2 * T0_US), {state}, NOW_US, 0, 10_000).rows
    assert {row.state for row in rows} == {state}


def test_mail_behind_a_throttled_account_is_deferred(filled):
    filled.connection.execute("update accounts set throttled_until_us = ? where id = 'other'", (LATER_US,))
    assert found(filled, Where(status="deferred")) == ["later", "elsewhere"]
    assert found(filled, Where(status="pending")) == ["due"]


def test_age_is_since_acceptance():
    with story() as s:
        first = accept(s, "old")
        created_us = s.row(first).created_us
        accept(s, "young")
        assert found(s, Where(before_us=created_us + 1)) == ["old"]


def test_envelopes_say_to_which_domain_and_under_which_subject():
    with story() as s:
        accept(s, "one", "ann@Example.ORG", subject="Your Invoice 7")
        accept(s, "two", "x@other.example", "bob@example.org", subject="Große Rechnung")
        accept(s, "sub", "x@mail.example.org", subject="invoice")
        accept(s, "idn", "x@bücher.example")
        accept(s, "ace", "x@xn--bcher-kva.example")
        assert found(s, Where(to_domain="EXAMPLE.org")) == ["one", "two"], "a subdomain is another domain"
        assert found(s, Where(subject="invoice")) == ["one", "sub"]
        assert found(s, Where(subject="GROSSE")) == ["two"]
        assert found(s, Where(to_domain="example.org", subject="rechnung")) == ["two"]
        assert found(s, Where(to_domain="BÜCHER.example")) == ["idn", "ace"]
        assert found(s, Where(to_domain="xn--bcher-kva.example")) == ["idn", "ace"]


def test_who_has_no_envelope_any_more_is_not_found_by_it():
    with story() as s:
        number = end_of(s, accept(s, "a"), "failed", "refused")
        assert found(s, Where(to_domain="example.org")) == ["a"]
        s.given(Draft(ContentErased(letters=((number, number),))))
        assert chosen(s.connection, Where(account_id="default"), ALL, NOW_US, 0, 99).letters == frozenset()
        erasing.erase_pending(s.connection)
        assert found(s, Where(to_domain="example.org")) == []
        assert found(s, Where(account_id="default")) == ["a"]


def test_letters_that_are_to_be_erased_are_not_there_any_more():
    with story() as s:
        gone, there = (end_of(s, accept(s, name), "failed", "refused") for name in "ab")
        s.given(Draft(ContentErased(letters=((gone, gone),))))
        assert chosen(s.connection, Where(account_id="default"), ALL, NOW_US, 0, 99).letters == {there}


@pytest.mark.parametrize("where", [Where(account_id="default"), Where(subject="s"), Where(priority=1)])
def test_steps_meet_every_message_once_and_none_that_came_in_later(monkeypatch, where):
    """Short stretches and short steps, over states that lie among each other."""
    monkeypatch.setattr(choosing, "STRETCH_ROWS_MAX", 7)
    monkeypatch.setattr(reading, "STRETCH_ROWS_MAX", 7)
    with story() as s:
        for index in range(60):
            number = accept(s, f"m{index}", priority=index % 3)
            match index % 5:
                case 1:
                    s.given(Draft(MessageHeld(cause="x"), message=number, account=1))
                case 2:
                    end_of(s, number, "failed", "refused")
                case 3:
                    end_of(s, number, "done", "delivered")
        up_to = s.writer.last_seq
        accept(s, "late", priority=1)
        ids, after, steps = [], 0, 0
        while after is not None:
            step = chosen(s.connection, where, ALL, NOW_US, after, up_to, limit=4)
            assert len(step.rows) <= 4 and (step.next is None or step.next > after)
            ids += [row.id for row in step.rows]
            after, steps = step.next, steps + 1
        wanted = [index for index in range(60) if index % 5 != 3 and (where.priority is None or index % 3 == 1)]
        assert ids == [f"m{index}" for index in wanted] and steps > 5


def test_domains_are_the_same_in_any_case_and_script():
    assert folded_domain("EXAMPLE.org") == folded_domain("example.ORG")
    assert folded_domain("straße.example") == "xn--strae-oqa.example"
    assert folded_domain("\udc80") == "\udc80", "what is no domain is compared as it is"
