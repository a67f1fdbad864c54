"""Calls to the application's side: one call with every bound it needs, and how long to wait after trouble.

Trouble is a value. Nothing here follows a redirect, waits without end, or reads more than it was told to.
"""

import base64
import logging
import random
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

import httpx
import trio
from msgspec import Struct

logger = logging.getLogger("letterbook.upstream")

CALL_S_MAX = 120.0
"""The whole of a call, its body included: a peer that drips a byte now and then must not hold us for ever."""

SILENCE_S_MAX = 30.0
"""Connecting, or between two pieces of an answer."""

BACK_OFF_S_MAX = 300.0
BACK_OFF_S_FIRST = 1.0
JITTER = 0.2
"""Up to a fifth less than the full wait, so that many services do not come back in step."""

LINE_EVERY_S = 3_600.0
"""Trouble that goes on is said once an hour: an operator who looks later finds it, and no file is filled."""


class Answered(Struct, frozen=True):
    """A 2xx answer's body, as far as it was read; `whole` is false where there was more than allowed."""

    body: bytes
    whole: bool = True


class Trouble(Struct, frozen=True):
    """What went wrong, in words for the operator; `status` where the peer answered."""

    text: str
    status: int | None = None


async def call(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    body_bytes_max: int,
    params: dict[str, str] | None = None,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answered | Trouble:
    """One request and at most `body_bytes_max` of its answer."""
    sent = {"accept-encoding": "identity", **(headers or {})}
    if content is not None:
        sent["content-type"] = "application/json"
    with trio.move_on_after(CALL_S_MAX):
        try:
            async with client.stream(
                method,
                url,
                params=params,
                content=content,
                headers=sent,
                timeout=SILENCE_S_MAX,
                follow_redirects=False,
            ) as response:
                if not response.is_success:
                    return Trouble(f"it answered {response.status_code}", response.status_code)
                return await _read(response, body_bytes_max)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Trouble(f"{type(error).__name__}: {error}".rstrip(": "))
    return Trouble(f"it took longer than {CALL_S_MAX:g} s")


async def _read(response: httpx.Response, body_bytes_max: int) -> Answered | Trouble:
    """The body as it came. One that is compressed all the same could unfold into anything, so it is not taken."""
    if response.headers.get("content-encoding", "identity") != "identity":
        return Trouble("its answer is compressed although it was asked not to be")
    body = bytearray()
    with trio.CancelScope() as scope:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > body_bytes_max:
                # The next read ends by cancellation, which closes every generator below; leaving the loop would not.
                scope.cancel()
    return Answered(bytes(body[:body_bytes_max]), whole=len(body) <= body_bytes_max)


def back_off_s(failures: int, chance: random.Random) -> float:
    """How long to wait after so many failures in a row: twice as long each time, five minutes at most."""
    full = min(BACK_OFF_S_MAX, BACK_OFF_S_FIRST * 2.0 ** min(failures - 1, 20))
    return full * (1 - JITTER * chance.random())


def credentials(token: str, user: str | None, password: str) -> dict[str, str]:
    """The header that shows who calls: a bearer where there is a token, else basic (RFC 7617), else none."""
    if token:
        return {"authorization": f"Bearer {token}"}
    if user:
        return {"authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {}


class Line:
    """What an operator hears of one kind of call: a line when trouble begins or becomes another, one an hour while it
    lasts, and one when it is over. `failing` and `given_up` are for the metrics."""

    def __init__(self) -> None:
        self.failing = False
        self.given_up = 0
        self._said = ""
        self._say_at = 0.0

    def trouble(self, url: str, text: str, wait_s: float) -> None:
        """A call came to nothing."""
        now = trio.current_time()
        if not self.failing or text != self._said or now >= self._say_at:
            logger.warning("%s: %s; next try in %.0f s", shown(url), text, wait_s)
            self._said, self._say_at = text, now + LINE_EVERY_S
        self.failing = True

    def fine(self, url: str) -> None:
        """A call was answered as it should be."""
        if self.failing:
            logger.info("%s answers again", shown(url))
        self.failing = False


def shown(url: str) -> str:
    """The address as it may stand in a log line: without user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
