"""The outside: TCP and TLS, and nothing else here touches a socket.

`Network` is all that the rest of the house knows of it; the simulation passes another one. What it raises is what
the operating system raises: OSError (socket.gaierror for names), ssl.SSLError, and anyio's EndOfStream and
BrokenResourceError from the streams.
"""

import socket
import ssl
from pathlib import Path
from typing import Protocol

import anyio
import trio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

HAPPY_EYEBALLS_SECONDS = 0.25
"""RFC 8305 section 5 recommends 250 ms before the next address of a host is tried beside the first."""


CA_FILE_BYTES_MAX = 10_000_000
"""All authorities of a system are a quarter of a megabyte; what is larger was named by mistake, and is read at once."""


class Network(Protocol):
    """Where relays are reached."""

    async def connect(self, host: str, port: int) -> ByteStream:
        """A stream to a host's first address that answers; OSError where none does."""

    async def start_tls(self, stream: ByteStream, host: str, context: ssl.SSLContext) -> ByteStream:
        """The same stream under TLS, its certificate checked against `host` as far as the context checks."""

    def tls_context(self, *, verify: bool, ca_file: str | None) -> ssl.SSLContext:
        """Whom to believe: the system's authorities or one private file, or anybody."""

    def close_now(self, stream: ByteStream) -> None:
        """Close without a word and without waiting; it may be called from a task that is being cancelled."""


class TrioNetwork:
    """The real one, over anyio's streams on Trio."""

    def __init__(self) -> None:
        # Loading the system's authorities takes about 20 ms, so a context is made once; the files are read once too.
        self._contexts: dict[tuple[bool, str | None], ssl.SSLContext] = {}

    async def connect(self, host: str, port: int) -> ByteStream:
        stream = await anyio.connect_tcp(host, port, happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS)
        # A command must not wait for the acknowledgement of the one before (Nagle against delayed ACK: 40 ms each).
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream

    async def start_tls(self, stream: ByteStream, host: str, context: ssl.SSLContext) -> ByteStream:
        """`standard_compatible=False`: many relays close after QUIT without TLS's own farewell, and nothing follows
        that could be cut short, since SMTP marks its own end."""
        return await TLSStream.wrap(
            stream, hostname=host.rstrip("."), ssl_context=context, server_side=False, standard_compatible=False
        )

    def tls_context(self, *, verify: bool, ca_file: str | None) -> ssl.SSLContext:
        key = (verify, ca_file)
        if key not in self._contexts:
            self._contexts[key] = make_context(verify=verify, ca_file=ca_file)
        return self._contexts[key]

    def close_now(self, stream: ByteStream) -> None:
        raw = stream.extra(SocketAttribute.raw_socket)
        if raw.fileno() >= 0:
            trio.lowlevel.notify_closing(raw)
            raw.close()


def make_context(*, verify: bool, ca_file: str | None) -> ssl.SSLContext:
    """TLS 1.2 or newer (the default since Python 3.10); OSError or ssl.SSLError where the file cannot be used."""
    if verify:
        _refuse_endless(ca_file)
        return ssl.create_default_context(cafile=ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _refuse_endless(ca_file: str | None) -> None:
    """OpenSSL reads whatever it is given to the end: of a pipe or a device there is none."""
    path = Path(ca_file) if ca_file else None
    if path and path.exists() and (not path.is_file() or path.stat().st_size > CA_FILE_BYTES_MAX):
        raise OSError(f"it is no file, or larger than {CA_FILE_BYTES_MAX:,} bytes")


def ca_file_fault(ca_file: str) -> str | None:
    """What is wrong with a file of authorities, or None where certificates can be held against it."""
    try:
        make_context(verify=True, ca_file=ca_file)
    except ssl.SSLError:
        return "it holds no certificate in PEM"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None
