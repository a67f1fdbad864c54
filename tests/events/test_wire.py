"""The wire form: every kind goes there and back, old versions are lifted, newer ones are refused by name."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from events.attempt import AttemptEnded, AttemptStarted
from events.fact import Entry, Fact
from events.message import MessageAccepted
from events.values import Outcome
from events.wire import KINDS, MODULES, UPCASTERS, UnknownKind, decode_data, decode_row, encode_data
from tests.store.random_facts import of_struct


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_every_kind_goes_there_and_back(kind, data):
    fact = data.draw(of_struct(kind))
    stored = encode_data(fact)
    assert decode_data(kind.__name__, kind.VERSION, stored) == fact
    assert encode_data(decode_data(kind.__name__, kind.VERSION, stored)) == stored


def test_every_fact_of_the_modules_is_known_by_its_name():
    ours = {kind.__name__ for kind in Fact.__subclasses__() if kind.__module__.startswith("events.")}
    assert set(KINDS) == ours
    assert {kind.__module__ for kind in KINDS.values()} == {module.__name__ for module in MODULES}


def test_what_has_its_default_is_left_out():
    assert encode_data(AttemptStarted(revision=7, recipients=(0, 1))) == b'{"revision":7,"recipients":[0,1]}'
    ended = AttemptEnded(attempt=8, outcomes=(Outcome(0, "delivered", 250),), next="done")
    assert (
        encode_data(ended)
        == b'{"attempt":8,"outcomes":[{"recipient":0,"status":"delivered","code":250}],"next":"done"}'
    )


def test_facts_cannot_be_changed():
    with pytest.raises(AttributeError):
        AttemptStarted(revision=1, recipients=()).revision = 2


def test_a_row_of_the_log_is_an_entry():
    fact = AttemptStarted(revision=7, recipients=(0,))
    assert decode_row((9, 5, "AttemptStarted", 1, 7, 2, encode_data(fact))) == Entry(9, 5, 7, 2, fact)
    assert decode_row((9, 5, "AttemptStarted", 1, 7, 2, encode_data(fact))).kind == "AttemptStarted"


class Third(Fact):
    VERSION = 3
    name: str
    size: int


def test_an_old_version_is_lifted_step_by_step(monkeypatch):
    monkeypatch.setitem(KINDS, "Third", Third)
    upcasters = {
        ("Third", 1): lambda old: {"name": old["title"]},
        ("Third", 2): lambda old: {**old, "size": len(old["name"])},
    }
    assert decode_data("Third", 1, b'{"title":"abc"}', upcasters) == Third(name="abc", size=3)
    assert decode_data("Third", 2, b'{"name":"abcd"}', upcasters) == Third(name="abcd", size=4)


def test_every_version_that_there_was_has_its_upcaster():
    needed = {(name, version) for name, kind in KINDS.items() for version in range(1, kind.VERSION)}
    assert set(UPCASTERS) == needed


@pytest.mark.parametrize(("kind", "version"), [("MessageSung", 1), ("MessageAccepted", MessageAccepted.VERSION + 1)])
def test_what_a_newer_release_wrote_is_refused_by_name(kind, version):
    with pytest.raises(UnknownKind, match=f"{kind} version {version}.*use a newer one"):
        decode_data(kind, version, b"{}")


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b'{"revision":"x","recipients":[]}', b'{"revision":1}'])
def test_damage_is_an_error(damaged):
    with pytest.raises(msgspec.DecodeError):
        decode_data("AttemptStarted", 1, damaged)
