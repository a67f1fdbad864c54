"""The command import: what the service before this one had comes over."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .failures import Failure, one_line
from .printing import print_json, print_table, progress
from .sources import config_option, configured

if TYPE_CHECKING:
    from .importing import Outcome

LINES = (
    ("accounts", "accounts"),
    ("volumes", "volumes"),
    ("waiting", "messages that wait, and will be sent"),
    ("overdue", "of these are older than max_age_seconds, and fail as expired at the start"),
    ("rejected", "messages that cannot be sent: rejected, and reported as errors"),
    ("sent", "messages that were sent: their ids are known from now on"),
    ("failed", "messages that had failed: their ids are known, and may come again"),
    ("unreported", "results of these that are still to be reported"),
    ("sends", "sends of the last day that count against limits"),
    ("known", "messages passed over, for the log knows their ids"),
)


@click.command("import")
@click.argument("old", type=click.Path(path_type=Path), metavar="OLD.db")
@click.option("--dry-run", is_flag=True, help="Change nothing: say what would be taken over, and what would not.")
@click.option("--json", "as_json", is_flag=True, help="JSON: ok, how many of each, and what is not taken over.")
@config_option
def import_(old: Path, dry_run: bool, as_json: bool, config_path: Path | None) -> None:
    """Take over accounts, waiting mail, known ids and results from the database of the service before this one.

    Stop that service first, and this one. All of it is taken over in one transaction or, with an error, nothing; what
    the log knows already is passed over, so it can be done again.
    """
    with one_line():
        from store.old_service import NoOldService
        from store.writer import Incomplete

        from .importing import take_over

        config = configured(config_path)
        try:
            with progress("importing") as advance:
                outcome = take_over(config, old, dry_run=dry_run, advance=advance)
        except NoOldService as error:
            raise Failure(str(error)) from error
        except Incomplete as error:
            raise Failure(f"nothing was changed, for the log would not take a fact: {error}") from error
    if as_json:
        print_json(_json(outcome, dry_run))
        return
    click.echo(f"{old} {'would be' if dry_run else 'was'} taken over:")
    for name, words in LINES:
        if (count := getattr(outcome.taken, name)) or name == "waiting":
            click.echo(f"{count:>9,} {words}")
    _print_not_taken(outcome)


def _print_not_taken(outcome: "Outcome") -> None:
    if not outcome.not_taken_count:
        return
    click.echo(f"{outcome.not_taken_count:,} do not come over as they were:")
    print_table(("what", "id", "why"), [(each.what, each.id, each.reason) for each in outcome.not_taken])
    if (more := outcome.not_taken_count - len(outcome.not_taken)) > 0:
        click.echo(f"and {more:,} more")


def _json(outcome: "Outcome", dry_run: bool) -> dict[str, object]:
    from msgspec.structs import asdict

    return {
        "ok": True,
        "dry_run": dry_run,
        **asdict(outcome.taken),
        "not_taken_count": outcome.not_taken_count,
        "not_taken": [asdict(each) for each in outcome.not_taken],
    }
