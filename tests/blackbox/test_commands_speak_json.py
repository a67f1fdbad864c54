"""With --json a command says JSON on standard output and nothing else, whatever the answer is: every command of the
table, so those that come later too."""

import json
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner, Result

from letterbook.capture import CaptureRelay
from letterbook.cli import main

from .service import WAIT_S_MAX, Service, letterbook, mail

STANDING: dict[str, object] = {}

WITHOUT_JSON = {
    "serve": "It says nothing on standard output; its own lines are JSON with [logging] format = json.",
    "demo": "It is there to be looked at.",
}
"""Commands that take no --json, and why."""

GOES_ON = {"tail": "It ends by a signal, which only a process of its own can be given."}
"""Commands that are tried apart."""

ARGUMENTS: dict[str, list[list[str]]] = {
    "send": [
        ["--from", "a@example.org", "--to", "ann@example.org", "--account", "a"],
        ["--from", "a@example.org", "--to", "ann@example.org", "--account", "a", "--queue"],
        ["--from", "a@example.org", "--to", "nobody", "--account", "a"],
        ["--from", "a@example.org", "--to", "nobody", "--account", "a", "--queue"],
    ],
    "log": [[], ["--message", "m"]],
    "show": [["m"], ["nobody knows it"]],
    "at": [["1"], ["9", "pending"], ["9", "deferred"], ["9", "results"], ["9", "held"], ["9", "accounts"]],
    "bulk": [["hold", "--status", "held"], ["withdraw", "--account", "a", "--dry-run"]],
    "rebuild": [["--check"], []],
    "cleanup": [[], ["--older-than", "1e9"]],
    "pending": [[], ["--limit", "1"]],
}
"""How a command is called; one that is not here gets something for each argument that it must be given."""


def commands() -> list[click.Command]:
    return list(main.commands.values())


def speaking() -> list[click.Command]:
    return [command for command in commands() if command.name not in {**WITHOUT_JSON, **GOES_ON}]


def of(some: list[click.Command]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("command", some, ids=lambda command: command.name)


def names(command: click.Command) -> set[str]:
    return {name for param in command.params for name in param.opts}


@of(commands())
def test_every_command_takes_json_or_says_why_not(command):
    assert ("--json" in names(command)) != (command.name in WITHOUT_JSON)
    assert all(reason.endswith(".") for reason in WITHOUT_JSON.values())


def something(param: click.Parameter) -> str:
    """A value that its type can read."""
    if isinstance(param.type, click.Choice):
        return str(param.type.choices[0])
    return "1" if isinstance(param.type, click.types.IntParamType) else "something"


def required(command: click.Command) -> Iterator[str]:
    for param in command.params:
        if param.required:
            yield from ([something(param)] if isinstance(param, click.Argument) else [param.opts[-1], something(param)])


def calls(command: click.Command) -> list[list[str]]:
    return ARGUMENTS.get(command.name or "", [list(required(command))])


def ran(service: Service, command: click.Command, arguments: list[str]) -> Result:
    """In this process: importing everything takes longer than most commands do."""
    environment = {**service.environment, "LETTERBOOK_CONFIG": str(service.folder / "config.ini")}
    words = [str(command.name), *arguments, "--json"]
    return CliRunner().invoke(main, words, env=environment)


def assert_json_alone(command: click.Command, arguments: list[str], result: Result) -> None:
    where = (command.name, arguments, result.exit_code, result.stdout[:300], result.stderr[:300])
    assert result.exit_code in (0, 1), (*where, "write into ARGUMENTS how it is called")
    assert result.exception is None or isinstance(result.exception, SystemExit), where
    lines = result.stdout.splitlines()
    assert lines or result.exit_code == 1, where
    for line in lines:
        json.loads(line)
    if result.exit_code == 1:
        assert result.stderr.startswith("letterbook: "), where


def url(service: Service, command: click.Command) -> list[str]:
    return ["--url", service.url] if "--url" in names(command) else []


@of(speaking())
async def test_standard_output_is_json_and_nothing_else(shared, command, monkeypatch):
    monkeypatch.chdir(shared.folder)
    async with CaptureRelay().listening() as relay:
        await shared.account("a", relay.port)
        await shared.client.post("/commands/add-messages", json={"messages": [mail("m", account_id="a")]})
        for arguments in calls(command):
            result = await trio.to_thread.run_sync(ran, shared, command, [*arguments, *url(shared, command)])
            assert_json_alone(command, arguments, result)


@of(speaking())
async def test_so_it_is_where_nobody_is_there(tmp_path, command, monkeypatch):
    """No service that answers, and no log in the folder."""
    monkeypatch.chdir(tmp_path)
    nowhere = Service(tmp_path, {})
    (tmp_path / "config.ini").touch()
    nowhere.url = "http://127.0.0.1:9"
    for arguments in calls(command):
        result = await trio.to_thread.run_sync(ran, nowhere, command, [*arguments, *url(nowhere, command)])
        assert_json_alone(command, arguments, result)


async def test_tail_says_a_fact_a_line(shared, tmp_path: Path):
    words = letterbook("tail", "--after", 0, "--json", "--url", shared.url)
    running = partial(
        trio.run_process, words, env=shared.environment, cwd=tmp_path, stdout=subprocess.PIPE, check=False
    )
    async with trio.open_nursery() as nursery:
        process = await nursery.start(running)
        with trio.fail_after(WAIT_S_MAX):
            said = b""
            while said.count(b"\n") < 1:
                said += await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
    assert json.loads(said.splitlines()[0])["seq"] == 1
