"""What configuration becomes, and what the wired system promises beyond its parts."""

import msgspec
import pytest

from letterbook.config import load
from letterbook.system import default_account, delivery_policy


def test_the_default_account_has_its_password_as_plain_text_that_can_be_sealed():
    config = load(
        None, {"LETTERBOOK_SMTP_HOST": "relay.example", "LETTERBOOK_SMTP_USER": "u", "LETTERBOOK_SMTP_PASSWORD": "p"}
    )
    account = default_account(config)
    assert account is not None
    assert type(account.password) is str
    assert b'"password":"p"' in msgspec.json.encode(account)


def test_without_a_relay_there_is_no_default_account():
    assert default_account(load(None, {})) is None


@pytest.mark.parametrize(("word", "holds"), [("resend", False), ("hold", True)])
def test_the_policy_in_doubt_is_the_configured_one(word, holds):
    assert delivery_policy(load(None, {"LETTERBOOK_DELIVERY_IN_DOUBT": word})).retry.hold_in_doubt is holds
