"""The service's own lines, on standard error: for people, or one JSON object a line.

The keys of a JSON line are stable, and these are all that every line may have:

    time       ISO 8601 in UTC, to the millisecond
    level      debug, info, warning or error
    logger     who says it: letterbook, or letterbook.<part>; of libraries only warnings and errors
    message    one sentence
    exception  the traceback, only where a bug was met

Two lines carry fields besides: the one at the start (`letterbook.system`) and the one about a message's end
(`letterbook.outcomes`). In JSON they are keys like the others, in text `key=value` behind the sentence, quoted where
a value has spaces. Who logs gives them as `extra={FIELDS: {...}}`.

No line holds a token, a password, an address or the text of a letter. Libraries below `warning` are not heard,
whatever the level: some of them show the headers of requests.

Lines are written by a thread of their own (`line_writer.py`): a standard error that nobody reads costs lines, counted,
and never holds the service.
"""

import datetime as dt
import logging
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from .line_writer import LineWriter
from .printing import clean

KEYS = ("time", "level", "logger", "message", "exception")

FIELDS = "fields"
"""The attribute of a record that holds further keys and values, in their order; None is left out."""

OURS = "letterbook"

LEVELS = ("debug", "info", "warning", "error")

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["text", "json"]
Fields = Mapping[str, Any]

STANDARD_ERROR = 2

_PLAIN = re.compile(r"[!#-<>-~]+")
"""Signs of ASCII that end no value and begin no other: no space, quote or =."""


class Lines:
    """Where lines go: through `logging`, or many at once by `tell`. `written` counts them by level."""

    def __init__(self, form: Form, descriptor: int = STANDARD_ERROR) -> None:
        self._form: JsonLines | TextLines = JsonLines() if form == "json" else TextLines()
        self._writer = LineWriter(descriptor, self._missing)
        self.handler = _Handler(self)
        self.written = dict.fromkeys(LEVELS, 0)

    @property
    def dropped(self) -> int:
        """Lines that standard error did not take."""
        return self._writer.dropped

    def put(self, record: logging.LogRecord) -> None:
        self.written[_level(record)] += 1
        self._writer.put(self._form.line_of(record))

    def tell(self, logger: str, found: Iterable[tuple[str, Fields]]) -> None:
        """A line of level info for each (sentence, fields), as one piece: a few microseconds a line."""
        at = _time(time.time())
        lines = [self._form.line(at, "info", logger, sentence, fields) for sentence, fields in found]
        self.written["info"] += len(lines)
        self._writer.put(b"".join(lines), len(lines))

    def say(self, line: bytes) -> None:
        """Lines as they are, in neither form."""
        self._writer.put(line, line.count(b"\n"))

    def close(self) -> None:
        self._writer.close()

    def _missing(self, count: int) -> bytes:
        sentence = f"{count} lines are missing here: standard error took none for a while"
        return self._form.line(_time(time.time()), "warning", "letterbook.logs", sentence, {})


class _Handler(logging.Handler):
    def __init__(self, lines: Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.put(record)


def set_up(level: Level, form: Form) -> Lines:
    """Send what is logged to standard error, in one of the two forms; `Lines.close` at the end."""
    lines = Lines(form)
    root = logging.getLogger()
    root.handlers[:] = [lines.handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(level.upper())
    logging.captureWarnings(True)
    return lines


@contextmanager
def heard(level: Level, form: Form) -> Iterator[Lines]:
    """The same while the block lasts; what is still to be written then is written before it ends."""
    lines = set_up(level, form)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(lines.handler)
        lines.close()


def _time(moment_s: float) -> str:
    at = dt.datetime.fromtimestamp(moment_s, dt.UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"


def _level(record: logging.LogRecord) -> Level:
    """One of the four words that the configuration knows."""
    if record.levelno >= logging.WARNING:
        return "error" if record.levelno >= logging.ERROR else "warning"
    return "info" if record.levelno >= logging.INFO else "debug"


def _sentence(record: logging.LogRecord) -> str:
    """What a path of the system brought, and no encoding has a sign for, is spelt out."""
    return record.getMessage().encode(errors="backslashreplace").decode()


_traceback = logging.Formatter().formatException


class JsonLines:
    """One JSON object a line."""

    def line_of(self, record: logging.LogRecord) -> bytes:
        fields: Fields = getattr(record, FIELDS, {})
        if record.exc_info:
            fields = {"exception": _traceback(record.exc_info), **fields}
        return self.line(_time(record.created), _level(record), record.name, _sentence(record), fields)

    def line(self, at: str, level: str, logger: str, sentence: str, fields: Fields) -> bytes:
        known = {name: value for name, value in fields.items() if value is not None}
        head = {"time": at, "level": level, "logger": logger, "message": sentence}
        return msgspec.json.encode(head | known) + b"\n"


class TextLines:
    """A line for people; what others gave can neither break it nor move a cursor."""

    def line_of(self, record: logging.LogRecord) -> bytes:
        fields: Fields = getattr(record, FIELDS, {})
        line = self.line(_time(record.created), _level(record), record.name, _sentence(record), fields)
        if not record.exc_info:
            return line
        return line + f"{_traceback(record.exc_info)}\n".encode(errors="backslashreplace")

    def line(self, at: str, level: str, logger: str, sentence: str, fields: Fields) -> bytes:
        parts = [f"{at} {level:7} {logger}: {clean(sentence)}"]
        parts += [f"{name}={_value(value)}" for name, value in fields.items() if value is not None]
        return f"{' '.join(parts)}\n".encode()


def _value(value: object) -> str:
    """As logfmt has it: bare where nothing in it could be taken for the next key, else in quotes."""
    text = str(value)
    if not isinstance(value, str) or _PLAIN.fullmatch(text):
        return text
    return '"{}"'.format(clean(text).replace("\\", "\\\\").replace('"', '\\"'))
