"""Calls to a real server that does what real servers do: every trouble is a value with a line for the operator."""

import gzip
import random
import socket

import httpx
import pytest

from actors.upstream import Answered, Trouble, back_off_s, call, shown

from .application import say, served


async def get(url: str, most: int = 1_000, **fields):
    async with httpx.AsyncClient() as client:
        return await call(client, "GET", url, body_bytes_max=most, **fields)


async def test_an_answer_is_read_whole():
    with served(lambda handler: say(handler, 200, handler.path.encode())) as url:
        assert await get(f"{url}/a", params={"token": "t &"}) == Answered(b"/a?token=t+%26")


async def test_a_status_is_trouble():
    for status in (302, 404, 500, 503):
        with served(lambda handler, status=status: say(handler, status, b"<html>")) as url:
            assert await get(url) == Trouble(f"it answered {status}", status)


async def test_a_redirect_is_not_followed():
    asked = []

    def answer(handler):
        asked.append(handler.path)
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.end_headers()

    with served(answer) as url:
        assert isinstance(await get(url), Trouble) and asked == ["/"]


async def test_a_huge_body_is_not_read_to_its_end():
    def answer(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"x" * 65536)

    with served(answer) as url:
        answered = await get(url)
        assert answered == Answered(b"x" * 1_000, whole=False)


async def test_a_compressed_body_is_not_taken_for_it_could_unfold_into_anything():
    def answer(handler):
        assert handler.headers["Accept-Encoding"] == "identity"
        body = gzip.compress(bytes(10_000_000))
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    with served(answer) as url:
        assert isinstance(await get(url), Trouble)


async def test_a_connection_that_ends_midway_is_trouble():
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half")
        handler.close_connection = True

    with served(answer) as url:
        assert isinstance(await get(url), Trouble)


async def test_what_speaks_no_http_is_trouble():
    def answer(handler):
        handler.wfile.write(b"220 relay.example ESMTP\r\n")
        handler.close_connection = True

    with served(answer) as url:
        assert isinstance(await get(url), Trouble)


async def test_nobody_there_is_trouble():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        trouble = await get(f"http://127.0.0.1:{taken.getsockname()[1]}")
    assert isinstance(trouble, Trouble) and trouble.status is None and trouble.text.startswith("ConnectError")


async def test_an_url_that_is_none_is_trouble():
    assert isinstance(await get("http://"), Trouble)
    assert isinstance(await get("ftp://127.0.0.1/"), Trouble)


async def test_silence_has_an_end(autojump_clock):
    async def never(request):
        import trio

        await trio.sleep_forever()

    async with httpx.AsyncClient(transport=httpx.MockTransport(never)) as client:
        trouble = await call(client, "GET", "http://a", body_bytes_max=1)
    assert trouble == Trouble("it took longer than 120 s")


@pytest.mark.parametrize(
    ("failures", "most"), [(1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (1000, 300), (10**6, 300)]
)
def test_the_wait_doubles_up_to_five_minutes_with_jitter(failures, most):
    waits = [back_off_s(failures, random.Random(seed)) for seed in range(50)]
    assert max(waits) <= most and min(waits) >= 0.8 * most and len(set(waits)) > 40


def test_passwords_in_addresses_are_not_shown():
    assert shown("https://user:secret@app.example:8/x") == "https://app.example:8/x"
