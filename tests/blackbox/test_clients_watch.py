"""The live stream of a busy log over real sockets: fifty thousand facts, to a client that keeps up, one that comes and
goes, one that stalls and one that vanishes."""

import json
import random
import signal
import socket

import trio
import trio_websocket

from .service import TOKEN, mail

FACTS = 50_000
BATCH = 1000
DRAIN_S = 5
TROUBLE = (trio_websocket.ConnectionClosed, trio_websocket.HandshakeError, OSError)


class Watcher:
    """What a client has seen, across all its connections."""

    def __init__(self):
        self.seqs = []
        self.log = None

    def take(self, frame):
        found = json.loads(frame)
        self.log = found.get("log", self.log)
        self.seqs += [event["seq"] for event in found.get("events", ())]

    async def watch(self, it, until):
        """One connection, from where the last one ended, until so many facts have been seen."""
        after = self.seqs[-1] if self.seqs else 0
        log = f"&log={self.log}" if self.log else ""
        url = f"{it.url.replace('http', 'ws', 1)}/events/stream?batch=1&after={after}{log}"
        async with trio_websocket.open_websocket_url(url, extra_headers=[("X-API-Token", TOKEN)]) as websocket:
            while len(self.seqs) < until:
                self.take(await websocket.get_message())


async def come_and_go(it, watcher, chance):
    """Connect again and again, each time for a random number of facts more."""
    while len(watcher.seqs) < FACTS:
        await watcher.watch(it, min(FACTS, len(watcher.seqs) + chance.randint(1, FACTS // 5)))


async def handshake(it):
    """A websocket as a bare socket with a small window, of which nothing is read but the answer to the upgrade."""
    client = trio.socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, _, port = it.url.removeprefix("http://").partition(":")
    await client.connect((host, int(port)))
    lines = (
        "GET /events/stream?after=0 HTTP/1.1", f"Host: {host}:{port}", f"X-API-Token: {TOKEN}", "Upgrade: websocket",
        "Connection: Upgrade", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "", "",
    )  # fmt: skip
    await client.send("\r\n".join(lines).encode())
    assert (await client.recv(12)).startswith(b"HTTP/1.1 101")
    return client


def vanish(client):
    """Without a word: the peer finds out from a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


async def make_facts(it):
    """Two facts a message, cheaply: accepted while dispatch is suspended, then withdrawn."""
    for start in range(0, FACTS // 2, BATCH):
        ids = [f"m{number}" for number in range(start, start + BATCH)]
        await it.add([mail(message_id, account_id="a") for message_id in ids])
        answer = await it.post("/commands/delete-messages", {"ids": ids})
        assert answer["removed"] == BATCH


async def test_fifty_thousand_facts_reach_every_client_without_gap_or_repeat(service):
    it = await service(server_drain_seconds=DRAIN_S)
    await it.account("a", 9)
    await it.post("/commands/suspend")
    stalled, vanishing = await handshake(it), await handshake(it)
    steady, fickle = Watcher(), Watcher()
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steady.watch, it, FACTS)
            nursery.start_soon(come_and_go, it, fickle, random.Random("fickle"))
            nursery.start_soon(make_facts, it)
            while len(steady.seqs) < FACTS // 4:
                await trio.sleep(0.05)
            vanish(vanishing)
    for watcher in (steady, fickle):
        assert watcher.seqs == list(range(1, len(watcher.seqs) + 1)) and len(watcher.seqs) >= FACTS
    it.signal(signal.SIGTERM)
    assert await it.ended(within_s=DRAIN_S + 2) == 0
    stalled.close()
    assert "Traceback" not in it.lines
