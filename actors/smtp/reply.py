"""Replies of a relay, read out of bytes that may be cut anywhere (RFC 5321 section 4.2).

A reply is one or more lines with the same code; all but the last have a hyphen behind it. The reader holds at
most one unfinished line and one unfinished reply, both bounded, so that no relay can make us remember more.
"""

import re

from msgspec import Struct

LINE_OCTETS_MAX = 2_048
"""RFC 5321 section 4.5.3.1.5 says 512; relays that quote policy pages in one line exceed it, so four times that."""

REPLY_LINES_MAX = 128
"""The longest EHLO answers seen in the field have about 30 lines; a reply beyond four times that is a flood."""

REPLY_OCTETS_MAX = 32_768
"""Sixteen of the longest lines; it bounds what one connection may hold while a reply is unfinished."""

TEXT_CHARACTERS_MAX = 500
"""What is kept of a reply's words: enough for a sentence and a link, and a thousand of them stay small."""

# A whole line; a bare LF ends it too, since some relays behind proxies send nothing else.
_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\n]{0,%d})|\r)?\n" % (LINE_OCTETS_MAX - 4))
# RFC 3463 section 2: class, subject, detail; the class stands for success, transient or permanent.
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |\Z)")
# Control characters, line separators, and the marks that turn the order of reading around (UAX 9): a relay must not
# be able to write a line of a log, or to make one read as another.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]+")


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

    def read(self) -> tuple[str | None, str]:
        """The enhanced code, and the words without it.

        It stands at the very beginning, its class agrees with the reply's code (RFC 2034 section 4), and each line
        may repeat it.
        """
        words = self.words
        found = _ENHANCED.match(words[0])
        enhanced = found[1] if found and int(found[1][0]) == self.code // 100 else None
        if enhanced:
            words = [line.removeprefix(enhanced).lstrip() for line in words]
        return enhanced, " ".join(filter(None, words))

    @property
    def enhanced(self) -> str | None:
        return self.read()[0]

    @property
    def text(self) -> str:
        """The whole reply in one line, code first: `550 5.1.1 no such user`."""
        return " ".join(filter(None, (str(self.code), *self.read())))[:TEXT_CHARACTERS_MAX]


class ReplyReader:
    """Bytes in by `push`, whole replies out by `pull`; both raise nothing but GarbageError."""

    def __init__(self) -> None:
        self._buffer = b""
        self._at = 0
        self._lines: list[bytes] = []
        self._octets = 0
        self._code = b""

    @property
    def pending(self) -> bool:
        """Whether bytes beyond the last whole reply have come already."""
        return self._at < len(self._buffer) or bool(self._lines)

    def push(self, data: bytes) -> None:
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def pull(self) -> Reply | None:
        """The next whole reply, or None until more bytes have come."""
        while found := _LINE.match(self._buffer, self._at):
            self._at = found.end()
            code, sign, words = found.groups(b"")
            self._keep(code, words.removesuffix(b"\r"))
            if sign != b"-":
                return self._finish()
        self._refuse_garbage()
        return None

    def _keep(self, code: bytes, words: bytes) -> None:
        if self._lines and code != self._code:
            raise GarbageError("the lines of a reply have different codes")
        self._code = code
        self._lines.append(words)
        self._octets += len(words)
        if len(self._lines) > REPLY_LINES_MAX or self._octets > REPLY_OCTETS_MAX:
            raise GarbageError(f"a reply is longer than {REPLY_LINES_MAX} lines or {REPLY_OCTETS_MAX} octets")

    def _finish(self) -> Reply:
        reply = Reply(int(self._code), tuple(self._lines))
        self._lines.clear()
        self._octets = 0
        return reply

    def _refuse_garbage(self) -> None:
        """What is left is the beginning of a line that may still become one, or it never will."""
        line, end, _ = self._buffer[self._at :].partition(b"\n")
        if len(line) > LINE_OCTETS_MAX:
            raise GarbageError(f"a line is longer than {LINE_OCTETS_MAX} octets")
        if end:
            shown = _UNPRINTABLE.sub(" ", line[:80].decode("utf-8", "replace"))
            raise GarbageError(f"not an SMTP reply: {shown!r}")
