"""A letter's attachments, fetched when it is sent: from a URL, a bucket, or a volume. How it works:

A sender that has recorded AttemptStarted asks for the letter to be filled before it composes. So whatever comes of it
is that attempt's end, and nothing is fetched that the log does not say was begun; an attempt that ends here delivered
to nobody, so it counts against no limit. It keeps its connection and its slot meanwhile, as with a slow relay; but a
fetch has `timeout_seconds` in all, where an SMTP stage has minutes.

All attachments of a letter are fetched at once, the first that fails ends the others. What can never succeed
(404, too large, not allowed) ends the message as an error; what may (5xx, time-outs, connections) is tried again like
a temporary refusal. REASONS is the table. The log has the attachment's place and the reason; its name, which may be
personal, stands with the words beside it.

*Memory.* A message holds `max_total_mb` at most, counted as the bytes come and after any Content-Encoding, which is
undone in bounded steps. All messages together hold `memory_mb`: a message takes room for the most it could need,
gives back what it did not need once it has all, and the rest when its attempt has ended. Who finds no room waits, in
order, for as long as a fetch may take. (The encoded and composed copies of a mail are not counted: about four times
as much, while it is sent.)

*Clouds.* For S3 and Azure obstore signs a URL, which is no call to anybody, and the guarded client fetches it: so the
limits, the errors and the guard against private addresses are the same for every source. (obstore's own client can
be kept from no address.) Google's buckets take a bearer token in a header.
"""

import datetime as dt
import zlib
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import httpcore
import httpx
import trio
from msgspec import Struct
from msgspec.structs import replace

from events.attempt import AttachmentReason
from events.letter import Attachment, Letter
from store import reading
from store.opening import Store
from store.views.volumes import VolumeRow

from .local_files import LeadsOut, NotThere, TooLarge, read_within
from .public_addresses import Network, NotPublic, Resolve, guarded_client
from .volumes import opened_config

REDIRECTS_MAX = 5
AT_ONCE_MAX = 4
"""Attachments of one message that are fetched at the same time."""

THREADS_MAX = 8
"""Local files are read and URLs signed in threads of their own, so that a hanging disk keeps only attachments."""

SIGNED_S = 300
"""How long a signed URL is good: longer than any fetch, for a machine whose clock is not quite right."""

DECODED_STEP_BYTES = 1_000_000
"""A bomb of a few kilobytes may become gigabytes: it is undone in steps of this size, each counted."""

SIGNING_S = 5
"""Credentials of the environment may have to be asked for (a role of the machine)."""


class Reason(Struct, frozen=True):
    """Why an attachment could not be had: whether it is of use to try again, and the words for people."""

    again: bool
    words: str


REASONS: Mapping[AttachmentReason, Reason] = {
    "not_found": Reason(False, "not found"),
    "no_volume": Reason(False, "no such volume for this account"),
    "not_allowed": Reason(False, "not a public address, or outside of its volume"),
    "refused": Reason(False, "access refused"),
    "too_large": Reason(False, "too large"),
    "redirects": Reason(False, f"more than {REDIRECTS_MAX} redirects, or one that leads nowhere"),
    "encoding": Reason(False, "in an encoding that is not known"),
    "unreachable": Reason(True, "cannot be reached"),
    "unavailable": Reason(True, "not available now"),
    "broken": Reason(True, "broke off, or was damaged"),
    "timeout": Reason(True, "did not come in time"),
    "busy": Reason(True, "no memory for attachments was free"),
}
"""A row a reason; the words stand in the error that clients read."""


class AttachmentPolicy(Struct, frozen=True):
    """What config.ini says; sizes in bytes."""

    timeout_s: float = 30.0
    bytes_max: int = 25_000_000
    total_bytes_max: int = 50_000_000
    memory_bytes_max: int = 250_000_000
    message_bytes_max: int = 50_000_000
    allowed: tuple[Network, ...] = ()


class AttachmentTrouble(Exception):
    """An attachment could not be had. `index` is its place in the letter."""

    def __init__(self, index: int, filename: str, reason: AttachmentReason, detail: str = "") -> None:
        self.field = f"attachments[{index}]"
        self.reason: AttachmentReason = reason
        self.again = REASONS[reason].again
        words = f"{detail} {REASONS[reason].words}".strip()
        self.text = f'attachment "{filename}": {words}'
        super().__init__(self.text)


class _Failed(Exception):
    """The same, before it is known whose it is."""

    def __init__(self, reason: AttachmentReason, detail: str = "") -> None:
        super().__init__(reason)
        self.reason: AttachmentReason = reason
        self.detail = detail


def is_remote(letter: Letter) -> bool:
    return any(each.content is None for each in letter.attachments)


# Memory


class Room:
    """Bytes that may be held; who finds too few waits, and nobody overtakes him."""

    def __init__(self, size: int) -> None:
        self.free = size
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    async def take(self, amount: int) -> None:
        if not self._waiting and amount <= self.free:
            self.free -= amount
            return
        place = (amount, trio.Event())
        self._waiting.append(place)
        try:
            await place[1].wait()
        except trio.Cancelled:
            if place in self._waiting:
                self._waiting.remove(place)
                self.give(0)
            else:
                self.give(amount)
            raise

    def give(self, amount: int) -> None:
        self.free += amount
        while self._waiting and self._waiting[0][0] <= self.free:
            taken, event = self._waiting.popleft()
            self.free -= taken
            event.set()


class _Meter:
    """What one message may still hold."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise _Failed("too_large")


class Filled(Struct, frozen=True, eq=False):
    """A letter with all its content; `first` is the place of the first that was fetched, and `release` is called when
    the letter has been sent."""

    letter: Letter
    first: int
    release: Callable[[], None]


# Where it is


class Asked(Struct, frozen=True):
    """A GET by the guarded client."""

    url: str
    headers: Mapping[str, str] = {}
    auth: tuple[str, str] | None = None


class Read(Struct, frozen=True):
    """A file of a local volume."""

    folder: str
    path: str


class Kept(Struct, frozen=True):
    """Something in a memory volume."""

    volume: str
    path: str


class Unsigned(Struct, frozen=True):
    """A GET whose URL has to be signed first, which may take its time. `sign` raises _Failed."""

    sign: Callable[[], str]


Source = Asked | Read | Kept | Unsigned
S3_KEYS = {
    "region": "region",
    "access_key": "access_key_id",
    "secret_key": "secret_access_key",
    "endpoint_url": "endpoint",
}
GOOGLE = "https://storage.googleapis.com"


def below(base_url: str, path: str) -> str:
    return f"{base_url.rstrip('/')}/{quote(path)}"


def place_in(name: str, backend: str, config: Mapping[str, str], path: str) -> Source:
    """Where a path of a volume is."""
    match backend:
        case "local":
            return Read(config["path"], path)
        case "http":
            return Asked(below(config["base_url"], path))
        case "webdav":
            user = config.get("username")
            auth = (user, config.get("password", "")) if user else None
            return Asked(below(config["base_url"], path), auth=auth)
        case "gcs":
            token = config.get("token")
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return Asked(below(f"{GOOGLE}/{config['bucket']}", path), headers)
        case "azure":
            return Unsigned(partial(azure_url, config, path))
        case "s3":
            return Unsigned(partial(s3_url, config, path))
    return Kept(name, path)


def s3_url(config: Mapping[str, str], key: str) -> str:
    """A signed URL for an object; without keys in `config` the environment's are taken."""
    from obstore.store import S3Store

    options = {ours: config[name] for name, ours in S3_KEYS.items() if name in config}
    return _signed(partial(S3Store, config["bucket"], **options), key)  # type: ignore[arg-type]  # the keys are its own


def azure_url(config: Mapping[str, str], path: str) -> str:
    from obstore.store import AzureStore

    account, container = config["account_name"], config["container"]
    if "account_key" not in config:
        return below(f"https://{account}.blob.core.windows.net/{container}", path)
    return _signed(partial(AzureStore, container, account_name=account, account_key=config["account_key"]), path)


def _signed(store: Callable[..., Any], path: str) -> str:
    """Raises _Failed where there is nothing to sign with, or the path can be no object's."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        # Times are for asking the machine for its role; nothing else is asked of anybody.
        short = {"max_retries": 1, "retry_timeout": dt.timedelta(seconds=SIGNING_S)}
        made = store(client_options={"allow_http": True, "timeout": f"{SIGNING_S}s"}, retry_config=short)
        return obstore.sign(made, "GET", path, dt.timedelta(seconds=SIGNED_S))
    except (TypeError, ValueError):
        raise _Failed("not_found") from None
    except BaseError:
        raise _Failed("unavailable", "no credentials to sign with:") from None


class Volumes(Struct, frozen=True):
    """The volumes as of now, with what opens them."""

    rows: tuple[VolumeRow, ...]
    configs: Mapping[str, Mapping[str, str] | None]

    def source(self, attachment: Attachment, account_id: str) -> Source:
        """Where an attachment is to be had for this account. Raises _Failed."""
        if attachment.url is not None:
            return Asked(attachment.url)
        if attachment.s3 is not None:
            config = self._of_bucket(attachment.s3.bucket, account_id)
            return Unsigned(partial(s3_url, config, attachment.s3.key))
        name, _, path = (attachment.storage_path or "").partition(":")
        row = next((row for row in self.rows if row.name == name and row.serves(account_id)), None)
        known = self.configs.get(name)
        if row is None or known is None:
            raise _Failed("no_volume")
        return place_in(name, row.backend, known, path)

    def _of_bucket(self, bucket: str, account_id: str) -> Mapping[str, str]:
        """The s3 volume of that bucket that serves the account, its own before a shared one; else the environment."""
        serving = [row for row in self.rows if row.backend == "s3" and row.serves(account_id)]
        for row in sorted(serving, key=lambda row: row.account_id is None):
            config = self.configs.get(row.name)
            if config and config["bucket"] == bucket:
                return config
        return {"bucket": bucket}


# Fetching


class Attachments:
    """What all senders share: the client, made when it is first needed, the memory, the threads."""

    def __init__(self, store: Store, policy: AttachmentPolicy, *, resolver: Resolve | None = None) -> None:
        self._store = store
        self.policy = policy
        self._resolver = resolver
        self._client: httpx.AsyncClient | None = None
        self._threads = trio.CapacityLimiter(THREADS_MAX)
        self.room = Room(policy.memory_bytes_max)
        self.memory: dict[tuple[str, str], bytes] = {}

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def fill(self, letter: Letter, account_id: str) -> Filled:
        """The letter with all content in it. Raises AttachmentTrouble."""
        first = next(index for index, each in enumerate(letter.attachments) if each.content is None)
        held = self.policy.total_bytes_max
        with trio.move_on_after(self.policy.timeout_s) as scope:
            await self.room.take(held)
        if scope.cancelled_caught:
            raise self._trouble(letter, first, "busy")
        try:
            contents = await self._fetch_all(letter, account_id)
            used = sum(map(len, contents.values()))
            self.room.give(held - used)
            held = used
            filled = [_with(each, contents.get(index)) for index, each in enumerate(letter.attachments)]
            return Filled(replace(letter, attachments=tuple(filled)), first, partial(self.room.give, held))
        except BaseException:
            self.room.give(held)
            raise

    def check_composed(self, filled: Filled, size: int) -> None:
        """What was fetched must not make a message too large. Raises AttachmentTrouble."""
        if size > self.policy.message_bytes_max:
            raise self._trouble(filled.letter, filled.first, "too_large", "makes the message")

    def _trouble(self, letter: Letter, index: int, reason: AttachmentReason, detail: str = "") -> AttachmentTrouble:
        return AttachmentTrouble(index, letter.attachments[index].filename, reason, detail)

    async def _fetch_all(self, letter: Letter, account_id: str) -> dict[int, bytes]:
        """The contents by their places, all within the time that a fetch has."""
        wanted = {index: each for index, each in enumerate(letter.attachments) if each.content is None}
        found: dict[int, bytes] = {}
        troubles: list[AttachmentTrouble] = []
        meter, places = _Meter(self.policy.total_bytes_max), trio.CapacityLimiter(AT_ONCE_MAX)
        with trio.move_on_after(self.policy.timeout_s):
            volumes = await self._volumes()
            async with trio.open_nursery() as nursery:

                async def fetch(index: int, attachment: Attachment) -> None:
                    async with places:
                        try:
                            found[index] = await self._fetch(attachment, volumes, account_id, meter)
                        except _Failed as failed:
                            troubles.append(self._trouble(letter, index, failed.reason, failed.detail))
                            nursery.cancel_scope.cancel()

                for index, attachment in wanted.items():
                    nursery.start_soon(fetch, index, attachment)
        if troubles:
            raise min(troubles, key=lambda trouble: trouble.again)
        for index in wanted:
            if index not in found:
                raise self._trouble(letter, index, "timeout")
        return found

    async def _volumes(self) -> Volumes:
        rows, sealed = await self._store.read(_all_volumes)
        return Volumes(rows, {name: opened_config(data, self._store.secrets) for name, data in sealed.items()})

    async def _fetch(self, attachment: Attachment, volumes: Volumes, account_id: str, meter: _Meter) -> bytes:
        source = volumes.source(attachment, account_id)
        if isinstance(source, Unsigned):
            source = Asked(await self._threaded(source.sign))
        if isinstance(source, Asked):
            return await self._ask(source, meter)
        if isinstance(source, Read):
            return await self._read(source, meter)
        content = self.memory.get((source.volume, source.path))
        if content is None:
            raise _Failed("not_found")
        if len(content) > self.policy.bytes_max:
            raise _Failed("too_large")
        meter.take(len(content))
        return content

    async def _threaded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A thread that hangs is left behind, and its place with it until it ends."""
        call = partial(function, *arguments)
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._threads)

    async def _read(self, file: Read, meter: _Meter) -> bytes:
        most = min(self.policy.bytes_max, max(meter.left, 0))
        try:
            content: bytes = await self._threaded(read_within, file.folder, file.path, most)
        except TooLarge:
            raise _Failed("too_large") from None
        except NotThere:
            raise _Failed("not_found") from None
        except LeadsOut:
            raise _Failed("not_allowed") from None
        except PermissionError:
            raise _Failed("refused") from None
        except OSError as error:
            raise _Failed("unavailable", error.strerror or "") from None
        meter.take(len(content))
        return content

    async def _ask(self, asked: Asked, meter: _Meter) -> bytes:
        try:
            return await self._get(asked, meter)
        except (NotPublic, httpx.InvalidURL):
            raise _Failed("not_allowed") from None
        except (httpx.TimeoutException, httpcore.TimeoutException):
            raise _Failed("timeout") from None
        except (httpcore.ConnectError, httpx.ConnectError):
            raise _Failed("unreachable") from None
        except (httpx.UnsupportedProtocol, httpcore.UnsupportedProtocol, httpx.LocalProtocolError):
            raise _Failed("redirects") from None
        except (httpx.HTTPError, httpcore.ProtocolError, httpcore.NetworkError, OSError, zlib.error):
            raise _Failed("broken") from None

    async def _get(self, asked: Asked, meter: _Meter) -> bytes:
        """Ask, and ask on where a redirect says so; the body of a redirect is not read."""
        if self._client is None:
            policy = self.policy
            self._client = guarded_client(policy.allowed, timeout_s=policy.timeout_s, resolver=self._resolver)
        # What is asked for needs no encoding; who sends one all the same is undone within the limits.
        headers = {"Accept-Encoding": "identity", "Accept": "*/*", "User-Agent": "letterbook", **asked.headers}
        request: httpx.Request | None = self._client.build_request("GET", asked.url, headers=headers)
        auth = httpx.BasicAuth(*asked.auth) if asked.auth else None
        for _ in range(REDIRECTS_MAX + 1):
            assert request is not None
            answer = await self._client.send(request, stream=True, auth=auth)
            # Credentials of a volume are for its own place: httpx takes them from a redirect to another origin.
            auth = None
            try:
                request = answer.next_request
                if request is None:
                    _judge_status(answer.status_code)
                    return await self._body(answer, meter)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await answer.aclose()
        raise _Failed("redirects")

    async def _body(self, answer: httpx.Response, meter: _Meter) -> bytes:
        decoder = Decoder(answer.headers.get("content-encoding", ""))
        whole, left = [], self.policy.bytes_max
        async for raw in answer.aiter_raw():
            for part in decoder.feed(raw):
                left -= len(part)
                if left < 0:
                    raise _Failed("too_large")
                meter.take(len(part))
                whole.append(part)
        decoder.end()
        return b"".join(whole)


def _all_volumes(connection: reading.Connection) -> tuple[tuple[VolumeRow, ...], dict[str, bytes]]:
    rows = reading.volumes(connection)
    return rows, reading.sealed_volumes(connection, [row.name for row in rows])


def _with(attachment: Attachment, content: bytes | None) -> Attachment:
    if content is None:
        return attachment
    encoded = b64encode(content).decode("ascii")
    return Attachment(attachment.filename, encoded, attachment.content_type, attachment.content_id)


LATER = frozenset({408, 421, 423, 425, 429})
"""The 4xx that say: ask again (RFC 9110, RFC 6585, RFC 8470, RFC 4918)."""


def _judge_status(status: int) -> None:
    """Raises _Failed for whatever brings no content."""
    if status in (200, 203):
        return
    if status in (404, 410):
        raise _Failed("not_found", str(status))
    if status >= 500 or status in LATER:
        raise _Failed("unavailable", str(status))
    if 300 <= status < 400:
        raise _Failed("redirects", str(status))
    raise _Failed("refused" if status >= 400 else "broken", str(status))


class Decoder:
    """Undoes a Content-Encoding (gzip or deflate, once), in bounded steps. Raises zlib.error, _Failed."""

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        if name not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise _Failed("encoding")
        self._undo = None
        if name not in ("", "identity"):
            self._undo = zlib.decompressobj(zlib.MAX_WBITS | (0 if name == "deflate" else 16))

    def feed(self, part: bytes) -> Iterator[bytes]:
        undo = self._undo
        if undo is None:
            yield part
            return
        while part and not undo.eof:
            yield undo.decompress(part, DECODED_STEP_BYTES)
            part = undo.unconsumed_tail

    def end(self) -> None:
        if self._undo is not None and not self._undo.eof:
            raise _Failed("broken")
