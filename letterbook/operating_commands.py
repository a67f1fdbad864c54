"""Commands by which a person decides, at a running service: resolve, and operations in bulk."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

import click

from .client_commands import url_option
from .failures import Failure, one_line
from .moments import moment
from .printing import Advance, clean, print_json, progress
from .reading_commands import json_option
from .sources import config_option

if TYPE_CHECKING:
    from .client import Target

RESOLVED = {
    "resend": "waits again",
    "sent": "is called sent",
    "error": "is called an error",
}
"""What a person can say of a held message, and what is then said."""


@click.command()
@click.argument("message_id", metavar="ID")
@click.option(
    "--as",
    "resolution",
    type=click.Choice(list(RESOLVED)),
    required=True,
    help="Send it again, or call it sent, or call it an error.",
)
@json_option
@url_option
@config_option
def resolve(message_id: str, resolution: str, as_json: bool, url: str | None, config_path: Path | None) -> None:
    """Say what becomes of a message that is held.

    `resend` sends it now to whoever does not surely have it: who was in doubt may get it twice. `sent` and `error` end
    it, and are reported.
    """
    with one_line():
        from .client import command, find_target

        path = f"/messages/{quote(message_id, safe='')}/resolve"
        answer = command(find_target(config_path, url), path, {"as": resolution})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{clean(message_id)} {RESOLVED[resolution]}.")


# In bulk

DONE = {
    "withdraw": "withdrawn",
    "retry": "tried again",
    "hold": "held",
    "release": "released",
}
"""What can be done to many messages, and the word for what was done."""

STATUSES = ("pending", "deferred", "in_flight", "held", "sent", "error", "withdrawn")


class Total(NamedTuple):
    """What some steps came to. `up_to` bounds what is meant: what came in after the beginning is not."""

    matched: int = 0
    changed: int = 0
    without_content: int = 0
    in_doubt: int = 0
    up_to: int | None = None

    def and_step(self, answer: dict[str, Any]) -> "Total":
        return Total(
            self.matched + answer["matched"],
            self.changed + answer["changed"],
            self.without_content + answer.get("without_content", 0),
            self.in_doubt + answer.get("in_doubt", 0),
            answer["up_to"],
        )


@click.command()
@click.argument("action", type=click.Choice(list(DONE)))
@click.option("--account", metavar="A", help="Of this account.")
@click.option("--status", type=click.Choice(STATUSES), help="In this status.")
@click.option("--priority", metavar="P", help="Of this priority: 0 to 3, or immediate, high, medium, low.")
@click.option("--before", type=moment, metavar="T", help="Accepted before this moment (ISO 8601).")
@click.option("--to-domain", metavar="DOMAIN", help="With a recipient in this domain.")
@click.option("--subject", metavar="TEXT", help="With this text in the subject.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="JSON, as the HTTP API gives it.")
@url_option
@config_option
def bulk(
    action: str,
    account: str | None,
    status: str | None,
    priority: str | None,
    before: int | None,
    to_domain: str | None,
    subject: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    url: str | None,
    config_path: Path | None,
) -> None:
    """Withdraw, retry, hold or release many messages: all for which every given option holds.

    They are counted first, and on a terminal you are asked. What has come in after the count is left alone.
    """
    where = {
        "account_id": account,
        "status": status,
        "priority": int(priority) if priority and priority.isdecimal() else priority,
        "before_ts": None if before is None else before / 1_000_000,
        "to_domain": to_domain,
        "subject_contains": subject,
    }
    body = {"action": action, "where": {name: value for name, value in where.items() if value is not None}}
    if not body["where"]:
        raise click.UsageError("say which messages are meant: --account, --status, --priority, --before, ..")
    with one_line():
        from .client import find_target

        target = find_target(config_path, url)
        with progress("counting") as advance:
            counted = _steps(target, {**body, "dry_run": True}, Total(), advance)
        if dry_run or not counted.matched:
            _say(action, counted, as_json, counted_only=True)
            return
        if not yes:
            _ask(action, counted)
        with progress(f"{action}: up to message") as advance:
            done = _steps(target, body, Total(up_to=counted.up_to), advance)
    _say(action, done, as_json)


def _steps(target: "Target", body: dict[str, Any], total: Total, advance: Advance | None) -> Total:
    """Ask for one step after the other, so that each is answered soon. Raises Failure, which says what was done."""
    from .client import command

    after: int | None = 0
    while after is not None:
        bound = {} if total.up_to is None else {"up_to": total.up_to}
        try:
            answer = command(target, "/commands/bulk", {**body, "after": after, **bound})
        except Failure as failure:
            raise Failure(f"{failure.message}{_so_far(total)}") from failure
        total = total.and_step(answer)
        after = answer.get("next")
        if advance:
            advance(after or answer["up_to"], answer["up_to"])
    return total


def _so_far(total: Total) -> str:
    return f" ({total.changed:,} messages were changed before)" if total.changed else ""


def _ask(action: str, counted: Total) -> None:
    """Raises Failure where the answer is no, and UsageError where nobody is there to answer."""
    import sys

    if not sys.stdin.isatty():
        raise click.UsageError(f"{_count(counted.matched)} would be {DONE[action]}: give --yes, or --dry-run")
    if not click.confirm(f"{_count(counted.matched)} will be {DONE[action]}{_warning(counted)}. Go on?", err=True):
        raise Failure("nothing was changed")


def _warning(total: Total) -> str:
    notes = []
    if total.in_doubt:
        notes.append(f"{total.in_doubt:,} in doubt, which may arrive twice")
    if total.without_content:
        notes.append(f"{total.without_content:,} cannot, their content is erased")
    return f" ({'; '.join(notes)})" if notes else ""


def _count(number: int) -> str:
    return f"{number:,} message" + ("" if number == 1 else "s")


def _say(action: str, total: Total, as_json: bool, counted_only: bool = False) -> None:
    if as_json:
        optional = {name: n for name in ("without_content", "in_doubt") if (n := getattr(total, name))}
        print_json({"ok": True, "matched": total.matched, "changed": total.changed, **optional})
    elif counted_only:
        click.echo(f"{_count(total.matched)} would be {DONE[action]}{_warning(total)}.")
    else:
        click.echo(f"{_count(total.changed)} {DONE[action]}{_warning(total)}.")
