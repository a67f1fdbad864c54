"""The view `messages`: one row a number, in every state, until retention takes it away.

pending, deferred and held are named reads of it (`store/reading.py`): time alone moves a message from
deferred to pending, and no fact says so.
"""

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from events.attempt import AttemptEnded, AttemptInterrupted, AttemptStarted
from events.fact import Entry
from events.lifecycle import FINAL, Refusal, State, follow, in_the_case_of, step_of
from events.message import (
    DoubtResolved,
    MessageAccepted,
    MessageExpedited,
    MessageFailed,
    MessageHeld,
    MessageImported,
    MessageRejected,
    MessageRequeued,
    MessageRevised,
    MessageWithdrawn,
)

from .rows import View


class RecipientState(Struct, frozen=True, array_like=True, omit_defaults=True):
    """The last word about one recipient; `ended` is the seq of the fact that said it (0: nothing yet).

    `status` is open, delivered, deferred, refused or in_doubt; once the message is final, what stayed open is
    withdrawn, expired or deferred. While a message that came again is open, whoever was in doubt under its earlier
    content is passed_by: new content is not for them, and once it is final they are in_doubt again.
    """

    status: str = "open"
    code: int | None = None
    enhanced: str | None = None
    queue_id: str | None = None
    ended: int = 0


OPEN_RECIPIENT = RecipientState()
RETRIABLE = frozenset({"open", "deferred", "in_doubt"})
"""Recipients of a waiting message that its next attempt is for."""
IN_DOUBT = frozenset({"in_doubt"})
PUT_OFF = frozenset({"retry", "relay"})
"""Why a message is due later, where nobody asked for that: it may be expedited."""
REACHED = frozenset({"delivered", "in_doubt", "passed_by"})
"""Recipients who have the message, or may have it: the same id sent again passes them by."""

_encode = msgspec.json.encode
decode_states = msgspec.json.Decoder(tuple[RecipientState, ...]).decode
_decode_reached = msgspec.json.Decoder(dict[str, RecipientState]).decode


class MessageRow(Struct, frozen=True, gc=False):
    """One message as of some seq.

    `digests` are the recipients' digests, space-separated, in the order of the envelope. `recipients` is JSON of
    RecipientState in the same order, empty while nothing is known of any. `reached` is JSON of digest to
    RecipientState for those reached under earlier contents who are no longer in the envelope.
    `revision` is the seq of the fact that brought the content: the key of its letter. `asked_us` is the moment that
    somebody asked for, until an attempt has ended: a step of the clock moves `due_us` otherwise.
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
    asked_us: int | None = None

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
    MessageImported,
    MessageRevised,
    MessageRequeued,
    MessageExpedited,
    MessageWithdrawn,
    MessageHeld,
    MessageFailed,
    DoubtResolved,
    AttemptStarted,
    AttemptEnded,
    AttemptInterrupted,
)


def keys(entry: Entry) -> tuple[int, ...]:
    return () if entry.message is None else (entry.message,)


def evolve(row: MessageRow | None, entry: Entry) -> MessageRow | None:
    """The row after the fact. A step that the lifecycle refuses changes nothing."""
    step = step_of(entry.fact)
    if step is None:
        return row
    if row is None:
        return None if isinstance(follow(None, step), Refusal) else _first(entry)
    state = follow(row.state, _in_this_case(row, step))
    return row if isinstance(state, Refusal) else _finished(_after(row, state, entry), entry)


def _in_this_case(row: MessageRow, step: str) -> str:
    if row.state == "in_flight":
        return in_the_case_of(step, withdrawing=row.withdrawing)
    if row.state == "held":
        return in_the_case_of(step, some_refused=any(state.status == "refused" for state in row.states()))
    return step


def _first(entry: Entry) -> MessageRow | None:
    match entry.fact:
        case MessageAccepted() as fact:
            asked_us = _asked_us(fact, entry)
            return MessageRow(
                number=entry.message or entry.seq,
                id=fact.id,
                account=entry.account,
                state="waiting",
                priority=fact.priority,
                due_us=fact.due_us,
                due_cause=None if asked_us is None else "asked",
                expires_us=fact.expires_us,
                created_us=entry.at_us if fact.created_us is None else fact.created_us,
                updated_us=entry.at_us,
                revision=entry.seq,
                size=fact.size,
                digests=" ".join(fact.recipients),
                asked_us=asked_us,
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
        case MessageImported() as fact:
            return _imported(entry, fact)
    return None


def _imported(entry: Entry, fact: MessageImported) -> MessageRow:
    """What is known of a failure is about the whole message: one refused recipient stands for all."""
    refused = (RecipientState("refused", ended=entry.seq),) if fact.ended == "failed" else ()
    return MessageRow(
        number=entry.message or entry.seq,
        id=fact.id,
        account=entry.account,
        state=fact.ended,
        priority=fact.priority,
        due_us=fact.created_us,
        due_cause=None,
        expires_us=fact.created_us,
        created_us=fact.created_us,
        updated_us=entry.at_us,
        revision=entry.seq,
        size=0,
        digests="",
        recipients=_encode(refused).decode() if refused else "",
        final_seq=entry.seq,
        final_us=fact.ended_us,
        cause="refused" if refused else None,
    )


def _asked_us(fact: MessageAccepted | MessageRevised, entry: Entry) -> int | None:
    """Facts of earlier releases do not name the moment: what is due later than its stamp was asked for."""
    return fact.asked_us or (fact.due_us if fact.due_us > entry.at_us else None)


def _after(row: MessageRow, state: State, entry: Entry) -> MessageRow:
    at_us = entry.at_us
    match entry.fact:
        case AttemptStarted():
            return replace(row, state=state, attempt=entry.seq, updated_us=at_us)
        case AttemptEnded() | AttemptInterrupted() as fact:
            return _ended(row, state, entry, fact)
        case MessageRevised() as fact:
            return _revised(row, entry, fact)
        case MessageRequeued() as fact:
            return _requeued(row, entry, fact)
        case MessageExpedited() as fact:
            return replace(row, due_us=fact.due_us, due_cause=None, updated_us=at_us)
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
            return _resolved(row, state, entry, fact)
    return row


_RESOLVED = {"resend": "open", "sent": "delivered", "error": "refused"}
"""What a person's word makes of a recipient in doubt: it is the last word about them."""

_NOT_REFUSED = RETRIABLE | {"passed_by"}


def _resolved(row: MessageRow, state: State, entry: Entry, fact: DoubtResolved) -> MessageRow:
    """After a person decided. Called sent, whoever was not refused has it; else only who was in doubt is changed."""
    resolved = RecipientState(_RESOLVED[fact.resolution], ended=entry.seq)
    meant = _NOT_REFUSED if fact.resolution == "sent" else IN_DOUBT
    due_us = entry.at_us if fact.due_us is None else fact.due_us
    asked = row.due_cause if due_us == row.due_us else "asked"
    return replace(
        row,
        state=state,
        recipients=_replaced(row, meant, resolved),
        cause="refused" if fact.resolution == "sent" and state == "failed" else f"resolved_{fact.resolution}",
        due_us=due_us,
        due_cause=asked if due_us > entry.at_us else None,
        expires_us=row.expires_us if fact.expires_us is None else fact.expires_us,
        asked_us=row.asked_us if due_us == row.due_us else None,
        doubts=0,
        updated_us=entry.at_us,
    )


def _replaced(row: MessageRow, statuses: frozenset[str], by: RecipientState) -> str:
    """The recipients as JSON, those with one of `statuses` replaced."""
    states = row.states()
    after = tuple([by if state.status in statuses else state for state in states])
    return row.recipients if after == states else _encode(after).decode()


def _ended(row: MessageRow, state: State, entry: Entry, fact: AttemptEnded | AttemptInterrupted) -> MessageRow:
    """After an attempt. What a log says of a recipient that the envelope has not is passed over: folds never fail."""
    states = list(row.states())
    for outcome in fact.outcomes:
        if 0 <= outcome.recipient < len(states):
            states[outcome.recipient] = RecipientState(
                outcome.status, outcome.code, outcome.enhanced, outcome.queue_id, entry.seq
            )
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
        asked_us=None,
        cause="withdrawn" if state == "withdrawn" else fact.cause,
        detail=None if fact.retries is None else str(fact.retries),
        updated_us=entry.at_us,
    )


def _revised(row: MessageRow, entry: Entry, fact: MessageRevised) -> MessageRow:
    """New content under the same number: attempts and age anew, and whoever was reached stays reached."""
    reached, asked_us = row.reached_digests(), _asked_us(fact, entry)
    open_indexes = frozenset(fact.reach)
    states = [
        OPEN_RECIPIENT if index in open_indexes else _passed_by(reached.get(digest, OPEN_RECIPIENT))
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
        due_cause=None if asked_us is None else "asked",
        expires_us=fact.expires_us,
        created_us=entry.at_us,
        updated_us=entry.at_us,
        revision=entry.seq,
        size=fact.size,
        digests=" ".join(fact.recipients),
        recipients="" if len(open_indexes) == len(states) else _encode(states).decode(),
        reached=_encode(reached).decode() if reached else "",
        asked_us=asked_us,
    )


def _requeued(row: MessageRow, entry: Entry, fact: MessageRequeued) -> MessageRow:
    """The same content once more, for whoever was not reached: retries anew, and its age goes on."""
    states = tuple([_passed_by(state) if state.status in REACHED else OPEN_RECIPIENT for state in row.states()])
    return replace(
        row,
        state="waiting",
        due_us=fact.due_us,
        due_cause="asked" if fact.due_us > entry.at_us else None,
        expires_us=fact.expires_us,
        updated_us=entry.at_us,
        recipients="" if all(state == OPEN_RECIPIENT for state in states) else _encode(states).decode(),
        asked_us=None,
        attempts=0,
        retries=0,
        uncharged=0,
        doubts=0,
        faults=0,
        final_seq=None,
        final_us=None,
        cause=None,
        detail=None,
    )


def _passed_by(state: RecipientState) -> RecipientState:
    return replace(state, status="passed_by") if state.status in IN_DOUBT else state


_LAST_WORDS = {
    "withdrawn": {"open": "withdrawn", "deferred": "withdrawn"},
    "expired": {"open": "expired", "deferred": "expired"},
}
"""What becomes of recipients' statuses when a message has ended for this cause."""


def _finished(row: MessageRow, entry: Entry) -> MessageRow:
    """A final state closes what is still open, and is known by the seq of its fact."""
    if row.state not in FINAL:
        return row
    recipients = row.recipients
    words = _LAST_WORDS.get(row.cause or "")
    if words or "passed_by" in recipients:
        words = {"passed_by": "in_doubt", **(words or {})}
        states = [replace(s, status=words[s.status]) if s.status in words else s for s in row.states()]
        recipients = _encode(states).decode()
    return replace(row, final_seq=entry.seq, final_us=entry.at_us, recipients=recipients, withdrawing=False)


MESSAGES = View("messages", 2, MessageRow, FACTS, keys, evolve)
