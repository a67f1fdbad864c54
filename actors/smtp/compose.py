"""A letter as the octets of a mail (RFC 5322, RFC 2045 to 2047), rendered directly.

Theory of operation
===================

The standard library's EmailMessage takes most of a millisecond for a mail; nearly all mail is a few short ASCII
headers and a text that needs no encoding, and that path is string formatting here. The same arguments always give
the same octets: date, Message-ID and the seed of the boundaries come from outside, so that a retry sends what the
first attempt sent.

*Headers.* Each header is a list of pieces that may not be broken, and `_fold` sets them in lines of 78 characters
(RFC 5322 section 2.1.1); white space stays where it was, so unfolding gives back the value. ASCII goes as it is.
Anything else goes in encoded words (RFC 2047), Q or B, whichever is shorter. An ASCII value goes in encoded words
too if a single word of it would not fit in 998 octets. What already looks like an encoded word is left alone: clients
that encode by themselves have always been passed through.

*Addresses.* A domain beyond ASCII is written in A-labels. A local part beyond ASCII has no such form: it is written
in UTF-8, and `needs_smtputf8` says so (RFC 6532).

*Custom headers.* They replace what would otherwise be made: Date, Message-ID, Reply-To; anything unknown is added.
They never replace what the message's own fields or its structure decide (`RESERVED`): From, To, Cc and Subject are
given beside them, Bcc must not be seen, MIME fields would contradict the body, Return-Path belongs to the last relay
(RFC 5321 section 4.4). Such a header is left out. `Sender` may be set.

*Bodies.* Pure ASCII with lines of at most 998 octets goes as 7bit; everything else as quoted-printable or base64,
whichever is smaller. So the content is always 7-bit and goes through every relay; 8BITMIME is never needed.

*Parts*, from the outside in, each level only where it is needed:

    multipart/mixed         the text, then the attachments
      multipart/alternative   plain, then html
        multipart/related       html, then its inline images (attachments with a content_id)

*Injection.* Ingest refuses control characters at the door. If one comes here all the same the letter is refused
(ComposeError): no value reaches the output without having been searched for them.
"""

import re
from base64 import b64encode
from binascii import b2a_qp
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import sha256
from time import gmtime, strftime
from types import MappingProxyType

from events.letter import Attachment, Letter
from events.values import CONTROL, MICROSECONDS

from .addresses import ascii_address

LINE_CHARACTERS = 78
"""Where headers are folded (RFC 5322 section 2.1.1: SHOULD)."""

LINE_OCTETS_MAX = 998
"""No line may be longer, CRLF not counted (RFC 5322 section 2.1.1: MUST)."""

ENCODED_WORD_CHARACTERS_MAX = 75
"""RFC 2047 section 2; a line that holds one has 76 at most, so that the space before it fits."""

ENCODED_LINE_CHARACTERS = 76
"""RFC 2045 section 6.8, for base64 and for quoted-printable."""

HEADER_NAME_CHARACTERS_MAX = 200
"""The longest registered name has 39; five times that still leaves room for a value within 998 octets."""

PARAMETER_CHARACTERS_MAX = 60
"""A file name beyond it is split into sections (RFC 2231 section 3), so that its lines stay within 78."""

RESERVED = frozenset({
    "from", "to", "cc", "bcc", "subject", "resent-bcc", "return-path",
    "mime-version", "content-type", "content-transfer-encoding", "content-disposition", "content-id",
})  # fmt: skip
"""Headers that a letter's `headers` cannot set: fields of the letter and the structure decide them."""

# The system's own table differs from machine to machine, and the same letter must give the same octets on each.
CONTENT_TYPES: Mapping[str, str] = MappingProxyType({
    "csv": "text/csv", "doc": "application/msword", "gif": "image/gif", "gz": "application/gzip",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "eml": "application/octet-stream", "htm": "text/html", "html": "text/html", "ics": "text/calendar",
    "jpeg": "image/jpeg", "jpg": "image/jpeg", "json": "application/json", "mp3": "audio/mpeg", "mp4": "video/mp4",
    "odt": "application/vnd.oasis.opendocument.text", "pdf": "application/pdf", "png": "image/png",
    "ppt": "application/vnd.ms-powerpoint",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "svg": "image/svg+xml", "txt": "text/plain", "vcf": "text/vcard", "wav": "audio/wav", "webp": "image/webp",
    "xls": "application/vnd.ms-excel",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "xml": "application/xml", "zip": "application/zip",
})  # fmt: skip

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_PIECES = re.compile(r" *[^ ]+")
_ENCODED_WORD = re.compile(r"=\?[^? ]+\?[bBqQ]\?[^? ]*\?=")
# An address, or a name of plain words before one: what needs no quotes, no encoding and no fold inside.
_ORDINARY = re.compile(r" *(?:[A-Za-z0-9.@!#$%&'*+/^_`{|}~=-]+|[A-Za-z0-9 _-]{1,30}<[!-;=?-~]{1,40}>) *")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]+")
_Q_LITERAL = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/ "
_QP_LITERAL = bytes(range(0x21, 0x3D)) + bytes(range(0x3E, 0x7F)) + b" \t\n"
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"
_CONTENT_TYPE = re.compile(rf'{_TOKEN}/{_TOKEN}(?:; *{_TOKEN}=(?:{_TOKEN}|"[^"\\]*"))*')
_ID = re.compile(r"[!-;=?-~]+")


class ComposeError(ValueError):
    """The letter cannot be a mail; ingest should have refused it."""


def compose(letter: Letter, *, message_id: str, date_us: int, boundary_seed: str | bytes) -> bytes:
    """The mail, with CRLF line ends and only 7-bit octets but for headers that `needs_smtputf8` names."""
    body = b"".join(_body(letter, boundary_seed))
    return _headers(letter, message_id, date_us).encode() + body


def needs_smtputf8(letter: Letter) -> bool:
    """Whether a header must hold UTF-8, because an address in it has a local part beyond ASCII."""
    shown = (letter.sender, *letter.to, *letter.cc, *letter.reply_to)
    return any(not text.isascii() and ascii_address(_mailbox(text)[1]) is None for text in shown)


# Headers


def _headers(letter: Letter, message_id: str, date_us: int) -> str:
    custom = dict(_custom(letter.headers)) if letter.headers else {}
    to = _addresses("To", letter.to) if letter.to else "To: undisclosed-recipients:;\r\n"
    return "".join((
        _addresses("From", (letter.sender,)),
        to,
        _addresses("Cc", letter.cc) if letter.cc else "",
        _addresses("Reply-To", letter.reply_to) if letter.reply_to and "reply-to" not in custom else "",
        _text("Subject", letter.subject),
        "" if "date" in custom else f"Date: {_date(date_us // MICROSECONDS)}\r\n",
        "" if "message-id" in custom else _id("Message-ID", message_id),
        *custom.values(),
        "MIME-Version: 1.0\r\n",
    ))  # fmt: skip


def _custom(headers: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(name in lower case, rendered header); of names that differ in case only, the last one stands."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or len(name) > HEADER_NAME_CHARACTERS_MAX:
            raise ComposeError("a header's name is not one (RFC 5322 section 2.2)")
        if name.lower() not in RESERVED:
            yield name.lower(), _text(name, value)


def _text(name: str, value: str) -> str:
    """A header of free text."""
    _refuse_control(name, value)
    if value.isascii() and len(name) + len(value) < LINE_CHARACTERS - 1:
        return f"{name}: {value.strip(' ')}\r\n"
    value = value.strip(" ")
    pieces = _PIECES.findall(value)
    if value.isascii() and max(map(len, pieces), default=0) < LINE_OCTETS_MAX - HEADER_NAME_CHARACTERS_MAX:
        return _fold(name, pieces)
    return _fold(name, _encoded_words(value, len(name) + 2))


def _addresses(name: str, texts: Iterable[str]) -> str:
    pieces: list[str] = []
    for text in texts:
        _refuse_control(name, text)
        if _ORDINARY.fullmatch(text):
            pieces.append(f" {text.strip()},")
        else:
            pieces += _mailbox_pieces(text, len(name) + 2)
            pieces[-1] += ","
    pieces[-1] = pieces[-1][:-1]
    pieces[0] = pieces[0][1:]
    if len(pieces) == 1 and len(name) + len(pieces[0]) < LINE_CHARACTERS - 1:
        return f"{name}: {pieces[0]}\r\n"
    return _fold(name, pieces)


def _mailbox_pieces(text: str, used: int) -> list[str]:
    """`Name <mailbox>` in pieces, each with a space before it."""
    display, address = _mailbox(text)
    address = ascii_address(address) or address
    if not display:
        return [f" {address}"]
    if not display.isascii() or len(display) > LINE_OCTETS_MAX // 4:
        pieces = _encoded_words(display, used)
    elif _ATOMS.fullmatch(display) and ("=?" not in display or _ENCODED_WORD.search(display)):
        pieces = _PIECES.findall(display)
    else:
        escaped = display.replace("\\", "\\\\").replace('"', '\\"')
        pieces = [f'"{escaped}"']
    pieces[0] = " " + pieces[0]
    return [*pieces, f" <{address}>"]


def _mailbox(text: str) -> tuple[str, str]:
    """The display name, unquoted, and the address; the same cut as events.values.bare_address makes."""
    text = text.strip()
    if not text.endswith(">") or "<" not in text:
        return "", text
    display, _, address = text[:-1].rpartition("<")
    display = display.strip()
    if len(display) > 1 and display[0] == display[-1] == '"':
        display = re.sub(r"\\(.)", r"\1", display[1:-1])
    return display, address.strip()


def _id(name: str, value: str) -> str:
    """An identifier in angle brackets (RFC 5322 section 3.6.4); it may not hold what would break it."""
    bare = value.strip().removeprefix("<").removesuffix(">")
    bare = ascii_address(bare) or bare
    if not _ID.fullmatch(bare) or len(name) + len(bare) + len(": <>") > LINE_OCTETS_MAX:
        raise ComposeError(f"the {name} is not an identifier: one word of ASCII without < and >")
    return f"{name}: <{bare}>\r\n"


@lru_cache(maxsize=64)
def _date(second: int) -> str:
    """RFC 5322 section 3.3, always in UTC; a batch's letters have few different seconds between them."""
    at = gmtime(second)
    # The names are ours, since strftime's own are in the language of the machine.
    return strftime(f"{_DAYS[at.tm_wday]}, %d {_MONTHS[at.tm_mon - 1]} %Y %H:%M:%S +0000", at)


def _refuse_control(name: str, value: str) -> None:
    # Most values are printable through and through, and that question is ten times cheaper than the search.
    if not value.isprintable() and CONTROL.search(value):
        raise ComposeError(f"a control character in {name}")


def _fold(name: str, pieces: Iterable[str]) -> str:
    """Set pieces in lines; a piece that begins with a space may begin a line, and that space is its indent."""
    lines = [f"{name}:"]
    for number, piece in enumerate(pieces):
        piece = piece if number else f" {piece}"
        # A first piece too long for the first line stays there: a line of the name alone confuses some filters.
        if number and len(lines[-1]) + len(piece) > LINE_CHARACTERS:
            lines.append(piece)
        else:
            lines[-1] += piece
    return "\r\n".join(lines) + "\r\n"


def _encoded_words(text: str, used: int) -> list[str]:
    """Encoded words for a text, cut between characters (RFC 2047 section 5); the first leaves room for `used`."""
    raw = text.encode("utf-8", "replace")
    quoted = len(raw) + 2 * len(raw.translate(None, _Q_LITERAL))
    use_q = quoted <= len(raw) * 4 // 3
    room = ENCODED_WORD_CHARACTERS_MAX - len("=?utf-8?q??=")
    words: list[str] = []
    start, cost, limit = 0, 0, max(room - used, 20)
    for index, character in enumerate(text):
        more = _word_cost(character, use_q)
        if cost + more > (limit if use_q else limit // 4 * 3):
            words.append(_encoded_word(text[start:index], use_q))
            start, cost, limit = index, 0, room
        cost += more
    words.append(_encoded_word(text[start:], use_q))
    return [words[0], *(f" {word}" for word in words[1:])]


def _word_cost(character: str, use_q: bool) -> int:
    raw = character.encode("utf-8", "replace")
    return len(raw) + 2 * len(raw.translate(None, _Q_LITERAL)) if use_q else len(raw)


def _encoded_word(text: str, use_q: bool) -> str:
    raw = text.encode("utf-8", "replace")
    if not use_q:
        return f"=?utf-8?b?{b64encode(raw).decode()}?="
    return f"=?utf-8?q?{''.join(_q(octet) for octet in raw)}?="


def _q(octet: int) -> str:
    """RFC 2047 section 4.2, with the smaller set of section 5 (3), which is right in a display name too."""
    if octet == 0x20:
        return "_"
    return chr(octet) if octet in _Q_LITERAL else f"={octet:02X}"


# Bodies


def _body(letter: Letter, seed: str | bytes) -> Iterable[bytes]:
    """The whole below the common headers, from its Content-Type on."""
    if not letter.attachments:
        return _text_parts(letter, seed, ())
    html = letter.body_html is not None or letter.content_type == "html"
    inline = [part for part in letter.attachments if html and part.content_id]
    others = [part for part in letter.attachments if not (html and part.content_id)]
    text = b"".join(_text_parts(letter, seed, inline))
    if not others:
        return (text,)
    return _multipart("mixed", seed, (text, *map(_attachment, others)))


def _text_parts(letter: Letter, seed: str | bytes, inline: Iterable[Attachment]) -> Iterable[bytes]:
    if letter.body_html is None:
        body = _text_part(letter.content_type, letter.body)
        return (_related(body, seed, inline),)
    html = _related(_text_part("html", letter.body_html), seed, inline)
    return _multipart("alternative", seed, (_text_part("plain", letter.body), html))


def _related(html: bytes, seed: str | bytes, inline: Iterable[Attachment]) -> bytes:
    """RFC 2387: the page first, then what it shows."""
    parts = [_attachment(part) for part in inline]
    return b"".join(_multipart("related", seed, (html, *parts), '; type="text/html"')) if parts else html


def _multipart(kind: str, seed: str | bytes, parts: tuple[bytes, ...], parameters: str = "") -> Iterator[bytes]:
    boundary = _boundary(kind, seed, parts)
    head = f'Content-Type: multipart/{kind}{parameters};\r\n boundary="{boundary}"\r\n\r\n'
    yield head.encode()
    for part in parts:
        yield f"--{boundary}\r\n".encode()
        yield part
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def _boundary(kind: str, seed: str | bytes, parts: tuple[bytes, ...]) -> str:
    """A boundary that no part holds (RFC 2046 section 5.1.1); `=_` can't come from base64 or quoted-printable."""
    seed = seed.encode() if isinstance(seed, str) else seed
    number = 0
    while True:
        boundary = "=_" + sha256(b"%b %b %d" % (kind.encode(), seed, number)).hexdigest()[:32]
        if not any(boundary.encode() in part for part in parts):
            return boundary
        number += 1


def _text_part(subtype: str, text: str) -> bytes:
    subtype = "html" if subtype == "html" else "plain"
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.endswith("\n"):
        text += "\n"
    if text.isascii() and "\0" not in text and _lines_fit(text):
        encoding, raw = "7bit", text.replace("\n", "\r\n").encode()
    else:
        encoding, raw = _transfer_encoded(text.encode("utf-8", "replace"))
    head = f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    return head.encode() + raw


def _lines_fit(text: str) -> bool:
    """Whether no line is too long; it steps from line end to line end a thousand characters at a time."""
    start = 0
    while len(text) - start > LINE_OCTETS_MAX:
        end = text.rfind("\n", start, start + LINE_OCTETS_MAX + 1)
        if end < 0:
            return False
        start = end + 1
    return True


def _transfer_encoded(raw: bytes) -> tuple[str, bytes]:
    """Quoted-printable or base64, whichever is smaller; a draw goes to the one that people can read."""
    quoted = len(raw) + 2 * len(raw.translate(None, _QP_LITERAL))
    if quoted <= len(raw) * 4 // 3:
        return "quoted-printable", b2a_qp(raw, istext=True).replace(b"\n", b"\r\n")
    return "base64", _wrapped(b64encode(raw.replace(b"\n", b"\r\n")))


def _wrapped(encoded: bytes) -> bytes:
    step = ENCODED_LINE_CHARACTERS
    return b"\r\n".join([encoded[at : at + step] for at in range(0, len(encoded), step)]) + b"\r\n"


# Attachments


def _attachment(part: Attachment) -> bytes:
    """The content is base64 already, so it is checked and wrapped, not decoded."""
    content = part.content
    if content is None or len(content) % 4 or not _BASE64.fullmatch(content):
        raise ComposeError("an attachment has no content, or its content is not base64")
    _refuse_control("filename", part.filename)
    head = [f"Content-Type: {_content_type(part)}\r\n", "Content-Transfer-Encoding: base64\r\n"]
    if part.content_id:
        head.append(_id("Content-ID", part.content_id))
    disposition = "inline" if part.content_id else "attachment"
    head.append(f"Content-Disposition: {disposition}{_parameter('filename', part.filename)}\r\n\r\n")
    return "".join(head).encode() + _wrapped(content.encode())


def _content_type(part: Attachment) -> str:
    """As given where that is a type; never multipart or message, which may not be base64 (RFC 2046 section 5.2.1)."""
    given = part.content_type or CONTENT_TYPES.get(part.filename.rpartition(".")[2].lower(), "")
    composite = given.lower().startswith(("multipart/", "message/"))
    fits = len(given) <= LINE_CHARACTERS and given.isascii() and not CONTROL.search(given)
    return given if fits and not composite and _CONTENT_TYPE.fullmatch(given) else "application/octet-stream"


def _parameter(name: str, value: str) -> str:
    """A parameter on lines of its own: quoted where ASCII will do, else by RFC 2231, in sections where it is long.

    What looks like an encoded word is not left as it is: many readers decode those even in quotes.
    """
    if value.isascii() and "=?" not in value and len(value) <= PARAMETER_CHARACTERS_MAX:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f';\r\n {name}="{escaped}"'
    encoded = [_percent(octet) for octet in value.encode("utf-8", "replace")]
    if sum(map(len, encoded)) <= PARAMETER_CHARACTERS_MAX:
        return f";\r\n {name}*=utf-8''{''.join(encoded)}"
    return "".join(f";\r\n {name}*{number}*={part}" for number, part in enumerate(_sections(encoded)))


def _sections(encoded: list[str]) -> Iterator[str]:
    """Pieces of a long value; the character set stands in the first (RFC 2231 section 4.1)."""
    section = "utf-8''"
    for octet in encoded:
        if len(section) + len(octet) > PARAMETER_CHARACTERS_MAX:
            yield section
            section = ""
        section += octet
    yield section


def _percent(octet: int) -> str:
    """RFC 2231's attribute characters, of which letters, digits and four signs are enough."""
    character = chr(octet)
    return character if octet < 128 and (character.isalnum() or character in "-._~") else f"%{octet:02X}"
