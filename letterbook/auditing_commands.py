"""Commands that hold the views and the past against the log: verify, rebuild, at."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .failures import Failure, one_line
from .moments import place as a_place
from .printing import clean, moment_text, print_json, print_table, progress
from .reading_commands import (
    Printer,
    json_option,
    page_options,
    print_accounts,
    print_answer,
    print_deferred,
    print_held,
    print_message,
    print_pending,
    print_results,
)
from .sources import find_source, open_source, source_options
from .verifying_file import verify_file

if TYPE_CHECKING:
    from store.replay import Difference, Moment
    from store.verifying import Verdict

WITHOUT_MARK = "no mark of this log stands beside it: that nothing is missing at its end cannot be told"


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON: ok, facts, commits, hash, and the damage.")
@source_options
def verify(file: Path | None, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """Walk the log along its hashes and name the first damage (exit code 1).

    Keep the hash that is printed elsewhere: it shows later that the log up to there was not rewritten. With FILE, the
    log that `letterbook log --json` has exported is verified by its lines alone; `-` is standard input.
    """
    if file is not None:
        if db is not None:
            raise click.UsageError("give --db or a FILE: an export is verified by its lines alone")
        verify_file(file, as_json)
        return
    with one_line():
        from store import file_access

        path = find_source(config_path, db).db_path
        with progress("verifying") as advance:
            verdict, marked = file_access.verify(path, advance)
    if as_json:
        print_json(_verdict_json(verdict, marked))
    elif not verdict.damage:
        click.echo(verdict.line)
    if not marked:
        click.echo(f"letterbook: {WITHOUT_MARK}", err=True)
    if verdict.damage:
        raise Failure(verdict.damage.line)


def _verdict_json(verdict: "Verdict", marked: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "ok": verdict.damage is None,
        "facts": verdict.facts,
        "commits": verdict.commits,
        "hash": verdict.hash.hex(),
        "marked": marked,
    }
    if verdict.damage:
        damage = verdict.damage
        answer |= {"damage": damage.kind, "first": damage.first, "last": damage.last, "error": damage.line}
    return answer


@click.command()
@click.option("--check", is_flag=True, help="Change nothing: compare what is kept with what the log gives.")
@click.option("--json", "as_json", is_flag=True, help="JSON: ok, and the number of facts or the differences.")
@source_options
def rebuild(check: bool, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """Fold all views anew from the log. The service must not be running, except with --check."""
    if check:
        _check(as_json, config_path, db)
        return
    with one_line():
        from store import file_access

        path = find_source(config_path, db).db_path
        with progress("folding") as advance:
            facts = file_access.rebuild(path, advance)
    if as_json:
        print_json({"ok": True, "facts": facts})
    else:
        click.echo(f"The views were folded anew from {facts:,} facts.")


def _check(as_json: bool, config_path: Path | None, db: Path | None) -> None:
    with open_source(config_path, db) as (connection, _):
        from store import replay

        with progress("folding") as advance:
            differences = replay.check(connection, advance)
    if as_json:
        print_json({"ok": not differences, "differences": [_difference_json(found) for found in differences]})
    if differences:
        lines = () if as_json else tuple(clean(found.line) for found in differences)
        raise Failure("\n".join((f"the views differ from the log in {len(differences)} rows", *lines)))
    if not as_json:
        click.echo("The views are what the log gives.")


def _difference_json(found: "Difference") -> dict[str, Any]:
    return {"view": found.view, "live": found.live, "refolded": found.refolded}


# The past

VIEWS: dict[str, Printer] = {
    "pending": print_pending,
    "deferred": print_deferred,
    "held": print_held,
    "results": print_results,
    "accounts": print_accounts,
    "message": print_message,
}
"""The views that can be seen as of a moment."""

SUMMARY = "summary"


@click.command()
@click.argument("place", type=a_place, metavar="SEQ|TIME")
@click.argument("view", type=click.Choice([SUMMARY, *VIEWS]), default=SUMMARY)
@click.argument("message_id", metavar="[ID]", required=False)
@page_options
@json_option
@source_options
def at(
    place: tuple[str, int],
    view: str,
    message_id: str | None,
    after: int,
    limit: int,
    as_json: bool,
    config_path: Path | None,
    db: Path | None,
) -> None:
    """What was known after the fact SEQ, or at a TIME (ISO 8601).

    The view is refolded from the log up to there. `message` needs the ID of one.
    """
    if (view == "message") != (message_id is not None):
        raise click.UsageError("write an ID behind the view message, and only there")
    with open_source(config_path, db) as (connection, source):
        from store import replay
        from store.file_access import log_id

        kind, number = place
        seq, time_us = (number, None) if kind == "seq" else (None, number)
        with (
            progress("folding") as advance,
            replay.at(source.db_path, seq=seq, time_us=time_us, progress=advance) as moment,
        ):
            answer = _look_back(moment, log_id(connection), view, message_id, after, limit)
        click.echo(f"As of fact {moment.seq}, {moment_text(moment.at_us)}:", err=True)
    if answer is None:
        raise Failure(f"no message with the id {message_id!r} was known then")
    print_answer(answer, as_json, VIEWS.get(view, _print_summary), limit)


def _look_back(moment: "Moment", log: str, view: str, message_id: str | None, after: int, limit: int) -> Any:
    """The same answer as GET /audit/at gives."""
    from gateway.asking import VIEWS as LOOKS
    from gateway.lists import Look
    from gateway.queries import At

    look = Look(moment.at_us, log, back=True)
    if view == SUMMARY:
        return _summary(moment)
    asked = At(view=view, id=message_id, after=after, limit=limit)  # type: ignore[arg-type]
    return LOOKS[view](moment.connection, look, asked)


def _summary(moment: "Moment") -> dict[str, Any]:
    """How many messages there were in each state: the four open counts are disjoint, as in GET /status."""
    from store import reading

    counts = reading.counts(moment.connection, moment.at_us)
    ended = {name: counts.states.get(name, 0) for name in ("sent", "failed", "withdrawn", "rejected")}
    open_counts = {
        "pending": counts.pending,
        "deferred": counts.deferred,
        "in_flight": counts.in_flight,
        "held": counts.held,
    }
    return {"ok": True, "seq": moment.seq, "at_us": moment.at_us, **open_counts, **ended}


def _print_summary(answer: Any, limit: int) -> None:
    states = list(answer)[3:]
    print_table(("state", "messages"), [(state.replace("_", " "), answer[state]) for state in states])
