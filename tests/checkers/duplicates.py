"""Delivered twice only where nobody could know: each delivery but the last was in doubt, and the log says so."""

from collections import defaultdict
from collections.abc import Iterator

from tests.simulation.observed import Observed, Transaction

from .facts import attempts, contents


def check(observed: Observed) -> Iterator[str]:
    known, given = attempts(observed), contents(observed)
    deliveries: dict[tuple[str, str], list[Transaction]] = defaultdict(list)
    for transaction in observed.transactions:
        if transaction.took_at is not None:
            for address in transaction.accepted:
                deliveries[transaction.id, address].append(transaction)
    for (message_id, address), taken in deliveries.items():
        for transaction in taken[:-1]:
            to = given[transaction.letter or ""].to
            outcomes = known[transaction.attempt or 0].outcomes
            if not any(each.status == "in_doubt" and to[each.recipient] == address for each in outcomes):
                yield (
                    f"{message_id} reached {address} {len(taken)} times, and attempt {transaction.attempt}"
                    " was not in doubt"
                )
