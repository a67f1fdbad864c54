"""The demo: a real service with a relay that keeps what it gets, both on this machine, and a few letters through it.

Everything goes the way that applications go: letters in over HTTP, facts out over the websocket, results by HTTP.
"""

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import httpx
import msgspec
import trio

from . import demo_letters
from .capture import CaptureRelay
from .client import Stream, Target
from .config_keys import Config, Delivery, Server, Smtp, Storage
from .fact_words import line
from .printing import print_fact, print_table
from .signals import STOP_SIGNALS, heed
from .system import Serving, serve

DEADLINE_S = 60.0
"""The demo takes some three seconds; a machine that needs a minute has a fault that one wants to see."""

RETRY_DELAY_S = 1.0
"""A minute is right for a relay that is busy, and long for who watches."""

ENDS = frozenset({"done", "failed"})


async def run(exit_after: bool) -> list[str]:
    """Run until Ctrl-C, or until everything has happened; what did not happen as it should."""
    stopping, stopping_now = trio.Event(), trio.Event()
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals, TemporaryDirectory(prefix="letterbook-demo-") as folder:
        async with CaptureRelay().listening() as relay, trio.open_nursery() as nursery:
            nursery.start_soon(heed, signals, stopping, stopping_now)
            config = demo_config(Path(folder), relay)
            async with trio.open_nursery() as service:
                serving = await service.start(_serve, config, stopping, stopping_now)
                demo = Demo(serving, relay, config.storage.db_path)
                await demo.run(stopping, exit_after)
                stopping.set()
            nursery.cancel_scope.cancel()
        return demo.faults


def demo_config(folder: Path, relay: CaptureRelay) -> Config:
    """The defaults, on free ports and in a folder of its own; the environment has no say."""
    return Config(
        server=Server(port=0, drain_seconds=5.0),
        storage=Storage(db_path=folder / "letterbook.db", key_file=folder / "letterbook.key", min_free_mb=16),
        smtp=Smtp(host=relay.host, port=relay.port, ehlo_name="localhost"),
        delivery=Delivery(retry_delays=(RETRY_DELAY_S,)),
    )


async def _serve(
    config: Config,
    stopping: trio.Event,
    stopping_now: trio.Event,
    *,
    task_status: trio.TaskStatus[Serving] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve(config, stopping=stopping, stopping_now=stopping_now, ready=task_status.started)


async def say(text: str = "") -> None:
    """Print in a thread: the service runs in this process, and a terminal that is held must not hold it."""
    await trio.to_thread.run_sync(click.echo, text, abandon_on_cancel=True)


class Demo:
    """One run: posts the letters, shows the facts, judges the results. `faults` is what did not happen."""

    def __init__(self, serving: Serving, relay: CaptureRelay, db_path: Path) -> None:
        self._serving = serving
        self._relay = relay
        self._db_path = db_path
        self._seqs: list[int] = []
        self._ended: set[str] = set()
        self._all_ended = trio.Event()
        self.faults = ["it was interrupted before it had come to its end"]

    async def run(self, stopping: trio.Event, exit_after: bool) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when, stopping, nursery.cancel_scope)
            await say(f"A Letterbook service listens on {self._serving.url}; its relay, on port {self._relay.port},")
            await say("keeps what it gets. The letters go in over HTTP, and these are the facts as they are written:\n")
            nursery.start_soon(Stream(Target(self._serving.url, {}), 0, {"expand": "1"}).follow, self._put)
            with trio.move_on_after(DEADLINE_S):
                await self._send()
                await self._all_ended.wait()
            await self._judge()
            if not exit_after:
                await trio.to_thread.run_sync(self._show_commands, abandon_on_cancel=True)
                await say("\nIt stays up, and shows what you do, until Ctrl-C.\n")
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    async def _put(self, event: bytes) -> None:
        fact = msgspec.json.decode(event)
        self._seqs.append(fact["seq"])
        if fact.get("next") in ENDS:
            self._ended.add(fact["message_id"])
        await trio.to_thread.run_sync(print_fact, line(fact), abandon_on_cancel=True)
        if self._ended.issuperset(expected.id for expected in demo_letters.ALL):
            self._all_ended.set()

    async def _send(self) -> None:
        """The ordinary letters in a batch, and one that cannot wait."""
        async with httpx.AsyncClient(base_url=self._serving.url, trust_env=False) as client:
            batch = [expected.message for expected in demo_letters.QUEUED]
            await client.post("/commands/add-messages", json={"messages": batch})
            immediate = demo_letters.IMMEDIATE.message
            await client.post("/commands/send-message", json=immediate, timeout=DEADLINE_S)

    async def _judge(self) -> None:
        async with httpx.AsyncClient(base_url=self._serving.url, trust_env=False) as client:
            answer = (await client.get("/results")).json()
        captured = {to: message.content for message in self._relay.messages for to in message.recipients}
        self.faults = demo_letters.faults({result["id"]: result for result in answer["results"]}, captured)
        if self._seqs != list(range(1, len(self._seqs) + 1)):
            self.faults.append("the live stream had a gap")
        await trio.to_thread.run_sync(self._summarise, answer["results"], abandon_on_cancel=True)

    def _summarise(self, results: list[dict[str, Any]]) -> None:
        click.echo("\nWhat came of them:\n")
        rows = [(one["id"], one["status"], one["attempts"], one.get("error") or _queue_ids(one)) for one in results]
        print_table(("id", "status", "attempts", "error or queue id"), rows)
        click.echo(f"The relay took {self._relay.received} messages.")

    def _show_commands(self) -> None:
        click.echo("Look closer, in another terminal:\n")
        for words, command in self._commands():
            click.echo(f"  # {words}\n  {command}")

    def _commands(self) -> list[tuple[str, str]]:
        url = self._serving.url
        letter = '{"from": "you@example.com", "to": "me@example.org", "subject": "Hello", "body": "Hi!"}'
        post = f"curl -s {url}/commands/send-message -H 'Content-Type: application/json' -d {shlex.quote(letter)}"
        return [
            ("everything about one message", f"curl -s {url}/messages/{demo_letters.QUEUED[-1].id}"),
            ("all results, in the order of the log", f"curl -s {url}/results"),
            ("a letter of your own", post),
            ("the log", f"{called()} log --db {shlex.quote(str(self._db_path))}"),
            ("the log, live", f"{called()} tail --url {url} --after 0"),
        ]


def called() -> str:
    """How the command was called, so that what is shown can be pasted: make calls it by its path."""
    return shlex.quote(sys.argv[0]) if Path(sys.argv[0]).name == "letterbook" else "letterbook"


def _queue_ids(result: dict[str, Any]) -> str:
    return ", ".join(filter(None, (recipient.get("queue_id") for recipient in result["recipients"])))


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
