"""The table of verdicts, walked whole."""

import itertools

import pytest

from actors.smtp.engine import STAGES
from actors.smtp.verdict import TABLE, fits, judge, lost, queue_id, widest

ASKED = ("greeting", "ehlo", "helo", "starttls", "auth", "rset", "mail", "rcpt", "data", "content", "final")
ENHANCED = (None, "5.1.1", "5.5.3", "5.7.8", "4.2.2", "4.5.3")
EVERY = list(itertools.product(ASKED, range(400, 600), ENHANCED))


def test_every_failure_at_every_stage_has_a_verdict():
    for stage, code, enhanced in EVERY:
        verdict = judge(stage, code, enhanced)
        assert verdict.status == "deferred" or code >= 500, "what is transient is never refused"
        assert verdict.status == "deferred" or verdict.scope != "relay", "a relay's trouble refuses nobody"


def test_every_row_decides_something():
    first = {next(n for n, row in enumerate(TABLE) if fits(row, *case)) for case in EVERY}
    assert first == set(range(len(TABLE)))


def test_every_stage_in_the_table_is_one_of_the_engine():
    assert {stage for row in TABLE for stage in row.stages} <= set(STAGES)


def test_only_the_final_dot_leaves_doubt():
    assert [stage.name for stage in STAGES.values() if stage.in_doubt] == ["final"]
    assert (lost(in_doubt=True).status, lost(in_doubt=False).status) == ("in_doubt", "deferred")


@pytest.mark.parametrize(
    ("stage", "code", "enhanced", "status", "scope"),
    [
        ("mail", 421, None, "deferred", "relay"),
        ("final", 421, "4.3.2", "deferred", "relay"),
        ("greeting", 554, None, "deferred", "relay"),
        ("auth", 535, "5.7.8", "deferred", "relay"),
        ("mail", 530, "5.7.0", "deferred", "relay"),
        ("mail", 535, None, "deferred", "relay"),
        ("mail", 503, None, "deferred", "relay"),
        ("mail", 451, None, "deferred", "message"),
        ("mail", 553, "5.1.8", "refused", "message"),
        ("rcpt", 450, None, "deferred", "recipient"),
        ("rcpt", 550, "5.1.1", "refused", "recipient"),
        ("rcpt", 503, None, "refused", "recipient"),
        ("rcpt", 552, None, "deferred", "recipient"),
        ("rcpt", 552, "5.2.2", "refused", "recipient"),
        ("rcpt", 550, "5.5.3", "deferred", "recipient"),
        ("data", 452, None, "deferred", "message"),
        ("data", 554, None, "refused", "message"),
        ("final", 451, None, "deferred", "message"),
        ("final", 552, "5.3.4", "refused", "message"),
    ],
)
def test_verdicts(stage, code, enhanced, status, scope):
    verdict = judge(stage, code, enhanced)
    assert (verdict.status, verdict.scope) == (status, scope)


def test_a_stage_that_refuses_nothing_is_our_mistake():
    with pytest.raises(LookupError):
        judge("discard", 550, None)


def test_the_scope_of_many_is_the_widest():
    assert widest(["recipient", "relay", "message"]) == "relay"
    assert widest(["recipient", "message"]) == "message"
    assert widest([]) is None


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("Ok: queued as 4XyZabc123", "4XyZabc123"),
        ("OK id=1rABCd-0000XY-2z", "1rABCd-0000XY-2z"),
        ("4AB12cd3 Message accepted for delivery", "4AB12cd3"),
        ("<a@b> [InternalId=123456, Hostname=x.example] 1234 bytes Queued mail for delivery", "123456"),
        ("OK  1700000000 a1-20020a17sm.12 - gsmtp", "a1-20020a17sm.12"),
        ("Ok 0100018c0ffee000-1234-000000", "0100018c0ffee000-1234-000000"),
        ("thank you", None),
        ("Ok: queued as <script>", None),
        ("Ok: queued as " + "a" * 65, None),
        ("", None),
    ],
)
def test_the_queue_id_is_taken_from_known_forms_only(message, name):
    assert queue_id(message) == name
