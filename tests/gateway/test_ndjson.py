"""NDJSON: bytes become lines however they come, and lines become decisions, in bounded memory."""

import json
import tracemalloc
from contextlib import aclosing

import pytest
import trio

from events.commands import Decision
from gateway import ndjson
from gateway.bodies import Bodies, Lease
from gateway.ndjson import BATCH_BYTES_MAX, LINE_BYTES_MAX, REJECTED_SHOWN_MAX, Line, Lines, Taken
from gateway.settings import Settings
from store.recorder import BYTES_A_TURN_MAX, FACTS_A_TURN_MAX

from .service import running

MOST = 12
LONG = b'"' + b"x" * (MOST - 1) + b'"'
FITS = b'"' + b"x" * (MOST - 2) + b'"'

CASES = {
    "nothing": (b"", []),
    "one line": (b'{"a":1}\n', [(1, b'{"a":1}')]),
    "the last line without its end": (b'{"a":1}\n{"b":2}', [(1, b'{"a":1}'), (2, b'{"b":2}')]),
    "CRLF": (b"1\r\n2\r\n", [(1, b"1"), (2, b"2")]),
    "CRLF cut off": (b"1\r\n2\r", [(1, b"1"), (2, b"2")]),
    "CR alone is no end": (b"1\r2\n", [(1, b"1\r2")]),
    "blank lines count and are passed over": (b"\n1\n\r\n \t \n2\n\n", [(2, b"1"), (5, b"2")]),
    "only blank lines": (b"\n\n \n", []),
    "blank at the end": (b"1\n  ", [(1, b"1")]),
    "white space around": (b"  1\t\n", [(1, b"1")]),
    "a byte order mark before the first line": (b"\xef\xbb\xbf1\n\xef\xbb\xbf2\n", [(1, b"1"), (2, b"\xef\xbb\xbf2")]),
    "a byte order mark and nothing": (b"\xef\xbb\xbf\n1\n", [(2, b"1")]),
    "as long as a line may be": (FITS + b"\n1\n", [(1, FITS), (2, b"1")]),
    "too long": (LONG + b"\n1\n", [(1, None), (2, b"1")]),
    "much too long": (LONG * 50 + b"\n1\n", [(1, None), (2, b"1")]),
    "too long at the end": (b"1\n" + LONG, [(1, b"1"), (2, None)]),
    "too long and blank": (b" " * 50 + b"\n1\n", [(1, None), (2, b"1")]),
    "other line ends are no ends": ("a\u2028b\u0085\n".encode(), [(1, "a\u2028b\u0085".encode())]),
    "NUL": (b"\0\n", [(1, b"\0")]),
}


def cut(data, size):
    """The lines of data that comes in parts of this size."""
    lines, found = Lines(MOST), []
    for start in range(0, len(data), size):
        found += lines.feed(data[start : start + size])
        assert lines.held <= MOST
    return [(line.number, line.text) for line in found + lines.end()]


@pytest.mark.parametrize("case", CASES)
def test_bytes_become_lines_whole_byte_by_byte_and_in_odd_parts(case):
    data, wanted = CASES[case]
    for size in (len(data) or 1, 1, 2, 3, 7):
        assert cut(data, size) == wanted, size


@pytest.mark.parametrize("case", CASES)
def test_what_comes_behind_is_a_line_of_its_own(case):
    data, wanted = CASES[case]
    behind = data if data.endswith(b"\n") or not data else data + b"\n"
    number = behind.count(b"\n") + 1
    for size in (len(data) + 4, 1):
        assert cut(behind + b"[9]\n", size) == [*wanted, (number, b"[9]")]


def test_of_a_line_that_is_too_long_nothing_is_kept():
    lines = Lines(MOST)
    for _ in range(1000):
        assert lines.feed(b"x" * 10) == [] and lines.held <= MOST
    assert lines.feed(b"\n") == [Line(1, None)] and lines.held == 0


def test_a_line_in_tiny_parts_takes_no_more_memory_than_it_has_bytes():
    lines, size = Lines(), 200_000
    tracemalloc.start()
    try:
        for start in range(0, size, 2):
            lines.feed(b"%02d" % (start % 90))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines.held == size and most < 4 * size


class AtOnce:
    """A door behind which every item is taken at once; when each was handed over."""

    def __init__(self):
        self.settings = Settings()
        self.stopping = trio.Event()
        self.handed = []

    async def submit(self, items, by, lease, **fields):
        self.handed += [(bytes(item), trio.current_time()) for item in items]
        return tuple(Decision(None, 1, seq=1) for _ in items)


async def test_no_line_waits_longer_for_company_than_it_lingers_however_steadily_others_come(autojump_clock):
    door, came, numbers = AtOnce(), {}, iter(range(50))

    async def receive():
        await trio.sleep(0.15)
        if (number := next(numbers, None)) is None:
            return {"type": "http.request"}
        came[b"%d" % number] = trio.current_time()
        return {"type": "http.request", "body": b"%d\n" % number, "more_body": True}

    stream = ndjson._Stream(door, "test", Lease(Bodies(1_000_000)))
    assert await stream.take(receive) and stream.taken.queued == 50
    assert max(at - came[item] for item, at in door.handed) <= ndjson.LINGER_S + 0.001


def test_the_limits_fit_together():
    settings = Settings()
    assert settings.max_batch <= FACTS_A_TURN_MAX and BATCH_BYTES_MAX <= BYTES_A_TURN_MAX
    assert settings.body_memory_bytes > LINE_BYTES_MAX * 2 + BATCH_BYTES_MAX
    assert ndjson.LINGER_S < ndjson.IDLE_S_MAX


def test_a_thousand_rejections_are_listed_and_all_are_counted():
    taken = Taken()
    for number in range(1, REJECTED_SHOWN_MAX + 11):
        taken.decided(Line(number, b"x"), Decision(None, reason="not JSON", recorded=False))
    assert (len(taken.rejected), taken.rejected_count) == (REJECTED_SHOWN_MAX, REJECTED_SHOWN_MAX + 10)
    assert taken.rejected[-1] == {"reason": f"not JSON: line {REJECTED_SHOWN_MAX}"}


# Against a real server


def line(name, **fields):
    return json.dumps({"id": name, "from": "a@example.org", "to": ["b@example.org"], **fields}).encode() + b"\n"


async def post(client, content, query=""):
    path, headers = f"/commands/add-messages{query}", {"Content-Type": "application/x-ndjson"}
    if isinstance(content, bytes):
        return await client.post(path, content=content, headers=headers)
    async with aclosing(content):
        return await client.post(path, content=content, headers=headers)


async def known_ids(service):
    statement = "select id from messages order by number"
    return [name for (name,) in await service.store.read(lambda connection: connection.execute(statement).fetchall())]


async def in_parts(*parts):
    for part in parts:
        yield part


async def test_lines_are_taken_in_batches_and_told_together(tmp_path):
    async with running(tmp_path, max_batch=3) as service, service.client() as client:
        lines = [line(f"m{number}") for number in range(7)]
        lines.insert(2, b"{}\n")
        answer = await post(client, in_parts(b"".join(lines)))
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "ok": True, "queued": 7, "rejected": [{"reason": "missing id", "line": 3}], "rejected_count": 1,
        }  # fmt: skip
        assert [len(each.items) for each in service.submitted] == [3, 3, 2]
        assert all(each.apart and each.by == "api" for each in service.submitted)
        assert service.door.bodies.held == 0


async def test_large_lines_are_cut_into_batches_by_their_bytes(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        lines = [line(f"m{number}", body="x" * 1_500_000) for number in range(6)]
        assert (await post(client, in_parts(*lines))).json()["queued"] == 6
        sizes = [sum(map(len, each.items)) for each in service.submitted]
        assert len(sizes) >= 3 and max(sizes) <= BATCH_BYTES_MAX and service.door.bodies.held == 0


async def test_a_line_that_is_too_long_is_rejected_and_the_stream_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(ndjson, "LINE_BYTES_MAX", 1000)
    async with running(tmp_path) as service, service.client() as client:
        answer = await post(
            client, line("a") + line("b", body="x" * 5000) + line("c") + line("d", body="x" * 5000)[:-1]
        )
        told = answer.json()
        assert told["queued"] == 2 and told["rejected_count"] == 2
        assert told["rejected"] == [{"reason": f"message too large: line {number}"} for number in (2, 4)]


async def test_a_line_that_no_memory_could_hold_is_too_long_whatever_its_size(tmp_path):
    async with running(tmp_path, body_memory_bytes=200_000, max_body_bytes=100_000) as service, service.client() as it:
        told = (await post(it, in_parts(line("a", body="x" * 150_000), line("b")))).json()
        assert told["queued"] == 1 and told["rejected"] == [{"reason": "message too large: line 1"}]


async def test_the_body_may_be_longer_than_any_other_and_declared(tmp_path):
    async with running(tmp_path, max_body_bytes=10_000, body_memory_bytes=1_000_000) as service, service.client() as it:
        content = b"".join(line(f"m{number}", body="x" * 2000) for number in range(100))
        told = (await post(it, content)).json()
        assert told["queued"] == 100 and len(content) > 200_000 and service.door.bodies.held == 0


async def test_default_priority_stands_in_the_address(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for query, wanted in (("", None), ("?default_priority=high", 1), ("?default_priority=9&x=1", 3)):
            assert (await post(client, line(f"m{query}"), query)).json()["queued"] == 1
            assert service.submitted[-1].default_priority == wanted
        answer = await post(client, line("never"), "?default_priority=soon")
        assert answer.status_code == 400 and "default_priority is none of immediate" in answer.json()["error"]
        assert len(service.submitted) == 3


async def test_nothing_at_all_is_an_answer(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        nothing = {"ok": True, "queued": 0, "rejected": [], "rejected_count": 0}
        for content in (b"", b"\n\r\n", b"\xef\xbb\xbf"):
            assert (await post(client, content)).json() == nothing
        assert service.submitted == []


async def test_only_add_messages_is_streamed(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        headers = {"Content-Type": "application/x-ndjson; charset=utf-8"}
        assert (await client.post("/commands/send-message", content=line("a"), headers=headers)).status_code == 415
        assert (await client.request("GET", "/commands/add-messages", headers=headers)).status_code == 405
        assert (await client.post("/commands/add-messages", content=line("a"), headers=headers)).status_code == 200
        client.headers["X-API-Token"] = "wrong"
        assert (await post(client, line("b"))).status_code == 401
        assert len(service.submitted) == 1


async def test_a_client_that_trickles_is_not_kept_waiting(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        answers = []
        first_taken = trio.Event()

        async def trickle():
            yield line("first")
            await first_taken.wait()
            yield line("second")

        async def send():
            answers.append((await post(client, trickle())).json())

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                async with service.store.follow(0) as batches:
                    nursery.start_soon(send)
                    async for batch in batches:
                        if any(entry.kind == "MessageAccepted" for entry in batch.entries):
                            break
                first_taken.set()
        assert answers[0]["queued"] == 2 and len(service.submitted) == 2


async def test_a_client_faster_than_ingest_is_slowed_down(tmp_path):
    """While nobody takes what came, no more is read than a batch, the parts ahead, and the socket's buffers."""
    sent = 0

    async def endless():
        nonlocal sent
        for number in range(100_000):
            yield line(f"m{number}", body="x" * 10_000)
            sent += 10_000

    async with running(tmp_path, max_batch=20) as service, service.client() as client:
        service.holding = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, client, endless())
            with trio.fail_after(30):
                while not service.submitted:
                    await trio.sleep(0.01)
            seen = -1
            while seen != sent:
                seen = sent
                await trio.sleep(0.3)
            assert len(service.submitted) == 1 and sent < 50_000_000
            assert service.door.bodies.held < 1_000_000
            nursery.cancel_scope.cancel()
        service.holding.set()


@pytest.mark.parametrize("trouble", ["stop", "disk", "backlog", "memory"])
async def test_what_ends_a_stream_early_is_told_with_what_was_taken(tmp_path, trouble):
    async with running(tmp_path, max_batch=2, body_memory_bytes=64_000) as service, service.client() as client:

        async def content():
            yield line("a") + b"nothing\n" + line("b")
            with trio.fail_after(30):
                while len(service.submitted) < 2:
                    await trio.sleep(0.01)
            if trouble == "stop":
                service.door.stopping.set()
            elif trouble == "disk":
                service.door.disk_low = lambda: True
            elif trouble == "backlog":
                service.door.settings = Settings(max_backlog=1, max_batch=2)
            elif trouble == "memory":
                service.door.bodies.held += 63_000
            for number in range(10):
                yield line(f"c{number}", body="x" * 3000)

        answer = await post(client, content())
        told = answer.json()
        assert answer.status_code == 503 and answer.headers["retry-after"], told
        assert told["ok"] is False and told["error"] == told["detail"]
        known = set(await known_ids(service))
        # What came of the lines that are counted is so; nobody is told that a line was taken which was not.
        assert told["queued"] == len(known) and {"a", "b"} <= known
        assert told["rejected"] == [{"reason": "not JSON: line 2"}] and told["rejected_count"] == 1
        assert 3 <= told["lines"] < 13
        if trouble == "memory":
            service.door.bodies.held -= 63_000
        assert service.door.bodies.held == 0


HEAD = (
    b"POST /commands/add-messages HTTP/1.1\r\nHost: x\r\nX-API-Token: a token\r\n"
    b"Content-Type: application/x-ndjson\r\nContent-Length: 100000\r\n\r\n"
)


async def test_a_client_that_falls_silent_is_told_what_was_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(ndjson, "IDLE_S_MAX", 0.5)
    async with running(tmp_path) as service, await trio.open_tcp_stream("127.0.0.1", service.port) as stream:
        await stream.send_all(HEAD + line("a") + line("b") + line("c")[:20])
        said = b""
        with trio.fail_after(30):
            while not said.endswith(b"}"):
                said += await stream.receive_some()
        told = json.loads(said.partition(b"\r\n\r\n")[2])
        assert said.startswith(b"HTTP/1.1 408 ") and (told["queued"], told["lines"]) == (2, 2)
        assert await known_ids(service) == ["a", "b"]


async def test_a_client_that_vanishes_leaves_what_was_taken(tmp_path):
    async with running(tmp_path, max_batch=2) as service:
        stream = await trio.open_tcp_stream("127.0.0.1", service.port)
        await stream.send_all(HEAD + line("a") + line("b") + line("c") + line("d")[:20])
        with trio.fail_after(30):
            while sum(len(each.items) for each in service.submitted) < 3:
                await trio.sleep(0.01)
        await stream.aclose()
        with trio.fail_after(30):
            while service.door.bodies.held:
                await trio.sleep(0.01)
        assert await known_ids(service) == ["a", "b", "c"]
