"""Places that attachments come from, for tests: a real HTTP server that behaves as its paths say, and S3 by moto."""

import base64
import gzip
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

CONTENT = bytes(range(256)) * 40
BOMB_BYTES = 200_000_000


def bomb() -> bytes:
    """Some hundred kilobytes that become two hundred megabytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    parts = [packer.compress(bytes(1_000_000)) for _ in range(BOMB_BYTES // 1_000_000)]
    return b"".join([*parts, packer.flush()])


class Handler(BaseHTTPRequestHandler):
    """`/ok` and so on; `/to/URL` is a redirect to that URL, `/hop/N` goes round N times, `/status/N` answers N."""

    protocol_version = "HTTP/1.1"
    bomb = bomb()
    server: "Files"

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        kind, _, rest = urlsplit(self.path).path[1:].partition("/")
        getattr(self, f"get_{kind}", self.get_status)(rest)

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def get_ok(self, rest: str) -> None:
        self.send(CONTENT)

    def get_cookie(self, rest: str) -> None:
        self.send(CONTENT, Set_Cookie="login=ann; Path=/")

    def get_size(self, rest: str) -> None:
        self.send(bytes(int(rest)))

    def get_gzip(self, rest: str) -> None:
        self.send(gzip.compress(CONTENT), Content_Encoding="gzip")

    def get_deflate(self, rest: str) -> None:
        self.send(zlib.compress(CONTENT), Content_Encoding="deflate")

    def get_bomb(self, rest: str) -> None:
        self.send(self.bomb, Content_Encoding="gzip")

    def get_cut(self, rest: str) -> None:
        self.send(gzip.compress(CONTENT)[:-20], Content_Encoding="gzip")

    def get_garbage(self, rest: str) -> None:
        self.send(b"no gzip at all", Content_Encoding="gzip")

    def get_brotli(self, rest: str) -> None:
        self.send(b"x", Content_Encoding="br")

    def get_short(self, rest: str) -> None:
        self.send(CONTENT, Content_Length=str(len(CONTENT) + 10))
        self.close_connection = True

    def get_status(self, rest: str) -> None:
        self.send(b"no", int(rest) if rest.isdigit() else 404)

    def get_to(self, rest: str) -> None:
        self.send(self.bomb, 302, Location=unquote(rest), Content_Encoding="gzip")

    def get_hop(self, rest: str) -> None:
        left = int(rest)
        self.send(b"", 307, Location=f"/hop/{left - 1}" if left > 1 else "/ok")

    def get_drip(self, rest: str) -> None:
        """A byte now and then, for longer than anybody waits."""
        self.send(b"a", Content_Length="100000")
        while not self.server.ended.wait(0.02):
            self.wfile.write(b"a")

    def get_login(self, rest: str) -> None:
        wanted = "Basic " + base64.b64encode("ann:p:w\u00fc".encode()).decode()
        if self.headers.get("Authorization") == wanted:
            self.send(CONTENT)
        else:
            self.send(b"", 401)

    def log_message(self, *arguments: Any) -> None:
        pass


class Files(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.ended = threading.Event()
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away: that is what some of these paths are for."""


@contextmanager
def files() -> Iterator[Files]:
    server = Files()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def s3(**objects: bytes) -> Iterator[str]:
    """moto's S3 with a bucket `invoices` that holds these; its URL."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="AK", aws_secret_access_key="SK", region_name="us-east-1"
        )
        client.create_bucket(Bucket="invoices")
        for key, body in objects.items():
            client.put_object(Bucket="invoices", Key=key, Body=body)
        client.close()
        yield url
    finally:
        server.stop()
