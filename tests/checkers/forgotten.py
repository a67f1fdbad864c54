"""Nothing accepted is forgotten: what was answered as taken is in the log by then, ends, and ends truly; the content
that goes out is never one that had been replaced before."""

from collections import defaultdict
from collections.abc import Iterator

from events.message import DoubtResolved, MessageAccepted, MessageRevised
from tests.simulation.observed import Asked, Observed

from .facts import contents, ids, states

REASONS = {"already sent", "in flight", "account not found"}
"""What these clients can be refused for: all they give is well-formed."""

ENDS = {"sent", "failed", "withdrawn", "rejected", "held"}


def check(observed: Observed) -> Iterator[str]:
    yield from _acknowledged(observed)
    yield from _confirmed(observed)
    yield from _ended(observed)
    yield from _sent_to_all(observed)
    yield from _latest_content(observed)


def _acknowledged(observed: Observed) -> Iterator[str]:
    numbers = ids(observed.log)
    taken_at: dict[int, int] = {}
    for entry in observed.log:
        if isinstance(entry.fact, MessageAccepted | MessageRevised):
            taken_at.setdefault(entry.message or entry.seq, entry.seq)
    for asked in observed.asked:
        if asked.name != "addMessages" or not asked.ok:
            continue
        refused = asked.refused()
        for message in asked.messages:
            if (reason := refused.get(message.id)) is not None:
                if reason not in REASONS:
                    yield f"{message.id} was refused: {reason}"
            elif taken_at.get(numbers.get(message.id, 0), asked.seq_after + 1) > asked.seq_after:
                yield f"{message.id} was answered as queued at {asked.answered_at}, and the log did not hold it"


def _confirmed(observed: Observed) -> Iterator[str]:
    numbers = ids(observed.log)
    for offered in observed.offered:
        if offered.confirmed_at is None:
            yield f"{offered.token} was never confirmed"
            continue
        for message in offered.messages:
            if message.id not in numbers:
                yield f"{offered.token} was confirmed, and {message.id} is not in the log"


def _ended(observed: Observed) -> Iterator[str]:
    final = states(observed.log)
    for message_id, number in ids(observed.log).items():
        if final[number] not in ENDS:
            yield f"{message_id} is {final[number]} at the end, and nothing keeps it"


def _sent_to_all(observed: Observed) -> Iterator[str]:
    """Whoever is sent reached everybody of its last content."""
    given, final = contents(observed), states(observed.log)
    last: dict[int, str] = {}
    reached: dict[int, set[str]] = defaultdict(set)
    for transaction in observed.transactions:
        if transaction.number is not None:
            last[transaction.number] = transaction.letter or ""
            if transaction.took_at is not None:
                reached[transaction.number].update(transaction.accepted)
    called = {entry.message for entry in observed.log if isinstance(entry.fact, DoubtResolved)}
    for number, state in final.items():
        if number in called:
            # A person's word stands for what no relay has said.
            continue
        if state == "sent" and number not in last:
            yield f"message {number} is sent, and no relay ever heard of it"
        elif state == "sent" and (missing := set(given[last[number]].to) - reached[number]):
            yield f"{given[last[number]].id} is sent, and {missing} never got it"


def _latest_content(observed: Observed) -> Iterator[str]:
    """A content is out of the race once a later one was asked for after it and answered as queued."""
    ended = {life.number: life.ended_at or float("inf") for life in observed.lives}
    by_upstream = {message.id for offered in observed.offered for message in offered.messages}
    over: dict[tuple[str, int], float] = defaultdict(float)
    queued: dict[str, list[tuple[Asked, int]]] = defaultdict(list)
    for asked in observed.asked:
        for message in asked.messages:
            until = asked.answered_at if asked.answered_at is not None else ended[asked.life]
            over[message.id, message.version] = max(over[message.id, message.version], until)
            if asked.name == "addMessages" and asked.ok and message.id not in asked.refused():
                queued[message.id].append((asked, message.version))
    for transaction in observed.transactions:
        version = int((transaction.letter or "version 0").rpartition(" ")[2])
        if transaction.id in by_upstream:
            continue
        for asked, later in queued[transaction.id]:
            if (
                later != version
                and over[transaction.id, version] < asked.at
                and asked.answered_at < transaction.mail_at
            ):
                yield (
                    f"{transaction.id} version {version} left at {transaction.mail_at:.3f}, and version {later}"
                    f" had taken its place at {asked.answered_at:.3f}"
                )
