"""docs/command-line.md says what the commands are, and every command says what it is for."""

import subprocess
import sys

import click

from letterbook.cli import COMMANDS

from .command_pages import COMMAND_PAGE, command_page
from .source import PACKAGES, ROOT

WRITE_AGAIN = "run: python -m tests.house.command_pages"

HEAVY = ("httpx", "msgspec", "quart", "rich", "sqlite3", "trio")

ALL = [command for commands in COMMANDS.values() for command in commands]


def test_the_command_page_lists_every_command_and_option():
    assert COMMAND_PAGE.read_text(encoding="utf-8") == command_page(), WRITE_AGAIN


def test_every_command_and_option_says_what_it_does():
    for command in ALL:
        assert command.help and command.help.splitlines()[0].endswith((".", ":")), command.name
        options = [param for param in command.params if isinstance(param, click.Option)]
        assert all(option.help for option in options), command.name


def test_help_imports_nothing_that_is_heavy():
    code = "import sys, letterbook.cli; print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.split(".")[0] for name in said.stdout.split()}
    assert not loaded & {*HEAVY, *(set(PACKAGES) - {"letterbook"})}
