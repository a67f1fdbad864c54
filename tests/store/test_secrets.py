"""Sealing and digests: what the key's owner can open, and what nobody can tell apart or link."""

import itertools
import os

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st

from store.secrets import Secrets


def secrets(key: bytes = bytes(32)) -> Secrets:
    return Secrets(key, os.urandom)


@given(st.binary(max_size=200))
def test_what_is_sealed_is_opened_by_the_same_key_alone(plain):
    sealed = secrets().seal(plain)
    assert secrets().unseal(sealed) == plain
    assert len(plain) < 8 or plain not in sealed
    with pytest.raises(InvalidTag):
        secrets(b"\1" * 32).unseal(sealed)


@pytest.mark.parametrize("at", [0, 12, -1])
def test_a_damaged_seal_does_not_open(at):
    sealed = bytearray(secrets().seal(b"password"))
    sealed[at] ^= 1
    with pytest.raises(InvalidTag):
        secrets().unseal(bytes(sealed))


def test_the_same_is_sealed_differently_each_time():
    one = secrets()
    assert one.seal(b"x") != one.seal(b"x")


def digests_of(one: Secrets) -> list[str]:
    return [
        one.recipient_digest("id", "a@b.example"),
        one.recipient_digest("other", "a@b.example"),
        one.recipient_digest("id", "b@b.example"),
        one.recipient_digest("i", "da@b.example"),
        one.credentials_digest("user", "password"),
        one.credentials_digest("user", None),
        one.credentials_digest(None, None),
        one.credentials_digest(None, ""),
        one.token_digest("id\0a@b.example"),
        one.token_digest("token"),
        one.letter_digest(b"salt", b"content"),
        one.letter_digest(b"tlas", b"content"),
    ]


def test_digests_are_stable_short_and_all_different():
    mine, again = digests_of(secrets()), digests_of(secrets())
    assert mine == again and all(len(digest) == 16 for digest in mine)
    assert all(one != two for one, two in itertools.combinations(mine, 2))


def test_another_key_gives_other_digests_but_for_letters_whose_salt_is_their_own():
    mine, other = digests_of(secrets()), digests_of(secrets(b"\1" * 32))
    assert [one == two for one, two in zip(mine, other, strict=True)] == [False] * 10 + [True] * 2
    assert secrets().key_id != secrets(b"\1" * 32).key_id


def test_entropy_is_the_callers():
    one = Secrets(bytes(32), lambda count: b"\7" * count)
    assert one.salt() == b"\7" * 16 and one.seal(b"x") == one.seal(b"x")
