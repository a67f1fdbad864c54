"""`letterbook verify FILE`: an exported log, verified by its lines alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from .failures import Failure, one_line
from .printing import print_json, progress

if TYPE_CHECKING:
    from store.exported import ExportVerdict

STDIN = Path("-")

UP_TO = "That the log did not go on after {last}, only a hash that was kept elsewhere can show."

FROM = "The file begins at {begins}: {begins}-{before} prove nothing, and the rest goes on from the hash that is there."


def verify_file(file: Path, as_json: bool) -> None:
    """Say what the lines of the file show. Raises Failure where they show damage, or nothing at all."""
    with one_line(), _lines(file) as (lines, read):
        from store.exported import verify_export

        verdict = verify_export(lines, read)
    failure = _failure(verdict)
    if as_json:
        print_json(_json(verdict, failure))
    elif failure is None:
        _print(verdict)
    if failure is not None:
        raise Failure(failure)


def _failure(verdict: "ExportVerdict") -> str | None:
    if verdict.damage:
        return verdict.damage.words
    if not verdict.commits:
        return (
            f"the file begins at {verdict.begins} with its only commit: without what comes before, that proves nothing"
        )
    return None


def _print(verdict: "ExportVerdict") -> None:
    commits = f"{verdict.commits:,} commit{'' if verdict.commits == 1 else 's'}"
    click.echo(f"{verdict.facts:,} facts in {commits} are as they were written; hash {verdict.hash.hex()}")
    if not verdict.whole:
        click.echo(FROM.format(begins=verdict.begins, before=verdict.first - 1))
    click.echo(UP_TO.format(last=verdict.last))


def _json(verdict: "ExportVerdict", failure: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "ok": failure is None,
        "facts": verdict.facts,
        "commits": verdict.commits,
        "hash": verdict.hash.hex(),
        "begins": verdict.begins,
        "first": verdict.first,
        "last": verdict.last,
    }
    if failure is not None:
        answer["error"] = failure
    if verdict.damage:
        damage = verdict.damage
        answer["damage"] = {"line": damage.line, "first": damage.first, "last": damage.last}
    return answer


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    if file == STDIN:
        yield sys.stdin.buffer
    else:
        with file.open("rb") as stream:
            yield stream


@contextmanager
def _lines(file: Path) -> "Iterator[tuple[Iterator[bytes], Callable[[int], None] | None]]":
    """The file's lines, none longer than need be told from what is none; and whom to tell how much was read."""
    from store.exported import LINE_BYTES_MAX

    size = 0 if file == STDIN else file.stat().st_size
    with _opened(file) as source, progress("verifying") as advance:
        done = 0

        def read(count: int) -> None:
            nonlocal done
            done += count
            if advance:
                advance(done, max(size, done))

        yield iter(partial(source.readline, LINE_BYTES_MAX + 1), b""), read if advance else None
