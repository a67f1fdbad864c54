"""The command `log`: the facts of the log, oldest first, as a list, JSON Lines or CSV."""

import csv
import io
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .fact_words import line
from .failures import Failure
from .moments import moment
from .printing import Advance, moment_text, on_terminal, print_bytes, print_fact, progress
from .sources import open_source, source_options

if TYPE_CHECKING:
    from store.exporting import Selection, Stretch
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
    with _ended_by_ctrl_c(follow), open_source(config_path, db) as (connection, source):
        from store.exporting import Selection

        selection = Selection(
            after=after, message_id=message_id, account_id=account_id, kind=kind, since_us=since, until_us=until
        )
        put = _writer(as_json, as_csv)
        with _bar(as_json or as_csv, follow) as advance:
            for stretch in _stretches(connection, selection, follow, source.db_path, advance):
                put(stretch)


def _bar(exporting: bool, follow: bool) -> "AbstractContextManager[Advance | None]":
    """A bar only beside an export that goes elsewhere: on a terminal the facts themselves are seen."""
    return progress("exporting") if exporting and not follow and not on_terminal() else nullcontext()


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


def _stretches(
    connection: "Connection", selection: "Selection", follow: bool, path: Path, advance: "Advance | None" = None
) -> "Iterator[Stretch]":
    """What is there; and, when following, what comes. Raises Failure where another file takes this one's place."""
    from msgspec.structs import replace

    from store.exporting import end, stretches

    of, file = end(connection, selection) if advance else 0, _file(path)
    while True:
        for stretch in stretches(connection, selection):
            yield stretch
            selection = replace(selection, after=stretch.last, since_us=None)
            if advance:
                advance(stretch.last, of)
        if not follow:
            return
        if _file(path) != file:
            raise Failure(f"{path} was replaced, perhaps by a restored backup: begin again, at its first fact")
        time.sleep(FOLLOW_EVERY_S)


def _file(path: Path) -> tuple[int, int] | None:
    """Which file the path leads to."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


Put = Callable[["Stretch"], None]


def _writer(as_json: bool, as_csv: bool) -> Put:
    if as_json:
        return _put_json()
    if as_csv:
        return _put_csv()
    if not on_terminal():
        click.echo("\t".join(("seq", "time", "fact", "about", "what")))
    return _put_lines


def _put_json() -> Put:
    from .export_lines import encoded

    return lambda stretch: print_bytes(encoded(stretch))


def _put_csv() -> Put:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    write, moments = writer.writerow, _Moments()

    def put() -> None:
        print_bytes(buffer.getvalue().encode())
        buffer.seek(0)
        buffer.truncate()

    def put_stretch(stretch: "Stretch") -> None:
        messages, accounts = stretch.message_ids, stretch.account_ids
        for fact in stretch.facts:
            write(
                (
                    *(fact.seq, moments.text(fact.at_us), fact.at_us, fact.kind, fact.version),
                    *(fact.message, fact.account, messages.get(fact.message or 0), accounts.get(fact.account or 0)),
                    fact.data.decode(errors="replace"),
                )
            )
        put()

    write(CSV_COLUMNS)
    put()
    return put_stretch


class _Moments:
    """The facts of a commit have one stamp, so its text is made once."""

    def __init__(self) -> None:
        self._at_us, self._text = -1, ""

    def text(self, at_us: int) -> str:
        if at_us != self._at_us:
            self._at_us, self._text = at_us, moment_text(at_us)
        return self._text


def _put_lines(stretch: "Stretch") -> None:
    import msgspec

    from gateway.event_json import event_json

    for fact in stretch.facts:
        print_fact(line(msgspec.json.decode(event_json(fact.entry(), stretch.message_ids, stretch.account_ids))))
