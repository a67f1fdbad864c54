"""The kinds of value that a configuration key may have: how its text is read, and what to write instead.

A reader raises ValueError and says nothing more: the sentence for the operator is the kind's `write`.
"""

import ipaddress
import math
import re
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from events import payloads
from events.rules import RULES_MAX, made
from events.values import CONTROL, PRIORITY_LABELS

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Secret(str):
    """Text that does not show itself when the configuration is printed or stands in a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'" if self else "''"


class Kind(Struct, frozen=True):
    """One kind of value: `read` turns text into it or raises ValueError; `write` follows the word "write"."""

    read: Callable[[str], object]
    write: str
    secret: bool = False


_HOST = re.compile(r"[^\x00-\x20\x7f/@\[\]#?]+\Z")
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _text(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError
    return text


def _host(text: str) -> str:
    if not _HOST.match(text):
        raise ValueError
    return text


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError
    return _SWITCH[text.lower()]


def _priority(text: str) -> int:
    """A number outside 0..3 is refused here, though clamped in a message: an operator is there to mend it."""
    if text.lower() in PRIORITY_LABELS:
        return PRIORITY_LABELS[text.lower()]
    if text not in ("0", "1", "2", "3"):
        raise ValueError
    return int(text)


def _seconds(text: str) -> float:
    """Infinity and NaN are numbers to Python, and would be a wait without end."""
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return value


def _delays(text: str) -> tuple[float, ...]:
    return tuple(_seconds(part) for part in text.split(","))


def _endpoint(text: str) -> str:
    parts = urlsplit(_text(text))
    # Reading `port` is what makes urlsplit check it.
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0 or parts.fragment:
        raise ValueError
    return text


def _url(text: str) -> str:
    if urlsplit(_endpoint(text)).query:
        raise ValueError
    return text.rstrip("/")


def _networks(text: str) -> tuple[Network, ...]:
    """`10.0.0.5/8` is refused, for it may be meant as one address or as the whole network."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))


def _timezone(text: str) -> str:
    try:
        zoneinfo.ZoneInfo(text)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as error:
        raise ValueError from error
    return text


def _rules(text: str) -> tuple[payloads.Rule, ...]:
    try:
        wishes = _decode_rules(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError from error
    if len(wishes) > RULES_MAX or any(made(wish).fault for wish in wishes):
        raise ValueError
    return wishes


_decode_rules = msgspec.json.Decoder(tuple[payloads.Rule, ...]).decode

TEXT = Kind(_text, "text on one line")
SECRET = Kind(lambda text: Secret(_text(text)), "text on one line", secret=True)
HOST = Kind(_host, "a host name or an address, without scheme, port or brackets, such as 127.0.0.1")
SWITCH = Kind(_switch, "true or false (yes or no, on or off, 1 or 0)")
PATH = Kind(lambda text: Path(_text(text)), "a path, from the folder that the service is started in")
URL = Kind(_url, "an http:// or https:// address without query, such as https://upstream.example/mail")
ENDPOINT = Kind(_endpoint, "an http:// or https:// address, called as it is, such as https://upstream.example/sync")
PRIORITY = Kind(_priority, "0, 1, 2 or 3, or immediate, high, medium or low")
SECONDS = Kind(_seconds, "seconds, 0 or more, such as 30 or 0.5")
DELAYS = Kind(_delays, "seconds with commas between, such as 60, 300, 900")
RULES = Kind(
    _rules,
    "a JSON list of rules as POST /commands/rules takes them, such as"
    ' [{"days": [0, 1, 2, 3, 4], "start_hour": 8, "end_hour": 18, "interval_minutes": 15}]',
)
NETWORKS = Kind(_networks, "networks with commas between, such as 10.20.0.0/16, fd00:20::/64")
TIMEZONE = Kind(_timezone, "a time zone of the IANA list, such as UTC or Europe/Rome")


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number from `low` to `high`."""

    def read(text: str) -> int:
        value = int(text)
        if value < low or (high is not None and value > high):
            raise ValueError
        return value

    return Kind(read, f"a whole number, {low} or more" if high is None else f"a whole number from {low} to {high}")


def seconds(low: float) -> Kind:
    """A duration that must not be shorter than `low`: at 0 the loop that waits for it would never rest."""

    def read(text: str) -> float:
        if (value := _seconds(text)) < low:
            raise ValueError
        return value

    return Kind(read, f"seconds, {low:g} or more, such as 30 or 0.5")


def choice(*words: str) -> Kind:
    """One of a few words, in any case."""

    def read(text: str) -> str:
        if text.lower() not in words:
            raise ValueError
        return text.lower()

    return Kind(read, f"{', '.join(words[:-1])} or {words[-1]}")
