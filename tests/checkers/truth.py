"""The log says what happened: delivered only if the relay took it, refused and deferred only if it did not, and what
the relay took is the letter that the attempt was about."""

from collections.abc import Iterator

from tests.simulation.observed import Message, Observed

from .facts import Attempt, attempts, contents


def check(observed: Observed) -> Iterator[str]:
    given = contents(observed)
    for seq, attempt in attempts(observed).items():
        for transaction in attempt.transactions:
            if transaction.took_at is not None and transaction.subject != transaction.letter:
                yield f"attempt {seq} was about {transaction.letter!r}, and the relay got {transaction.subject!r}"
        if attempt.outcomes:
            yield from _compare(seq, attempt, given)


def _compare(seq: int, attempt: Attempt, given: dict[str, Message]) -> Iterator[str]:
    letters = {each.letter for each in attempt.transactions if each.letter}
    message = given.get(next(iter(letters), ""))
    taken = {address for each in attempt.transactions if each.took_at is not None for address in each.accepted}
    for outcome in attempt.outcomes:
        if message is None:
            if outcome.status == "delivered":
                yield f"attempt {seq} says delivered, and no relay heard of it"
            continue
        address = message.to[outcome.recipient]
        if outcome.status == "delivered" and address not in taken:
            yield f"attempt {seq} says delivered to {address}, and the relay did not take it"
        if outcome.status in ("refused", "deferred") and address in taken:
            yield f"attempt {seq} says {outcome.status} for {address}, and the relay took it"
