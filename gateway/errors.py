"""Answers and errors: every error is the same JSON object with one sentence that says what to change."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct, inspect

RETRY_AFTER_S = 1
"""What is full is usually emptied within a second."""

JSON = "application/json"

encode = msgspec.json.Encoder().encode


class Answer(Struct, frozen=True):
    """What a command answers: a body that msgspec encodes (or bytes as they are), with its HTTP status."""

    body: Any
    status: int = 200
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else encode(self.body)


class Trouble(Exception):
    """A command cannot be carried out as asked: the HTTP status, and one sentence for the client."""

    def __init__(self, status: int, sentence: str, **extra: Any) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.extra = extra

    @property
    def answer(self) -> Answer:
        return error(self.status, self.sentence, **self.extra)


def error(status: int, sentence: str, **extra: Any) -> Answer:
    """The error object; a 503 says when to ask again."""
    headers = (("Retry-After", str(RETRY_AFTER_S)),) if status == 503 else ()
    return Answer({"ok": False, "error": sentence, "detail": sentence, **extra}, status, headers=headers)


def bad(sentence: str) -> Trouble:
    return Trouble(400, sentence)


def unavailable(sentence: str) -> Trouble:
    return Trouble(503, sentence)


def decode(data: bytes, decoder: "msgspec.json.Decoder[Any]") -> Any:
    """A body by its type. Raises Trouble that names the path of the field."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError as error:
        raise bad(f"the body does not fit: {_what(error, decoder.type)}") from None
    except UnicodeDecodeError:
        raise bad("the body is not JSON: a text in it is not UTF-8, or holds half of a surrogate pair") from None
    except msgspec.DecodeError as error:
        if (mended := halves_as_bytes(data)) is not data:
            return decode(mended, decoder)
        raise bad(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise bad("the body is not JSON that can be read: it is nested too deeply") from None


_ESCAPED_SURROGATES = re.compile(
    rb"(?<!\\)((?:\\\\)*)"
    rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u([dD][89a-fA-F][0-9a-fA-F]{2}))"
)
"""A pair, or in the second group the digits of a half, behind any number of escaped backslashes."""


def halves_as_bytes(data: bytes) -> bytes:
    """JSON in which each half of a surrogate pair that is escaped stands as its three bytes, or the same object where
    there is none.

    The grammar allows such a half (RFC 8259 section 8.2) and the decoder does not, wherever it stands, so one message
    would take its whole batch along. Its bytes are no UTF-8, and those the decoder passes on within an item as they
    are; so the fault is found where the item is read, in the field in which it stands.
    """
    mended, count = _ESCAPED_SURROGATES.subn(_half_as_bytes, data)
    return mended if count and mended != data else data


def _half_as_bytes(match: re.Match[bytes]) -> bytes:
    backslashes, half = match[1], match[2]
    return match[0] if half is None else backslashes + chr(int(half, 16)).encode("utf-8", "surrogatepass")


def convert(fields: dict[str, Any], to: type[Any]) -> Any:
    """Parameters of a query by their type. Raises Trouble that names the parameter."""
    try:
        return msgspec.convert(fields, to, strict=False)
    except msgspec.ValidationError as error:
        raise bad(f"the parameters do not fit: {_what(error, to)}") from None


_WRONG_WORD = re.compile(r"Invalid enum value .* - at `\$\.([\w.]+)`\Z", re.DOTALL)


def _what(error: msgspec.ValidationError, kind: Any) -> str:
    """The decoder's words, which name the path; of a closed list they do not name the words, so this does."""
    if match := _WRONG_WORD.match(f"{error}"):
        path = match[1]
        if words := _words(inspect.type_info(kind), path.split(".")):
            return f"{path} is none of {', '.join(words)}"
    return f"{error}"


def _words(kind: inspect.Type, path: Sequence[str]) -> Iterable[str]:
    """The words that the field at this path may be; none where it is no closed list."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    if not path:
        return [f"{word}" for each in kinds if isinstance(each, inspect.LiteralType) for word in each.values]
    fields = [field for each in kinds if isinstance(each, inspect.StructType) for field in each.fields]
    return [word for field in fields if field.encode_name == path[0] for word in _words(field.type, path[1:])]
