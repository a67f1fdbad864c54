"""The command `log`: the facts of the log, oldest first, as a list, JSON Lines or CSV."""

import csv
import io
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .fact_words import line
from .moments import moment
from .printing import moment_text, on_terminal, print_fact, print_line
from .sources import open_source, source_options

if TYPE_CHECKING:
    from store.exporting import Selection, StoredFact, Stretch
    from store.reading import Connection

Command = TypeVar("Command", bound=Callable[..., Any])

FOLLOW_EVERY_S = 0.5
"""How often --follow looks for more: `tail` is the command for those who cannot wait."""

CSV_COLUMNS = ("seq", "time", "at_us", "kind", "version", "message", "account", "message_id", "account_id", "data")


def selecting(command: Command) -> Command:
    """The options that select facts."""
    for option in reversed(
        (
            click.option("--after", type=click.IntRange(min=0), default=0, metavar="N", help="Facts after this seq."),
            click.option("--message", "message_id", metavar="ID", help="Facts about this message."),
            click.option("--kind", metavar="K", help="Facts of this kind, such as AttemptEnded."),
            click.option("--account", "account_id", metavar="A", help="Facts about this account and its mail."),
            click.option("--since", type=moment, metavar="T", help="Facts from this moment on (ISO 8601)."),
            click.option("--until", type=moment, metavar="T", help="Facts up to this moment (ISO 8601)."),
        )
    ):
        command = option(command)
    return command


@click.command()
@selecting
@click.option("--json", "as_json", is_flag=True, help="JSON Lines with the stored data and the commits' hashes.")
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a heading.")
@click.option("--follow", is_flag=True, help="Go on with what is written from now on, until Ctrl-C.")
@source_options
def log(
    after: int,
    message_id: str | None,
    kind: str | None,
    account_id: str | None,
    since: int | None,
    until: int | None,
    as_json: bool,
    as_csv: bool,
    follow: bool,
    config_path: Path | None,
    db: Path | None,
) -> None:
    """The log itself, from its first fact on."""
    if as_json and as_csv:
        raise click.UsageError("give one of --json and --csv")
    _check_kind(kind)
    with _ended_by_ctrl_c(follow), open_source(config_path, db) as (connection, _):
        from store.exporting import Selection

        selection = Selection(
            after=after, message_id=message_id, account_id=account_id, kind=kind, since_us=since, until_us=until
        )
        put = _writer(as_json, as_csv)
        for stretch in _stretches(connection, selection, follow):
            for fact in stretch.facts:
                put(fact, stretch)


@contextmanager
def _ended_by_ctrl_c(follow: bool) -> Iterator[None]:
    """Ctrl-C is how following ends, and no failure: click would say "Aborted!" and exit with 1."""
    try:
        yield
    except KeyboardInterrupt:
        if not follow:
            raise


def _check_kind(kind: str | None) -> None:
    if kind is not None:
        from events.wire import KINDS

        if kind not in KINDS:
            raise click.BadParameter(f"{kind!r} is none of {', '.join(sorted(KINDS))}", param_hint="--kind")


def _stretches(connection: "Connection", selection: "Selection", follow: bool) -> "Iterator[Stretch]":
    """What is there; and, when following, what comes."""
    from msgspec.structs import replace

    from store.exporting import stretches

    while True:
        for stretch in stretches(connection, selection):
            yield stretch
            selection = replace(selection, after=stretch.last, since_us=None)
        if not follow:
            return
        time.sleep(FOLLOW_EVERY_S)


Put = Callable[["StoredFact", "Stretch"], None]


def _writer(as_json: bool, as_csv: bool) -> Put:
    if as_json:
        return _put_json
    if as_csv:
        return _put_csv()
    if not on_terminal():
        click.echo("\t".join(("seq", "time", "fact", "about", "what")))
    return _put_line


def _put_json(fact: "StoredFact", stretch: "Stretch") -> None:
    """A fact with all that the chain's hash is made of (store/chain.py)."""
    import msgspec

    row: dict[str, Any] = {
        "seq": fact.seq,
        "at_us": fact.at_us,
        "kind": fact.kind,
        "version": fact.version,
        "message": fact.message,
        "account": fact.account,
        "data": fact.data.decode(errors="replace"),
    }
    row |= _ids(fact, stretch)
    if fact.hash is not None:
        row["commit"] = {"format": fact.format, "hash": fact.hash.hex()}
    print_line(msgspec.json.encode(row))


def _ids(fact: "StoredFact", stretch: "Stretch") -> dict[str, str]:
    found = {
        "message_id": stretch.message_ids.get(fact.message or 0),
        "account_id": stretch.account_ids.get(fact.account or 0),
    }
    return {name: text for name, text in found.items() if text is not None}


def _put_csv() -> Put:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="")

    def put_row(row: tuple[Any, ...]) -> None:
        writer.writerow(row)
        print_line(buffer.getvalue().encode())
        buffer.seek(0)
        buffer.truncate()

    def put(fact: "StoredFact", stretch: "Stretch") -> None:
        ids = _ids(fact, stretch)
        put_row(
            (
                *(fact.seq, moment_text(fact.at_us), fact.at_us, fact.kind, fact.version, fact.message, fact.account),
                *(ids.get("message_id"), ids.get("account_id"), fact.data.decode(errors="replace")),
            )
        )

    put_row(CSV_COLUMNS)
    return put


def _put_line(fact: "StoredFact", stretch: "Stretch") -> None:
    import msgspec

    from gateway.event_json import event_json

    print_fact(line(msgspec.json.decode(event_json(fact.entry(), stretch.message_ids, stretch.account_ids))))
