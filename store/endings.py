"""How messages ended within a stretch of the log: what one line about each needs, and nothing that can be erased."""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from . import sql
from .reading import Connection, timeline
from .results_text import states_of
from .views.counts import STATUS_OF_FINAL
from .views.messages import MESSAGES, MessageRow, RecipientState


class Ending(Struct, frozen=True):
    """A message's end by the fact `seq`. `recipients` is JSON of RecipientState, empty where nothing is known of any;
    account, host and port are the account's as it is now. `created_us` is None where its content came later."""

    seq: int
    message: int
    id: str
    account_id: str | None
    host: str | None
    port: int | None
    status: str
    attempts: int
    cause: str | None
    recipients: str
    at_us: int
    created_us: int | None

    def states(self) -> tuple[RecipientState, ...]:
        return states_of(self.recipients)


def endings(connection: Connection, first: int, last: int, sure: Mapping[int, int]) -> list[Ending]:
    """Every end within [first, last], in the order of the log.

    `sure` are the seqs whose facts say that they end a message, with its number. One that the views do not have any
    more (retention was quicker, or the same id has come again and was withdrawn before) is folded from the log.
    """
    between = {"first": first, "last": last}
    found = {row[0]: Ending(*row) for row in connection.execute(sql.RESULTS_ENDED, between)}
    found.update((row[0], Ending(*row)) for row in connection.execute(sql.WITHDRAWN_ENDED, between))
    for seq in sure.keys() - found.keys():
        found.update((ending.seq, ending) for ending in _folded(connection, seq, sure[seq]))
    return [found[seq] for seq in sorted(found)]


def _folded(connection: Connection, seq: int, number: int) -> Iterator[Ending]:
    row: MessageRow | None = None
    for entry in timeline(connection, number):
        if entry.seq > seq:
            break
        row = MESSAGES.evolve(row, entry)
    if row is None or row.final_seq != seq:
        return
    account_id, host, port = connection.execute(sql.RELAY_OF_ACCOUNT, (row.account,)).fetchone() or (None, None, None)
    yield Ending(
        seq,
        number,
        row.id,
        account_id,
        host,
        port,
        STATUS_OF_FINAL.get(row.state, row.state),
        row.attempts,
        row.cause,
        row.recipients,
        row.updated_us,
        row.created_us,
    )
