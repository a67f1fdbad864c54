"""What several checkers read off the log: attempts with their ends, states by number, contents by subject."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from events.attempt import AttemptEnded, AttemptInterrupted, AttemptStarted
from events.fact import Entry
from events.lifecycle import FINAL, Refusal, State, follow, in_the_case_of, step_of
from events.message import (
    DoubtResolved,
    MessageAccepted,
    MessageRejected,
    MessageRequeued,
    MessageRevised,
    MessageWithdrawn,
)
from events.values import Outcome
from tests.simulation.messages import subject
from tests.simulation.observed import Message, Observed, Transaction


@dataclass
class Attempt:
    """One attempt as the log has it, and the transactions that the relays saw of it."""

    started: Entry
    ended: Entry | None = None
    transactions: Sequence[Transaction] = ()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        fact = self.ended.fact if self.ended else None
        return fact.outcomes if isinstance(fact, AttemptEnded | AttemptInterrupted) else ()


def attempts(observed: Observed) -> dict[int, Attempt]:
    """Every attempt by the seq of its start."""
    found: dict[int, Attempt] = {}
    for entry in observed.log:
        match entry.fact:
            case AttemptStarted():
                found[entry.seq] = Attempt(entry)
            case AttemptEnded() | AttemptInterrupted() as fact:
                found[fact.attempt].ended = entry
    for transaction in observed.transactions:
        if transaction.attempt is not None and transaction.attempt in found:
            attempt = found[transaction.attempt]
            attempt.transactions = (*attempt.transactions, transaction)
    return found


def ids(log: Iterable[Entry]) -> dict[str, int]:
    """The number of every id."""
    return {
        entry.fact.id: entry.message or entry.seq
        for entry in log
        if isinstance(entry.fact, MessageAccepted | MessageRejected)
    }


def states(log: Iterable[Entry]) -> dict[int, State]:
    """Every message's state at the end of these facts; a step that does not fit is another checker's business."""
    return {number: after for number, _, after, _ in moves(log) if not isinstance(after, Refusal)}


class Outcomes:
    """The last word about every recipient, by (number, digest), whichever content it came with."""

    def __init__(self) -> None:
        self._envelopes: dict[int, tuple[str, ...]] = {}
        self._words: dict[tuple[int, str], str] = {}

    def fold(self, entry: Entry) -> None:
        number, fact = entry.message or 0, entry.fact
        match fact:
            case MessageAccepted() | MessageRevised():
                self._envelopes[number] = fact.recipients
                self._clear(number)
            case MessageRequeued():
                self._clear(number)
            case AttemptEnded() | AttemptInterrupted():
                for outcome in fact.outcomes:
                    self._words[number, self._envelopes[number][outcome.recipient]] = outcome.status
            case DoubtResolved(resolution="sent"):
                for digest in self._envelopes[number]:
                    if self._words.get((number, digest)) != "refused":
                        self._words[number, digest] = "called sent"
            case DoubtResolved(resolution=resolution):
                word = {"resend": "open", "error": "refused"}[resolution]
                for digest in self._envelopes[number]:
                    if self._words.get((number, digest)) == "in_doubt":
                        self._words[number, digest] = word

    def _clear(self, number: int) -> None:
        """Another content, or another try: it is for whoever was refused or deferred too."""
        for digest in self._envelopes[number]:
            if self._words.get((number, digest)) in ("refused", "deferred"):
                del self._words[number, digest]

    def of(self, number: int) -> list[str]:
        """The words about the recipients of the present content, in their order."""
        return [self._words.get((number, digest), "open") for digest in self._envelopes.get(number, ())]


def moves(log: Iterable[Entry]) -> Iterator[tuple[int, State | None, State | Refusal, Entry]]:
    """(number, state before, state after, fact), withdrawal in flight and refusals counted as the view counts them."""
    found: dict[int, State] = {}
    withdrawing: set[int] = set()
    outcomes = Outcomes()
    for entry in log:
        step = step_of(entry.fact)
        if step is None or entry.message is None:
            continue
        number, before = entry.message, found.get(entry.message)
        after = follow(before, in_the_case_of(step, some_refused="refused" in outcomes.of(number)))
        outcomes.fold(entry)
        if before == "in_flight" and isinstance(entry.fact, MessageWithdrawn):
            withdrawing.add(number)
        elif number in withdrawing and after in ("waiting", "held"):
            after = "withdrawn"
        if after in FINAL:
            withdrawing.discard(number)
        if not isinstance(after, Refusal):
            found[number] = after
        yield number, before, after, entry


def contents(observed: Observed) -> dict[str, Message]:
    """Every content that a client or the upstream ever gave, by its subject."""
    given = [each for asked in observed.asked for each in asked.messages]
    given += [each for offered in observed.offered for each in offered.messages]
    return {subject(message): message for message in given}
