"""Addresses: what can be sent to, what cannot, and how a list is split."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from events.values import CONTROL, Address, bare_address, parse_address, split_addresses

LONG = "a" * 64


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("a@b.example", "a", "b.example"),
        ("  a@b.example\t", "a", "b.example"),
        ("Anna Doe <a@b.example>", "a", "b.example"),
        ('"Doe, Anna" <a@b.example>', "a", "b.example"),
        ("<a@b.example>", "a", "b.example"),
        ("A.B+c@Example.ORG", "A.B+c", "Example.ORG"),
        ("!#$%&'*+/=?^_`{|}~-@b.example", "!#$%&'*+/=?^_`{|}~-", "b.example"),
        ('"a b"@b.example', '"a b"', "b.example"),
        ('"a@b"@c.example', '"a@b"', "c.example"),
        ('"a..b"@b.example', '"a..b"', "b.example"),
        (r'"a\"b"@b.example', r'"a\"b"', "b.example"),
        ("jürgen@müller.example", "jürgen", "müller.example"),
        ("用户@例子.广告", "用户", "例子.广告"),
        ("a@[192.0.2.1]", "a", "[192.0.2.1]"),
        ("a@[IPv6:2001:db8::1]", "a", "[IPv6:2001:db8::1]"),
        ("a@localhost", "a", "localhost"),
        (f"{LONG}@b.example", LONG, "b.example"),
    ],
)
def test_an_address_that_can_be_sent_to(text, local, domain):
    assert parse_address(text) == Address(local, domain)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "@",
        "a@",
        "@b.example",
        "a@b@c.example",
        "a b@c.example",
        "a@b c.example",
        "a..b@c.example",
        "a@b..example",
        "a@.example",
        "a@b.example.",
        "a@b.example>",
        "<a@b.example",
        "a@b.example, c@d.example",
        "Anna <a@b.example> Doe",
        '"a@b.example',
        '"a"b@c.example',
        "a@[not an address]",
        "a\r\nBcc: x@y.example@b.example",
        "a@b.example\r\nRCPT TO:x@y.example",
        '"a\r\nb"@c.example',
        "a\x00b@c.example",
        "a\x7fb@c.example",
        "a\x85b@c.example",
        "a@b\x85c.example",
        '"a\x9fb"@c.example',
        "a\u2028b@c.example",
        "a@b\u2029c.example",
        "a\ud800@b.example",
        "a@b\udfff.example",
        f"a{LONG}@b.example",
        f"{'ü' * 33}@b.example",
        "a@" + ".".join([LONG] * 4) + ".example",
    ],
)
def test_an_address_that_cannot_be_sent_to(text):
    assert parse_address(text) is None


ADDRESS_LIKE = st.text(st.one_of(st.sampled_from('ab@.<>"\\, \t\r\n\x00\x85\u2028[]:'), st.characters()), max_size=40)


@given(ADDRESS_LIKE | ADDRESS_LIKE.map(lambda text: f"{text}@b.example"))
@example('"\x85"@b.example')
def test_what_parses_holds_no_control_character_and_parses_again(text):
    address = parse_address(text)
    if address is not None:
        assert not CONTROL.search(str(address))
        assert not set(address.domain) & set(' <>",@')
        assert parse_address(str(address)) == address
        str(address).encode()


@given(ADDRESS_LIKE)
def test_no_text_makes_parsing_fail(text):
    bare_address(text)
    assert all(part == part.strip() != "" for part in split_addresses(text))


def test_the_same_mailbox_has_one_canonical_form():
    assert parse_address("Anna@EXAMPLE.org").canonical == "Anna@example.org"
    assert parse_address("anna@example.org").canonical != parse_address("Anna@example.org").canonical


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" , ,", []),
        ("a@b.example", ["a@b.example"]),
        ("a@b.example,c@d.example", ["a@b.example", "c@d.example"]),
        (" a@b.example , Anna <c@d.example>,", ["a@b.example", "Anna <c@d.example>"]),
        ('"Doe, Anna" <a@b.example>, c@d.example', ['"Doe, Anna" <a@b.example>', "c@d.example"]),
        (r'"Doe \", Anna" <a@b.example>, c@d.example', [r'"Doe \", Anna" <a@b.example>', "c@d.example"]),
        ('"a,b"@c.example', ['"a,b"@c.example']),
        ('"never closed, a@b.example', ['"never closed, a@b.example']),
    ],
)
def test_a_list_is_split_at_commas_outside_quotes(text, parts):
    assert split_addresses(text) == parts
