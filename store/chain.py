"""The hash chain over the log: one hash a commit, so that damage shows, and where.

Format 1. The hash of a commit is

    sha256(previous + packed)

`previous` is the 32 bytes of the commit before (GENESIS, 32 zero bytes, before the first one). `packed` is the
MessagePack encoding of an array with one element a fact of the commit, in the order of their seq; an element is the
array of the seven stored fields, in the order of the table's columns:

    [seq, at_us, kind, version, message, account, data]

integer, integer, string, integer, integer or nil, integer or nil, binary. `data` is the stored bytes, not parsed and
written again. Every length and every integer is in the shortest form that MessagePack has for it. In MessagePack
each value begins with its type and its length, so two different commits never give the same bytes: nothing (nil) is
not the empty string, text is not bytes, and no byte can move from one field into the next.

So whoever has a copy of the log can verify it with any MessagePack library; in Python, with the package `msgpack`:

    hash = hashlib.sha256(previous + msgpack.packb(rows)).digest()

What it shows, and what it does not: the chain alone shows damage. Whoever can rewrite the file can rewrite the chain
too; a hash kept elsewhere shows that, and a log cut off at its end.
"""

import hashlib
from collections.abc import Iterable

import msgspec

FORMAT = 1
"""What the column `format` of `commits` holds for hashes made as above; a later format has another number."""

GENESIS = bytes(32)
"""What stands for the commit before the first one."""

LogRow = tuple[int, int, str, int, int | None, int | None, bytes]
"""A row of the table `log`, its columns in the order in which they are declared."""

_pack = msgspec.msgpack.Encoder().encode


def commit_hash(previous: bytes, rows: Iterable[LogRow]) -> bytes:
    """The 32 bytes of a commit's hash, from that of the commit before and its rows in the order of their seq."""
    return hashlib.sha256(previous + _pack(list(rows))).digest()
