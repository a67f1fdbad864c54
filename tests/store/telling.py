"""Given what was recorded, when this is asked for, then that is in the log: short stories for the store's tests."""

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from events.attempt import AttemptEnded, AttemptStarted
from events.fact import Draft, Entry
from events.message import MessageRevised
from events.values import Outcome
from store.beside import Beside
from store.views.messages import MessageRow
from store.writer import Declined, Recorded, Request

from .building import T0_US, account_saved, database, record, writer


class Story:
    """A store with one account, number 1."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.writer = writer(connection)
        self.account = self.given(account_saved())

    def given(self, draft: Draft, beside: Beside | None = None) -> int:
        """Record what must fit; its seq."""
        answer = self.when(draft, beside)
        assert isinstance(answer, Entry), answer
        return answer.seq

    def when(self, draft: Draft, beside: Beside | None = None) -> Entry | Declined:
        return record(self.writer, [draft], {} if beside is None else {0: beside}).answers[0]

    def together(self, *drafts: Draft, whole: bool = False) -> Recorded:
        return self.writer.turn([Request(drafts, {}, whole)]).recorded[0]

    def row(self, number: int) -> MessageRow | None:
        columns = self.connection.execute("select * from messages where number = ?", (number,)).fetchone()
        return MessageRow(*columns) if columns else None

    def totals(self) -> dict[str, int]:
        return dict(self.connection.execute("select state, sum(n) from totals group by state having sum(n) <> 0"))

    def statuses(self, number: int) -> list[str]:
        row = self.row(number)
        return [state.status for state in row.states()] if row else []


@contextmanager
def story() -> Iterator[Story]:
    with database() as connection:
        yield Story(connection)


def start(number: int, revision: int | None = None, recipients: Sequence[int] = (0,), account: int = 1) -> Draft:
    fact = AttemptStarted(revision=number if revision is None else revision, recipients=tuple(recipients))
    return Draft(fact, message=number, account=account)


def end(number: int, attempt: int, then: str, *statuses: str, account: int = 1, **fields) -> Draft:
    """The end of an attempt for the first recipients, in order."""
    outcomes = tuple(Outcome(index, status) for index, status in enumerate(statuses))
    return Draft(AttemptEnded(attempt=attempt, outcomes=outcomes, next=then, **fields), message=number, account=account)


def revise(
    number: int, name: str, recipients: Sequence[str], reach: Sequence[int], account: int = 1, due_us: int = 0
) -> Draft:
    fact = MessageRevised(
        id=name, priority=1, due_us=due_us, expires_us=3 * T0_US, size=20, recipients=tuple(recipients),
        reach=tuple(reach), letter="e" * 16,
    )  # fmt: skip
    return Draft(fact, message=number, account=account)


def seeded(seed: int) -> random.Random:
    return random.Random(seed)
