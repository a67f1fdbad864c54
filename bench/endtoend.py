"""From HTTP to delivered and recorded: messages a second, and CPU microseconds of the service for each."""

import http.client
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
from msgspec import Struct

from .processes import Cpu, Service, service, sink

BODY = "x" * 70 + "\n"
BODY_BYTES = 1_000
ACCOUNTS = 4
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 600.0


class Rate(Struct, frozen=True):
    """What one run gave: `taken_seconds` until the last answer, `seconds` until the last end was in the log."""

    what: str
    messages: int
    taken_seconds: float
    seconds: float
    cpu: Cpu

    def line(self) -> str:
        each = 1e6 / self.messages
        return (
            f"{self.what}: {self.messages / self.seconds:,.0f} messages/s to delivered and recorded"
            f" (taken at {self.messages / self.taken_seconds:,.0f}/s);"
            f" CPU {self.cpu.total * each:.0f} us a message"
            f" (loop {self.cpu.loop * each:.0f}, writer and readers {self.cpu.others * each:.0f})"
        )


def message(number: int) -> dict[str, str]:
    return {
        "id": str(uuid.uuid4()),
        "account_id": f"account-{number % ACCOUNTS}",
        "from": "shop@sender.example",
        "to": f"customer-{number}@receiver.example",
        "subject": f"Your order {number}",
        "body": BODY * (BODY_BYTES // len(BODY)),
    }


def batches(messages: int, batch: int) -> list[bytes]:
    """The bodies, made before the clock runs."""
    return [
        msgspec.json.encode({"messages": [message(first + each) for each in range(min(batch, messages - first))]})
        for first in range(0, messages, batch)
    ]


def in_batches(served: Service, messages: int, batch: int) -> Rate:
    bodies = batches(messages, batch)

    def post() -> None:
        with httpx.Client(base_url=served.url, timeout=60) as client:
            for body in bodies:
                client.post("/commands/add-messages", content=body).raise_for_status()

    return _measure(f"batches of {batch}", served, messages, post)


def one_by_one(served: Service, messages: int, connections: int) -> Rate:
    bodies = batches(messages, 1)

    def post() -> None:
        with ThreadPoolExecutor(connections) as pool:
            list(pool.map(lambda start: _post_all(served.url, iter(bodies[start::connections])), range(connections)))

    return _measure(f"single posts over {connections} connections", served, messages, post)


def _post_all(url: str, bodies: Iterator[bytes]) -> None:
    """The standard library's client: what it costs is less of what is measured."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    for body in bodies:
        connection.request("POST", "/commands/add-messages", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise SystemExit(f"the service answered {response.status}")
    connection.close()


def _measure(what: str, served: Service, messages: int, post: Callable[[], None]) -> Rate:
    sent_before, cpu_before = _sent(served), served.cpu()
    began = time.monotonic()
    post()
    taken = time.monotonic()
    while _sent(served) - sent_before < messages:
        if time.monotonic() - taken > PATIENCE_SECONDS:
            raise SystemExit(f"{what}: {_sent(served) - sent_before} of {messages} delivered: giving up")
        time.sleep(POLL_SECONDS)
    ended = time.monotonic()
    return Rate(what, messages, taken - began, ended - began, served.cpu() - cpu_before)


def _sent(served: Service) -> int:
    for line in httpx.get(f"{served.url}/metrics", timeout=60).text.splitlines():
        if line.startswith('letterbook_messages{state="sent"}'):
            return int(float(line.rpartition(" ")[2]))
    return 0


def run(messages: int, singles: int, batch: int, connections: int) -> Iterator[str]:
    with sink() as relay, tempfile.TemporaryDirectory() as folder, service(Path(folder)) as served:
        yield f"sink: {relay.name}"
        for number in range(ACCOUNTS):
            account = {"id": f"account-{number}", "host": "127.0.0.1", "port": relay.port}
            httpx.post(f"{served.url}/account", json=account).raise_for_status()
        in_batches(served, min(messages, 1_000), batch)  # connections are warm, and what is imported late is imported
        yield in_batches(served, messages, batch).line()
        yield one_by_one(served, singles, connections).line()
