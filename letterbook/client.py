"""A client of a running service: one request, or its live stream for as long as one likes."""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec
import trio
import trio_websocket

from gateway.settings import CLI_AGENT

from .failures import Failure
from .sources import address, configured

ANSWER_MARGIN_S = 30.0
"""The service answers send-message after send_wait_seconds; it has this much longer to say so."""

SILENCE_S_MAX = 45.0
"""Three heartbeats of the live stream."""

AGAIN_S_MIN = 0.5
AGAIN_S_MAX = 5.0
"""Between two tries to connect anew; a restart of the service takes a second or two."""

PARTING_S = 2.0
"""How long the service may take to answer our close."""

FRAME_BYTES_MAX = 16_000_000
"""A frame holds at most 256 KB, or one fact that is larger: with 10,000 recipients, and their addresses joined."""


class Target(NamedTuple):
    """A service: its address, and the headers that let one in."""

    url: str
    headers: Mapping[str, str]
    send_wait_s: float = 30.0


def find_target(config_path: Path | None, url: str | None) -> Target:
    """The service of a configuration, at another address if that is given. Raises ConfigError, and Failure."""
    config = configured(config_path)
    headers = {"X-API-Token": str(config.server.api_token)} if config.server.api_token else {}
    return Target((url or address(config)).rstrip("/"), headers, config.delivery.send_wait_seconds)


def post(target: Target, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """(status, answer). Raises Failure where there is no answer, or none of a Letterbook."""
    return _ask(target, "POST", path, body)


def get(target: Target, path: str) -> tuple[int, dict[str, Any]]:
    """The same for what only asks."""
    return _ask(target, "GET", path, None)


def _ask(target: Target, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
    timeout = httpx.Timeout(target.send_wait_s + ANSWER_MARGIN_S, connect=10.0)
    try:
        # Proxies of the environment are for the world outside, not for a service of one's own.
        headers = {"User-Agent": CLI_AGENT, **target.headers}
        url = f"{target.url}{path}"
        response = httpx.request(method, url, json=body, headers=headers, timeout=timeout, trust_env=False)
        answer = msgspec.json.decode(response.content, type=dict[str, Any])
    except httpx.ReadTimeout as error:
        words = f"{target.url} has not answered yet: what was asked for may be done all the same"
        raise Failure(f"{words}; see `letterbook status` before asking again") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Failure(f"{target.url} does not answer ({error}): is the service running?") from error
    except msgspec.MsgspecError as error:
        raise Failure(f"{target.url} answers, but it is no Letterbook") from error
    if response.status_code == 401:
        words = f"{target.url}: {answer.get('error', 'unauthorized')}"
        raise Failure(f"{words}; name the service's configuration by --config, or set LETTERBOOK_SERVER_API_TOKEN")
    return response.status_code, answer


def command(target: Target, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a command that was carried out. Raises Failure with the service's sentence where it was not."""
    status, answer = post(target, path, body)
    if status >= 300:
        raise Failure(str(answer.get("error", f"the service answers {status}")))
    return answer


# The live stream

Put = Callable[[bytes], Awaitable[None]]

TROUBLE = (
    OSError,
    trio.BrokenResourceError,
    trio.TooSlowError,
    trio_websocket.ConnectionClosed,
    trio_websocket.HandshakeError,
)
"""How a connection fails or ends; afterwards it is tried anew."""


class Refused(Exception):
    """The service does not stream this: the status and its sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Stream:
    """The facts of a service from a seq on, each once, across its restarts.

    `position` is the seq of the last fact that was given, or of the log's end as of the first heartbeat.
    """

    def __init__(self, target: Target, after: int | None, filters: Mapping[str, str]) -> None:
        self._target = target
        self._filters = filters
        self._log: str | None = None
        self.position = after

    async def follow(self, put: Put) -> None:
        """Await `put` with the JSON of every fact, until cancelled. Raises Refused; Failure where nobody is there."""
        pause_s = AGAIN_S_MIN
        while True:
            before = self.position, self._log
            try:
                await self._converse(put)
            except TROUBLE as error:
                self._give_up_at_first(error)
            pause_s = AGAIN_S_MIN if (self.position, self._log) != before else min(2 * pause_s, AGAIN_S_MAX)
            await trio.sleep(pause_s)

    def _give_up_at_first(self, error: Exception) -> None:
        """What refuses us will go on refusing; and where nothing has ever answered, there is nothing to wait for."""
        if isinstance(error, trio_websocket.ConnectionRejected) and error.status_code != 503:
            raise Refused(error.status_code, _sentence(error.body)) from error
        if self._log is None:
            raise Failure(f"{self._target.url} does not answer: is the service running?") from error

    async def _converse(self, put: Put) -> None:
        """One connection, until it ends."""
        async with trio_websocket.open_websocket_url(
            self._url(),
            extra_headers=[(name.encode(), value.encode()) for name, value in self._target.headers.items()],
            max_message_size=FRAME_BYTES_MAX,
            disconnect_timeout=PARTING_S,
        ) as websocket:
            while True:
                with trio.fail_after(SILENCE_S_MAX):
                    frame = await websocket.get_message()
                for event in self._take(frame):
                    await put(event)

    def _url(self) -> str:
        parts = urlsplit(self._target.url)
        fields = {**self._filters, "batch": "1"}
        if self.position is not None:
            fields["after"] = str(self.position)
        if self._log is not None:
            fields["log"] = self._log
        scheme = "wss" if parts.scheme == "https" else "ws"
        return f"{scheme}://{parts.netloc}{parts.path}/events/stream?{urlencode(fields)}"

    def _take(self, frame: str | bytes) -> list[bytes]:
        """A frame's facts; what they and the heartbeats say of where we are is remembered."""
        found = msgspec.json.decode(frame, type=_Frame)
        if found.heartbeat is not None:
            self._log = found.log
            self.position = max(self.position or 0, found.heartbeat)
        for event in found.events:
            self.position = msgspec.json.decode(event, type=_Seq).seq
        return [bytes(event) for event in found.events]


class _Frame(msgspec.Struct):
    events: tuple[msgspec.Raw, ...] = ()
    heartbeat: int | None = None
    log: str | None = None


class _Seq(msgspec.Struct):
    seq: int


def _sentence(body: bytes | None) -> str:
    """What the service says is wrong."""
    try:
        return str(msgspec.json.decode(body or b"{}", type=dict[str, Any]).get("error", "refused"))
    except msgspec.MsgspecError:
        return "refused"
