"""A world of relays without sockets: names resolve to scripted relays, and streams are memory.

Both ends of a stream share a fate: closing one ends the other, as a socket would.
"""

import ssl
from collections.abc import Awaitable, Callable

import anyio
import trio
import trio.testing
from anyio.abc import ByteStream

from letterbook.capture import CaptureRelay


class MemoryByteStream(ByteStream):
    """A Trio memory stream as the SMTP client wants it."""

    def __init__(self, stream: trio.StapledStream) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise anyio.BrokenResourceError from None
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        try:
            await self._stream.send_all(item)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise anyio.BrokenResourceError from None

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        self._stream.send_stream.close()
        self._stream.receive_stream.close()


Conversation = Callable[[trio.StapledStream], Awaitable[None]]
Relay = CaptureRelay | type[OSError] | Conversation


class World:
    """The network of a test: host names to relays. An exception's type is what connecting raises."""

    def __init__(self, nursery: trio.Nursery, relays: dict[str, Relay]) -> None:
        self._nursery = nursery
        self.relays = relays
        self.connects: list[str] = []

    async def connect(self, host: str, port: int) -> ByteStream:
        await trio.lowlevel.checkpoint()
        self.connects.append(host)
        relay = self.relays[host]
        if isinstance(relay, type):
            raise relay(host)
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(relay.converse if isinstance(relay, CaptureRelay) else relay, theirs)
        return MemoryByteStream(ours)

    async def start_tls(self, stream: ByteStream, host: str, context: ssl.SSLContext) -> ByteStream:
        raise ssl.SSLError("this world has no TLS")

    def tls_context(self, *, verify: bool, ca_file: str | None) -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def close_now(self, stream: ByteStream) -> None:
        assert isinstance(stream, MemoryByteStream)
        stream.close_now()


# Relays that a script of replies cannot be


def hangs_up_after(seconds: float, relay: CaptureRelay) -> Conversation:
    """The relay, each of whose connections ends without a word after so many seconds."""

    async def converse(stream: trio.StapledStream) -> None:
        with trio.move_on_after(seconds):
            await relay.converse(stream)
        await trio.aclose_forcefully(stream)

    return converse


def takes_at_most(count: int, relay: CaptureRelay) -> Conversation:
    """The relay, which greets what is more than so many connections with 421."""

    async def converse(stream: trio.StapledStream) -> None:
        if relay.connections < count:
            await relay.converse(stream)
        else:
            await stream.send_all(b"421 4.7.0 too many connections\r\n")
            await trio.aclose_forcefully(stream)

    return converse


def falls_silent_after(*replies: str) -> Conversation:
    """A relay that gives these replies, one for each time that it is spoken to, and then none."""

    async def converse(stream: trio.StapledStream) -> None:
        for reply in replies:
            await stream.send_all(f"{reply}\r\n".encode())
            if not await stream.receive_some(65536):
                return
        await trio.sleep_forever()

    return converse
