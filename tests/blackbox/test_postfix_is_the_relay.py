"""Debian's Postfix as the relay: a strict pipelining server that nobody here wrote."""

import email
import email.policy

import pytest

from .postfix import Unavailable, postfix
from .service import mail

STANDING: dict[str, object] = {"delivery_retry_delays": "0.2", "delivery_max_retries": 1}


@pytest.fixture(scope="module")
def relay():
    try:
        with postfix() as made:
            yield made
    except Unavailable as reason:
        pytest.skip(str(reason))


async def test_what_postfix_takes_is_what_was_sent(shared, relay):
    await shared.account("taken", relay.port, max_connections=2)
    bodies = ["Grüße, 漢字\n.a dot\n..two\n.\n", "x" * 3000 + "\n", "From here\n\n\nto there\n"]
    letters = [
        mail(f"taken-{number}", account_id="taken", body=bodies[number % 3], subject=f"Grüße {number}")
        for number in range(30)
    ]
    await shared.add(letters)
    results = {result["id"]: result for result in await shared.until_results(len(letters), "taken")}
    for letter in letters:
        result = results[letter["id"]]
        assert result["status"] == "sent"
        (recipient,) = result["recipients"]
        message = email.message_from_bytes(relay.held(recipient["queue_id"]), policy=email.policy.default)
        assert message["Subject"] == letter["subject"]
        assert message["From"].addresses[0].addr_spec == "clerk@letterbook.test"
        assert message.get_content().replace("\r\n", "\n").rstrip("\n") == letter["body"].rstrip("\n")


async def test_one_of_three_is_unknown_to_postfix(shared, relay):
    await shared.account("three", relay.port)
    recipients = ["ann@example.org", "nobody@example.org", "bob@example.org"]
    await shared.add([mail("three", recipients, account_id="three")])
    (result,) = await shared.until_results(1, "three")
    assert [each["status"] for each in result["recipients"]] == ["delivered", "refused", "delivered"]
    assert result["error"].startswith("1 of 3 refused: 550 5.1.1 ")
    assert len({each["queue_id"] for each in result["recipients"] if "queue_id" in each}) == 1


async def test_too_large_for_postfix_is_refused_before_it_is_sent(shared, relay):
    await shared.account("large", relay.port)
    await shared.add([mail("large", account_id="large", body="many words\n" * 20_000)])
    (result,) = await shared.until_results(1, "large")
    assert result["status"] == "error" and result["smtp_code"] == 552
