"""The chain's format is held against an encoder written from the MessagePack specification, byte by byte."""

import hashlib
import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.chain import GENESIS, commit_hash

INTEGERS = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(
    st.tuples(
        INTEGERS, INTEGERS, st.text(max_size=40), INTEGERS, st.none() | INTEGERS, st.none() | INTEGERS, st.binary()
    ),
    max_size=8,
)
ROW = (7, 1_700_000_000_000_000, "MessageHeld", 1, 3, 2, b"{}")

INTEGER_FORMS = (
    (0, 2**7, ">b", b""),
    (-(2**5), 0, ">b", b""),
    (0, 2**8, ">B", b"\xcc"),
    (0, 2**16, ">H", b"\xcd"),
    (0, 2**32, ">I", b"\xce"),
    (0, 2**64, ">Q", b"\xcf"),
    (-(2**7), 0, ">b", b"\xd0"),
    (-(2**15), 0, ">h", b"\xd1"),
    (-(2**31), 0, ">i", b"\xd2"),
    (-(2**63), 0, ">q", b"\xd3"),
)
"""From, below, packed as, after this byte: the first that takes a number is its shortest form."""


def packed_integer(number: int) -> bytes:
    for lowest, above, form, head in INTEGER_FORMS:
        if lowest <= number < above:
            return head + struct.pack(form, number)
    raise AssertionError(number)


def packed_length(length: int, short: int, short_max: int, heads: dict[int, bytes]) -> bytes:
    """`short` with the length in its low bits, else the first head whose count of bytes holds it."""
    if length <= short_max:
        return bytes([short | length])
    width = next(width for width in heads if length < 2 ** (8 * width))
    return heads[width] + length.to_bytes(width, "big")


def packed(value) -> bytes:
    match value:
        case None:
            return b"\xc0"
        case int():
            return packed_integer(value)
        case str():
            text = value.encode()
            return packed_length(len(text), 0xA0, 31, {1: b"\xd9", 2: b"\xda", 4: b"\xdb"}) + text
        case bytes():
            return packed_length(len(value), 0, -1, {1: b"\xc4", 2: b"\xc5", 4: b"\xc6"}) + value
    return packed_length(len(value), 0x90, 15, {2: b"\xdc", 4: b"\xdd"}) + b"".join(map(packed, value))


@given(st.binary(min_size=32, max_size=32), ROWS)
def test_the_hash_is_what_the_docstring_says(previous, rows):
    assert commit_hash(previous, iter(rows)) == hashlib.sha256(previous + packed(rows)).digest()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 2000, 65_536])
def test_commits_of_every_size(count):
    rows = [ROW] * count
    assert commit_hash(GENESIS, rows) == hashlib.sha256(GENESIS + packed(rows)).digest()


EDGES = {number for lowest, above, *_ in INTEGER_FORMS for edge in (lowest, above) for number in (edge - 1, edge)}


@pytest.mark.parametrize("edge", sorted(number for number in EDGES if -(2**63) <= number < 2**63))
def test_integers_at_the_edge_of_every_form(edge):
    rows = [(edge, *ROW[1:])]
    assert commit_hash(GENESIS, rows) == hashlib.sha256(GENESIS + packed(rows)).digest()


def test_a_known_hash_of_format_1():
    """Hashes on disk outlive the program: this one may only change together with FORMAT."""
    assert commit_hash(GENESIS, [ROW, (8, ROW[1], "ServiceStopped", 1, None, None, b"")]).hex() == (
        "77e18b1404e14485b32a5c81745f86086b75248335be72c6be72297a35e516fb"
    )


def test_what_looks_alike_differs():
    alike = [
        (*ROW[:4], None, 0, b""),
        (*ROW[:4], 0, None, b""),
        (*ROW[:4], None, None, b""),
        (*ROW[:4], None, None, ""),
        (*ROW[:4], None, None, None),
        (*ROW[:2], "", 1, None, None, b"MessageHeld"),
        (*ROW[:2], "Message", 1, None, None, b"Held"),
    ]
    assert len({commit_hash(GENESIS, [row]) for row in alike}) == len(alike)


def test_rows_cannot_move_between_commits():
    one_commit = commit_hash(GENESIS, [ROW, ROW])
    two_commits = commit_hash(commit_hash(GENESIS, [ROW]), [ROW])
    assert all(a != b for a, b in pairwise((one_commit, two_commits, commit_hash(GENESIS, [ROW]))))
