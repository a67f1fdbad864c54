"""The service's own lines, on standard error: for people, or one JSON object a line.

The keys of a JSON line are stable, and these are all of them:

    time       ISO 8601 in UTC, to the millisecond
    level      debug, info, warning or error
    logger     who says it: letterbook, or letterbook.<part>; of libraries only warnings and errors
    message    one sentence
    exception  the traceback, only where a bug was met

No line holds a token, a password, an address or the text of a letter. Libraries below `warning` are not heard,
whatever the level: some of them show the headers of requests.
"""

import datetime as dt
import json
import logging
import sys
from typing import Literal

from .printing import clean

KEYS = ("time", "level", "logger", "message", "exception")

OURS = "letterbook"

Level = Literal["debug", "info", "warning", "error"]


def set_up(level: Level, form: Literal["text", "json"]) -> None:
    """Send what is logged to standard error, in one of the two forms."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(level.upper())
    logging.captureWarnings(True)


def _time(record: logging.LogRecord) -> str:
    at = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"


def _level(record: logging.LogRecord) -> str:
    """One of the four words that the configuration knows."""
    return "error" if record.levelno >= logging.ERROR else record.levelname.lower()


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": _time(record),
            "level": _level(record),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=False)


class TextLines(logging.Formatter):
    """A line for people; what others gave can neither break it nor move a cursor."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_time(record)} {_level(record):7} {record.name}: {clean(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
