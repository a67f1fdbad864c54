"""How a command says no: one line on standard error that says what to do, and exit code 1.

Operating errors of every layer become a Failure here. What is none is a bug, and its traceback is wanted.
"""

import errno
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import click


class Failure(click.ClickException):
    """The answer is no (exit code 1); the text is one line."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"letterbook: {self.format_message()}", err=True)


@contextmanager
def one_line() -> Iterator[None]:
    """Within, operating errors become a Failure, also those that a nursery has put into a group."""
    try:
        yield
    except click.ClickException:
        raise
    except BaseException as error:
        leaves = list(_leaves(error))
        lines = {leaf: line for leaf in leaves if (line := _line(leaf))}
        if len(lines) == len(leaves):
            raise Failure(lines[min(leaves, key=_is_consequence)]) from error
        raise


@contextmanager
def last_words(say: Callable[[bytes], None]) -> Iterator[None]:
    """The same for a service, whose last line goes the way of all its lines (`line_writer.py`): a standard error that
    nobody reads must not keep alive what a manager waits to start again. So it is with the traceback of a bug."""
    try:
        with one_line():
            yield
    except click.ClickException as failure:
        say(f"letterbook: {failure.format_message()}\n".encode(errors="backslashreplace"))
        raise SystemExit(failure.exit_code) from failure
    except Exception as bug:
        say(traceback.format_exc().encode(errors="backslashreplace"))
        raise SystemExit(1) from bug


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that happened, out of the groups that nurseries make of them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _is_consequence(error: BaseException) -> bool:
    """Whether it only says that something else has ended the log."""
    from store.recorder import NotRecorded

    return isinstance(error, NotRecorded)


def _line(error: BaseException) -> str | None:
    """The line for the operator; None where this is a bug."""
    if isinstance(error, click.ClickException):
        return error.message
    if isinstance(error, operating_errors()):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return _line_of_the_system(error)
    return None


def operating_errors() -> tuple[type[BaseException], ...]:
    """Looked up only when something has gone wrong: the commands start faster without these modules."""
    from actors.supervision import GivenUp
    from events.wire import UnknownKind
    from store.faults import Fault
    from store.files import FileError
    from store.following import LogGap
    from store.opening import OpeningError
    from store.recorder import EndsGivenUp, NotRecorded
    from store.replay import OutsideLogError, StaleViewsError

    from .config import ConfigError

    store = (EndsGivenUp, Fault, FileError, LogGap, NotRecorded, OpeningError, OutsideLogError, StaleViewsError)
    return ConfigError, GivenUp, UnknownKind, *store


def _line_of_the_system(error: OSError) -> str | None:
    """What the operating system said; a reader that hung up (EPIPE) is click's to deal with."""
    if error.errno == errno.EPIPE:
        return None
    words = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        return f"{words}: another process listens there; write another [server] port, or stop that process"
    return f"{error.filename}: {words}" if error.filename else words
