"""The views `cursors` (how far results are reported), `reported` (when which were) and `tokens` (batches seen)."""

from msgspec import Struct

from events.fact import Entry
from events.report import BatchFetched, ResultsReported

from .rows import View

REPORTED = "reported"


class CursorRow(Struct, frozen=True):
    """A cursor into the log that only moves up."""

    name: str
    seq: int
    at_us: int


def cursor_keys(entry: Entry) -> tuple[str, ...]:
    return (REPORTED,) if isinstance(entry.fact, ResultsReported) else ()


def evolve_cursor(row: CursorRow | None, entry: Entry) -> CursorRow | None:
    match entry.fact:
        case ResultsReported() as fact if row is None or fact.up_to > row.seq:
            return CursorRow(REPORTED, fact.up_to, entry.at_us)
    return row


CURSORS = View("cursors", 1, CursorRow, (ResultsReported,), cursor_keys, evolve_cursor)


class ReportedRow(Struct, frozen=True):
    """Every result up to `up_to`, and above the row before, was reported at `at_us`."""

    up_to: int
    at_us: int


def reported_keys(entry: Entry) -> tuple[int, ...]:
    return (entry.fact.up_to,) if isinstance(entry.fact, ResultsReported) else ()


def evolve_reported(row: ReportedRow | None, entry: Entry) -> ReportedRow | None:
    match entry.fact:
        case ResultsReported() as fact if row is None:
            return ReportedRow(fact.up_to, entry.at_us)
    return row


REPORTED_AT = View("reported", 1, ReportedRow, (ResultsReported,), reported_keys, evolve_reported)


class TokenRow(Struct, frozen=True):
    """A batch of the upstream's that is stored; `seq` is that of its fact."""

    token: str
    seq: int
    at_us: int


def token_keys(entry: Entry) -> tuple[str, ...]:
    return (entry.fact.token,) if isinstance(entry.fact, BatchFetched) and entry.fact.token else ()


def evolve_token(row: TokenRow | None, entry: Entry) -> TokenRow | None:
    match entry.fact:
        case BatchFetched() as fact if row is None:
            return TokenRow(fact.token, entry.seq, entry.at_us)
    return row


TOKENS = View("tokens", 1, TokenRow, (BatchFetched,), token_keys, evolve_token)
