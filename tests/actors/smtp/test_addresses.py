"""Addresses on the wire: ASCII wherever a domain has such a form, and nothing that could end the path early."""

import pytest

from actors.smtp.addresses import ascii_address, ascii_domain, can_stand_in_a_path
from actors.smtp.engine import Engine
from actors.smtp.transaction import MisuseError


@pytest.mark.parametrize(
    ("domain", "ascii_form"),
    [
        ("example.org", "example.org"),
        ("[127.0.0.1]", "[127.0.0.1]"),
        ("Exämple.ORG", "xn--exmple-cua.org"),
        ("faß.de", "xn--fa-hia.de"),
        ("日本。jp", "xn--wgv71a.jp"),
        ("☃.net", "xn--n3h.net"),
        ("ü..org", None),
        ("ü" * 70 + ".org", None),
    ],
)
def test_domains_in_a_labels(domain, ascii_form):
    assert ascii_domain(domain) == ascii_form
    assert ascii_address(f"me@{domain}") == (ascii_form and f"me@{ascii_form}")


def test_a_local_part_has_no_ascii_form():
    assert ascii_address("jürgen@example.org") is None


@pytest.mark.parametrize("address", ["a@b", "", "a+b=c@d.e", '"a b"@c', '"<>"@c', "jürgen@日本.jp", "a@[::1]"])
def test_what_can_stand_in_a_path(address):
    assert can_stand_in_a_path(address)


@pytest.mark.parametrize("address", ["a b@c", "<a@b>", "a>@b", "a@b>", "a\n@b", '"a\r"@b', "a@b\x85", '"a@b c'])
def test_what_cannot(address):
    assert not can_stand_in_a_path(address)


def test_a_delivery_that_was_never_begun_is_misuse():
    with pytest.raises(MisuseError):
        Engine("client.example").delivery()
