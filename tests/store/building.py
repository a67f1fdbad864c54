"""What the store's tests build on: a database with its tables, and drafts of every kind."""

import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from events.account import AccountSaved
from events.attempt import AttemptEnded, AttemptStarted
from events.fact import OWN, Draft
from events.message import MessageAccepted
from events.schedule import RuleSaved
from events.values import Outcome
from store.beside import Beside, LetterRow
from store.schema import migrate
from store.writer import Recorded, Request, Writer

T0_US = 1_700_000_000_000_000

PRAGMAS = ("auto_vacuum = incremental", "journal_mode = wal", "wal_autocheckpoint = 0", "secure_delete = on")


@contextmanager
def database(path: Path | str = ":memory:") -> Iterator[sqlite3.Connection]:
    """A database with its tables, set as the service sets it."""
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        for pragma in (
            "auto_vacuum = incremental",
            "journal_mode = wal",
            "wal_autocheckpoint = 0",
            "secure_delete = on",
        ):
            connection.execute(f"pragma {pragma}").close()
        migrate(connection)
        yield connection


def writer(connection: sqlite3.Connection, step_us: int = 1000) -> Writer:
    """A writer whose clock moves on by `step_us` a turn."""
    clock = itertools.count(T0_US, step_us)
    return Writer(connection, lambda: next(clock))


def record(to: Writer, drafts: Sequence[Draft], beside: dict[int, Beside] | None = None) -> Recorded:
    """Record drafts in a turn of their own."""
    return to.turn([Request(drafts, beside or {})]).recorded[0]


def account_saved(name: str = "default", **fields) -> Draft:
    fact = AccountSaved(id=name, host="relay.example", port=25, credentials="c" * 16, **fields)
    return Draft(fact, account=OWN)


def accepted(name: str, account: int = 1, *, due_us: int = 0, recipients: int = 1, priority: int = 2) -> Draft:
    digests = tuple(f"{name}:{index}" for index in range(recipients))
    fact = MessageAccepted(
        id=name, priority=priority, due_us=due_us, expires_us=2 * T0_US, size=10, recipients=digests, letter="d" * 16
    )
    return Draft(fact, message=OWN, account=account)


def rule_saved(**fields) -> Draft:
    given = {"name": "r", "enabled": True, "priority": 0, "days": (0, 1), "start_hour": 8, "end_hour": 18}
    return Draft(RuleSaved(**given | {"cross_midnight": False, "interval_minutes": 30} | fields))


def letter(text: str) -> LetterRow:
    """A letter whose every stored part holds the text."""
    return LetterRow(f"envelope {text}".encode() * 5, f"content {text} ".encode() * 200, f"salt {text}".encode())


def started(message: int, revision: int | None = None, account: int = 1) -> Draft:
    return Draft(AttemptStarted(revision=revision or message, recipients=(0,)), message=message, account=account)


def ended(message: int, attempt: int, status: str = "delivered", then: str = "done", account: int = 1) -> Draft:
    outcome = Outcome(0, status, 250 if status == "delivered" else 550)
    return Draft(AttemptEnded(attempt=attempt, outcomes=(outcome,), next=then), message=message, account=account)
