"""Verify what `letterbook log --json` has written, with Python alone: python verify_export.py < log.jsonl"""

import hashlib
import json
import struct
import sys


def packed(value):
    """MessagePack, each length and integer in its shortest form."""
    if value is None:
        return b"\xc0"
    if isinstance(value, int):
        for low, high, mark, form in INTEGERS:
            if low <= value <= high:
                return mark + struct.pack(form, value)
    if isinstance(value, list):
        return head(len(value), (0x90, 15), (), (b"\xdc", b"\xdd")) + b"".join(map(packed, value))
    data, small, marks = (
        (value, (0, -1), (b"\xc4", b"\xc5", b"\xc6"))
        if isinstance(value, bytes)
        else (value.encode(), (0xA0, 31), (b"\xd9", b"\xda", b"\xdb"))
    )
    return head(len(data), small, marks[:1], marks[1:]) + data


def head(length, small, one, more):
    if length <= small[1]:
        return bytes([small[0] + length])
    if one and length < 1 << 8:
        return one[0] + struct.pack(">B", length)
    return more[0] + struct.pack(">H", length) if length < 1 << 16 else more[1] + struct.pack(">I", length)


INTEGERS = [(0, 127, b"", ">B"), (-32, -1, b"", ">b")]
INTEGERS += [
    (0, (1 << 8 * size) - 1, bytes([0xCC + at]), ">" + form)
    for at, (size, form) in enumerate(zip((1, 2, 4, 8), "BHIQ", strict=True))
]
INTEGERS += [
    (-1 << 8 * size - 1, -1, bytes([0xD0 + at]), ">" + form)
    for at, (size, form) in enumerate(zip((1, 2, 4, 8), "bhiq", strict=True))
]

NAMES = ("seq", "at_us", "kind", "version", "message", "account")
previous, rows, number = bytes(32), [], 0
for number, line in enumerate(sys.stdin, 1):
    try:
        fact = json.loads(line)
        rows.append([fact[name] for name in NAMES] + [fact["data"].encode()])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"line {number} is no fact of an export ({type(error).__name__}: {error})")
    if "commit" in fact:
        previous = hashlib.sha256(previous + packed(rows)).digest()
        if previous.hex() != fact["commit"]["hash"]:
            sys.exit(f"{rows[0][0]}-{rows[-1][0]}: not what was written")
        rows = []
if rows or not number:
    sys.exit("cut off within a commit" if rows else "there is nothing to verify")
print(previous.hex())
