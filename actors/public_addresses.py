"""An HTTP client that reaches public addresses only, whatever a URL, a name server or a redirect says.

A client of ours may name a URL, and must not come by it to what only this machine can reach: a database beside it, an
administrator's page, a cloud's metadata at 169.254.169.254. Names cannot be judged, for a name server answers as it
likes and may answer otherwise the second time. So a name is resolved here, each address is judged, and the connection
goes to the very address that was judged; TLS and the Host header keep the name. Each redirect is a new request, and
comes by here again. What the environment says of proxies is left aside: behind one, nothing could be judged.

`allow_private_networks` names networks that may be reached all the same.
"""

import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import httpcore
import httpx
import trio

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a host, as texts. Raises OSError."""

CONNECTIONS_MAX = 32
"""Over all messages; each message has a few at once."""

IDLE_CONNECTIONS_MAX = 8
IDLE_S = 15.0

ADDRESSES_TRIED_MAX = 4
"""A name may have dozens of addresses, and each may take the whole time that the fetch has."""

NAMES_MAX = 16
"""Names that are looked up at the same time. A lookup cannot be cancelled, and whose name servers never answer keeps a
thread for half a minute: these are threads of their own, so that the relays' names go on being looked up."""

_NAT64 = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"))
"""RFC 6052 and RFC 8215: the IPv4 address stands in the last 32 bits (of the second, in the form that is in use)."""

_COMPATIBLE = ip_network("::/96")
_NOT_PUBLIC: tuple[Network, ...] = (
    ip_network("192.0.0.0/24"),
    ip_network("192.88.99.0/24"),
    ip_network("2001::/23"),
    ip_network("3fff::/20"),
    ip_network("5f00::/16"),
)
"""What Python 3.11 calls global and the registries of RFC 6890 do not: protocol assignments, the old 6to4 relays,
documentation (RFC 9637), segment routing (RFC 9602)."""


class NotPublic(Exception):
    """The host has no address that may be reached."""


def inner(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64, compatible), else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if found := address.ipv4_mapped or address.sixtofour:
        return found
    if any(address in network for network in _NAT64) or address in _COMPATIBLE and int(address) > 1:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Whether everybody can reach this address, so that reaching it from here shows nothing that is ours."""
    address = inner(address)
    if isinstance(address, IPv6Address) and address.is_site_local:
        return False
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _NOT_PUBLIC if network.version == address.version)
    )


def may_be_reached(text: str, allowed: Iterable[Network]) -> bool:
    """Whether an address is public, or in an allowed network. One with a zone (`fe80::1%eth0`) never is."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if "%" in text:
        return False
    candidates = (address, inner(address))
    return is_public(address) or any(each in network for network in allowed for each in candidates)


def system_names() -> Resolve:
    """The system's answers, by threads of its own."""
    places = trio.CapacityLimiter(NAMES_MAX)

    async def resolve(host: str, port: int) -> list[str]:
        ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=places)
        return [str(address[0]) for *_, address in found]

    return resolve


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that may be reached, and to nothing else."""

    def __init__(self, allowed: Iterable[Network], resolver: Resolve | None = None) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolver or system_names()
        self._backend = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A stream to the first address that may be reached and answers. Raises NotPublic, httpcore.ConnectError."""
        try:
            addresses = list(dict.fromkeys(await self._resolve(host, port)))
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name cannot be resolved: {error}") from error
        good = [address for address in addresses if may_be_reached(address, self._allowed)]
        if not good:
            raise NotPublic(host)
        failure: Exception = httpcore.ConnectError("no address")
        for address in good[:ADDRESSES_TRIED_MAX]:
            try:
                return await self._backend.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise NotPublic(path)

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Stream(httpx.AsyncByteStream):
    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        close = getattr(self._stream, "aclose", None)
        if close is not None:
            await close()


class GuardedTransport(httpx.AsyncBaseTransport):
    """httpcore's pool over the guarded backend. Its errors are httpcore's own, NotPublic among them."""

    def __init__(self, backend: GuardedBackend, context: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=CONNECTIONS_MAX,
            max_keepalive_connections=IDLE_CONNECTIONS_MAX,
            keepalive_expiry=IDLE_S,
            network_backend=backend,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        asked = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        answer = await self._pool.handle_async_request(asked)
        assert isinstance(answer.stream, AsyncIterable)
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Stream(answer.stream), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


def guarded_client(
    allowed: Iterable[Network], *, timeout_s: float, resolver: Resolve | None = None
) -> httpx.AsyncClient:
    """A client of which no request leaves the public network, nor is sent by way of a proxy; it follows no redirect,
    and keeps no cookie, for all accounts share it."""
    # Who uses it bounds the whole; of that an address that never answers has half, so that another has a chance.
    timeouts = httpx.Timeout(None, connect=timeout_s / 2)
    transport = GuardedTransport(GuardedBackend(allowed, resolver), ssl.create_default_context())
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        transport=transport, trust_env=False, follow_redirects=False, timeout=timeouts, cookies=no_cookies
    )
