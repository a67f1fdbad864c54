"""What people and log readers see: facts in words, moments, lines of the service, errors in one line."""

import json
import logging

import click
import pytest

from events.wire import KINDS
from letterbook import logs, moments
from letterbook.config import ConfigError
from letterbook.fact_words import WORDS, line
from letterbook.failures import Failure, one_line
from letterbook.printing import clean, moment_text
from store.files import Locked


def test_every_kind_of_fact_has_its_words():
    assert set(WORDS) == set(KINDS)


def test_a_fact_of_a_newer_service_is_shown_by_its_fields():
    shown = line({"seq": 1, "at_us": 0, "kind": "MailSung", "message_id": "a", "voice": "alto"})
    assert (shown.about, shown.words) == ("a", "voice=alto")


def ended(*outcomes: dict, **fields: object) -> str:
    return line({"seq": 1, "at_us": 0, "kind": "AttemptEnded", "outcomes": list(outcomes), **fields}).words


def test_the_end_of_an_attempt_says_what_happened_to_whom_and_what_follows():
    delivered = [{"recipient": index, "status": "delivered", "code": 250} for index in (0, 2)]
    refused = {"recipient": 1, "status": "refused", "code": 550, "enhanced": "5.1.1"}
    told = ended(*delivered, refused, next="failed", cause="refused")
    assert told == "2 recipients delivered (250), 1 recipient refused (550 5.1.1); failed (refused)"
    joined = {"addresses": ["a@b", "c@d", "e@f"], "replies": [{"recipient": 1, "reply": "550 no such"}]}
    assert "c@d refused (550 no such)" in ended(*delivered, refused, next="failed", **joined)
    for due_us, words in ((1_500_000, "in 1.5 s"), (300_000_000, "in 5 min"), (7_200_000_000, "in 2.0 h")):
        assert ended(refused, next="due", due_us=due_us, due_cause="retry").endswith(f"again {words} (retry)")


@pytest.mark.parametrize(
    "text", ["2025-01-31T12:00:00Z", "2025-01-31T13:00:00+01:00", "2025-01-31T12:00", "20250131T12"]
)
def test_moments_are_iso_8601_and_in_utc_where_they_do_not_say(text):
    assert moments.moment(text) == 1738324800_000_000 == moments.place(text)[1]
    assert moment_text(moments.moment(text)) == "2025-01-31 12:00:00.000Z"


@pytest.mark.parametrize("text", ["", "soon", "2025-13-01", "-5", "1" * 30])
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(click.BadParameter, match="ISO 8601"):
        moments.place(text)


def test_text_of_others_stays_on_its_line():
    assert clean("a\tb\nc\x1b[0m\x9b\u2028é") == "a\\tb\\nc\\x1b[0m\\x9b\\u2028é"
    assert clean(None) == ""


# The service's own lines


@pytest.fixture
def lines(capfd):
    """What stands on standard error; afterwards logging is as it was before."""
    root, ours = logging.getLogger(), logging.getLogger(logs.OURS)
    before = root.handlers[:], root.level, ours.level

    def written(it: logs.Lines) -> list[str]:
        it.close()
        return capfd.readouterr().err.splitlines()

    yield written
    logging.captureWarnings(False)
    root.handlers[:], root.level, ours.level = before


def test_json_lines_have_the_documented_keys_and_no_others(lines):
    it = logs.set_up("info", "json")
    logging.getLogger("letterbook.delivery").warning("relay %s", "äh\n")
    try:
        raise RuntimeError("bug")
    except RuntimeError:
        logging.getLogger("letterbook").exception("crashed")
    first, second = map(json.loads, lines(it))
    assert tuple(second) == logs.KEYS and tuple(first) == logs.KEYS[:-1]
    assert (first["level"], first["logger"], first["message"]) == ("warning", "letterbook.delivery", "relay äh\n")
    assert first["time"].endswith("Z") and "RuntimeError: bug" in second["exception"]


def test_libraries_are_heard_from_warnings_on_whatever_the_level(lines):
    it = logs.set_up("debug", "text")
    logging.getLogger("httpcore").debug("authorization: secret")
    logging.getLogger("hypercorn.error").warning("two\nlines")
    logging.getLogger("letterbook").debug("ours")
    heard = lines(it)
    assert [text[25:] for text in heard] == ["warning hypercorn.error: two\\nlines", "debug   letterbook: ours"]


def test_fields_are_keys_of_json_and_follow_the_sentence_of_text(lines):
    fields = {"id": 'a "b"\n=', "n": 3, "none": None, "empty": "", "plain": "10.0.0.1:25"}
    it = logs.set_up("info", "text")
    it.tell("letterbook.x", [("it went", fields)])
    logging.getLogger("letterbook").info("so too", extra={logs.FIELDS: {"n": 1}})
    first, second = lines(it)
    assert first[25:] == r'info    letterbook.x: it went id="a \"b\"\\n=" n=3 empty="" plain=10.0.0.1:25'
    assert second.endswith("letterbook: so too n=1")
    assert it.written == {"debug": 0, "info": 2, "warning": 0, "error": 0}
    it = logs.set_up("info", "json")
    it.tell("letterbook.x", [("it went", fields)])
    found = json.loads(*lines(it))
    assert {name: found[name] for name in found if name not in logs.KEYS} == {
        name: value for name, value in fields.items() if value is not None
    }


# Errors


def test_operating_errors_become_one_line_also_out_of_a_group(tmp_path):
    for error in (ConfigError("write a port"), Locked(tmp_path, 7), OSError(98, "Address already in use")):
        with pytest.raises(Failure) as caught, one_line():
            raise ExceptionGroup("nursery", [ExceptionGroup("inner", [error])])
        assert "\n" not in caught.value.message and caught.value.exit_code == 1


def test_a_bug_keeps_its_traceback_also_beside_an_operating_error():
    with pytest.raises(ExceptionGroup), one_line():
        raise ExceptionGroup("nursery", [ConfigError("x"), RuntimeError("bug")])
    with pytest.raises(ZeroDivisionError), one_line():
        raise ZeroDivisionError
