"""Why a message ended, in the words of the contract."""

import msgspec
import pytest

from store.results_text import IN_DOUBT_TEXT, error_text, last_error, reply_text, result_code, result_error, states_of
from store.views.counts import ResultRow
from store.views.messages import MessageRow, RecipientState

REFUSED = RecipientState("refused", 550, "5.1.1", None, 9)
DEFERRED = RecipientState("deferred", 451, "4.7.1", None, 9)
DELIVERED = RecipientState("delivered", 250, None, "q", 9)
DOUBT = RecipientState("in_doubt", None, None, None, 8)
SAID = {(9, 0): "550 5.1.1 no such user", (9, 1): "550 5.1.1 no such user", (9, 2): "451 4.7.1 later"}


@pytest.mark.parametrize(
    ("cause", "detail", "states", "text"),
    [
        ("refused", None, (REFUSED,), "550 5.1.1 no such user"),
        ("refused", None, (DELIVERED, REFUSED, DELIVERED), "1 of 3 refused: 550 5.1.1 no such user"),
        ("refused", None, (REFUSED, REFUSED, DELIVERED), "2 of 3 refused: 550 5.1.1 no such user"),
        ("retries", "5", (DELIVERED, DELIVERED, DEFERRED), "Max retries (5) exceeded: 1 of 3 refused: 451 4.7.1 later"),
        ("retries", "0", (DOUBT,), f"Max retries (0) exceeded: {IN_DOUBT_TEXT}"),
        ("expired", "432000", (), "Expired after 432000 seconds"),
        ("expired", None, (), "Expired after its expires_ts"),
        ("account_removed", None, (), "account removed"),
        ("quota", None, (), "rate_limit_exceeded"),
        ("rejected", "missing from", (), "missing from"),
        ("content_missing", None, (), "content missing"),
        ("internal", None, (), "internal error"),
        ("in_doubt", None, (DOUBT,), IN_DOUBT_TEXT),
        (None, None, (), None),
    ],
)
def test_an_error_has_its_words(cause, detail, states, text):
    assert error_text(cause, detail, states, SAID) == text


@pytest.mark.parametrize(
    ("cause", "states", "text"),
    [
        ("refused", (REFUSED,), "550 5.1.1"),
        ("refused", (DELIVERED, REFUSED), "1 of 2 refused: 550 5.1.1"),
        ("refused", (), "the relay refused it"),
        ("refused", (RecipientState("refused", 554, None, None, 9),), "554"),
    ],
)
def test_after_an_erasure_codes_stay_and_words_go(cause, states, text):
    assert error_text(cause, None, states, {}) == text


def test_words_of_ours_get_the_code_in_front():
    assert reply_text(DEFERRED, 0, {(9, 0): "the relay hung up"}) == "451 4.7.1 the relay hung up"
    assert reply_text(DOUBT, 0, {(8, 0): "the relay hung up"}) == "the relay hung up"


def test_the_first_refusal_speaks_before_a_deferral():
    assert result_code((DEFERRED, REFUSED)) == 550
    assert result_code((DELIVERED, DELIVERED)) == 250
    assert result_code(()) is None


def test_a_sent_result_has_no_error():
    recipients = msgspec.json.encode([DELIVERED]).decode()
    row = ResultRow(9, 1, 1, "a", "sent", 0, 1, 2, 1, None, None, recipients)
    assert result_error(row, SAID) is None and states_of(recipients) == (DELIVERED,)


def test_an_open_message_says_what_went_wrong_last():
    row = MessageRow(
        number=1, id="a", account=1, state="waiting", priority=2, due_us=0, due_cause="retry", expires_us=0,
        created_us=0, updated_us=0, revision=1, size=1, digests="d",
        recipients=msgspec.json.encode([DEFERRED]).decode(),
    )  # fmt: skip
    assert last_error(row, {(9, 0): "451 4.7.1 later"}) == "451 4.7.1 later"
    assert last_error(msgspec.structs.replace(row, recipients=""), {}) is None
    held = msgspec.structs.replace(row, state="held", cause="restored", recipients="")
    assert last_error(held, {}) is None, "that it is held is no error"
