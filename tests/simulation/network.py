"""A network without sockets: two pipes a connection, which deliver in order or are cut at any byte.

A connection belongs to the life of the service that opened it. When that life crashes, its connections are cut: what
was sent before arrives, and nothing after.
"""

import math
import random
import ssl
from collections.abc import Callable
from typing import Protocol

import anyio
import trio
from anyio.abc import ByteStream

CAPACITY = 16_384
"""A peer that does not read makes a sender wait after so many bytes."""


class Pipe:
    """Bytes in one direction. `cut_after` bytes, if any, arrive; then the whole connection is gone."""

    def __init__(self, cut: Callable[[], None], cut_after: int | None) -> None:
        self._data = bytearray()
        self._lot = trio.lowlevel.ParkingLot()
        self._cut = cut
        self._left = cut_after
        self.closed = False

    async def send(self, data: bytes) -> None:
        if self._left is not None and len(data) >= self._left:
            data = data[: self._left]
            self._put(data)
            self._cut()
            await trio.lowlevel.checkpoint()
            raise anyio.BrokenResourceError
        if self._left is not None:
            self._left -= len(data)
        self._put(data)
        await trio.lowlevel.checkpoint()
        while len(self._data) > CAPACITY and not self.closed:
            await self._lot.park()
        if self.closed:
            raise anyio.BrokenResourceError

    def _put(self, data: bytes) -> None:
        if self.closed:
            raise anyio.BrokenResourceError
        self._data += data
        self._lot.unpark_all()

    async def receive(self) -> bytes:
        """What there is; empty once nothing more will come."""
        await trio.lowlevel.checkpoint()
        while not self._data and not self.closed:
            await self._lot.park()
        data = bytes(self._data)
        self._data.clear()
        self._lot.unpark_all()
        return data

    def close(self, *, lose: bool = False) -> None:
        self.closed = True
        if lose:
            self._data.clear()
        self._lot.unpark_all()


class Connection:
    """Both pipes, whose fate is one. A reset loses what the service has not read yet."""

    def __init__(self, chance: random.Random, cut_up: int | None, cut_down: int | None) -> None:
        self._chance = chance
        self.up = Pipe(self.cut, cut_up)
        self.down = Pipe(self.cut, cut_down)
        self.closed_at = math.inf

    def cut(self) -> None:
        self.closed_at = min(self.closed_at, trio.current_time())
        self.up.close()
        self.down.close(lose=self._chance.random() < 0.5)

    def close(self) -> None:
        self.closed_at = min(self.closed_at, trio.current_time())
        self.up.close()
        self.down.close()


class ServiceEnd(ByteStream):
    """The end that the service holds. `sending` sees every piece before its first byte leaves."""

    def __init__(self, connection: Connection, sending: Callable[[bytes], None]) -> None:
        self.connection = connection
        self._sending = sending

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self.connection.down.receive()
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        if self.connection.up.closed:
            await trio.lowlevel.checkpoint()
            raise anyio.BrokenResourceError
        self._sending(bytes(item))
        await self.connection.up.send(bytes(item))

    async def send_eof(self) -> None:
        self.connection.up.close()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.connection.close()
        await trio.lowlevel.checkpoint()


class Host(Protocol):
    """What can be connected to. `arrive` raises OSError, or waits as a host that answers nothing does."""

    chance: random.Random

    async def arrive(self) -> None: ...
    def cuts(self) -> tuple[int | None, int | None]: ...
    async def converse(self, connection: Connection, life: int) -> None: ...
    def sending(self, data: bytes, connection: Connection, life: int) -> None: ...


class LifeNetwork:
    """The network as one life of the service sees it."""

    def __init__(self, nursery: trio.Nursery, hosts: dict[str, Host], life: int) -> None:
        self._nursery = nursery
        self._hosts = hosts
        self._life = life
        self._open: list[Connection] = []
        self._dead = False

    async def connect(self, host: str, port: int) -> ByteStream:
        await trio.lowlevel.checkpoint()
        relay = self._hosts[host]
        await relay.arrive()
        if self._dead:
            raise ConnectionRefusedError(host)
        connection = Connection(relay.chance, *relay.cuts())
        self._open = [each for each in self._open if not each.up.closed] + [connection]
        self._nursery.start_soon(relay.converse, connection, self._life)
        return ServiceEnd(connection, lambda data: relay.sending(data, connection, self._life))

    async def start_tls(self, stream: ByteStream, host: str, context: ssl.SSLContext) -> ByteStream:
        raise ssl.SSLError("no relay here offers TLS")

    def tls_context(self, *, verify: bool, ca_file: str | None) -> ssl.SSLContext:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    def close_now(self, stream: ByteStream) -> None:
        assert isinstance(stream, ServiceEnd)
        stream.connection.close()

    def die(self) -> None:
        """The process is gone: the kernel closes what it had open."""
        self._dead = True
        for connection in self._open:
            connection.close()
