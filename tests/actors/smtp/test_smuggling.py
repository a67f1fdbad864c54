"""From the door to the wire: whatever the door lets in is one message, with nothing injected, however a relay reads
line ends (SMTP smuggling, CVE-2023-51764 to 51766). Read back by a reader that is strict about CRLF, by readers that
are not, and by the standard library's parser."""

import base64
import json
import re
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actors.parse import Fault, Parsed, Policy, parse
from actors.smtp.compose import compose, needs_smtputf8
from actors.smtp.engine import Engine
from actors.smtp.transaction import Mail, clean, stuffed

from .helpers import EHLO_PLAIN, greeted, taken

SMUGGLED = "MAIL FROM:<evil@x.org>\r\nRCPT TO:<victim@x.org>\r\nDATA\r\nSubject: smuggled\r\n\r\nbody\r\n"
ENDS = [
    "\r\n.\r\n",
    "\n.\n",
    "\r.\r",
    "\n.\r\n",
    "\r\n.\n",
    "\r\n.\r",
    "\r.\r\n",
    "\n.\r",
    "\r\n..\r\n",
    "\u2028.\u2028",
]
TOKENS = ["\r", "\n", ".", "\r\n", "..", "x", "ü", "\u2028", "\u0085", "=", " ", "\t", "--=_", "From ", SMUGGLED, *ENDS]
bodies = st.one_of(
    st.lists(st.sampled_from(TOKENS), max_size=12).map("".join),
    st.builds(
        lambda unit, times, end: unit * times + end, st.sampled_from(TOKENS), st.integers(1, 1200), st.text("x.\n")
    ),
)
values = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
    st.lists(
        st.sampled_from(
            ["a", "ü", '"', "\\", "<", ">", ",", ";", ":", "=?utf-8?q?=0D=0ABcc:_e@x?=", " ", "\r\n", "(", "@"]
        ),
        max_size=12,
    ).map("".join),
)
OWN_HEADERS = {
    "From", "To", "Subject", "Date", "Message-ID", "X-Tag", "MIME-Version", "Content-Type", "Content-Transfer-Encoding",
}  # fmt: skip


def strictly_read(wire: bytes) -> tuple[bytes, bytes]:
    """The content of DATA and what comes behind its end, by RFC 5321 sections 4.5.2 and 2.3.8 to the letter."""
    lines = []
    while wire:
        line, end, wire = wire.partition(b"\r\n")
        assert end and b"\r" not in line and b"\n" not in line and b"\0" not in line, line
        if line == b".":
            return b"".join(lines), wire
        lines.append(line.removeprefix(b".") + b"\r\n")
        assert len(lines[-1]) <= 1000
    raise AssertionError("no end")


def leniently_read(wire: bytes) -> list[int]:
    """Where a relay that takes CR and LF alone for line ends, or drops NUL, would see an end of the content."""
    lines = re.split(rb"\r\n|\r|\n", wire.replace(b"\0", b""))
    assert lines.pop() == b""
    return [number - len(lines) for number, line in enumerate(lines) if line == b"."]


def taken_in(**fields: Any) -> Parsed | Fault:
    """What the door makes of a message."""
    payload = {"id": "1", "from": "a@example.com", "to": ["b@example.org"], "subject": "s", "body": "b"} | fields
    return parse(json.dumps(payload).encode(), policy=Policy(), accounts={"default"}, now_us=0)


def on_the_wire(parsed: Parsed) -> tuple[bytes, EmailMessage]:
    """The content as it is sent, and as the standard library reads what a strict relay would keep of it."""
    content = compose(parsed.letter, message_id="<1.2@example.com>", date_us=0, boundary_seed=b"seed")
    wire = stuffed(clean(content))
    kept, rest = strictly_read(wire)
    assert (kept, rest) == (content, b"") and leniently_read(wire) == [-1]
    assert content.isascii() or needs_smtputf8(parsed.letter)
    message = BytesParser(policy=policy.default).parsebytes(kept)
    assert isinstance(message, EmailMessage)
    return content, message


def normal(text: str) -> str:
    """Line ends as they arrive: CR and LF alone are line ends too, and the last line has one."""
    text = re.sub(r"\r\n|\r", "\n", text)
    return text if text.endswith("\n") else text + "\n"


def body_of(message: EmailMessage) -> str:
    payload = message.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode().replace("\r\n", "\n")


@settings(max_examples=100)
@given(bodies)
@example("x" * 1_000_000)
@example("ü" * 300_000)
@example(".")
@example("\r")
def test_a_body_is_one_message_and_comes_back(body):
    parsed = taken_in(body=body)
    assert isinstance(parsed, Parsed)
    _, message = on_the_wire(parsed)
    assert set(message.keys()) == OWN_HEADERS - {"X-Tag"} and len(message.keys()) == len(OWN_HEADERS) - 1
    assert body_of(message) == normal(body)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("field", ["body", "body_html"])
def test_no_end_of_the_content_can_be_written_into_a_body(field, end):
    text = f"before{end}{SMUGGLED}"
    parsed = taken_in(**{field: text})
    assert isinstance(parsed, Parsed)
    _, message = on_the_wire(parsed)
    part = message.get_body(("html",)) if field == "body_html" else message
    assert isinstance(part, EmailMessage) and body_of(part) == normal(text)


@settings(max_examples=100)
@given(subject=values, tag=values, name=values, filename=values)
def test_a_header_is_one_header_or_the_door_is_shut(subject, tag, name, filename):
    """Whatever stands in subject, values, names and file names: no header and no recipient more."""
    content = base64.b64encode(b"x").decode()
    parsed = taken_in(
        subject=subject, to=[f"{name} <b@example.org>"], headers={"X-Tag": tag},
        attachments=[{"filename": filename, "content": content}],
    )  # fmt: skip
    if isinstance(parsed, Fault):
        assert (
            re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", subject + tag + name + filename)
            or "<" in name
            or ">" in name
        )
        return
    assert parsed.envelope.recipients == ("b@example.org",)
    octets, message = on_the_wire(parsed)
    assert sorted(line.partition(b":")[0].decode() for line in unfolded(octets)) == sorted(
        OWN_HEADERS - {"Content-Transfer-Encoding"}
    )
    assert re.search(rb"^To: (.*)$", b"\n".join(unfolded(octets)), re.MULTILINE)[1].endswith(b"<b@example.org>")
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", message_type(message)]


def unfolded(content: bytes) -> list[bytes]:
    """The headers of a mail, by RFC 5322 section 2.2.3 alone."""
    return content.partition(b"\r\n\r\n")[0].replace(b"\r\n ", b" ").split(b"\r\n")


def message_type(message: EmailMessage) -> str:
    (_, attachment) = message.iter_parts()
    assert attachment.get_payload(decode=True) == b"x"
    return attachment.get_content_type()


@pytest.mark.parametrize("field", ["body", "body_html", "subject"])
def test_nul_is_refused_at_the_door(field):
    fault = taken_in(**{field: "a\0b"})
    assert isinstance(fault, Fault) and fault.reason == f"control character in {field}"


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"\0", b"x", b"\r\n", b"\xff"])).map(b"".join))
def test_content_that_never_came_through_the_door_is_safe_on_the_wire_as_well(content):
    wire = stuffed(clean(content))
    assert strictly_read(wire)[1] == b"" and leniently_read(wire) == [-1]


@pytest.mark.parametrize("ehlo", [b"250-x\r\n250 PIPELINING\r\n", EHLO_PLAIN])
def test_the_engine_sends_nothing_between_the_content_and_its_end(ehlo):
    """Of the whole conversation, a strict relay reads the commands, one content, and no command behind it."""
    engine: Engine = greeted(ehlo)
    content = f"Subject: x\n\n.\n{SMUGGLED}".encode() * 700
    engine.start_transaction(Mail("a@example.com", ((0, "b@example.org"),), content))
    commands = taken(engine)
    for reply in (b"250 ok\r\n",) * 2:
        engine.receive(reply)
        commands += taken(engine)
    engine.receive(b"354 go\r\n")
    assert commands.count(b"\r\n") == 3
    kept, rest = strictly_read(taken(engine))
    assert (kept, rest) == (clean(content), b"")
