"""Why a message ended, or has not gone yet, in the words that clients, reports and operators all read.

Pure: from the cause and detail of a row, its recipients' states, and the relay's words where they are still there.
After an erasure the codes stay and the words go, so the text becomes `550 5.1.1`.
"""

from collections.abc import Mapping, Sequence

from .views.counts import ResultRow
from .views.messages import MessageRow, RecipientState, decode_states

Replies = Mapping[tuple[int, int], str]
"""(seq of the attempt's end, recipient's index) -> what the relay said."""

IN_DOUBT_TEXT = "in doubt: the message was handed over and no reply came"
HELD_TEXT = "held until a person decides"

NO_ATTACHMENT = "an attachment could not be had"

_FIXED = {
    "account_removed": "account removed",
    "quota": "rate_limit_exceeded",
    "content_missing": "content missing",
    "internal": "internal error",
    "in_doubt": IN_DOUBT_TEXT,
    "resolved_error": "held, and resolved as an error",
    "withdrawn": "withdrawn",
}
"""The causes whose text does not depend on a relay."""

_SENTENCES = {
    "refused": "the relay refused it",
    "deferred": "the relay deferred it",
    "in_doubt": IN_DOUBT_TEXT,
    "open": "not tried",
    "expired": "not delivered in time",
}
"""What stands for a reply where there never was one, or its words and codes are gone."""


def states_of(recipients: str) -> tuple[RecipientState, ...]:
    """The states in a row's `recipients`; none where nothing is known of any."""
    return decode_states(recipients) if recipients else ()


def reply_text(state: RecipientState, index: int, replies: Replies) -> str:
    """One recipient's last reply, code first: `550 5.1.1 no such user`; without the words: `550 5.1.1`."""
    codes = " ".join(str(part) for part in (state.code, state.enhanced) if part is not None)
    words = replies.get((state.ended, index), "")
    if not words:
        return codes or _SENTENCES.get(state.status, state.status)
    if state.code is None or words.startswith(str(state.code)):
        return words
    return f"{codes} {words}"


def first_failure(states: Sequence[RecipientState]) -> int | None:
    """The index of the recipient whose reply speaks for the message: refused before deferred before in doubt."""
    for status in ("refused", "deferred", "in_doubt", "expired"):
        for index, state in enumerate(states):
            if state.status == status and (state.ended or status != "expired"):
                return index
    return None


def error_text(cause: str | None, detail: str | None, states: Sequence[RecipientState], replies: Replies) -> str | None:
    """Why a message ended without reaching everybody; None where there is nothing to say."""
    if cause is None:
        return None
    if cause == "attachment":
        index = first_failure(states)
        return replies.get((states[index].ended, index), NO_ATTACHMENT) if index is not None else NO_ATTACHMENT
    if cause in ("refused", "retries"):
        text = _refusal(states, replies)
        return text if cause == "refused" else f"Max retries ({detail}) exceeded: {text}"
    if cause == "rejected":
        return detail
    if cause == "expired":
        return f"Expired after {detail} seconds" if detail is not None else "Expired after its expires_ts"
    return _FIXED.get(cause, cause)


def _refusal(states: Sequence[RecipientState], replies: Replies) -> str:
    index = first_failure(states)
    if index is None:
        return _SENTENCES["refused"]
    text = reply_text(states[index], index, replies)
    failed = sum(state.status != "delivered" for state in states)
    return text if len(states) == 1 else f"{failed} of {len(states)} refused: {text}"


def result_error(row: ResultRow, replies: Replies) -> str | None:
    """The error of a final result; None for one that was sent."""
    return None if row.status == "sent" else error_text(row.cause, row.detail, states_of(row.recipients), replies)


def result_code(states: Sequence[RecipientState]) -> int | None:
    """The SMTP code that stands for all recipients: that of the first failure, else of the first delivery."""
    index = first_failure(states)
    if index is not None:
        return states[index].code
    return next((state.code for state in states if state.code is not None), None)


def last_error(row: MessageRow, replies: Replies) -> str | None:
    """What went wrong last with a message that is still open; None while nothing has."""
    states = states_of(row.recipients)
    index = first_failure(states)
    return None if index is None else reply_text(states[index], index, replies)
