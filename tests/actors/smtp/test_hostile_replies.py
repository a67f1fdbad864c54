"""Whatever a relay sends, in whatever pieces: the reader and the engine hold little, never raise, and say only what
may be shown."""

import re
from base64 import b64encode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.smtp.auth import HIDDEN, redacted
from actors.smtp.engine import Engine, Replied, State
from actors.smtp.reply import (
    LINE_OCTETS_MAX,
    REPLY_LINES_MAX,
    REPLY_OCTETS_MAX,
    TEXT_CHARACTERS_MAX,
    GarbageError,
    Reply,
    ReplyReader,
)
from actors.smtp.transaction import Delivery

from .helpers import greeted, mail, taken
from .hostile import ENVELOPE, MONSTERS, REPLIES, pieces, replies_of_a_relay

UNCLEAN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a terminal's cursor, breaks a line of the log, or turns the order of what is read around."""

PIECE_OCTETS = 65_536
"""As much as a stream gives at once."""


def b64(raw: bytes) -> str:
    return b64encode(raw).decode()


def clean(text: str) -> bool:
    return len(text) <= TEXT_CHARACTERS_MAX and not UNCLEAN.search(text)


def read(parts: list[bytes]) -> tuple[list[Reply], str | None]:
    """All replies, and the words of the fault that ended the reading."""
    reader, replies = ReplyReader(), []
    try:
        for part in parts:
            reader.push(part)
            while reply := reader.pull():
                replies.append(reply)
            assert len(reader._buffer) - reader._at <= LINE_OCTETS_MAX
            assert reader._octets <= REPLY_OCTETS_MAX and len(reader._lines) <= REPLY_LINES_MAX
    except GarbageError as fault:
        return replies, str(fault)
    return replies, None


@settings(max_examples=150)
@given(st.lists(REPLIES, max_size=6), st.integers(1, 50))
@example([b"250-x\r\n" * 300], 1)
@example([b"250 \xe2\x80\xae\xc2\x85\xed\xa0\x80\r\n"], 3)
def test_replies_are_the_same_however_they_are_cut_and_safe_to_show(said, size):
    whole = b"".join(said)
    replies, fault = read([whole])
    assert read(pieces((whole,), size if len(whole) < 3_000 else 997)) == (replies, fault)
    assert fault is None or clean(fault)
    for reply in replies:
        assert 200 <= reply.code <= 599
        assert clean(reply.text) and all(not UNCLEAN.search(line) for line in reply.words)
        assert reply.enhanced is None or reply.enhanced[0] == str(reply.code)[0]


def check_delivery(delivery: Delivery, recipients: int, state: State) -> None:
    """An outcome for everybody, and words for whoever was not delivered to."""
    assert [outcome.recipient for outcome in delivery.outcomes] == list(range(recipients))
    undelivered = [outcome.recipient for outcome in delivery.outcomes if outcome.status != "delivered"]
    assert [recipient for recipient, _ in delivery.replies] == undelivered
    assert all(text and clean(text) for _, text in delivery.replies)
    for outcome in delivery.outcomes:
        assert outcome.code is None or 200 <= outcome.code <= 599
        assert outcome.enhanced is None or re.fullmatch(r"[245](\.[0-9]{1,3}){2}", outcome.enhanced)
        assert outcome.queue_id is None or re.fullmatch(r"[!-~]{1,64}", outcome.queue_id)
        assert outcome.status != "in_doubt" or state is State.CLOSED
    assert not delivery.reusable or state is State.READY


NEXT = {State.GREETED: Engine.hello, State.SECURING: Engine.secured}


def go_on(engine: Engine, mails: int) -> int:
    """Do what the session would do next; the number of mails that are left."""
    if step := NEXT.get(engine.state):
        step(engine)
    elif engine.state is State.READY and engine.capabilities.starttls and mails == 2:
        engine.starttls()
        engine.capabilities = type(engine.capabilities)()
    elif engine.state is State.READY and engine.capabilities.auth and mails == 2:
        engine.authenticate("LOGIN", "me", "secret")
        engine.capabilities = type(engine.capabilities)(pipelining=True)
    elif engine.state is State.READY and mails:
        engine.start_transaction(mail("a@x.org", "b@x.org"))
        return mails - 1
    elif engine.state is State.READY:
        engine.quit()
    return mails


@settings(max_examples=200)
@given(replies_of_a_relay(), st.sampled_from([0, 1, 7, 100, PIECE_OCTETS]))
@example((b"250-" + b"x" * 2000 + b"\r\n",) * 20, 0)
@example((b"220 hi\r\n", b"250 x\r\n", b"354 go\r\n"), 0)
def test_a_session_has_an_outcome_whatever_is_said(said, size):
    if size and sum(map(len, said)) > 3_000:
        size = max(size, 997)
    engine, mails = Engine("client.example"), 2
    for piece in pieces(said, size):
        if not engine.waiting and engine.state is not State.CLOSED:
            mails = go_on(engine, mails)
            taken(engine)
        events = engine.receive(piece)
        taken(engine)
        reader = engine._reader
        assert len(reader._buffer) - reader._at <= LINE_OCTETS_MAX and reader._octets <= REPLY_OCTETS_MAX
        assert len(reader._buffer) <= LINE_OCTETS_MAX + max(PIECE_OCTETS, len(piece))
        assert len(engine._expected) <= 5 and len(engine._script) <= 5
        assert len(events) <= 6
        assert all(clean(event.reply.text) if isinstance(event, Replied) else event.text for event in events)
        if engine._transaction:
            check_delivery(engine.delivery(), 2, engine.state)
    engine.lose("closed")
    assert engine.trouble and len(engine.trouble.text) <= 2 * TEXT_CHARACTERS_MAX
    assert not UNCLEAN.search(engine.trouble.text)


def test_a_flood_at_any_stage_ends_the_conversation_within_a_reply_s_bounds():
    """Hundreds of megabytes are never looked at: the first piece beyond the bounds is the last."""
    script = (b"220 hi\r\n", b"250-x\r\n250 PIPELINING\r\n", ENVELOPE)
    for monster in MONSTERS:
        for length in range(len(script) + 1):
            engine, fed = Engine("client.example"), 0
            for piece in script[:length]:
                engine.receive(piece)
                go_on(engine, 1)
                taken(engine)
            while engine.state is not State.CLOSED and fed < 200_000_000:
                engine.receive(monster)
                taken(engine)
                fed += len(monster)
            assert engine.state is State.CLOSED and fed <= REPLY_OCTETS_MAX + 2 * max(map(len, MONSTERS))


def test_a_relay_out_of_step_is_believed_in_nothing_of_the_envelope():
    """One reply too many came while the connection idled: the refusal was meant for the first recipient."""
    engine = greeted()
    engine.start_transaction(mail("unknown@x.org", "known@x.org"))
    taken(engine)
    engine.receive(b"250 one too many\r\n250 sender ok\r\n550 5.1.1 unknown\r\n250 ok\r\n")
    delivery = engine.delivery()
    assert engine.trouble.reason == "garbage" and not delivery.reusable
    assert [(outcome.status, outcome.code) for outcome in delivery.outcomes] == [("deferred", None)] * 2


def test_a_refusal_before_garbage_after_the_dot_stands():
    engine = greeted()
    engine.start_transaction(mail("unknown@x.org", "known@x.org"))
    for said in (b"250 ok\r\n550 5.1.1 unknown\r\n250 ok\r\n354 go\r\n", b"what\r\n"):
        taken(engine)
        engine.receive(said)
    assert [outcome.status for outcome in engine.delivery().outcomes] == ["refused", "in_doubt"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("535 me, in short: no", "535 ***, in short: no"),
        ("535 ME me@x.org message home", "535 *** ***@x.org message home"),
        ("535 no secret, no SECRET", "535 no ***, no SECRET"),
        (f"535 {b64(b'me')} {b64(b'secret')}", "535 *** ***"),
        (f"535 {b64(b'me 0123456789abcdef')}", "535 ***"),
        (f"535 {b64(bytes(1) + b'me' + bytes(1) + b'secret')[:-1]} cut", "535 *** cut"),
        ("535 authentication failed", "535 authentication failed"),
        ("535 =", "535 ="),
    ],
)
def test_a_login_is_hidden_in_the_forms_in_which_it_was_sent(text, shown):
    assert redacted(text, "me", "secret") == shown


@given(st.text(max_size=60), st.text(max_size=5), st.text(max_size=5))
def test_hiding_never_raises_and_without_a_login_changes_nothing(text, user, password):
    hidden = redacted(text, user, password)
    assert not password or password in HIDDEN or password not in hidden.replace(HIDDEN, "\0")
    assert redacted(text, "", "") == text
