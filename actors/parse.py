"""A message as a client sent it becomes a letter and an envelope, or the first reason why it cannot be taken.

It promises: any bytes give `Parsed` or `Fault`, never an exception; what it lets pass can be composed and sent,
and can smuggle no header. It cannot know whether the id has been seen before: admission does, and the ingest
actor puts that reason in its place.

The reasons are looked for in the contract's order, so the decoder may not be the first to speak. On the common
path one typed decode takes the message apart. Where that fails, the fields are decoded one by one: a field of a
wrong type gets a stand-in that passes every check, the other checks run as ever, and only when none of them finds
anything is the wrong field the reason.
"""

import json
import re
import sys
from binascii import a2b_base64
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec import Struct

from events.letter import Attachment, Envelope, Letter
from events.payloads import AttachmentPayload, MessagePayload
from events.places import BASE64, path_fault, url_fault
from events.values import CONTROL, MICROSECONDS, PRIORITY_LABELS, Address, parse_address, split_addresses
from store.views.clock import BELIEVED, ClockRow

DEFAULT_ACCOUNT = "default"
"""The account that `[smtp]` describes, for messages that name none."""

ID_CHARACTERS_MAX = 1_000
"""An id goes into the log and into an index for ever; real ones have 36."""

RECIPIENTS_MAX = 10_000
"""Each is a digest of 16 characters in the fact, so a fact stays under 200 KB."""

SUBJECT_CHARACTERS_MAX = 100_000
"""It stands in lists, by the thousand in one answer; a hundred lines of mail (RFC 5322 section 2.1.1) are enough."""

HEADER_NAME_CHARACTERS_MAX = 200
"""A line has at most 998 characters (RFC 5322 section 2.1.1), and a name cannot be folded."""

LATEST_S = 253_402_300_799
"""The end of the year 9999: a later moment is taken for this one, and fits the columns."""

SHOWN_PATHS_MAX = 10
"""A rejection names so many storage paths, not thousands."""

URL_CHARACTERS_MAX = 4_000
"""Signed URLs of clouds have some hundreds more than their paths, which have a thousand at most."""

Volumes = Mapping[str, str | None]
"""A volume's name to the id of the account that it serves, None where it serves them all."""

NOT_JSON = "not JSON"
MISSING_ID = "missing id"
CONTROL_IN = "control character in "
INVALID_ADDRESS = "invalid address: "
INVALID_FIELD = "invalid field: "
ACCOUNT_NOT_FOUND = "account not found"
NO_DEFAULT_ACCOUNT = "missing account configuration"
INVALID_VOLUMES = "Invalid/unauthorized storage volumes: "
TOO_LARGE = "message too large"


class Policy(Struct, frozen=True):
    """What configuration says about accepting: age in microseconds, size in bytes as composed."""

    max_age_us: int = 432_000 * MICROSECONDS
    default_priority: int = 2
    message_bytes_max: int = 50_000_000


class Parsed(Struct, frozen=True):
    """A message that can be taken. `canonical` are the envelope's mailboxes in the form that digests are made of."""

    letter: Letter
    envelope: Envelope
    canonical: tuple[str, ...]
    account_id: str
    priority: int
    due_us: int
    expires_us: int
    size: int
    asked_us: int | None = None

    @property
    def id(self) -> str:
        return self.letter.id


class Fault(Struct, frozen=True):
    """Why a message is not taken. `id` is None where it has none that could be recorded.

    `reason` may stand in the log; `words` are what the client is told where the log must not hold them.
    """

    id: str | None
    reason: str
    field: str | None = None
    words: str | None = None

    @property
    def answer(self) -> str:
        return self.words or self.reason


# A header's name (RFC 5322 section 3.6.8) without the sign that ends it.
_HEADER_NAME = re.compile(rf"[!-9;-~]{{1,{HEADER_NAME_CHARACTERS_MAX}}}\Z")
# One token, an at sign, another: what a Message-ID or Content-ID must be to be found again (RFC 5322 section 3.6.4).
_MESSAGE_ID = re.compile(r"<?[!-;=?A-~]{1,400}@[!-;=?A-~]{1,400}>?\Z")
_CONTENT_ID = re.compile(r"<?[!-;=?-~]{1,400}>?\Z")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127} *(?:;[ -~]{0,400})?\Z")
_PATH_OF_ERROR = re.compile(r"`\$([^`]*)`\Z")
_MISSING_OF_ERROR = re.compile(r"missing required field `(\w+)`")
_UNDECODABLE = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError, TypeError)
_BASE64 = f"{BASE64}:"
_SOURCES = ("content", "url", "s3", "storage_path")
_NULL_SENDER = "<>"

_decode_message = msgspec.json.Decoder(MessagePayload).decode
_FIELDS = tuple((field.name, field.encode_name, field.type) for field in msgspec.structs.fields(MessagePayload))
_STAND_INS: dict[str, Any] = {
    "sender": "a@a",
    "to": ["a@a"],
    "subject": "",
    "body": "",
    "account_id": None,
}
"""What takes the place of a field of a wrong type, so that it is neither missing nor invalid."""


class _Read(Struct, frozen=True):
    """A decoded message and the path of its first field of a wrong type."""

    payload: MessagePayload
    wrong: str | None = None


class _Identity(Struct):
    id: str | None = None


_decode_identity = msgspec.json.Decoder(_Identity).decode


def message_id(raw: bytes | msgspec.Raw) -> str | None:
    """The id of a message that may be faulty in every other way."""
    try:
        return _decode_identity(raw).id
    except _UNDECODABLE:
        read = _read(raw)
    return read.payload.id if read else None


def parse(
    raw: bytes | msgspec.Raw,
    *,
    policy: Policy,
    accounts: Container[str],
    now_us: int,
    default_priority: int | None = None,
    clock: ClockRow = BELIEVED,
    volumes: Volumes = MappingProxyType({}),
) -> Parsed | Fault:
    """Take a message apart. `accounts` are the ids of the living accounts; `default_priority` is the batch's own;
    `clock` says whether `now_us` is believed, `volumes` of each volume whom it serves."""
    read = _read(raw)
    if read is None:
        return Fault(None, NOT_JSON)
    payload = read.payload
    if fault := _fault_of_id(read) or _missing(payload):
        return fault
    priority = policy.default_priority if default_priority is None else default_priority
    return _Parsing(payload, read.wrong).parse(policy, accounts, volumes, now_us, priority, clock)


def _read(raw: bytes | msgspec.Raw) -> _Read | None:
    try:
        return _Read(_decode_message(raw))
    except _UNDECODABLE:
        return _read_field_by_field(bytes(raw))


def _read_field_by_field(raw: bytes) -> _Read | None:
    """Decode what can be decoded; None where it is not JSON at all."""
    try:
        # Bytes that are no UTF-8 become surrogates, and so are found in the field in which they stand.
        fields = json.loads(
            raw.decode("utf-8", "surrogateescape"), parse_float=_finite, parse_int=_whole, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return _Read(MessagePayload())
    wrong: str | None = None
    found: dict[str, Any] = {}
    for name, encoded, kind in _FIELDS:
        try:
            found[name] = msgspec.json.decode(msgspec.json.encode(fields.get(encoded)), type=kind)
        except _UNDECODABLE as error:
            found[name] = _STAND_INS.get(name)
            wrong = wrong or encoded + _path_within(error)
    return _Read(MessagePayload(**found), wrong)


def _finite(text: str) -> float:
    return max(-sys.float_info.max, min(sys.float_info.max, float(text)))


def _whole(text: str) -> int | float:
    """Numbers too long for 64 bits are only ever clamped, so a float says enough."""
    return int(text) if len(text) < 19 else _finite(text)


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _path_within(error: Exception) -> str:
    """`[1]` or `[0].filename`, of the decoder's own words."""
    text = str(error)
    path = match[1] if (match := _PATH_OF_ERROR.search(text)) else ""
    missing = f".{match[1]}" if (match := _MISSING_OF_ERROR.search(text)) else ""
    return path.replace("[...]", "") + missing


def _fault_of_id(read: _Read) -> Fault | None:
    """An id that could not stand in the log makes the message one without an id: answered, never recorded."""
    if not read.payload.id and read.wrong == "id":
        return Fault(None, f"{INVALID_FIELD}id", "id")
    return fault_of_id(read.payload.id)


def fault_of_id(identity: str | None) -> Fault | None:
    if not identity:
        return Fault(None, MISSING_ID, "id")
    if not identity.isprintable() and CONTROL.search(identity):
        return Fault(None, f"{CONTROL_IN}id", "id")
    if len(identity) > ID_CHARACTERS_MAX:
        return Fault(None, f"{INVALID_FIELD}id", "id")
    return None


def _missing(payload: MessagePayload) -> Fault | None:
    if not payload.sender:
        return Fault(payload.id, "missing from", "from")
    if not payload.to or payload.to.__class__ is str and not split_addresses(payload.to):
        return Fault(payload.id, "missing to", "to")
    if payload.subject is None:
        return Fault(payload.id, "missing subject", "subject")
    if payload.body is None:
        return Fault(payload.id, "missing body", "body")
    return None


def _as_list(addresses: list[str] | str | None) -> Sequence[str]:
    return split_addresses(addresses) if isinstance(addresses, str) else addresses or ()


class _Wrong(Exception):
    """Carries a fault out of the checks."""

    def __init__(self, reason: str, field: str | None = None, words: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.field, self.words = reason, field, words


class _Parsing:
    """The checks of one message, each a method, in the contract's order; the first that fails raises _Wrong."""

    __slots__ = ("bcc", "cc", "headers", "payload", "reply_to", "to", "wrong")

    def __init__(self, payload: MessagePayload, wrong: str | None) -> None:
        self.payload = payload
        self.wrong = wrong
        self.to = _as_list(payload.to)
        self.cc = _as_list(payload.cc) if payload.cc else ()
        self.bcc = _as_list(payload.bcc) if payload.bcc else ()
        self.reply_to = _as_list(payload.reply_to) if payload.reply_to else ()
        self.headers = {k: v for k, v in payload.headers.items() if v is not None} if payload.headers else {}

    def parse(
        self,
        policy: Policy,
        accounts: Container[str],
        volumes: Volumes,
        now_us: int,
        default_priority: int,
        clock: ClockRow,
    ) -> Parsed | Fault:
        payload = self.payload
        try:
            sender = self._sender()
            recipients = self._recipients()
            self._refuse_control_characters()
            account_id = self._account(accounts)
            if payload.attachments:
                self._refuse_volumes(payload.attachments, account_id, volumes)
            size = self._size()
            if size > policy.message_bytes_max:
                raise _Wrong(TOO_LARGE)
            self._refuse_wrong_fields(len(recipients))
            letter = self._letter()
            priority = _priority(payload.priority, default_priority)
        except _Wrong as fault:
            return Fault(payload.id, fault.reason, fault.field, fault.words)
        asked_us = 0 if payload.deferred_ts is None else _moment_us(payload.deferred_ts)
        due_us = max(now_us, clock.asked_due_us(asked_us, now_us))
        envelope = Envelope(sender, tuple(recipients.values()), letter.subject)
        expires_us = _expiry_us(payload.expires_ts, due_us + policy.max_age_us)
        return Parsed(
            letter,
            envelope,
            tuple(recipients),
            account_id,
            priority,
            due_us,
            expires_us,
            size,
            asked_us if due_us > now_us else None,
        )

    def _sender(self) -> str:
        """The envelope's sender: `return_path` (`<>` is nobody, RFC 5321 section 4.5.5), else `from`."""
        payload = self.payload
        sender = str(_address("from", payload.sender or ""))
        if not payload.return_path:
            return sender
        return "" if payload.return_path == _NULL_SENDER else str(_address("return_path", payload.return_path))

    def _recipients(self) -> dict[str, str]:
        """Canonical mailbox to mailbox, each once, in the order of the envelope."""
        found: dict[str, str] = {}
        for name, texts in (("to", self.to), ("cc", self.cc), ("bcc", self.bcc)):
            for index, text in enumerate(texts) if texts else ():
                address = parse_address(text)
                if address is None:
                    raise _Wrong(f"{INVALID_ADDRESS}{name}[{index}]", f"{name}[{index}]")
                found.setdefault(address.canonical, str(address))
        for index, text in enumerate(self.reply_to) if self.reply_to else ():
            _address(f"reply_to[{index}]", text)
        return found

    def _refuse_control_characters(self) -> None:
        """One search over everything that could reach a header; which field it was is asked only where one is found."""
        payload = self.payload
        texts = [payload.sender or "", *self.to, *self.cc, *self.bcc, *self.reply_to, payload.subject or ""]
        texts += (payload.message_id or "", payload.return_path or "", payload.account_id or "")
        texts += [text for _, text in self._comma_lists()]
        if self.headers:
            texts += self.headers
            texts += self.headers.values()
        if payload.attachments:
            texts += [text for _, text in _attachment_headers(payload.attachments)]
        # What Python calls printable holds no control character, and asking costs half of a search.
        if not (joined := "".join(texts)).isprintable() and CONTROL.search(joined):
            field = next(name for name, text in self._header_texts() if CONTROL.search(text))
            raise _Wrong(f"{CONTROL_IN}{field}", field)
        for field, body in (("body", payload.body), ("body_html", payload.body_html)):
            if body and "\0" in body:
                raise _Wrong(f"{CONTROL_IN}{field}", field)

    def _header_texts(self) -> Iterator[tuple[str, str]]:
        """The same texts with their fields' names. A header's own name stays out: it is the client's text."""
        payload = self.payload
        yield "from", payload.sender or ""
        for field, texts in (("to", self.to), ("cc", self.cc), ("bcc", self.bcc), ("reply_to", self.reply_to)):
            yield from ((f"{field}[{index}]", text) for index, text in enumerate(texts))
        yield from self._comma_lists()
        yield "subject", payload.subject or ""
        yield from (("headers", name + value) for name, value in self.headers.items())
        yield "message_id", payload.message_id or ""
        yield "return_path", payload.return_path or ""
        yield "account_id", payload.account_id or ""
        yield from _attachment_headers(payload.attachments or ())

    def _comma_lists(self) -> Iterator[tuple[str, str]]:
        """The lists that came as one string: what stood between their addresses is gone from the addresses."""
        payload = self.payload
        fields = (("to", payload.to), ("cc", payload.cc), ("bcc", payload.bcc), ("reply_to", payload.reply_to))
        return ((field, text) for field, text in fields if isinstance(text, str))

    def _account(self, accounts: Container[str]) -> str:
        account_id = self.payload.account_id
        if account_id:
            if account_id not in accounts:
                raise _Wrong(ACCOUNT_NOT_FOUND, "account_id")
            return account_id
        if DEFAULT_ACCOUNT not in accounts and self.wrong != "account_id":
            raise _Wrong(NO_DEFAULT_ACCOUNT, "account_id")
        return DEFAULT_ACCOUNT

    def _refuse_volumes(self, attachments: Iterable[AttachmentPayload], account_id: str, volumes: Volumes) -> None:
        """A storage path carries its content in itself, or begins with a volume that serves the account."""
        stored = [
            (f"attachments[{index}].storage_path", each.storage_path)
            for index, each in enumerate(attachments)
            if each.storage_path is not None and not _serves(each.storage_path, account_id, volumes)
        ][:SHOWN_PATHS_MAX]
        if stored:
            fields, paths = zip(*stored, strict=True)
            raise _Wrong(INVALID_VOLUMES + ", ".join(fields), fields[0], INVALID_VOLUMES + ", ".join(paths))

    def _size(self) -> int:
        """Bytes as composed, as well as that can be known before: base64 lines of 76 characters, text as it is."""
        payload = self.payload
        size = 0
        for text in (payload.subject, payload.body, payload.body_html):
            size += _text_bytes(text) if text else 0
        for texts in (self.to, self.cc, self.reply_to):
            size += len("".join(texts)) + 4 * len(texts)
        for name, value in self.headers.items():
            size += len(name) + _text_bytes(value) + 4
        for each in payload.attachments or ():
            # What is fetched when it is sent counts then.
            size += len(each.content or _carried(each.storage_path) or "") * 78 // 76 + 200
        return size

    def _refuse_wrong_fields(self, recipients: int) -> None:
        if self.wrong:
            raise _invalid(self.wrong)
        if recipients > RECIPIENTS_MAX:
            raise _invalid("to")
        if len(self.payload.subject or "") > SUBJECT_CHARACTERS_MAX:
            raise _invalid("subject")
        for name in self.headers:
            if not _HEADER_NAME.match(name):
                raise _invalid("headers")
        if self.payload.message_id and not _MESSAGE_ID.match(self.payload.message_id):
            raise _invalid("message_id")

    def _letter(self) -> Letter:
        payload = self.payload
        return Letter(
            id=payload.id or "",
            sender=payload.sender or "",
            to=tuple(self.to),
            cc=tuple(self.cc),
            bcc=tuple(self.bcc),
            reply_to=tuple(self.reply_to),
            return_path=payload.return_path or None,
            subject=payload.subject or "",
            body=payload.body or "",
            content_type=payload.content_type or "plain",
            body_html=payload.body_html,
            headers=self.headers,
            message_id=payload.message_id or None,
            attachments=_attachments(payload.attachments) if payload.attachments else (),
        )


def _address(field: str, text: str) -> Address:
    address = parse_address(text)
    if address is None:
        raise _Wrong(f"{INVALID_ADDRESS}{field}", field)
    return address


def _invalid(field: str) -> _Wrong:
    return _Wrong(f"{INVALID_FIELD}{field}", field)


def _text_bytes(text: str) -> int:
    """ASCII stays as it is; other text is sent as base64 at the longest."""
    return len(text) if text.isascii() else len(text.encode()) * 4 // 3 * 78 // 76


def _attachment_headers(attachments: Iterable[AttachmentPayload]) -> Iterator[tuple[str, str]]:
    for index, each in enumerate(attachments):
        yield f"attachments[{index}].filename", each.filename
        yield f"attachments[{index}].content_type", each.content_type or ""
        yield f"attachments[{index}].content_id", each.content_id or ""
        # Nothing of these reaches a header; but nothing that could be asked for holds a control character either.
        yield f"attachments[{index}].url", each.url or ""
        yield f"attachments[{index}].s3", each.s3.bucket + each.s3.key if each.s3 else ""
        yield f"attachments[{index}].storage_path", _elsewhere(each)


def _attachments(payloads: Iterable[AttachmentPayload]) -> tuple[Attachment, ...]:
    return tuple(_attachment(f"attachments[{index}]", payload) for index, payload in enumerate(payloads))


def _serves(storage_path: str, account_id: str, volumes: Volumes) -> bool:
    if storage_path.startswith(_BASE64):
        return True
    name, colon, _ = storage_path.partition(":")
    return bool(colon) and name in volumes and volumes[name] in (None, account_id)


def _carried(storage_path: str | None) -> str | None:
    """The content of a storage path that carries it in itself."""
    return storage_path.removeprefix(_BASE64) if storage_path and storage_path.startswith(_BASE64) else None


def _elsewhere(payload: AttachmentPayload) -> str:
    """A storage path that leads to a volume."""
    return "" if payload.storage_path is None or payload.storage_path.startswith(_BASE64) else payload.storage_path


def _attachment(path: str, payload: AttachmentPayload) -> Attachment:
    """An attachment; exactly one source is taken."""
    given = [name for name in _SOURCES if getattr(payload, name) is not None]
    if len(given) != 1:
        raise _invalid(f"{path}.{given[1] if given else 'content'}")
    carried = _carried(payload.storage_path)
    content = payload.content if carried is None else carried
    if _is_faulty(payload, content):
        raise _invalid(f"{path}.{given[0]}")
    if payload.content_type and not _MEDIA_TYPE.match(payload.content_type):
        raise _invalid(f"{path}.content_type")
    if payload.content_id and not _CONTENT_ID.match(payload.content_id):
        raise _invalid(f"{path}.content_id")
    return Attachment(
        filename=payload.filename,
        content=content,
        content_type=payload.content_type or None,
        content_id=payload.content_id or None,
        url=payload.url,
        s3=payload.s3,
        storage_path=_elsewhere(payload) or None,
    )


def _is_faulty(payload: AttachmentPayload, content: str | None) -> bool:
    """Whether what an attachment's source says can never be had."""
    if content is not None:
        return not _is_base64(content)
    if payload.url is not None:
        return len(payload.url) > URL_CHARACTERS_MAX or url_fault(payload.url, query=True)
    if payload.s3 is not None:
        bucket, path = payload.s3.bucket, payload.s3.key
    else:
        bucket, _, path = (payload.storage_path or "").partition(":")
    return not bucket or "/" in bucket or len(path) > URL_CHARACTERS_MAX or path_fault(path)


def _is_base64(text: str) -> bool:
    try:
        a2b_base64(text, strict_mode=True)
    except ValueError:
        return False
    return True


def _priority(wish: str | float | None, default: int) -> int:
    """A word by its number; a number outside is clamped."""
    if wish is None:
        return default
    if isinstance(wish, str):
        if (number := PRIORITY_LABELS.get(wish.strip().lower())) is None:
            raise _invalid("priority")
        return number
    return int(max(0, min(3, wish)))


def _moment_us(seconds: float) -> int:
    return int(max(0, min(LATEST_S, seconds)) * MICROSECONDS)


def _expiry_us(expires_ts: float | None, latest_us: int) -> int:
    """No later than the greatest age; 0 is what some clients send for "never"."""
    return min(latest_us, _moment_us(expires_ts)) if expires_ts and expires_ts > 0 else latest_us
