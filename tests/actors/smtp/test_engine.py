"""Conversations, told as scripts: what we write for what the relay says, and what that means for each recipient."""

import base64
import hashlib
import hmac
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.smtp.engine import (
    _ON_REPLY,
    IN_TRANSACTION,
    LOSSES,
    STAGES,
    TRANSITIONS,
    Engine,
    Move,
    Replied,
    State,
    Trouble,
)
from actors.smtp.reply import LINE_OCTETS_MAX, REPLY_OCTETS_MAX
from actors.smtp.transaction import Capabilities, MisuseError, clean, stuffed

from .helpers import EHLO_PIPELINING, EHLO_PLAIN, cuts, feed, greeted, mail, run, statuses, taken

ENVELOPE = b"MAIL FROM:<from@example.com> SIZE=21\r\nRCPT TO:<to@example.org>\r\nDATA\r\n"
CONTENT = b"Subject: x\r\n\r\nhello\r\n.\r\n"
QUEUED = b"250 2.0.0 Ok: queued as AB12\r\n"


# The tables


def test_every_state_can_break_off_and_every_stage_has_its_method():
    assert set(TRANSITIONS) == set(State)
    assert all(row[Move.LOST] is State.CLOSED for row in TRANSITIONS.values())
    assert set(_ON_REPLY) == set(STAGES) - {"connect", "tls", "idle", "content"}


def test_every_state_can_be_reached():
    reached = {State.CONNECTED} | {after for row in TRANSITIONS.values() for after in row.values()}
    assert reached == set(State)


@pytest.mark.parametrize("state", [state for state in State if Move.START not in TRANSITIONS[state]])
def test_a_transaction_in_the_wrong_state_is_misuse_that_names_it(state):
    engine = greeted()
    engine.state = state
    with pytest.raises(MisuseError, match=f"{state.name} .* START"):
        engine.start_transaction(mail())


@pytest.mark.parametrize("reason", LOSSES)
@pytest.mark.parametrize("state", State)
def test_breaking_off_never_raises(state, reason):
    engine = greeted()
    engine.state = state
    assert engine.lose(reason).reason == reason
    assert engine.state is State.CLOSED and not engine.waiting and engine.take() == b""
    assert engine.receive(b"250 too late\r\n") == []


# The beginning


def test_capabilities_are_read_from_ehlo():
    for pieces in cuts(
        b"250-relay greets you\r\n250-pipelining\r\n250-SIZE 1000\r\n250-AUTH=LOGIN PLAIN\r\n"
        b"250-AUTH CRAM-MD5\r\n250 StartTLS\r\n"
    ):
        engine = Engine("client.example")
        engine.receive(b"220 hi\r\n")
        engine.hello()
        feed(engine, pieces)
        assert engine.capabilities == Capabilities(
            pipelining=True, size_offered=True, size=1000, starttls=True, auth=frozenset({"PLAIN", "LOGIN", "CRAM-MD5"})
        )


@pytest.mark.parametrize(("line", "size"), [(b"SIZE", None), (b"SIZE 0", None), (b"SIZE 5", 5), (b"SIZE many", None)])
def test_a_size_may_be_announced_without_a_limit(line, size):
    capabilities = greeted(b"250-relay\r\n250 " + line + b"\r\n").capabilities
    assert capabilities.size_offered and capabilities.size == size


def test_the_name_of_the_relay_is_no_capability():
    assert greeted(b"250 STARTTLS\r\n").capabilities == Capabilities()


def test_helo_where_ehlo_is_not_known():
    engine = Engine("client.example")
    engine.receive(b"220 hi\r\n")
    engine.hello()
    taken(engine)
    engine.receive(b"502 what?\r\n")
    assert taken(engine) == b"HELO client.example\r\n"
    engine.receive(b"250 hello\r\n")
    assert engine.state is State.READY and engine.capabilities == Capabilities()


@pytest.mark.parametrize(
    ("replies", "stage", "reason", "code"),
    [
        ([b"554 go away\r\n"], "greeting", "refused", 554),
        ([b"421 later\r\n"], "greeting", "closing", 421),
        ([b"SSH-2.0-OpenSSH\r\n"], "greeting", "garbage", None),
        ([b"354 what\r\n"], "greeting", "garbage", None),
        ([b"220 hi\r\n", b"451 later\r\n"], "ehlo", "refused", 451),
        ([b"220 hi\r\n", b"550 no\r\n", b"550 no\r\n"], "helo", "refused", 550),
        ([b"220 hi\r\n", b"250 ok\r\n250 again\r\n"], "idle", "garbage", None),
    ],
)
def test_trouble_before_the_first_mail(replies, stage, reason, code):
    engine = Engine("client.example")
    for reply in replies:
        engine.receive(reply)
        if engine.state is State.GREETED:
            engine.hello()
    assert engine.state is State.CLOSED
    assert (engine.trouble.stage, engine.trouble.reason, engine.trouble.code) == (stage, reason, code)


@pytest.mark.parametrize("name", ["", "a b", "a\r\nMAIL", "ü", "x" * 256])
def test_a_bad_ehlo_name_is_misuse(name):
    with pytest.raises(MisuseError):
        Engine(name)


# STARTTLS


def securing() -> Engine:
    engine = greeted(b"250-relay\r\n250-PIPELINING\r\n250 STARTTLS\r\n")
    engine.starttls()
    assert taken(engine) == b"STARTTLS\r\n"
    return engine


def test_after_starttls_nothing_learnt_before_is_true():
    engine = securing()
    engine.receive(b"220 go ahead\r\n")
    assert (engine.state, engine.stage.name) == (State.SECURING, "tls")
    engine.secured()
    assert engine.capabilities == Capabilities()
    with pytest.raises(MisuseError):
        engine.start_transaction(mail())
    engine.hello()
    engine.receive(EHLO_PLAIN)
    assert engine.state is State.READY and not engine.capabilities.starttls


@pytest.mark.parametrize("injected", [b"250 fake\r\n", b"2", b"\n"])
def test_bytes_behind_the_starttls_reply_end_the_conversation(injected):
    engine = securing()
    events = engine.receive(b"220 go ahead\r\n" + injected)
    assert isinstance(events[-1], Trouble) and engine.trouble.reason == "injected"
    assert engine.state is State.CLOSED


def test_starttls_may_be_declined():
    engine = securing()
    engine.receive(b"454 not now\r\n")
    assert engine.state is State.READY


# AUTH


def dialogue(mechanism: str, *challenges: bytes, user: str = "me", password: str = "secret") -> list[bytes]:
    engine = greeted(b"250-relay\r\n250 AUTH PLAIN LOGIN CRAM-MD5\r\n")
    engine.authenticate(mechanism, user, password)
    said = [taken(engine)]
    for challenge in challenges:
        engine.receive(challenge)
        said.append(taken(engine))
    return said


def test_auth_plain_needs_one_write():
    secret = base64.b64encode(b"\0me\0secret")
    assert dialogue("PLAIN") == [b"AUTH PLAIN " + secret + b"\r\n"]
    assert dialogue("PLAIN", b"334 \r\n")[1] == secret + b"\r\n"


def test_a_long_password_waits_for_its_challenge():
    assert dialogue("PLAIN", password="x" * 600)[0] == b"AUTH PLAIN\r\n"


def test_auth_login_answers_by_position():
    said = dialogue("LOGIN", b"334 VXNlcm5hbWU6\r\n", b"334 UGFzc3dvcmQ6\r\n")
    assert said == [b"AUTH LOGIN\r\n", base64.b64encode(b"me") + b"\r\n", base64.b64encode(b"secret") + b"\r\n"]


def test_auth_cram_md5_keeps_the_password():
    said = dialogue("CRAM-MD5", b"334 " + base64.b64encode(b"<1@relay>") + b"\r\n")
    digest = hmac.new(b"secret", b"<1@relay>", hashlib.md5).hexdigest()
    assert base64.b64decode(said[1]) == b"me " + digest.encode()


def test_a_challenge_that_is_none_is_given_up_on():
    assert dialogue("CRAM-MD5", b"334 !!!\r\n")[1] == b"*\r\n"
    assert dialogue("LOGIN", *[b"334 \r\n"] * 3)[-1] == b"*\r\n"


def test_a_relay_that_challenges_for_ever_is_left():
    assert dialogue("LOGIN", *[b"334 \r\n"] * 5)[-1] == b""


@pytest.mark.parametrize("reply", [b"235 welcome\r\n", b"535 5.7.8 no\r\n", b"454 later\r\n"])
def test_auth_ends_ready(reply):
    engine = greeted()
    engine.authenticate("PLAIN", "me", "secret")
    (event,) = engine.receive(reply)
    assert isinstance(event, Replied) and engine.state is State.READY


# A mail that goes well


def test_the_envelope_goes_in_one_write_and_the_content_in_a_second():
    delivery, writes = run(greeted(), mail(), [b"250 ok\r\n250 ok\r\n354 go\r\n", QUEUED])
    assert writes == [ENVELOPE, CONTENT, b""]
    (outcome,) = delivery.outcomes
    assert (outcome.status, outcome.code, outcome.enhanced, outcome.queue_id) == ("delivered", 250, "2.0.0", "AB12")
    assert (delivery.replies, delivery.scope, delivery.stage) == ((), None, "final")
    assert delivery.mail_accepted and delivery.reusable


def test_replies_may_be_cut_anywhere():
    script = b"250-o\r\n250 k\r\n550 5.1.1 nobody\r\n250 ok\r\n354 go\r\n"
    for pieces in cuts(script):
        engine = greeted()
        engine.start_transaction(mail("a@x.org", "b@x.org"))
        taken(engine)
        feed(engine, pieces)
        assert taken(engine) == CONTENT
        feed(engine, [QUEUED[:3], QUEUED[3:]])
        assert statuses(engine.delivery()) == ["refused", "delivered"]
        assert engine.delivery().replies == ((0, "550 5.1.1 nobody"),)


def test_without_pipelining_step_by_step():
    script = [b"250 ok\r\n", b"250 ok\r\n", b"550 no\r\n", b"354 go\r\n", QUEUED]
    delivery, writes = run(greeted(EHLO_PLAIN), mail("a@x.org", "b@x.org"), script)
    assert writes == [
        b"MAIL FROM:<from@example.com>\r\n", b"RCPT TO:<a@x.org>\r\n", b"RCPT TO:<b@x.org>\r\n", b"DATA\r\n",
        CONTENT, b"",
    ]  # fmt: skip
    assert statuses(delivery) == ["delivered", "refused"]


def test_the_null_sender_and_one_connection_for_many_mails():
    engine = greeted()
    for _ in range(3):
        delivery, writes = run(engine, mail(sender=""), [b"250 ok\r\n250 ok\r\n354 go\r\n", QUEUED])
        assert writes[0].startswith(b"MAIL FROM:<> SIZE=21\r\nRCPT") and statuses(delivery) == ["delivered"]


def test_outcomes_carry_the_index_of_the_envelope():
    letter = mail()
    letter = type(letter)(letter.sender, ((7, "a@x.org"), (3, "b@x.org")), letter.content)
    delivery, _ = run(greeted(), letter, [b"250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n", QUEUED])
    assert [outcome.recipient for outcome in delivery.outcomes] == [7, 3] and delivery.replies[0][0] == 7


# The first failure in stage order decides


def test_the_cascade_behind_a_deferred_mail_is_a_deferral_of_everybody():
    script = [b"451 4.3.0 later\r\n503 5.5.1 MAIL first\r\n503 5.5.1 MAIL first\r\n503 5.5.1 RCPT first\r\n"]
    delivery, writes = run(greeted(), mail("a@x.org", "b@x.org"), script)
    assert statuses(delivery) == ["deferred", "deferred"]
    assert (delivery.scope, delivery.stage, delivery.mail_accepted, delivery.reusable) == (
        "message",
        "mail",
        False,
        True,
    )
    assert {text for _, text in delivery.replies} == {"451 4.3.0 later"}
    assert writes[-1] == b""


def test_a_refused_mail_without_pipelining_ends_at_once():
    delivery, writes = run(greeted(EHLO_PLAIN), mail(), [b"550 5.7.1 no\r\n"])
    assert statuses(delivery) == ["refused"] and writes[-1] == b"" and delivery.reusable


def test_authentication_wanted_at_mail_is_the_relays_trouble():
    delivery, _ = run(greeted(), mail(), [b"530 5.7.0 log in\r\n503 no\r\n503 no\r\n"])
    assert (statuses(delivery), delivery.scope) == (["deferred"], "relay")


def test_a_refusal_of_data_or_of_the_content_speaks_to_accepted_recipients_only():
    for script in (
        [b"250 ok\r\n450 a\r\n250 b\r\n554 no\r\n"],
        [b"250 ok\r\n450 a\r\n250 b\r\n354 go\r\n", b"554 no\r\n"],
    ):
        delivery, _ = run(greeted(), mail("a@x.org", "b@x.org"), script)
        assert statuses(delivery) == ["deferred", "refused"]
        assert delivery.replies == ((0, "450 a"), (1, "554 no"))
        assert (delivery.scope, delivery.stage) == ("message", "rcpt")


def test_a_lone_dot_where_nobody_is_left():
    engine = greeted()
    _, writes = run(engine, mail("a@x.org", "b@x.org"), [b"250 ok\r\n550 a\r\n450 b\r\n354 go\r\n"])
    assert writes[-1] == b".\r\n" and engine.waiting
    engine.receive(b"250 accepted, for nobody\r\n")
    assert statuses(engine.delivery()) == ["refused", "deferred"] and engine.delivery().reusable
    run(engine, mail(), [])
    assert engine.stage.name == "mail", "the dot has cleared the transaction, so no RSET is needed"


def test_a_relay_that_asks_for_content_after_refusing_mail_gets_a_lone_dot():
    delivery, writes = run(greeted(), mail(), [b"451 later\r\n250 ok\r\n354 go\r\n", b"554 no\r\n"])
    assert writes[1] == b".\r\n" and statuses(delivery) == ["deferred"] and delivery.reusable


def test_losing_the_connection_at_a_lone_dot_changes_nobodys_verdict():
    engine = greeted()
    run(engine, mail(), [b"250 ok\r\n550 5.1.1 no\r\n354 go\r\n"])
    engine.lose("closed")
    assert statuses(engine.delivery()) == ["refused"] and not engine.delivery().reusable


@pytest.mark.parametrize(
    ("ehlo", "script"),
    [
        (EHLO_PIPELINING, [b"250 ok\r\n550 no\r\n503 no valid recipients\r\n"]),
        (EHLO_PIPELINING, [b"250 ok\r\n250 ok\r\n451 later\r\n"]),
        (EHLO_PLAIN, [b"250 ok\r\n", b"550 no\r\n"]),
    ],
)
def test_what_was_left_standing_is_reset_before_the_next_mail(ehlo, script):
    engine = greeted(ehlo)
    run(engine, mail(), script)
    engine.start_transaction(mail())
    first = taken(engine)
    if ehlo is EHLO_PIPELINING:
        assert first == b"RSET\r\n" + ENVELOPE
        engine.receive(b"250 reset\r\n250 ok\r\n250 ok\r\n354 go\r\n")
    else:
        assert first == b"RSET\r\n"
        for _ in range(3):
            engine.receive(b"250 ok\r\n")
            taken(engine)
        engine.receive(b"354 go\r\n")
    taken(engine)
    engine.receive(QUEUED)
    assert statuses(engine.delivery()) == ["delivered"]


@pytest.mark.parametrize("ehlo", [EHLO_PIPELINING, EHLO_PLAIN])
def test_a_reset_that_fails_is_the_relays_trouble(ehlo):
    engine = greeted(ehlo)
    run(
        engine,
        mail(),
        [b"250 ok\r\n550 no\r\n503 no\r\n"] if ehlo is EHLO_PIPELINING else [b"250 ok\r\n", b"550 no\r\n"],
    )
    delivery, _ = run(engine, mail(), [b"502 what?\r\n" + (b"503 no\r\n" * 3 if ehlo is EHLO_PIPELINING else b"")])
    assert (statuses(delivery), delivery.scope, delivery.stage) == (["deferred"], "relay", "rset")


# The end of the conversation in the middle of a mail


@pytest.mark.parametrize(
    ("script", "expected", "stage"),
    [
        ([], ["deferred", "deferred"], "mail"),
        ([b"250 ok\r\n"], ["deferred", "deferred"], "rcpt"),
        ([b"250 ok\r\n550 no\r\n"], ["refused", "deferred"], "rcpt"),
        ([b"250 ok\r\n550 no\r\n250 ok\r\n"], ["refused", "deferred"], "rcpt"),
        ([b"250 ok\r\n250 ok\r\n250 ok\r\n"], ["deferred", "deferred"], "data"),
        ([b"250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n"], ["refused", "in_doubt"], "rcpt"),
        ([b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n"], ["in_doubt", "in_doubt"], "final"),
        ([b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", b"250 2.0.0 Ok: que"], ["in_doubt", "in_doubt"], "final"),
        ([b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", b"garbage\r\n"], ["in_doubt", "in_doubt"], "final"),
        ([b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", b"354 what\r\n"], ["in_doubt", "in_doubt"], "final"),
        ([b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", QUEUED], ["delivered", "delivered"], "final"),
    ],
)
@pytest.mark.parametrize("reason", ["closed", "timeout", "interrupted"])
def test_a_break_is_a_deferral_before_the_dot_and_in_doubt_after_it(script, expected, stage, reason):
    engine = greeted()
    run(engine, mail("a@x.org", "b@x.org"), script)
    engine.lose(reason)
    delivery = engine.delivery()
    assert statuses(delivery) == expected and delivery.stage == stage and not delivery.reusable
    assert delivery.mail_accepted == bool(script)
    assert delivery.scope == (None if expected[0] == "delivered" else "relay")


def test_the_dot_counts_as_sent_when_it_is_given_away():
    engine = greeted()
    engine.start_transaction(mail(content=b"x" * 100_000))
    assert engine.delivery().outcomes[0].status == "refused", "larger than SIZE 10000"
    engine = greeted(b"250-x\r\n250 PIPELINING\r\n")
    engine.start_transaction(mail(content=b"x" * 100_000))
    taken(engine)
    engine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    assert len(engine.take()) == 65_536 and engine.state is State.CONTENT and engine.stage.name == "content"
    assert engine.take().endswith(b"x\r\n.\r\n") and engine.stage.name == "final"
    assert engine.take() == b""


@pytest.mark.parametrize("at", range(4))
def test_421_ends_the_conversation_at_any_stage(at):
    replies = [b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", QUEUED]
    engine = greeted()
    engine.start_transaction(mail())
    taken(engine)
    for reply in replies[:at]:
        engine.receive(reply)
        taken(engine)
    engine.receive(b"421 4.3.2 shutting down\r\n")
    delivery = engine.delivery()
    assert engine.state is State.CLOSED and (engine.trouble.reason, engine.trouble.code) == ("closing", 421)
    assert (statuses(delivery), delivery.scope, delivery.outcomes[0].code) == (["deferred"], "relay", 421)
    assert delivery.replies == ((0, "421 4.3.2 shutting down"),)


def test_421_while_idle():
    engine = greeted()
    engine.receive(b"421 idle too long\r\n")
    assert engine.state is State.CLOSED and engine.trouble.reason == "closing"


@pytest.mark.parametrize(("reply", "expected"), [(b"552 too much\r\n", "refused"), (b"250 ok\r\n", "deferred")])
def test_a_refusal_in_the_middle_of_the_content_is_believed_and_nothing_else_is(reply, expected):
    engine = greeted(b"250-x\r\n250 PIPELINING\r\n")
    engine.start_transaction(mail(content=b"x" * 100_000))
    taken(engine)
    engine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    engine.take()
    engine.receive(reply)
    assert engine.state is State.CLOSED and engine.take() == b""
    assert statuses(engine.delivery()) == [expected]


def test_a_reply_too_many_is_garbage():
    engine = greeted()
    engine.start_transaction(mail())
    taken(engine)
    engine.receive(b"250 ok\r\n250 ok\r\n354 go\r\n250 extra\r\n")
    assert engine.trouble.reason == "garbage" and statuses(engine.delivery()) == ["deferred"]


def test_quit():
    engine = greeted()
    engine.quit()
    assert taken(engine) == b"QUIT\r\n" and engine.stage.name == "quit"
    engine.receive(b"421 whatever\r\n")
    assert engine.state is State.CLOSED and engine.trouble is None


# What this relay cannot take


def test_a_mail_larger_than_size_is_refused_without_a_byte():
    engine = greeted()
    delivery, writes = run(engine, mail("a@x.org", "b@x.org", content=b"x" * 10_001), [])
    assert writes == [b""] and engine.state is State.READY
    (outcome, _) = delivery.outcomes
    assert (outcome.status, outcome.code, outcome.enhanced, delivery.scope) == ("refused", 552, "5.3.4", "message")
    assert "10003" in delivery.replies[0][1]


def test_a_domain_beyond_ascii_goes_in_a_labels_anywhere():
    _, writes = run(greeted(EHLO_PLAIN), mail("a@exämple.org", sender="b@日本.jp"), [b"250 ok\r\n"])
    assert writes == [b"MAIL FROM:<b@xn--wgv71a.jp>\r\n", b"RCPT TO:<a@xn--exmple-cua.org>\r\n"]


def test_a_local_part_beyond_ascii_needs_smtputf8():
    _, writes = run(greeted(), mail("jürgen@exämple.org"), [])
    assert "SMTPUTF8\r\nRCPT TO:<jürgen@exämple.org>\r\n".encode() in writes[0]
    delivery, writes = run(greeted(EHLO_PLAIN), mail("jürgen@x.org", "b@x.org"), [b"250 ok\r\n"])
    assert writes[1] == b"RCPT TO:<b@x.org>\r\n"
    assert (delivery.outcomes[0].status, delivery.outcomes[0].code, delivery.outcomes[0].enhanced) == (
        "refused",
        553,
        "5.6.7",
    )


@pytest.mark.parametrize(
    ("letter", "enhanced"),
    [
        (mail(sender="jürgen@x.org"), "5.6.7"),
        (mail("jürgen@x.org"), "5.6.7"),
        (mail(smtputf8=True), "5.6.7"),
        (mail(eightbit=True), "5.6.3"),
    ],
)
def test_what_this_relay_can_never_take_is_refused_without_a_byte(letter, enhanced):
    engine = greeted(EHLO_PLAIN)
    delivery, writes = run(engine, letter, [])
    assert (writes, delivery.outcomes[0].status, delivery.outcomes[0].enhanced) == ([b""], "refused", enhanced)
    assert delivery.reusable and not delivery.mail_accepted and engine.state is State.READY


def test_parameters_only_where_they_are_offered():
    _, (write,) = run(greeted(), mail(eightbit=True), [])
    assert write.startswith(b"MAIL FROM:<from@example.com> SIZE=21 BODY=8BITMIME\r\n")
    _, (write,) = run(greeted(), mail(smtputf8=True), [])
    assert write.startswith(b"MAIL FROM:<from@example.com> SIZE=21 BODY=8BITMIME SMTPUTF8\r\n")


@pytest.mark.parametrize("address", ["a\r\n@x", "a@x> SIZE=1", "a b@x", "a\0@x", "a\u2028@x", "a\ud800@x"])
def test_an_address_that_is_more_than_a_path_is_misuse(address):
    engine = greeted()
    for letter in (mail(address), mail(sender=address)):
        with pytest.raises(MisuseError):
            engine.start_transaction(letter)
    assert engine.state is State.READY


def test_a_quoted_local_part_may_hold_a_space():
    _, (write,) = run(greeted(), mail('"a b"@x.org'), [])
    assert b'RCPT TO:<"a b"@x.org>\r\n' in write


def test_a_mail_without_recipients_is_misuse():
    with pytest.raises(MisuseError):
        greeted().start_transaction(type(mail())("a@b.org", (), b""))


# Content


@pytest.mark.parametrize(
    ("content", "wire"),
    [
        (b"", b"\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b"a\r\n.\r\nb\r\n", b"a\r\n..\r\nb\r\n.\r\n"),
        (b"a\n.\nMAIL", b"a\r\n..\r\nMAIL\r\n.\r\n"),
        (b"a\r.\rMAIL", b"a\r\n..\r\nMAIL\r\n.\r\n"),
        (b"a\r\n\0.\r\nMAIL", b"a\r\n..\r\nMAIL\r\n.\r\n"),
        (b"a\r\r\n.\n\r", b"a\r\n\r\n..\r\n\r\n.\r\n"),
    ],
)
def test_the_end_of_the_content_cannot_be_forged(content, wire):
    assert stuffed(clean(content)) == wire


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"\0", b"x"])).map(b"".join))
def test_only_the_final_dot_ends_the_content_however_a_relay_reads_it(content):
    wire = stuffed(clean(content))
    for reading in (wire, wire.replace(b"\0", b""), wire.replace(b"\r\n", b"\n"), wire.replace(b"\r\n", b"\r")):
        end = reading[-1:]
        lines = (end + reading).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        assert [number for number, line in enumerate(lines) if line == b"."] == [len(lines) - 2]
    assert clean(clean(content)) == clean(content)


# Whatever a relay sends

REPLIES = st.sampled_from([
    b"220 hi\r\n", b"250 ok\r\n", b"250-a\r\n", b"250 PIPELINING\r\n", b"354 go\r\n", b"334 \r\n", b"235 in\r\n",
    b"421 bye\r\n", b"451 later\r\n", b"550 5.1.1 no\r\n", b"503 no\r\n", b"\r\n", b"x\n",
])  # fmt: skip
ACTS = st.sampled_from(["hello", "starttls", "secured", "auth", "mail", "quit", "closed"])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(REPLIES, st.binary(max_size=40), ACTS), max_size=40))
def test_no_bytes_in_any_state_raise_or_are_kept(story):
    engine = Engine("client.example")
    for step in story:
        if isinstance(step, bytes):
            engine.receive(step)
        else:
            act(engine, step)
        taken(engine)
        assert len(engine._reader._buffer) <= LINE_OCTETS_MAX and engine._reader._octets <= REPLY_OCTETS_MAX
        assert len(engine._expected) <= 6 and (engine.state is not State.CLOSED or not engine.waiting)
        if engine._transaction:
            delivery = engine.delivery()
            assert len(delivery.outcomes) == 2
            assert "in_doubt" not in statuses(delivery) or engine.state is State.CLOSED


def act(engine: Engine, name: str) -> None:
    """What our own code does, where it may."""
    acts = {
        "hello": engine.hello,
        "starttls": engine.starttls,
        "secured": engine.secured,
        "auth": lambda: engine.authenticate("LOGIN", "me", "secret"),
        "mail": lambda: engine.start_transaction(mail("a@x.org", "b@x.org")),
        "quit": engine.quit,
        "closed": lambda: engine.lose("closed"),
    }
    try:
        acts[name]()
    except MisuseError:
        pass


def test_a_flood_is_cut_off():
    engine = greeted()
    engine.start_transaction(mail())
    for _ in range(1000):
        engine.receive(b"250-" + b"x" * 1000 + b"\r\n")
    assert engine.trouble.reason == "garbage" and sys.getsizeof(engine._reader._buffer) < 1_000
    assert State.DISCARD not in IN_TRANSACTION
