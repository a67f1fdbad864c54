"""Commands that steer a running service: status, suspend, activate."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .client_commands import url_option
from .failures import Failure, one_line
from .printing import print_json, print_pairs, print_table, second_text
from .sources import config_option

CHOICES = ("hold", "send")

json_option = click.option("--json", "as_json", is_flag=True, help="The service's answer as JSON.")


@click.command()
@json_option
@url_option
@config_option
def status(as_json: bool, url: str | None, config_path: Path | None) -> None:
    """Whether the running service sends, how much waits, and which accounts are in trouble.

    Exit code 1 where something keeps mail from being sent or taken (`reasons`).
    """
    with one_line():
        from .client import find_target, get

        code, answer = get(find_target(config_path, url), "/status")
        if code >= 300:
            raise Failure(str(answer.get("error", f"the service answers {code}")))
    if as_json:
        print_json(answer)
    else:
        _print_status(answer)
    if answer["reasons"]:
        raise Failure(f"not as it should be: {', '.join(answer['reasons'])} (docs/operations.md, Ready)")


def _print_status(answer: Mapping[str, Any]) -> None:
    named = ("version", "log", "seq", "pending", "deferred", "in_flight", "held")
    print_pairs(
        [
            ("sending", "yes" if answer["active"] else "no"),
            ("reasons", ", ".join(answer["reasons"])),
            *((name.replace("_", " "), answer[name]) for name in named),
        ]
    )
    print_table(
        ("account", "paused", "throttled until", "unreachable until", "reason"),
        [
            (
                name,
                "yes" if account["paused"] else "no",
                second_text(account.get("throttled_until")),
                second_text(account.get("unreachable_until")),
                account.get("reason"),
            )
            for name, account in answer["accounts"].items()
        ],
    )


@click.command()
@json_option
@url_option
@config_option
def suspend(as_json: bool, url: str | None, config_path: Path | None) -> None:
    """Let no attempt start from here on; mail is still taken.

    Attempts under way end. It lasts, also across restarts, until `activate`.
    """
    answer = _tell("/commands/suspend", {}, url, config_path)
    if as_json:
        print_json(answer)
    else:
        click.echo("Dispatch is suspended: nothing is sent until `letterbook activate`.")


@click.command()
@click.option(
    "--restored",
    type=click.Choice(CHOICES),
    help="After a restored backup, where it must be said: put the mail that waits aside for a person, or send it.",
)
@click.option("--trust-clock", is_flag=True, help="The clock is right, where `status` names it as a reason.")
@json_option
@url_option
@config_option
def activate(restored: str | None, trust_clock: bool, as_json: bool, url: str | None, config_path: Path | None) -> None:
    """Let attempts start again.

    Some of what waits in a restored backup may have been sent after the backup was made; nobody can know from it.
    """
    said: dict[str, Any] = {} if restored is None else {"restored": restored}
    if trust_clock:
        said["trust_clock"] = True
    answer = _tell("/commands/activate", said, url, config_path)
    if as_json:
        print_json(answer)
    else:
        click.echo("Dispatch is active.")


def _tell(path: str, body: Mapping[str, Any], url: str | None, config_path: Path | None) -> dict[str, Any]:
    with one_line():
        from .client import command, find_target

        return command(find_target(config_path, url), path, body)
