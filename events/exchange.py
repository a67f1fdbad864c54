"""The hand-off with confirmation tokens (proxySync): what is said in an exchange, and what follows from it. Pure.

Theory of operation. Between an upstream and us go two streams, each one way and each with a memory of its own:

    messages   upstream -> us     the upstream keeps a batch, under a token, until we confirm the token
    reports    us -> upstream     we keep a report, under the seq of its result, until the cursor that the upstream
                                  acknowledges has passed it

An *exchange* is one request and its answer, and both have one shape, so that either side may start it: what each says
about a stream stands in the same field whoever speaks first. Each field is what its sender holds true at that moment
and nothing else; none depends on what the exchange before it said. So an exchange may be lost, repeated, delayed,
overtaken, or cross another one: what comes late says less than what came before it, and changes nothing.

Messages. A batch comes with a token. The receiver stores batch and token in one commit, or finds the token stored;
either way it confirms, and only then. The sender that does not hear the confirmation offers the same batch again. So
the batch is stored at least once, because it is offered until it is, and at most once, because token and batch are one
commit. That is all: nobody needs to know where an exchange was cut.

Reports. The sender says reports and `report_cursor`, the seq of the last one. The receiver acknowledges the cursor up
to which it has stored all. The sender moves its cursor up to there, never down, and never past what it has offered: an
acknowledgement from a time that is not this log's (a backup was restored, and `log` was not named) could otherwise
pass results that nobody was told. Seqs belong to a log, so an acknowledgement that names another one is no one's.

State is what must be remembered between two exchanges and is not on disk: `offered`, after a crash 0, which only means
that reports are offered once more; and `confirm`, which side that starts an exchange must carry into its next one,
after a crash none, which only means that the batch is offered once more. `decide` says what an exchange asks for,
`evolve` what is true after it was done, `say` what we say next. The caller does what is asked for between the two: it
stores, it moves the cursor, both by facts (BatchFetched, ResultsReported).
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Raw, Struct
from msgspec.structs import replace

TOKEN_CHARACTERS_MAX = 2_000
"""A name for a batch, not the batch; it stands in every exchange until it is confirmed."""

Token = str | int


class Heard(Struct, frozen=True):
    """What the other side says. null is absent. Its `confirm`, `delivery_report` and `report_cursor` speak of streams
    that we do not have: we give no messages and take no reports."""

    log: str | None = None
    confirm: Token | None = None
    messages: tuple[Raw, ...] | None = None
    token: Token | None = None
    delivery_report: tuple[Raw, ...] | None = None
    report_cursor: int | None = None
    ack_cursor: int | None = None


class State(Struct, frozen=True):
    """`log` is ours; `acknowledged` the durable cursor; `offered` the last seq that was told to anybody in this life;
    `confirm` a token that is stored and not yet known to be heard."""

    log: str
    acknowledged: int = 0
    offered: int = 0
    confirm: Token | None = None


class Due(Struct, frozen=True):
    """What an exchange asks for: to store its batch under this token, and to move the cursor up to here."""

    store: Token | None = None
    acknowledge: int | None = None


class Stored(Struct, frozen=True):
    """The batch of this token is on disk, by this exchange or by an earlier one."""

    token: Token


class Acknowledged(Struct, frozen=True):
    """The cursor on disk has come up to here."""

    up_to: int


class Offered(Struct, frozen=True):
    """Reports up to here were said."""

    up_to: int


class Confirmed(Struct, frozen=True):
    """An exchange that carried this confirmation was answered, so it was heard."""

    token: Token | None


Event = Stored | Acknowledged | Offered | Confirmed


def fault(heard: Heard, batch_max: int) -> str | None:
    """Why an exchange cannot be taken at all, in one sentence; then nothing of it is."""
    if heard.messages and heard.token in (None, ""):
        return "messages came without a token: name the batch, so that it can be confirmed"
    if len(heard.messages or ()) > batch_max:
        return f"Cannot enqueue more than {batch_max} messages at once"
    if len(str(heard.token or "")) > TOKEN_CHARACTERS_MAX:
        return f"token is longer than {TOKEN_CHARACTERS_MAX} characters: give a shorter one"
    return None


def decide(state: State, heard: Heard) -> Due:
    """What an exchange without fault asks for."""
    return Due(None if heard.token == "" else heard.token, _acknowledged(state, heard))


def _acknowledged(state: State, heard: Heard) -> int | None:
    if heard.ack_cursor is None or heard.log not in (None, state.log):
        return None
    up_to = min(heard.ack_cursor, state.offered)
    return up_to if up_to > state.acknowledged else None


def evolve(state: State, event: Event) -> State:
    """Cursors only move up; a confirmation is dropped when that very one was heard."""
    match event:
        case Stored(token):
            return replace(state, confirm=token)
        case Acknowledged(up_to):
            return replace(state, acknowledged=max(state.acknowledged, up_to))
        case Offered(up_to):
            return replace(state, offered=max(state.offered, up_to))
        case Confirmed(token):
            return replace(state, confirm=None) if token == state.confirm else state


def say(state: State, reports: Sequence[Any], report_cursor: int, confirm: Token | None) -> dict[str, Any]:
    """One half of an exchange, as it is written; `report_cursor` is the seq of the last report in it, or the last
    acknowledged one."""
    return {
        "log": state.log,
        "confirm": confirm,
        "messages": [],
        "token": None,
        "delivery_report": reports,
        "report_cursor": report_cursor,
        "ack_cursor": None,
    }
