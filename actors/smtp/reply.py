"""Replies of a relay, read out of bytes that may be cut anywhere (RFC 5321 section 4.2).

A reply is one or more lines with the same code; all but the last have a hyphen behind it. The reader holds at
most one unfinished line and one unfinished reply, both bounded, so that no relay can make us remember more.
"""

import re
from typing import NamedTuple

from msgspec import Struct

LINE_OCTETS_MAX = 2_048
"""RFC 5321 section 4.5.3.1.5 says 512; relays that quote policy pages in one line exceed it, so four times that."""

REPLY_LINES_MAX = 128
"""The longest EHLO answers seen in the field have about 30 lines; a reply beyond four times that is a flood."""

REPLY_OCTETS_MAX = 32_768
"""Sixteen of the longest lines; it bounds what one connection may hold while a reply is unfinished."""

TEXT_CHARACTERS_MAX = 500
"""What is kept of a reply's words: enough for a sentence and a link, and a thousand of them stay small."""

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
# RFC 3463 section 2: class, subject, detail; the class stands for success, transient or permanent.
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |\Z)")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class GarbageError(ValueError):
    """What the relay sent is no SMTP reply, or more of one than we are willing to hold."""


class Reply(Struct, frozen=True):
    """One whole reply; its words are decoded only when somebody asks, since most replies are just "250"."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def words(self) -> list[str]:
        """The lines as text that is safe to show and to log."""
        return [_UNPRINTABLE.sub(" ", line.decode("utf-8", "replace")).strip() for line in self.lines]

    @property
    def enhanced(self) -> str | None:
        """The enhanced code at the very beginning, if its class agrees with the reply's code (RFC 2034 section 4)."""
        found = _ENHANCED.match(self.words[0])
        return found[1] if found and found[1][0] == str(self.code)[0] else None

    @property
    def message(self) -> str:
        """The words alone: without the code, and without the enhanced code that each line may repeat."""
        prefix = self.enhanced or ""
        return " ".join(filter(None, (line.removeprefix(prefix).strip() for line in self.words)))

    @property
    def text(self) -> str:
        """The whole reply in one line, code first: `550 5.1.1 no such user`."""
        return " ".join(filter(None, (str(self.code), self.enhanced, self.message)))[:TEXT_CHARACTERS_MAX]


class ReplyReader:
    """Bytes in by `push`, whole replies out by `pull`; both raise nothing but GarbageError."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._octets = 0
        self._code = b""

    @property
    def pending(self) -> bool:
        """Whether bytes beyond the last whole reply have come already."""
        return bool(self._buffer or self._lines)

    def push(self, data: bytes) -> None:
        self._buffer += data

    def pull(self) -> Reply | None:
        """The next whole reply, or None until more bytes have come."""
        while (line := self._next_line()) is not None:
            parts = _parse_line(line)
            self._keep(parts, len(line))
            if not parts.more:
                return self._finish()
        return None

    def _next_line(self) -> bytes | None:
        """Cut one line off; a bare LF ends it too, since some relays behind proxies send nothing else."""
        end = self._buffer.find(b"\n")
        if max(end, len(self._buffer) if end < 0 else 0) > LINE_OCTETS_MAX:
            raise GarbageError(f"a line is longer than {LINE_OCTETS_MAX} octets")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.removesuffix(b"\r")

    def _keep(self, parts: "_Parts", octets: int) -> None:
        self._octets += octets
        if len(self._lines) >= REPLY_LINES_MAX or self._octets > REPLY_OCTETS_MAX:
            raise GarbageError(f"a reply is longer than {REPLY_LINES_MAX} lines or {REPLY_OCTETS_MAX} octets")
        if self._lines and parts.code != self._code:
            raise GarbageError("the lines of a reply have different codes")
        self._code = parts.code
        self._lines.append(parts.words)

    def _finish(self) -> Reply:
        reply = Reply(int(self._code), tuple(self._lines))
        self._lines.clear()
        self._octets = 0
        return reply


class _Parts(NamedTuple):
    code: bytes
    more: bool
    words: bytes


def _parse_line(line: bytes) -> _Parts:
    found = _LINE.fullmatch(line)
    if not found:
        shown = _UNPRINTABLE.sub(" ", line[:80].decode("utf-8", "replace"))
        raise GarbageError(f"not an SMTP reply: {shown!r}")
    return _Parts(found[1], found[2] == b"-", found[3] or b"")
