"""The view `messages`: one row a number, in every state, until retention takes it away.

pending, deferred and held are named reads of it (`store/reading.py`): time alone moves a message from
deferred to pending, and no fact says so.
"""

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from events.attempt import AttemptEnded, AttemptInterrupted, AttemptStarted
from events.fact import Entry
from events.lifecycle import FINAL, Refusal, State, follow, step_of
from events.message import (
    DoubtResolved,
    MessageAccepted,
    MessageFailed,
    MessageHeld,
    MessageRejected,
    MessageRevised,
    MessageWithdrawn,
)

from .rows import View


class RecipientState(Struct, frozen=True, array_like=True, omit_defaults=True):
    """The last word about one recipient; `ended` is the seq of the fact that said it (0: nothing yet).

    `status` is open, delivered, deferred, refused or in_doubt; once the message is final, what stayed open is
    withdrawn, expired or deferred.
    """

    status: str = "open"
    code: int | None = None
    enhanced: str | None = None
    queue_id: str | None = None
    ended: int = 0


OPEN_RECIPIENT = RecipientState()
RETRIABLE = frozenset({"open", "deferred", "in_doubt"})
"""Recipients of a waiting message that its next attempt is for."""
REACHED = frozenset({"delivered", "in_doubt"})
"""Recipients who have the message, or may have it: the same id sent again passes them by."""

_encode = msgspec.json.encode
decode_states = msgspec.json.Decoder(tuple[RecipientState, ...]).decode
_decode_reached = msgspec.json.Decoder(dict[str, RecipientState]).decode


class MessageRow(Struct, frozen=True):
    """One message as of some seq.

    `digests` are the recipients' digests, space-separated, in the order of the envelope. `recipients` is JSON of
    RecipientState in the same order, empty while nothing is known of any. `reached` is JSON of digest to
    RecipientState for those reached under earlier contents who are no longer in the envelope.
    `revision` is the seq of the fact that brought the content: the key of its letter.
    """

    number: int
    id: str
    account: int | None
    state: State
    priority: int
    due_us: int
    due_cause: str | None
    expires_us: int
    created_us: int
    updated_us: int
    revision: int
    size: int
    digests: str
    recipients: str = ""
    reached: str = ""
    attempts: int = 0
    retries: int = 0
    uncharged: int = 0
    doubts: int = 0
    faults: int = 0
    attempt: int | None = None
    withdrawing: bool = False
    final_seq: int | None = None
    final_us: int | None = None
    cause: str | None = None
    detail: str | None = None

    def states(self) -> tuple[RecipientState, ...]:
        """Every recipient's state, in the order of the envelope."""
        if self.recipients:
            return decode_states(self.recipients)
        return (OPEN_RECIPIENT,) * len(self.digests.split())

    def reached_digests(self) -> dict[str, RecipientState]:
        """Whoever has this message or may have it, under any content it has had."""
        reached = _decode_reached(self.reached) if self.reached else {}
        for digest, state in zip(self.digests.split(), self.states(), strict=False):
            if state.status in REACHED:
                reached[digest] = state
        return reached


ALL_OF = tuple(tuple(range(count)) for count in range(8))
"""The index tuples of small envelopes, made once: nearly every message has one recipient."""


FACTS = (
    MessageAccepted,
    MessageRejected,
    MessageRevised,
    MessageWithdrawn,
    MessageHeld,
    MessageFailed,
    DoubtResolved,
    AttemptStarted,
    AttemptEnded,
    AttemptInterrupted,
)


def keys(entry: Entry) -> tuple[int, ...]:
    if entry.message is None or not isinstance(entry.fact, FACTS):
        return ()
    return (entry.message,)


def evolve(row: MessageRow | None, entry: Entry) -> MessageRow | None:
    """The row after the fact. A step that the lifecycle refuses changes nothing."""
    step = step_of(entry.fact)
    if step is None:
        return row
    state = follow(row.state if row else None, step)
    if isinstance(state, Refusal):
        return row
    if row is None:
        return _first(entry)
    return _finished(_after(row, state, entry), entry)


def _first(entry: Entry) -> MessageRow | None:
    match entry.fact:
        case MessageAccepted() as fact:
            return MessageRow(
                number=entry.message or entry.seq,
                id=fact.id,
                account=entry.account,
                state="waiting",
                priority=fact.priority,
                due_us=fact.due_us,
                due_cause="asked" if fact.due_us > entry.at_us else None,
                expires_us=fact.expires_us,
                created_us=entry.at_us,
                updated_us=entry.at_us,
                revision=entry.seq,
                size=fact.size,
                digests=" ".join(fact.recipients),
            )
        case MessageRejected() as fact:
            return MessageRow(
                number=entry.message or entry.seq,
                id=fact.id,
                account=entry.account,
                state="rejected",
                priority=2,
                due_us=entry.at_us,
                due_cause=None,
                expires_us=entry.at_us,
                created_us=entry.at_us,
                updated_us=entry.at_us,
                revision=entry.seq,
                size=0,
                digests="",
                final_seq=entry.seq,
                final_us=entry.at_us,
                cause="rejected",
                detail=fact.reason,
            )
    return None


def _after(row: MessageRow, state: State, entry: Entry) -> MessageRow:
    at_us = entry.at_us
    match entry.fact:
        case AttemptStarted():
            return replace(row, state=state, attempt=entry.seq, updated_us=at_us)
        case AttemptEnded() | AttemptInterrupted() as fact:
            return _ended(row, state, entry, fact)
        case MessageRevised() as fact:
            return _revised(row, entry, fact)
        case MessageWithdrawn() if state == "in_flight":
            return replace(row, withdrawing=True, updated_us=at_us)
        case MessageWithdrawn():
            return replace(row, state=state, cause="withdrawn", updated_us=at_us)
        case MessageHeld() as fact:
            return replace(row, state=state, cause=fact.cause, updated_us=at_us)
        case MessageFailed() as fact:
            detail = None if fact.after_s is None else str(fact.after_s)
            return replace(row, state=state, cause=fact.cause, detail=detail, updated_us=at_us)
        case DoubtResolved() as fact:
            due_us = at_us if fact.due_us is None else fact.due_us
            cause = f"resolved_{fact.resolution}"
            return replace(row, state=state, cause=cause, due_us=due_us, doubts=0, updated_us=at_us)
    return row


def _ended(row: MessageRow, state: State, entry: Entry, fact: AttemptEnded | AttemptInterrupted) -> MessageRow:
    """After an attempt. A mark of withdrawal wins over waiting again: what is still open is withdrawn."""
    states = list(row.states())
    for outcome in fact.outcomes:
        if outcome.recipient < len(states):
            states[outcome.recipient] = RecipientState(
                outcome.status, outcome.code, outcome.enhanced, outcome.queue_id, entry.seq
            )
    if row.withdrawing and state in ("waiting", "held"):
        state = "withdrawn"
    return replace(
        row,
        state=state,
        attempt=None,
        recipients=_encode(states).decode(),
        attempts=row.attempts + 1,
        retries=row.retries + fact.charged,
        uncharged=row.uncharged + 1 if fact.due_cause == "relay" else 0,
        doubts=row.doubts + any(outcome.status == "in_doubt" for outcome in fact.outcomes),
        faults=row.faults + (fact.cause == "internal"),
        due_us=row.due_us if fact.due_us is None else fact.due_us,
        due_cause=fact.due_cause,
        cause="withdrawn" if state == "withdrawn" else fact.cause,
        detail=None if fact.retries is None else str(fact.retries),
        updated_us=entry.at_us,
    )


def _revised(row: MessageRow, entry: Entry, fact: MessageRevised) -> MessageRow:
    """New content under the same number: attempts and age anew, and whoever was reached stays reached."""
    reached = row.reached_digests()
    open_indexes = frozenset(fact.reach)
    states = [
        OPEN_RECIPIENT if index in open_indexes else reached.get(digest, OPEN_RECIPIENT)
        for index, digest in enumerate(fact.recipients)
    ]
    for digest in fact.recipients:
        reached.pop(digest, None)
    return MessageRow(
        number=row.number,
        id=row.id,
        account=entry.account,
        state="waiting",
        priority=fact.priority,
        due_us=fact.due_us,
        due_cause="asked" if fact.due_us > entry.at_us else None,
        expires_us=fact.expires_us,
        created_us=entry.at_us,
        updated_us=entry.at_us,
        revision=entry.seq,
        size=fact.size,
        digests=" ".join(fact.recipients),
        recipients="" if len(open_indexes) == len(states) else _encode(states).decode(),
        reached=_encode(reached).decode() if reached else "",
    )


_LAST_WORD = {"withdrawn": "withdrawn", "expired": "expired"}


def _finished(row: MessageRow, entry: Entry) -> MessageRow:
    """A final state closes what is still open, and is known by the seq of its fact."""
    if row.state not in FINAL:
        return row
    recipients = row.recipients
    if row.state == "sent" and isinstance(entry.fact, DoubtResolved):
        delivered = RecipientState("delivered", ended=entry.seq)
        states = [delivered if s.status in RETRIABLE else s for s in row.states()]
        recipients = _encode(states).decode()
    elif row.state != "sent" and (word := _LAST_WORD.get(row.cause or "")):
        states = [replace(s, status=word) if s.status in ("open", "deferred") else s for s in row.states()]
        recipients = _encode(states).decode()
    return replace(row, final_seq=entry.seq, final_us=entry.at_us, recipients=recipients, withdrawing=False)


MESSAGES = View("messages", 1, MessageRow, FACTS, keys, evolve)
