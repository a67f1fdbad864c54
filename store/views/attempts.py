"""The view `attempts`: the attempts that are open now. After a crash it says what may be in doubt."""

from msgspec import Struct

from events.attempt import AttemptEnded, AttemptInterrupted, AttemptStarted
from events.fact import Entry

from .rows import View


class AttemptRow(Struct, frozen=True):
    """`recipients` are the indexes it is for, space-separated."""

    attempt: int
    message: int
    account: int | None
    revision: int
    recipients: str
    started_us: int

    def indexes(self) -> tuple[int, ...]:
        return tuple(map(int, self.recipients.split()))


def keys(entry: Entry) -> tuple[int, ...]:
    match entry.fact:
        case AttemptStarted():
            return (entry.seq,)
        case AttemptEnded() | AttemptInterrupted() as fact:
            return (fact.attempt,)
    return ()


def evolve(row: AttemptRow | None, entry: Entry) -> AttemptRow | None:
    match entry.fact:
        case AttemptStarted() as fact if entry.message is not None:
            recipients = " ".join(map(str, fact.recipients))
            return AttemptRow(entry.seq, entry.message, entry.account, fact.revision, recipients, entry.at_us)
        case AttemptEnded() | AttemptInterrupted():
            return None
    return row


ATTEMPTS = View("attempts", 1, AttemptRow, (AttemptStarted, AttemptEnded, AttemptInterrupted), keys, evolve)
