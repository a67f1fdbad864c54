"""The small parts of the gateway, without a server."""

import msgspec

from events.account import AccountSaved
from events.commands import Reply
from events.fact import Entry
from events.message import MessageAccepted
from gateway import shapes
from gateway.auth import ADDRESSES_MAX, WINDOW_S, WRONG_MAX, Gate, token_of
from gateway.bodies import Bodies, Lease
from gateway.event_json import CACHED_MAX, EventCache, Expansion, event_json
from gateway.stream import _frames
from gateway.tickets import EXPIRES_S, OUTSTANDING_MAX, Tickets
from store.reading import Beside
from store.views.messages import RecipientState


class Clock:
    def __init__(self):
        self.us = 0

    def __call__(self):
        return self.us


def test_a_token_stands_in_either_header():
    assert token_of({"x-api-token": "a"}) == "a"
    assert token_of({"authorization": "bearer  a "}) == "a"
    assert token_of({"authorization": "Basic a"}) is None
    assert token_of({}) is None


def test_wrong_tokens_are_counted_by_address_and_forgotten_after_a_while():
    clock = Clock()
    gate = Gate("right", clock)
    assert [gate.judge("wrong", "one") for _ in range(WRONG_MAX + 1)] == [401] * WRONG_MAX + [429]
    assert gate.judge("wrong", "two") == 401
    assert gate.judge("right", "one") is None and gate.judge(None, "one") == 401
    clock.us = int(WINDOW_S * 1e6) + 1
    assert gate.judge("wrong", "one") == 401
    for index in range(ADDRESSES_MAX + 5):
        gate.judge("wr\udc80ng", f"address {index}")
    assert len(gate._wrong) == ADDRESSES_MAX


def test_a_gate_without_a_token_is_open():
    assert Gate("", Clock()).open and Gate("", Clock()).judge(None, "") is None


def test_a_ticket_is_good_once_and_for_a_while():
    clock = Clock()
    numbers = iter(range(10_000))
    tickets = Tickets(lambda size: next(numbers).to_bytes(size), clock)
    first, second = tickets.give(), tickets.give()
    assert tickets.take(first) and not tickets.take(first) and not tickets.take("")
    clock.us = EXPIRES_S * 1_000_000 + 1
    assert not tickets.take(second)
    old = tickets.give()
    for _ in range(OUTSTANDING_MAX):
        tickets.give()
    assert not tickets.take(old)


def test_a_body_whose_client_is_gone_counts_until_its_command_is_answered():
    bodies = Bodies(100)
    lease, reply = Lease(bodies), Reply()
    assert lease.grow(80)
    lease.keep_until(reply)
    lease.release()
    assert not Lease(bodies).grow(30)
    reply.put(())
    assert Lease(bodies).grow(90) and bodies.held == 90


def test_a_lease_is_given_back_whole():
    bodies = Bodies(100)
    lease = Lease(bodies)
    assert lease.grow(60) and lease.grow(40) and not lease.grow(1)
    lease.release()
    assert bodies.held == 0


ENTRY = Entry(7, 9, 3, 1, MessageAccepted(id="a", priority=2, due_us=0, expires_us=0, size=1, recipients=(), letter=""))


def test_a_fact_as_json_has_its_own_fields_behind_the_head():
    event = msgspec.json.decode(event_json(ENTRY, {3: "a"}, {1: "main"}, Expansion("s@x", "hi", ("b@y",))))
    assert list(event)[:5] == ["seq", "at_us", "kind", "message_id", "account_id"]
    assert event["priority"] == 2 and event["from"] == "s@x" and event["addresses"] == ["b@y"]
    assert "replies" not in event


def test_a_fact_without_fields_is_its_head():
    from events.service import ServiceStopped

    data = event_json(Entry(1, 2, None, None, ServiceStopped()), {}, {}, Expansion())
    assert data == b'{"seq":1,"at_us":2,"kind":"ServiceStopped"}'


def test_a_fact_is_encoded_once():
    cache = EventCache({1: "main"})
    first = cache.encode([ENTRY], {3: "a"})
    assert cache.encode([ENTRY], {})[0] is first[0]
    fact = AccountSaved(id="x", host="h", port=1, credentials="")
    cache.encode([Entry(seq, 0, None, 1, fact) for seq in range(8, CACHED_MAX + 8)], {})
    assert cache.encode([ENTRY], {})[0] is not first[0]


def test_frames_hold_what_they_may_and_never_nothing():
    events = [b"x" * 100_000] * 3 + [b"y" * 400_000] + [b"z"] * 1001
    frames = [msgspec.json.decode(frame.replace(b"x" * 100_000, b"1").replace(b"y" * 400_000, b"2").replace(b"z", b"3"))
              for frame in _frames(events)]  # fmt: skip
    assert [len(frame["events"]) for frame in frames] == [2, 1, 1, 500, 500, 1]
    assert list(_frames([])) == []


def test_moments_are_rounded_so_that_waiting_is_enough():
    assert (
        shapes.seconds(1_999_999) == 1 and shapes.until_seconds(1_000_001) == 2 and shapes.until_seconds(2_000_000) == 2
    )
    assert shapes.iso(1_700_000_000_123_456) == "2023-11-14T22:13:20Z"


def test_whom_new_content_passes_by_is_in_doubt():
    states = (RecipientState("passed_by"), RecipientState("open"))
    for final, words in ((False, ["in_doubt", "open"]), (True, ["in_doubt", "deferred"])):
        shown = shapes.recipients(states, None, Beside({}, {}), final=final)
        assert [recipient.status for recipient in shown] == words
