"""What commands print: JSON for programs, tables for people on a terminal, tab-separated lines otherwise.

Ids, subjects and replies come from others and may hold anything: no sign of theirs reaches a terminal that could
move its cursor, and none starts a new column or line.
"""

import datetime as dt
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import click

if TYPE_CHECKING:
    from rich.console import Console

    from .fact_words import Line

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""C0, DEL, C1, line separators, and the marks that turn the direction of text."""

STYLES = {
    "sent": "green",
    "delivered": "green",
    "error": "red",
    "refused": "red",
    "rejected": "red",
    "deferred": "yellow",
    "held": "magenta",
    "in_doubt": "magenta",
}
"""Colours of words that say how something went."""


class Advance(Protocol):
    """How far a long work has come, of how much."""

    def __call__(self, done: int, of: int) -> None: ...


def on_terminal() -> bool:
    return sys.stdout.isatty()


def clean(value: object) -> str:
    """A value on one line, with signs that a terminal would obey spelt out."""
    if value is None:
        return ""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(value))


def moment_text(at_us: int) -> str:
    """A moment in microseconds as people read it, in UTC to the millisecond."""
    at = dt.datetime.fromtimestamp(at_us / 1_000_000, dt.UTC)
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03}Z"


def second_text(at_s: int | None) -> str:
    """A moment in Unix seconds, in UTC."""
    return "" if at_s is None else f"{dt.datetime.fromtimestamp(at_s, dt.UTC):%Y-%m-%d %H:%M:%S}Z"


def print_json(answer: Any) -> None:
    """An answer as the HTTP API gives it, on one line."""
    import msgspec

    print_line(msgspec.json.encode(answer))


def print_line(data: bytes) -> None:
    """A line of bytes; click flushes it, for whoever reads a stream of them."""
    click.echo(data)


def print_bytes(data: bytes) -> None:
    """Lines that are whole already, a thousand at once."""
    click.echo(data, nl=False)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "") -> None:
    """Rows for people. Without any, the sentence `empty` (on a terminal only)."""
    if not on_terminal():
        for row in (titles, *rows):
            click.echo("\t".join(map(clean, row)))
        return
    rows = list(rows)
    if not rows and empty:
        click.echo(empty)
        return
    _print_rich_table(titles, rows)


def _print_rich_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell), STYLES.get(clean(cell), "")) for cell in row))
    console().print(table)


def console() -> "Console":
    """A console for text of our own making: no markup, no guesses about what to colour."""
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """A record: a name and a value a line; what is not known is left out."""
    known = [(name, clean(value)) for name, value in pairs if value not in (None, "")]
    width = max((len(name) for name, _ in known), default=0) if on_terminal() else 0
    for name, value in known:
        colour = STYLES.get(value)
        separator = "  " if on_terminal() else "\t"
        click.echo(f"{name:{width}}{separator}{click.style(value, fg=colour) if colour else value}")


@contextmanager
def progress(title: str) -> "Iterator[Advance | None]":
    """A bar on standard error while a long work lasts; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


KIND_WIDTH = 18
ABOUT_WIDTH = 26
"""For most kinds, and for ids as `send` makes them."""


def print_fact(fact: "Line") -> None:
    """A fact as one line: in columns as far as they hold on a terminal, else tab-separated."""
    about, words = clean(fact.about), clean(fact.words)
    if not on_terminal():
        click.echo("\t".join((str(fact.seq), moment_text(fact.at_us), fact.kind, about, words)))
        return
    head = f"{fact.seq:>6}  {moment_text(fact.at_us)[11:]}"
    said = click.style(words, fg=STYLES.get(fact.tone))
    name = click.style(f"{about:{ABOUT_WIDTH}}", bold=True)
    click.echo(f"{click.style(head, dim=True)}  {fact.kind:{KIND_WIDTH}}  {name}  {said}")
