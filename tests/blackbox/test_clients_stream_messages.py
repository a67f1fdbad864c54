"""Tens of thousands of messages in one request, at a real process: each accepted once, in memory that does not grow
with their number."""

import json
import signal
from contextlib import aclosing
from pathlib import Path

import trio

from .service import TOKEN, WAIT_S_MAX, mail

MESSAGES = 20_000
LINE_BYTES = 8_000

GROWTH_MB_MAX = 150
"""Less than the 160 MB of the body alone, let alone what is made of it: a stream holds 4 MB. The rest are caches."""


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    raise AssertionError(pid)


def lines(first, last, **fields):
    pattern = json.dumps(mail("m<number>", account_id="a", **fields)).encode() + b"\n"
    return b"".join(pattern.replace(b"<number>", b"%d" % number) for number in range(first, last))


async def post(it, content, query=""):
    headers = {"Content-Type": "application/x-ndjson"}
    async with aclosing(content):
        response = await it.client.post(f"/commands/add-messages{query}", content=content, headers=headers)
    return response.status_code, response.json()


async def test_tens_of_thousands_of_messages_are_accepted_once_each_in_bounded_memory(service):
    it = await service()
    await it.account("a", 9)
    await it.post("/account/a/pause")
    before = rss_mb(it.pid)
    sent = 0

    async def content():
        nonlocal sent
        for first in range(0, MESSAGES, 100):
            part = lines(first, first + 100, body="x" * LINE_BYTES)
            sent += len(part)
            yield part
            if first % 10_000 == 0:
                yield b"nothing\r\n\r\n"
        # The same id again is what it would be in a request of its own: new content for the same message.
        yield lines(0, 10)

    status, answer = await post(it, content(), "?default_priority=low")
    assert status == 200 and answer["ok"], answer
    assert answer["queued"] == MESSAGES + 10 and answer["rejected_count"] == 2
    assert [each["reason"] for each in answer["rejected"]] == [f"not JSON: line {line}" for line in (101, 10_103)]
    grown = rss_mb(it.pid) - before
    print(f"grown by {grown:.0f} MB")
    assert sent > 160_000_000 and grown < GROWTH_MB_MAX, grown
    facts = await it.events("MessageAccepted")
    assert sorted(fact["id"] for fact in facts) == sorted(f"m{number}" for number in range(MESSAGES))
    assert {fact["priority"] for fact in facts} == {3}
    assert [fact["id"] for fact in await it.events("MessageRevised")] == [f"m{number}" for number in range(10)]
    assert (await it.status())["pending"] == MESSAGES


HEAD = (
    "POST /commands/add-messages HTTP/1.1\r\nHost: x\r\nX-API-Token: {token}\r\n"
    "Content-Type: application/x-ndjson\r\nContent-Length: 1000000\r\n\r\n"
)


async def test_a_service_that_stops_midway_says_how_far_it_had_come(service):
    it = await service()
    await it.account("a", 9)
    await it.post("/account/a/pause")
    stream = await trio.open_tcp_stream("127.0.0.1", int(it.url.rpartition(":")[2]))
    async with stream:
        await stream.send_all(HEAD.format(token=TOKEN).encode() + lines(0, 10) + lines(10, 11)[:50])
        await it.until("/status", lambda answer: answer["pending"] == 10)
        it.signal(signal.SIGTERM)
        said = b""
        with trio.fail_after(WAIT_S_MAX):
            while not said.endswith(b"}"):
                part = await stream.receive_some()
                assert part, said
                said += part
    answer = json.loads(said.partition(b"\r\n\r\n")[2])
    assert said.startswith(b"HTTP/1.1 503 ") and (answer["queued"], answer["lines"]) == (10, 10)
    assert await it.ended() == 0
    await it.start()
    assert (await it.status())["pending"] == 10
