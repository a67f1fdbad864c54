"""Who may be reached: the address that is connected to decides, never the name."""

import ssl
import threading
from contextlib import suppress
from functools import partial
from ipaddress import ip_address, ip_network

import httpcore
import httpx
import pytest
import trio
import trio.testing
import trustme

from actors.public_addresses import (
    NAMES_MAX,
    GuardedBackend,
    NotPublic,
    guarded_client,
    is_public,
    may_be_reached,
    system_names,
)

PUBLIC = ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]

NOT_PUBLIC = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.1.2.3",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::10.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a00:1",
    "64:ff9b:1::a9fe:a9fe",
    "100::1",
    "2001:0:a00:1::",
    "2001:db8::1",
    "2002:a00:1::",
    "2002:7f00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_what_everybody_reaches_is_public(text):
    assert is_public(ip_address(text)) and may_be_reached(text, ())


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_what_only_this_machine_may_reach_is_not_in_whatever_form_it_is_written(text):
    assert not is_public(ip_address(text)) and not may_be_reached(text, ())


@pytest.mark.parametrize("text", ["fe80::1%eth0", "8.8.8.8%eth0", "nonsense", "", "0x7f000001", "127.1"])
def test_what_is_no_plain_address_is_never_reached(text):
    assert not may_be_reached(text, (ip_network("::/0"), ip_network("0.0.0.0/0")))


def test_a_private_network_that_is_named_may_be_reached_and_its_neighbours_not():
    allowed = (ip_network("10.1.0.0/16"), ip_network("fd00:20::/64"))
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd00:20::5"):
        assert may_be_reached(text, allowed)
    for text in ("10.2.0.1", "169.254.169.254", "fd00:21::1"):
        assert not may_be_reached(text, allowed)


def answering(*addresses):
    """A name server that says the same of every name."""
    asked = []

    async def resolver(host, port):
        asked.append(host)
        return list(addresses)

    resolver.asked = asked
    return resolver


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.169.254", "::ffff:7f00:1"])
async def test_a_name_whose_server_answers_a_private_address_is_not_connected_to(address):
    backend = GuardedBackend((), answering(address))
    with pytest.raises(NotPublic):
        await backend.connect_tcp("files.example", 80)


async def test_of_several_addresses_only_those_that_may_be_reached_are_tried():
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, _hold, 0)
        port = listeners[0].socket.getsockname()[1]
        backend = GuardedBackend([ip_network("127.0.0.1/32")], answering("169.254.169.254", "10.0.0.1", "127.0.0.1"))
        stream = await backend.connect_tcp("files.example", port, timeout=30)
        assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def _hold(stream):
    await stream.receive_some()


async def test_a_name_that_does_not_resolve_is_an_error_of_connecting():
    async def resolver(host, port):
        raise OSError("no such name")

    with pytest.raises(httpcore.ConnectError):
        await GuardedBackend((), resolver).connect_tcp("files.example", 80)


async def test_names_that_hang_keep_no_thread_that_others_use(monkeypatch):
    """The relays' names are looked up by Trio's own threads."""
    asked, ended = threading.Semaphore(0), threading.Event()

    def hangs(*arguments, **named):
        asked.release()
        ended.wait(60)
        raise OSError("no such name")

    monkeypatch.setattr("socket.getaddrinfo", hangs)
    resolve = system_names()
    try:
        async with trio.open_nursery() as nursery:
            for number in range(NAMES_MAX + 1):
                nursery.start_soon(resolve, f"{number}.example", 80)
            for _ in range(NAMES_MAX):
                await trio.to_thread.run_sync(asked.acquire)
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            await trio.testing.wait_all_tasks_blocked()
            assert not asked.acquire(blocking=False), "more were asked for at once than may be"
            nursery.cancel_scope.cancel()
    finally:
        ended.set()


async def test_a_unix_socket_is_nothing_public():
    with pytest.raises(NotPublic):
        await GuardedBackend(()).connect_unix_socket("/run/secret.sock")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/",
        "http://[::1]:1/",
        "http://[::ffff:127.0.0.1]:1/",
        "http://localhost:1/",
        "http://2130706433:1/",
        "http://0177.0.0.1:1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0:1/",
        "https://10.0.0.1/",
    ],
)
async def test_no_way_of_writing_an_address_gets_by(url):
    async with guarded_client((), timeout_s=30) as client:
        with pytest.raises((NotPublic, httpcore.ConnectError, httpx.InvalidURL)):
            await client.get(url)


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    resolver = answering("10.0.0.1")
    async with guarded_client((), timeout_s=30, resolver=resolver) as client:
        with pytest.raises(NotPublic):
            await client.get("http://files.example/")
    assert resolver.asked == ["files.example"]


async def test_the_name_stays_in_the_host_header_and_the_judged_address_is_connected_to():
    seen = []

    async def handler(stream):
        seen.append(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handler, 0)
        port = listeners[0].socket.getsockname()[1]
        allowed = [ip_network("127.0.0.0/8")]
        async with guarded_client(allowed, timeout_s=30, resolver=answering("127.0.0.1")) as client:
            answer = await client.get(f"http://files.example:{port}/x")
            assert isinstance(answer, httpx.Response) and answer.text == "ok"
        assert f"host: files.example:{port}".encode() in seen[0].lower()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("certified", "good"), [("files.example", True), ("other.example", False)])
async def test_over_tls_the_certificate_is_held_against_the_name_and_not_the_address(
    tmp_path, monkeypatch, certified, good
):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certified).configure_cert(context)
    asked = []
    context.sni_callback = lambda socket, name, context: asked.append(name)

    async def handler(stream):
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        # A client that does not believe the certificate hangs up.
        with suppress(trio.BrokenResourceError):
            if await tls.receive_some():
                await tls.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        allowed = [ip_network("127.0.0.0/8")]
        async with guarded_client(allowed, timeout_s=30, resolver=answering("127.0.0.1")) as client:
            if good:
                assert (await client.get(f"https://files.example:{port}/x")).text == "ok"
            else:
                with pytest.raises(httpcore.ConnectError):
                    await client.get(f"https://files.example:{port}/x")
        nursery.cancel_scope.cancel()
    assert asked == ["files.example"]
