"""Parsing: any bytes give a message that can be sent, or the first reason why not, in the contract's order."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.parse import (
    HEADER_NAME_CHARACTERS_MAX,
    ID_CHARACTERS_MAX,
    LATEST_S,
    RECIPIENTS_MAX,
    Fault,
    Parsed,
    Policy,
    message_id,
    parse,
)
from events.values import CONTROL, MICROSECONDS, PRIORITY_LABELS, parse_address

NOW_US = 1_700_000_000 * MICROSECONDS
NOW_S = NOW_US // MICROSECONDS
POLICY = Policy()
VOLUMES = {"files": None, "own": "main", "other": "other"}
GOOD = {"id": "a", "from": "Shop <shop@example.com>", "to": ["anna@example.org"], "subject": "s", "body": "b"}


def parsed(raw: Any = None, /, accounts: Any = ("default", "main"), policy: Policy = POLICY, **fields: Any):
    """The verdict on a good message with these fields changed (`...` takes one away), or on these bytes."""
    if raw is None:
        message = {**GOOD, **{name.rstrip("_"): value for name, value in fields.items()}}
        raw = json.dumps({name: value for name, value in message.items() if value is not ...}).encode()
    return parse(raw, policy=policy, accounts=accounts, now_us=NOW_US, volumes=VOLUMES)


def reason(*args: Any, **fields: Any) -> str | None:
    verdict = parsed(*args, **fields)
    return verdict.reason if isinstance(verdict, Fault) else None


def test_a_good_message_is_taken_apart():
    verdict = parsed(
        to="Anna <Anna@Example.org>, bob@example.org",
        cc=["bob@EXAMPLE.org", "carol@example.org"],
        bcc="dave@example.org",
        headers={"X-A": "1", "X-B": None},
        priority="high",
        account_id="main",
        unknown={"x": [1]},
    )
    assert isinstance(verdict, Parsed)
    assert verdict.envelope.sender == "shop@example.com" and verdict.envelope.subject == "s"
    assert verdict.envelope.recipients == (
        "Anna@Example.org",
        "bob@example.org",
        "carol@example.org",
        "dave@example.org",
    )
    assert verdict.canonical == ("Anna@example.org", "bob@example.org", "carol@example.org", "dave@example.org")
    assert verdict.letter.to == ("Anna <Anna@Example.org>", "bob@example.org")
    assert verdict.letter.headers == {"X-A": "1"} and verdict.letter.sender == GOOD["from"]
    assert (verdict.priority, verdict.account_id, verdict.due_us) == (1, "main", NOW_US)
    assert verdict.expires_us == NOW_US + POLICY.max_age_us


REASONS = [
    ({"id": ...}, "missing id"),
    ({"from_": ...}, "missing from"),
    ({"to": ...}, "missing to"),
    ({"subject": ...}, "missing subject"),
    ({"body": ...}, "missing body"),
    ({"cc": "no address"}, "invalid address: cc[0]"),
    ({"headers": {"X": "a\nb"}}, "control character in headers"),
    ({"account_id": "unknown"}, "account not found"),
    (
        {"attachments": [{"filename": "f", "storage_path": "vol:path"}]},
        "Invalid/unauthorized storage volumes: attachments[0].storage_path",
    ),
    ({"body_html": "x" * 2_000}, "message too large"),
    ({"priority": "urgent"}, "invalid field: priority"),
]


@pytest.mark.parametrize("first", range(len(REASONS)))
def test_of_two_faults_the_earlier_of_the_contract_is_the_reason(first):
    small = Policy(message_bytes_max=1_500)
    for fields, expected in [REASONS[first]]:
        assert reason(policy=small, **fields) == expected
    for later, _ in REASONS[first + 1 :]:
        assert reason(policy=small, **{**later, **REASONS[first][0]}) == REASONS[first][1]


WRONG_TYPES = {
    "account_id": [5, ["main"]],
    "from_": [5, ["a@b.c"], {}],
    "to": [5, {}, [5], ["a@b.c", None]],
    "cc": [5, [5]],
    "bcc": [True],
    "reply_to": [5],
    "return_path": [5],
    "subject": [5, ["s"]],
    "body": [5, {}],
    "content_type": [5, "text/html", "HTML"],
    "body_html": [5],
    "headers": [5, ["X: y"], {"X": 5}, {"X": ["y"]}],
    "message_id": [5],
    "attachments": [5, {}, [5], [{}], [{"filename": None}], [{"filename": "f", "content": 5}]],
    "priority": [True, [], {}],
    "deferred_ts": ["tomorrow", True, []],
    "expires_ts": ["2023-01-01", {}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG_TYPES.items() for value in values])
def test_a_wrong_type_is_an_invalid_field_and_the_last_of_reasons(name, value):
    path = name.rstrip("_")
    assert reason(**{name: value}).startswith(f"invalid field: {path}")
    earlier = {"subject": ...} if path != "subject" else {"body": ...}
    assert reason(**{name: value, **earlier}) == f"missing {next(iter(earlier))}"
    assert reason(**{name: value, "id": ...}) == "missing id"


def test_the_path_says_where_exactly():
    assert reason(to=["a@b.c", 5]) == "invalid field: to[1]"
    assert reason(attachments=[{"filename": "f", "content": "QQ=="}, {"content": "QQ=="}]) == (
        "invalid field: attachments[1].filename"
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"id":"a","priority":NaN}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"5", "missing id"),
        (b"[]", "missing id"),
        (b"null", "missing id"),
        (b'{"id":null,"from":5}', "missing id"),
        (b'{"id":""}', "missing id"),
        (b'{"id":5}', "invalid field: id"),
        (b'{"id":"\\ud800"}', "invalid field: id"),
        (b'{"id":"\xff"}', "invalid field: id"),
        (b'{"id":"a\\nb"}', "control character in id"),
    ],
)
def test_what_has_no_id_to_be_recorded_under_has_none(raw, expected):
    verdict = parsed(raw)
    assert isinstance(verdict, Fault) and verdict.id is None and verdict.reason == expected


def test_an_id_has_a_limit():
    assert reason(id="x" * ID_CHARACTERS_MAX) is None
    assert reason(id="x" * (ID_CHARACTERS_MAX + 1)) == "invalid field: id"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"from_": ""}, "missing from"),
        ({"from_": None}, "missing from"),
        ({"to": []}, "missing to"),
        ({"to": " , "}, "missing to"),
        ({"subject": None}, "missing subject"),
        ({"body": None}, "missing body"),
        ({"subject": "", "body": ""}, None),
    ],
)
def test_absent_and_null_are_missing_and_only_addresses_may_not_be_empty(fields, expected):
    assert reason(**fields) == expected


@pytest.mark.parametrize(
    ("fields", "which"),
    [
        ({"from_": "nobody"}, "from"),
        ({"return_path": "a b@c"}, "return_path"),
        ({"to": ["a@b.c", ""]}, "to[1]"),
        ({"to": "a@b.c, d"}, "to[1]"),
        ({"bcc": ["a@b..c"]}, "bcc[0]"),
        ({"reply_to": "x"}, "reply_to[0]"),
        ({"to": ["<a@b.c\r\nRCPT TO:d@e.f>"]}, "to[0]"),
    ],
)
def test_an_address_that_is_none_is_named_by_its_place(fields, which):
    assert reason(**fields) == f"invalid address: {which}"


@pytest.mark.parametrize("character", ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize(
    ("name", "where", "value"),
    [
        ("from_", "from", "Na{}me <a@b.c>"),
        ("to", "to[0]", ["Na{}me <a@b.c>"]),
        ("reply_to", "reply_to[0]", ["Na{}me <a@b.c>"]),
        ("subject", "subject", "a{}b"),
        ("headers", "headers", {"X": "a{}b"}),
        ("headers", "headers", {"X{}": "b"}),
        ("message_id", "message_id", "<a{}@b>"),
        ("account_id", "account_id", "ma{}in"),
        ("attachments", "attachments[0].filename", [{"filename": "a{}b", "content": ""}]),
        ("attachments", "attachments[0].content_id", [{"filename": "a", "content": "", "content_id": "a{}b"}]),
    ],
)
def test_no_control_character_reaches_a_header(character, name, where, value):
    text = json.dumps(value).replace("{}", json.dumps(character)[1:-1])
    assert reason(**{name: json.loads(text)}) == f"control character in {where}"


def test_a_body_may_have_lines_and_tabs_but_no_nul():
    assert reason(body="a\r\n\tb\x0cc", body_html="<p>\n") is None
    assert reason(body="a\0b") == "control character in body"
    assert reason(body_html="a\0b") == "control character in body_html"


def test_the_default_account_stands_in():
    assert parsed().account_id == parsed(account_id="").account_id == "default"
    assert reason(accounts=("main",)) == "missing account configuration"
    assert reason(account_id="gone") == "account not found"


@pytest.mark.parametrize(
    ("wish", "priority"),
    [(None, 2), ("immediate", 0), ("LOW", 3), (0, 0), (3, 3), (-5, 0), (99, 3), (1.9, 1), (1e300, 3), (10**400, 3)],
)
def test_priorities_are_words_or_clamped_numbers(wish, priority):
    assert parsed(priority=wish).priority == priority


def test_numbers_beyond_every_range_are_clamped():
    message = json.dumps(GOOD)[1:-1]
    for text, priority in (("1e999", 3), ("-1e999", 0), ("9" * 5_000, 3)):
        raw = f'{{{message},"priority":{text},"deferred_ts":{text}}}'.encode()
        assert parsed(raw).priority == priority


def test_the_priority_of_a_batch_holds_for_what_gives_none():
    raw = json.dumps(GOOD).encode()
    assert parse(raw, policy=POLICY, accounts=("default",), now_us=NOW_US, default_priority=0).priority == 0
    assert parsed(policy=Policy(default_priority=3)).priority == 3
    assert set(PRIORITY_LABELS.values()) == {0, 1, 2, 3}


def test_due_and_expiry():
    assert parsed(deferred_ts=NOW_S - 5).due_us == parsed(deferred_ts=0).due_us == NOW_US
    later = parsed(deferred_ts=NOW_S + 60.5)
    assert later.due_us == NOW_US + 60_500_000 and later.expires_us == later.due_us + POLICY.max_age_us
    assert parsed(deferred_ts=1e300).due_us == LATEST_S * MICROSECONDS
    assert parsed(expires_ts=NOW_S + 9).expires_us == NOW_US + 9 * MICROSECONDS
    assert parsed(expires_ts=NOW_S - 9).expires_us == NOW_US - 9 * MICROSECONDS
    for never in (0, None, 1e300):
        assert parsed(expires_ts=never).expires_us == NOW_US + POLICY.max_age_us


def test_the_envelope_sender_is_the_return_path_and_may_be_nobody():
    assert parsed(return_path="bounce@example.com").envelope.sender == "bounce@example.com"
    assert parsed(return_path="<>").envelope.sender == ""
    assert parsed(return_path="").envelope.sender == "shop@example.com"


@pytest.mark.parametrize("name", ["", "X Y", "X:Y", "Ü", "x" * (HEADER_NAME_CHARACTERS_MAX + 1)])
def test_a_header_name_that_is_none_is_refused(name):
    assert reason(headers={name: "v"}) == "invalid field: headers"


@pytest.mark.parametrize("value", ["a", "<a b@c>", "<é@b>", "<a@b>, <c@d>", "x" * 1_000 + "@b"])
def test_a_message_id_that_is_none_is_refused(value):
    assert reason(message_id=value) == "invalid field: message_id"


@pytest.mark.parametrize(
    ("attachment", "where"),
    [
        ({"content": "QQ"}, "content"),
        ({"content": "QQ==\n"}, "content"),
        ({"content": "Q Q="}, "content"),
        ({"content": "é"}, "content"),
        ({"storage_path": "base64:!"}, "storage_path"),
        ({}, "content"),
        ({"content": "QQ==", "storage_path": "base64:QQ=="}, "storage_path"),
        ({"url": "http://a", "s3": {"bucket": "b", "key": "k"}}, "s3"),
        ({"url": ""}, "url"),
        ({"url": "ftp://a/b"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://a:0/"}, "url"),
        ({"url": "http://a:x/"}, "url"),
        ({"url": "http://[a/"}, "url"),
        ({"url": "http://a b/"}, "url"),
        ({"url": "//a/b"}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "http://a/" + "x" * 4_000}, "url"),
        ({"url": 5}, "url"),
        ({"s3": {"bucket": "", "key": "k"}}, "s3"),
        ({"s3": {"bucket": "a/b", "key": "k"}}, "s3"),
        ({"s3": {"bucket": "b", "key": ""}}, "s3"),
        ({"s3": {"bucket": "b", "key": "../k"}}, "s3"),
        ({"s3": {"bucket": "b", "key": 5}}, "s3.key"),
        ({"s3": {"bucket": "b"}}, "s3.key"),
        ({"s3": "b/k"}, "s3"),
        ({"storage_path": "files:"}, "storage_path"),
        ({"storage_path": "files:/etc/passwd"}, "storage_path"),
        ({"storage_path": "files:a/../b"}, "storage_path"),
        ({"storage_path": "files:a//b"}, "storage_path"),
        ({"storage_path": "files:./a"}, "storage_path"),
        ({"storage_path": "files:a\\b"}, "storage_path"),
        ({"content": "QQ==", "url": ""}, "url"),
        ({"content": "QQ==", "content_type": "text"}, "content_type"),
        ({"content": "QQ==", "content_id": "<a b>"}, "content_id"),
    ],
)
def test_an_attachment_that_cannot_be_sent_is_named(attachment, where):
    good = {"filename": "g", "content": ""}
    assert reason(attachments=[good, {"filename": "f", **attachment}]) == f"invalid field: attachments[1].{where}"


def test_attachments_from_elsewhere_are_taken_as_they_are_named():
    named = [
        {"filename": "a", "url": "https://ann:pw@files.example:8443/a%20b?c=d#e"},
        {"filename": "b", "s3": {"bucket": "b", "key": "x/y z.pdf"}},
        {"filename": "c", "storage_path": "files:x/y:z.pdf"},
        {"filename": "d", "storage_path": "own:x"},
    ]
    found = parsed(attachments=named, account_id="main").letter.attachments
    assert [msgspec.to_builtins(each) for each in found] == named


@pytest.mark.parametrize("path", ["other:x", "none:x", "files", "", ":x", "Files:x", "base65:QQ=="])
def test_a_storage_path_of_no_volume_of_the_account_is_refused(path):
    verdict = parsed(attachments=[{"filename": "f", "storage_path": path}])
    assert isinstance(verdict, Fault) and verdict.answer == f"Invalid/unauthorized storage volumes: {path}"


@pytest.mark.parametrize(
    ("attachment", "where"),
    [
        ({"url": "http://a/\r\nHost: b"}, "url"),
        ({"s3": {"bucket": "b", "key": "a\0b"}}, "s3"),
        ({"storage_path": "files:a\0b"}, "storage_path"),
    ],
)
def test_what_is_asked_for_holds_no_control_character(attachment, where):
    verdict = parsed(attachments=[{"filename": "f", **attachment}])
    assert isinstance(verdict, Fault) and verdict.reason == f"control character in attachments[0].{where}"


def test_what_is_fetched_when_it_is_sent_does_not_count_before():
    wanted = [{"filename": "f", "storage_path": "files:" + "x" * 900}] * 3
    assert parsed(attachments=wanted).size < 1_000


def test_attachments_carry_their_content_in_themselves():
    [one, two] = parsed(
        attachments=[
            {"filename": "f", "content": "QUJD", "content_type": "text/plain; charset=utf-8", "content_id": "<a@b>"},
            {"filename": "g", "storage_path": "base64:QUJD", "url": None},
        ]
    ).letter.attachments
    assert one.content == two.content == "QUJD" and one.content_id == "<a@b>" and two.content_type is None


def test_storage_paths_are_told_to_the_client_and_kept_from_the_log():
    verdict = parsed(attachments=[{"filename": "f", "storage_path": f"vol:{index}"} for index in range(50)])
    assert verdict.answer == "Invalid/unauthorized storage volumes: " + ", ".join(f"vol:{n}" for n in range(10))
    assert "vol:" not in verdict.reason


def test_size_is_bounded_as_composed():
    content = "A" * 4 * 250_000
    attached = [{"filename": "f", "content": content}]
    assert reason(attachments=attached, policy=Policy(message_bytes_max=1_000_000)) == "message too large"
    assert reason(attachments=attached, policy=Policy(message_bytes_max=1_100_000)) is None
    assert reason(body="é" * 400_000, policy=Policy(message_bytes_max=1_000_000)) == "message too large"


def test_recipients_have_a_limit():
    assert reason(to=[f"{index}@example.org" for index in range(RECIPIENTS_MAX + 1)]) == "invalid field: to"


@pytest.mark.parametrize("name", ["from", "to", "subject", "body", "headers"])
@pytest.mark.parametrize("broken", [b"\\ud800", b"\xff", b"\\udfff\\ud800", b"\xed\xa0\x80"])
def test_half_a_surrogate_and_broken_utf8_are_that_fields_fault(name, broken):
    value = b'{"X":"%b"}' % broken if name == "headers" else b'"%b"' % broken
    rest = json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()
    raw = rest[:-1] + b', "%b": %b}' % (name.encode(), value)
    assert reason(raw) == f"invalid field: {name}"
    assert message_id(raw) == "a"


# Any bytes at all.

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))
addresses = st.sampled_from(["a@b.c", "Ann <a@b.c>", '"x,y" <a@b.c>', "ü@ü.de", "", "a", "a@b\n", "\0"]) | st.text()
fields = {
    "id": st.text(max_size=5) | values,
    "from": addresses | values,
    "to": st.lists(addresses, max_size=3) | addresses | values,
    "cc": st.lists(addresses, max_size=3) | values,
    "bcc": addresses | values,
    "reply_to": addresses | values,
    "return_path": addresses | values,
    "subject": st.text() | values,
    "body": st.text() | values,
    "content_type": st.sampled_from(["plain", "html"]) | values,
    "headers": st.dictionaries(st.text(), st.text() | st.none(), max_size=3) | values,
    "attachments": st.lists(
        st.fixed_dictionaries(
            {"filename": st.text()},
            optional={"content": st.sampled_from(["QQ==", "", "Q"]), "storage_path": st.text(), "url": values},
        )
    )
    | values,
    "priority": st.sampled_from(["high", "x"]) | st.floats() | values,
    "deferred_ts": st.floats() | st.integers() | values,
    "expires_ts": st.floats() | st.integers() | values,
    "account_id": st.sampled_from(["main", "gone"]) | values,
    "message_id": st.text() | values,
}
MUST = ("id", "from", "to", "subject", "body")
messages = st.fixed_dictionaries({}, optional=fields) | st.fixed_dictionaries(
    {name: fields[name] for name in MUST}, optional={name: fields[name] for name in fields if name not in MUST}
)


def holds(verdict: Parsed | Fault) -> None:
    """What is promised of every verdict: it can be stored, sent and told, and smuggles nothing."""
    if isinstance(verdict, Fault):
        assert verdict.reason and msgspec.json.encode(verdict)
        assert verdict.id is None or (verdict.id and not CONTROL.search(verdict.id))
        return
    letter, envelope = verdict.letter, verdict.envelope
    assert msgspec.json.decode(msgspec.json.encode(letter), type=type(letter)) == letter
    assert len(set(verdict.canonical)) == len(verdict.canonical) == len(envelope.recipients) > 0
    assert all(parse_address(address) for address in envelope.recipients)
    headers = [letter.sender, letter.subject, *letter.to, *letter.cc, *letter.bcc, *letter.headers.values()]
    assert not CONTROL.search("".join([*headers, *letter.headers, letter.message_id or ""]))
    assert verdict.priority in (0, 1, 2, 3) and verdict.account_id in ("default", "main")
    assert NOW_US <= verdict.due_us <= LATEST_S * MICROSECONDS < 2**62
    assert 0 <= verdict.expires_us <= verdict.due_us + POLICY.max_age_us


@given(st.binary())
@example(b'{"id":"a"' + b" " * 100)
@example(b'\xef\xbb\xbf{"id":"a"}')
def test_any_bytes_give_a_verdict(raw):
    holds(parsed(raw))


@settings(max_examples=400)
@given(messages)
def test_any_message_gives_a_verdict(message):
    holds(parsed(json.dumps(message, ensure_ascii=True).encode()))


@settings(max_examples=200)
@given(messages, st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_any_damaged_message_gives_a_verdict(message, at, damage):
    raw = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    holds(parsed(raw[:at] + damage + raw[at + len(damage) :]))
    identity = message_id(raw)
    verdict = parsed(raw)
    assert isinstance(verdict, Fault) or verdict.id == identity
