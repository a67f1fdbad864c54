"""The views `cursors` (how far results are reported), `reported` (when which were), `refused` (which were not, although
the cursor has passed them) and `tokens` (batches seen)."""

from msgspec import Struct
from msgspec.structs import replace

from events.fact import Entry
from events.report import BatchFetched, ReportRefused, ReportSettled, ResultsReported, TokensForgotten

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


class RefusedRow(Struct, frozen=True):
    """A result that the upstream refused by name: since when, from when on it is offered again, and when it was
    acknowledged after all or given up. Retention passes it some time after that, and takes the row with it."""

    seq: int
    since_us: int
    again_us: int
    settled_us: int | None = None


def refused_keys(entry: Entry) -> tuple[int, ...]:
    return (entry.fact.result,) if isinstance(entry.fact, ReportRefused | ReportSettled) else ()


def evolve_refused(row: RefusedRow | None, entry: Entry) -> RefusedRow | None:
    match entry.fact:
        case ReportRefused() as fact if row is None:
            return RefusedRow(fact.result, entry.at_us, fact.again_us)
        case ReportRefused() as fact if row is not None and row.settled_us is None:
            return replace(row, again_us=fact.again_us)
        case ReportSettled() if row is not None and row.settled_us is None:
            return replace(row, settled_us=entry.at_us)
    return row


REFUSED = View("refused", 1, RefusedRow, (ReportRefused, ReportSettled), refused_keys, evolve_refused)


class TokenRow(Struct, frozen=True):
    """A batch of the upstream's that is stored; `seq` is that of its fact."""

    token: str
    seq: int
    at_us: int


def token_keys(entry: Entry) -> tuple[str, ...]:
    match entry.fact:
        case BatchFetched(token=token) if token:
            return (token,)
        case TokensForgotten(tokens=tokens):
            return tokens
    return ()


def evolve_token(row: TokenRow | None, entry: Entry) -> TokenRow | None:
    match entry.fact:
        case BatchFetched() as fact if row is None:
            return TokenRow(fact.token, entry.seq, entry.at_us)
        case TokensForgotten():
            return None
    return row


TOKENS = View("tokens", 2, TokenRow, (BatchFetched, TokensForgotten), token_keys, evolve_token)
