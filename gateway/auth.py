"""Who may come in: one token, compared in constant time; and who has shown wrong ones too often.

The right token is always let in: many clients may share one address behind a proxy, and one of them with an old
token must not lock out the others.
"""

import hmac
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlsplit

from .errors import Answer, error

UNAUTHORIZED = "Invalid or missing API token"
TOO_MANY = "Too many wrong API tokens: wait a minute, then show the right one"

FOREIGN = "Without an api_token, pages of other sites may not call: configure [server] api_token"

WRONG_MAX = 10
WINDOW_S = 60.0
"""A client with a typing error asks a few times; a guesser gets ten tries a minute."""

ADDRESSES_MAX = 1_000
"""Addresses remembered; the one that came first is forgotten first."""


HEADERS = frozenset({b"x-api-token", b"authorization", b"origin", b"host"})
"""What decides, of a request's headers."""


def deciding_headers(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The headers that decide, by their names in small letters, from ASGI's pairs."""
    return {name.decode(): value.decode("latin-1") for name, value in headers if name in HEADERS}


def token_of(headers: Mapping[str, str]) -> str | None:
    """The token that a request shows, in `X-API-Token` or as a bearer."""
    token = headers.get("x-api-token")
    if token is not None:
        return token
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another site asks (RFC 6454 section 7)."""
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


class Gate:
    """Judges tokens. `monotonic_us` is a clock that never jumps."""

    def __init__(self, token: str, monotonic_us: Callable[[], int]) -> None:
        self._token = token.encode()
        self._now_us = monotonic_us
        self._wrong: dict[str, tuple[int, int]] = {}

    @property
    def open(self) -> bool:
        """Whether no token is configured."""
        return not self._token

    def judge(self, token: str | None, address: str) -> int | None:
        """None for who may come in, else the status: 401, or 429 for repeated wrong tokens."""
        if self.open:
            return None
        if token is None:
            return 401
        if hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token):
            return None
        return self._count(address)

    def _count(self, address: str) -> int:
        now_us = self._now_us()
        since_us, wrong = self._wrong.pop(address, (now_us, 0))
        if now_us - since_us > WINDOW_S * 1_000_000:
            since_us, wrong = now_us, 0
        self._wrong[address] = since_us, wrong + 1
        while len(self._wrong) > ADDRESSES_MAX:
            self._wrong.pop(next(iter(self._wrong)))
        return 401 if wrong < WRONG_MAX else 429


def refusal(gate: Gate, headers: Mapping[str, str], address: str) -> Answer | None:
    """The answer for who may not come in; None for who may."""
    if gate.open:
        # Any page that a browser on this machine shows could call otherwise.
        return error(401, FOREIGN) if is_foreign(headers) else None
    match gate.judge(token_of(headers), address):
        case None:
            return None
        case 429:
            return Answer(error(429, TOO_MANY).body, 429, headers=(("Retry-After", f"{WINDOW_S:.0f}"),))
        case status:
            return error(status, UNAUTHORIZED)
