"""The hand-off as a model: two sides, a network that loses, repeats, delays and reorders, and crashes anywhere.

Every message is stored exactly once, every report is acknowledged at least once. The service's side is the pure core
with the least around it that has a disk; the upstream's is the one that is shipped (docs/examples/upstream.py), on a
database of its own. Nothing here waits, so a step is one move of one side or of the network.
"""

import importlib.util
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from events.exchange import (
    TOKEN_CHARACTERS_MAX,
    Acknowledged,
    Confirmed,
    Due,
    Heard,
    Offered,
    State,
    Stored,
    decide,
    evolve,
    fault,
    say,
)

ROOT = Path(__file__).parents[2]
RAW = msgspec.Raw(b"{}")


def shipped_upstream():
    spec = importlib.util.spec_from_file_location("upstream", ROOT / "docs" / "examples" / "upstream.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


UPSTREAM = shipped_upstream()


# One exchange


def test_an_acknowledgement_moves_the_cursor_up_to_what_was_offered_and_never_down():
    state = State("L", acknowledged=5, offered=9)
    for said, due in ((7, 7), (9, 9), (10, 9), (2**70, 9), (5, None), (4, None), (-1, None), (None, None)):
        assert decide(state, Heard(log="L", ack_cursor=said)) == Due(None, due)
    assert decide(State("L", 5, 0), Heard(log="L", ack_cursor=9)) == Due(), "after a crash nothing was offered yet"


def test_an_acknowledgement_of_another_log_is_nobodys():
    state = State("L", acknowledged=5, offered=9)
    assert decide(state, Heard(log="M", ack_cursor=7)) == Due()
    assert decide(state, Heard(ack_cursor=7)) == Due(None, 7), "one that names none is ours"


def test_a_batch_is_to_be_stored_under_its_token_and_the_confirmation_stays_until_it_is_heard():
    assert decide(State("L"), Heard(messages=(RAW,), token="t")) == Due("t")
    assert decide(State("L"), Heard(token="t")) == Due("t"), "an empty batch is one too"
    state = evolve(State("L"), Stored("t"))
    assert state.confirm == "t"
    assert evolve(state, Confirmed(None)) == evolve(state, Confirmed("s")) == state
    assert evolve(state, Confirmed("t")).confirm is None


def test_what_is_wrong_with_an_exchange_is_said_before_anything_of_it_is_done():
    assert fault(Heard(), 2) is None and fault(Heard(messages=(), token=None), 2) is None
    assert fault(Heard(messages=(RAW, RAW), token="t"), 2) is None
    assert "token" in fault(Heard(messages=(RAW,)), 2) and "token" in fault(Heard(messages=(RAW,), token=""), 2)
    assert fault(Heard(messages=(RAW,) * 3, token="t"), 2) == "Cannot enqueue more than 2 messages at once"
    assert "longer" in fault(Heard(token="t" * (TOKEN_CHARACTERS_MAX + 1)), 2)


def test_cursors_only_move_up():
    state = evolve(evolve(State("L"), Offered(4)), Acknowledged(3))
    assert evolve(evolve(state, Offered(2)), Acknowledged(1)) == state


# Two sides


class Disk:
    """What a service has on disk: the log's id, the tokens with what came under them, the results, the cursor."""

    def __init__(self):
        self.log = "log-0"
        self.batches = {}
        self.results = []
        self.cursor = 0

    def copy(self):
        other = Disk()
        other.log, other.batches = self.log, dict(self.batches)
        other.results, other.cursor = list(self.results), self.cursor
        return other


class Service:
    """The core, and the little around it that stores and reads."""

    def __init__(self):
        self.disk = Disk()
        self.lives = 0
        self.state = State(self.disk.log)

    def begin(self):
        self.state = State(self.disk.log, self.disk.cursor)

    def say(self, confirm):
        reports = self.disk.results[self.disk.cursor : self.disk.cursor + 3]
        cursor = self.disk.cursor + len(reports)
        self.state = evolve(self.state, Offered(cursor))
        return say(self.state, reports, cursor, confirm)

    def hear(self, theirs):
        """What an exchange asks for, done; the token that it may confirm."""
        heard = msgspec.json.decode(json.dumps(theirs), type=Heard)
        assert fault(heard, 100) is None
        due = decide(self.state, heard)
        if due.acknowledge is not None:
            self.disk.cursor = max(self.disk.cursor, due.acknowledge)
            self.state = evolve(self.state, Acknowledged(due.acknowledge))
        if due.store is not None:
            if due.store not in self.disk.batches:
                ids = tuple(message["id"] for message in theirs["messages"])
                self.disk.batches[due.store] = ids
                self.disk.results += [{"id": each, "sent_ts": len(self.disk.results)} for each in ids]
            self.state = evolve(self.state, Stored(due.store))
        return due.store


class Flying(NamedTuple):
    """Half of an exchange on its way, from a life of the service; an `answer` may come only to who has asked."""

    to: str
    kind: str
    said: dict[str, Any]
    life: int
    carried: Any = None


PICK = st.integers(0, 50)


class TwoSides(RuleBasedStateMachine):
    """What flies may arrive late, out of order, again and again, or never. A restored backup ends the connections of
    the life before it, so what flew then arrives no more."""

    def __init__(self):
        super().__init__()
        self.service = Service()
        self.upstream = UPSTREAM.Upstream(":memory:")
        self.flying = []
        self.promised = []
        self.told = set()
        self.service_backup = self.service.disk.copy()
        self.upstream_backup = None

    def teardown(self):
        self.settle()
        self.upstream.close()
        if self.upstream_backup:
            self.upstream_backup[0].close()

    def send(self, *what):
        self.flying.append(Flying(*what))

    # What the sides do of themselves

    @rule(count=st.integers(0, 3), new=st.uuids(version=4))
    def mail_comes_to_the_upstream(self, count, new):
        messages = [{"id": f"{new}-{index}"} for index in range(count)]
        self.promised += [each["id"] for each in messages]
        self.upstream.add(messages)

    @rule()
    def the_service_starts(self):
        confirm = self.service.state.confirm
        self.send("upstream", "ask", self.service.say(confirm), self.service.lives, confirm)

    @rule()
    def the_upstream_starts(self):
        self.send("service", "ask", self.upstream.say(), self.service.lives)

    # What the network delivers

    @precondition(lambda self: self.flying)
    @rule(pick=PICK, again=st.booleans(), dies=st.booleans())
    def something_arrives(self, pick, again, dies):
        at = pick % len(self.flying)
        flying = self.flying[at] if again else self.flying.pop(at)
        if flying.to == "upstream":
            self.the_upstream_hears(flying)
        else:
            self.the_service_hears(flying, dies)

    def the_upstream_hears(self, flying):
        self.upstream.hear(flying.said)
        self.told |= {report["id"] for report in self.upstream.reports()}
        if flying.kind == "ask":
            self.send("service", "answer", self.upstream.say(), flying.life, flying.carried)

    def the_service_hears(self, flying, dies):
        """It may die after it has stored and before it says so."""
        if flying.kind == "answer":
            self.service.state = evolve(self.service.state, Confirmed(flying.carried))
        confirm = self.service.hear(flying.said)
        if dies:
            self.service.begin()
        elif flying.kind == "ask":
            self.send("upstream", "answer", self.service.say(confirm), flying.life)

    @precondition(lambda self: self.flying)
    @rule(pick=PICK)
    def something_is_lost(self, pick):
        del self.flying[pick % len(self.flying)]

    # What ends them

    @rule()
    def the_service_dies(self):
        self.service.begin()

    @rule()
    def the_service_is_backed_up(self):
        self.service_backup = self.service.disk.copy()

    @rule()
    def the_service_is_restored(self):
        """It goes on under a new log id, and the upstream's operator offers again what was confirmed since."""
        self.service.lives += 1
        self.service.disk = self.service_backup.copy()
        self.service.disk.log = f"log-{self.service.lives}"
        self.service.begin()
        self.flying.clear()
        self.upstream.offer_again(1)

    @rule()
    def the_upstream_is_backed_up(self):
        if self.upstream_backup:
            self.upstream_backup[0].close()
        copy = sqlite3.connect(":memory:")
        self.upstream._db.backup(copy)
        self.upstream_backup = copy, list(self.promised), self.service.lives

    @precondition(lambda self: self.upstream_backup)
    @rule()
    def the_upstream_is_restored(self):
        """What it was given since is lost with it, and nobody promises otherwise."""
        copy, self.promised, lives = self.upstream_backup[0], list(self.upstream_backup[1]), self.upstream_backup[2]
        copy.backup(self.upstream._db)
        if lives != self.service.lives:
            self.upstream.offer_again(1)

    # What is promised

    def stored(self):
        return [each for ids in self.service.disk.batches.values() for each in ids]

    @invariant()
    def no_message_is_stored_twice(self):
        assert len(self.stored()) == len(set(self.stored()))

    @invariant()
    def nothing_is_passed_that_the_upstream_was_never_told(self):
        disk = self.service.disk
        assert {each["id"] for each in disk.results[: disk.cursor]} <= self.told

    def settle(self):
        """A calm network: everything is stored and told within as many exchanges as there are batches and reports."""
        for _ in range(2 * (self.upstream.unconfirmed() + len(self.promised)) + len(self.stored()) + 3):
            self.flying.clear()
            self.the_service_starts()
            self.the_upstream_hears(self.flying.pop())
            self.the_service_hears(self.flying.pop(), dies=False)
        disk = self.service.disk
        assert self.upstream.unconfirmed() == 0 and disk.cursor == len(disk.results)
        assert set(self.promised) <= set(self.stored())
        self.no_message_is_stored_twice()
        self.nothing_is_passed_that_the_upstream_was_never_told()


TestTwoSides = TwoSides.TestCase
TestTwoSides.settings = settings(
    max_examples=60, stateful_step_count=40, derandomize=True, database=None, deadline=None
)


def test_the_model_can_see_a_fault(monkeypatch):
    """A service that confirms before it has stored loses a batch, and the model says so."""
    monkeypatch.setattr(Service, "hear", _confirms_too_early)
    machine = TwoSides()
    machine.mail_comes_to_the_upstream(1, "id")
    with closing(machine.upstream), pytest.raises(AssertionError):
        machine.settle()


def _confirms_too_early(service, theirs):
    if theirs["token"] is not None:
        service.state = evolve(service.state, Stored(theirs["token"]))
    return theirs["token"]
