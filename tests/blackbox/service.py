"""`letterbook serve` as a process of its own, and what a test asks of it: over HTTP, by signals, by the command line.

A test waits for what it can see (a line of the service's, a fact, a result, a message at a relay) and never for time
to pass. Whatever was started is ended by its process id.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import trio

TOKEN = "a token of the tests"

START_S_MAX = 30.0
"""From the start of the process to the line that it listens: a second alone, more on a machine that is busy."""

WAIT_S_MAX = 60.0
"""How long a test waits for something before it fails."""

LOOK_S = 0.02
"""Between two looks at something that cannot be waited for: a process, or a line in a file."""

SENDER = "Näme with ümlauts <clerk@letterbook.test>"


class Said(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


class Service:
    """One log, and the process that serves it, which may be stopped and started again. `settings` are named by section
    and key: `delivery_max_retries=0`. `within` is a command that runs the process elsewhere."""

    def __init__(self, folder: Path, settings: Mapping[str, object], within: Sequence[str] = ()) -> None:
        self.folder = folder
        self.within = within
        self.db = folder / "letterbook.db"
        self.key_file = folder / "letterbook.key"
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._client: httpx.AsyncClient | None = None
        self.command: Sequence[str] = letterbook("serve")
        self._starts = 0
        self._settings = {
            "server_port": 0,
            "server_api_token": TOKEN,
            "storage_db_path": self.db,
            "storage_key_file": self.key_file,
            "storage_min_free_mb": 1,
            "smtp_ehlo_name": "letterbook.test",
            **settings,
        }

    # The process

    @property
    def environment(self) -> dict[str, str]:
        """Of the service and of every command: this test's settings, and nobody else's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LETTERBOOK_", "GMP_"))}
        return kept | {f"LETTERBOOK_{name}".upper(): str(value) for name, value in self._settings.items()}

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def lines(self) -> str:
        """What the last process has written on standard error."""
        return (self.folder / f"serve-{self._starts}.err").read_text()

    @property
    def client(self) -> httpx.AsyncClient:
        assert self._client is not None
        return self._client

    async def start(self) -> None:
        """Start the process, and wait until it listens."""
        self._starts += 1
        with (self.folder / f"serve-{self._starts}.err").open("wb") as errors:
            self.process = subprocess.Popen(
                [*self.within, *self.command],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        with trio.fail_after(START_S_MAX):
            self.url = await self._listening()
        self.attach()

    def attach(self) -> None:
        """Become a client of the running process."""
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers={"X-API-Token": TOKEN},
            timeout=WAIT_S_MAX,
            trust_env=False,
            # There is no TLS here, and to load the world's authorities takes 50 ms of every test.
            verify=False,
        )

    async def _listening(self) -> str:
        mark = "listening on "
        while True:
            for line in self.lines.splitlines(keepends=True):
                if mark in line and line.endswith("\n"):
                    return line.partition(mark)[2].strip()
            assert self.process is not None
            if self.process.poll() == -signal.SIGKILL:
                # Whoever killed it so early will start it again.
                return ""
            assert self.process.poll() is None, self.lines
            await trio.sleep(LOOK_S)

    async def ended(self, within_s: float = WAIT_S_MAX) -> int:
        """Wait for the end of the process; its exit code."""
        assert self.process is not None
        with trio.fail_after(within_s):
            while (code := self.process.poll()) is None:
                await trio.sleep(LOOK_S)
        await self.detach()
        return code

    async def detach(self) -> None:
        if self._client:
            await self._client.aclose()
            self._client = None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def stop(self) -> int:
        """SIGTERM, and the exit code after it."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def close(self) -> None:
        """Leave nothing behind, however the test has ended."""
        with trio.CancelScope(shield=True):
            if self._starts:
                # pytest shows it where the test has failed.
                print(f"The service of {self.folder.name} said:\n{self.lines}")
            if self.process is not None and self.process.poll() is None:
                self.process.kill()
            if self.process is not None:
                await self.ended()

    # HTTP

    async def get(self, path: str, **fields: object) -> dict[str, Any]:
        return self._good(await self.client.get(path, params={name: str(value) for name, value in fields.items()}))

    async def post(self, path: str, body: object = None) -> dict[str, Any]:
        return self._good(await self.client.post(path, json={} if body is None else body))

    def _good(self, response: httpx.Response) -> dict[str, Any]:
        assert response.status_code == 200, (response.status_code, response.text)
        answer: dict[str, Any] = response.json()
        return answer

    async def account(self, name: str, port: int, **fields: object) -> None:
        body = {"id": name, "host": "127.0.0.1", "port": port, **fields}
        assert (await self.post("/account", body))["ok"]

    async def add(self, messages: Sequence[Mapping[str, object]]) -> None:
        """Queue all of them, a thousand at a time."""
        for start in range(0, len(messages), 1000):
            batch = messages[start : start + 1000]
            answer = await self.post("/commands/add-messages", {"messages": batch})
            assert answer == {"ok": True, "queued": len(batch), "rejected": []}, answer

    async def status(self) -> dict[str, Any]:
        return await self.get("/status")

    async def message(self, message_id: str) -> dict[str, Any]:
        return await self.get(f"/messages/{message_id}")

    async def results(self) -> list[dict[str, Any]]:
        """All results so far."""
        return [result async for result in self._pages("/results", "results")]

    async def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The log as it is now, or all facts of a kind in it."""
        last = (await self.status())["seq"]
        found: list[dict[str, Any]] = []
        after = 0
        while after < last:
            page = await self.get("/events", after=after, limit=10_000, **({"kind": kind} if kind else {}))
            found += page["events"]
            after = page["next"]
        return found

    async def _pages(self, path: str, name: str) -> AsyncIterator[dict[str, Any]]:
        after = 0
        while rows := (page := await self.get(path, after=after, limit=10_000))[name]:
            for row in rows:
                yield row
            after = page["next"]

    async def until(
        self, path: str, good: Callable[[dict[str, Any]], bool], within_s: float = WAIT_S_MAX, **fields: object
    ) -> dict[str, Any]:
        """Ask again after every fact, and every second since time moves some answers, until the answer is good."""
        found: dict[str, Any] = {}
        with trio.move_on_after(within_s):
            while True:
                seq = (await self.status())["seq"]
                found = await self.get(path, **fields)
                if good(found):
                    return found
                await self.get("/events", after=seq, wait=1, limit=1)
        raise AssertionError(f"{path} after {within_s:g} s: {found}")

    async def until_results(
        self, count: int, account: str | None = None, within_s: float = WAIT_S_MAX
    ) -> list[dict[str, Any]]:
        """Wait for so many results (of an account), and give all there are."""
        found: list[dict[str, Any]] = []
        after = 0
        with trio.move_on_after(within_s):
            while len(found) < count:
                seq = (await self.status())["seq"]
                page = await self.get("/results", after=after, limit=10_000)
                found += [result for result in page["results"] if account in (None, result.get("account_id"))]
                after = page["next"]
                if not page["results"]:
                    await self.get("/events", after=seq, wait=5, limit=1)
        assert len(found) >= count, f"{len(found)} of {count} results: {await self.status()}"
        return found

    # The command line

    async def run(self, *words: object, **settings: object) -> Said:
        """A command of ours under this service's configuration, with some settings changed."""
        changed = {f"LETTERBOOK_{name}".upper(): str(value) for name, value in settings.items()}
        return await run([*self.within, *letterbook(*words)], self.folder, self.environment | changed)

    async def run_all(self, commands: Iterable[Sequence[object]]) -> list[str]:
        """Several commands in one process, each of which must succeed and says one line."""
        words = json.dumps([[str(word) for word in command] for command in commands])
        said = await run([sys.executable, "-c", MANY, words], self.folder, self.environment)
        assert said.code == 0, said.err
        return said.out.splitlines()


MANY = """
import json, sys
from letterbook.cli import main
for words in json.loads(sys.argv[1]):
    main(words, standalone_mode=False)
"""
"""Runs commands one after the other: importing takes longer than most of them, and is no part of what is tried."""


def letterbook(*words: object) -> list[str]:
    return [sys.executable, "-m", "letterbook", *map(str, words)]


async def run(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], within_s: float = WAIT_S_MAX
) -> Said:
    """Run a command to its end."""
    with trio.fail_after(within_s):
        done = await trio.run_process(
            command, cwd=folder, env=environment, capture_stdout=True, capture_stderr=True, check=False
        )
    return Said(done.returncode, done.stdout.decode(), done.stderr.decode())


@asynccontextmanager
async def service(folder: Path, *, started: bool = True, **settings: object) -> AsyncIterator[Service]:
    """A service of its own in this folder; `started=False` leaves the start to the test."""
    (folder / "config.ini").touch()
    it = Service(folder, settings)
    try:
        if started:
            await it.start()
        yield it
    finally:
        await it.close()


def mail(message_id: str, /, to: object = "ann@example.org", **fields: object) -> dict[str, object]:
    """A message as a client writes it."""
    return {
        "id": message_id,
        "from": SENDER,
        "to": to,
        "subject": f"About {message_id}",
        "body": f"This is {message_id}.\n",
        **fields,
    }


def subject_id(content: bytes) -> str:
    """The id of a message made by `mail`, from what a relay was given."""
    for line in content.split(b"\r\n"):
        if line.startswith(b"Subject: About "):
            return line.removeprefix(b"Subject: About ").decode()
    raise AssertionError(content)


def kinds(timeline: Iterable[Mapping[str, Any]]) -> list[str]:
    return [fact["kind"] for fact in timeline]
