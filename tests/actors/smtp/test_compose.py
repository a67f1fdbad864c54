"""Composed mail, read back by the standard library's parser, which nobody here wrote."""

import base64
import re
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from actors.smtp.compose import CONTENT_TYPES, RESERVED, ComposeError, compose, needs_smtputf8
from actors.smtp.transaction import clean
from events.letter import Attachment, Letter

PNG = base64.b64encode(bytes(range(256)) * 3).decode()
DATE_US = 1_764_000_123_456_789


def letter(**fields) -> Letter:
    return Letter(
        **({"id": "1", "sender": "a@example.com", "to": ("b@example.org",), "subject": "Hi", "body": "Text\n"} | fields)
    )


def octets(written: Letter) -> bytes:
    return compose(written, message_id="<1.2@example.com>", date_us=DATE_US, boundary_seed="seed")


def parsed(written: Letter) -> EmailMessage:
    """The mail as the standard library reads it, after the rules that hold for every mail were checked."""
    raw = octets(written)
    assert raw == octets(written) == clean(raw), "deterministic, CRLF only, no NUL"
    assert raw.isascii() or needs_smtputf8(written)
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    message = BytesParser(policy=policy.default).parsebytes(raw)
    for part in message.walk():
        assert not part.defects, part.defects
    return message


def head(written: Letter) -> list[str]:
    return octets(written).decode().partition("\r\n\r\n")[0].split("\r\n")


def addresses(message: EmailMessage, name: str) -> list[tuple[str, str]]:
    return [(address.display_name, address.addr_spec) for address in message[name].addresses]


# The whole of ordinary mails


def test_a_plain_mail_octet_by_octet():
    assert octets(letter(cc=("c@x.org",), bcc=("hidden@x.org",), reply_to=("r@x.org",), body="Hello\n.\n")) == (
        b"From: a@example.com\r\nTo: b@example.org\r\nCc: c@x.org\r\nReply-To: r@x.org\r\nSubject: Hi\r\n"
        b"Date: Mon, 24 Nov 2025 16:02:03 +0000\r\nMessage-ID: <1.2@example.com>\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: 7bit\r\n\r\nHello\r\n.\r\n'
    )


def test_the_date_is_the_one_given():
    assert parsed(letter())["Date"].datetime == datetime.fromtimestamp(DATE_US // 1_000_000, UTC)


def test_html_alone():
    message = parsed(letter(body="<p>x</p>", content_type="html"))
    assert (message.get_content_type(), message.get_content()) == ("text/html", "<p>x</p>\r\n")


def test_plain_and_html_are_alternatives_with_the_better_one_last():
    message = parsed(letter(body="plain", content_type="html", body_html="<p>ü</p>"))
    assert message.get_content_type() == "multipart/alternative"
    assert [(part.get_content_type(), part.get_content()) for part in message.iter_parts()] == [
        ("text/plain", "plain\r\n"), ("text/html", "<p>ü</p>\r\n"),
    ]  # fmt: skip


def test_images_are_related_to_the_page_and_files_stand_beside():
    parts = (
        Attachment("a.pdf", PNG),
        Attachment("logo.png", PNG, content_id="<logo@x>"),
        Attachment("b", PNG, "text/csv"),
    )
    message = parsed(letter(body="plain", body_html='<img src="cid:logo@x">', attachments=parts))
    kinds = [part.get_content_type() for part in message.walk()]
    assert kinds == [
        "multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png",
        "application/pdf", "text/csv",
    ]  # fmt: skip
    image = next(part for part in message.walk() if part.get_content_type() == "image/png")
    assert (image["Content-ID"], image.get_content_disposition()) == ("<logo@x>", "inline")
    assert [part.get_filename() for part in message.iter_attachments()] == ["a.pdf", "b"]
    assert base64.b64encode(image.get_content()).decode() == PNG


def test_an_inline_image_without_a_page_is_a_file():
    message = parsed(letter(attachments=(Attachment("logo.png", PNG, content_id="logo"),)))
    assert [part.get_content_type() for part in message.walk()] == ["multipart/mixed", "text/plain", "image/png"]


# Bodies


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        ("", "7bit"), ("x\ny\r\nz\rw", "7bit"), ("x" * 998, "7bit"), ("x" * 999, "quoted-printable"),
        ("a\0b" * 9, "base64"),
        ("\n" * 3000, "7bit"), (("x" * 997 + "\n") * 5, "7bit"), ("x\n" * 900 + "y" * 999, "quoted-printable"),
        ("Grüße aus München und allen anderen Städten", "quoted-printable"), ("日本語" * 50, "base64"), ("ü", "base64"),
        ("x \ny\t\nGrüße an alle Leute hier im Haus.  ", "quoted-printable"),
    ],
)  # fmt: skip
def test_a_body_comes_back_as_it_was(body, encoding):
    message = parsed(letter(body=body))
    assert message["Content-Transfer-Encoding"] == encoding
    text = re.sub(r"\r\n|\r", "\n", body)
    raw = message.get_payload(decode=True).decode().replace("\r\n", "\n")
    assert raw == (text if text.endswith("\n") else text + "\n")


def test_encoded_lines_have_76_characters_at_most():
    for body in ("ü " + "x" * 5000, "日" * 5000):
        raw = octets(letter(body=body)).partition(b"\r\n\r\n")[2]
        assert max(map(len, raw.split(b"\r\n"))) <= 76


def test_a_boundary_is_never_in_a_part():
    first = octets(letter(body_html="x")).decode()
    boundary = re.search('boundary="(.*)"', first)[1]
    message = parsed(letter(body=f"--{boundary}--\n", body_html="x"))
    assert [part.get_content() for part in message.iter_parts()] == [f"--{boundary}--\r\n", "x\r\n"]


# Headers


@pytest.mark.parametrize(
    "subject",
    [
        "", "x", "Grüße", "日本語の件名" * 20, "word " * 60, "a  b   c" * 30, "x" * 900, "x" * 3000, "=?not one",
        "ü" * 300,
        "Ä " * 100, "a" * 70 + " ü", "😀" * 100, "'\"<>,;:\\()@[]",
    ],
)  # fmt: skip
def test_a_subject_comes_back_as_it_was(subject):
    message = parsed(letter(subject=subject))
    assert message["Subject"] == subject.strip()
    assert all(len(line) <= 78 for line in head(letter(subject=subject))) or len(subject) == 900


def test_an_encoded_word_has_75_characters_at_most_and_its_line_76():
    for subject in ("ü" * 300, "Grüße an alle " * 20):
        lines = [line for line in head(letter(subject=subject)) if "=?" in line]
        assert len(lines) > 3 and max(map(len, lines)) <= 76
        assert all(len(word) <= 75 for line in lines for word in line.removeprefix("Subject:").split())


def test_what_a_client_encoded_itself_is_passed_through():
    assert "Subject: =?utf-8?B?w7w=?=" in head(letter(subject="=?utf-8?B?w7w=?="))
    assert "From: =?utf-8?B?w7w=?= <a@b.org>" in head(letter(sender="=?utf-8?B?w7w=?= <a@b.org>"))


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("a@b.org", "", "a@b.org"),
        ("<a@b.org>", "", "a@b.org"),
        ("Ann <a@b.org>", "Ann", "a@b.org"),
        ("Ann B. Smith <a@b.org>", "Ann B. Smith", "a@b.org"),
        ('"Smith, Ann" <a@b.org>', "Smith, Ann", "a@b.org"),
        ("Smith, Ann <a@b.org>", "Smith, Ann", "a@b.org"),
        (r'"a \"q\" \\ b" <a@b.org>', r'a "q" \ b', "a@b.org"),
        ("Jürgen Müller <a@b.org>", "Jürgen Müller", "a@b.org"),
        ("日本" * 40 + " <a@b.org>", "日本" * 40, "a@b.org"),
        ("x" * 300 + " <a@b.org>", "x" * 300, "a@b.org"),
        ("a@exämple.org", "", "a@xn--exmple-cua.org"),
        ("Ann <a@日本.jp>", "Ann", "a@xn--wgv71a.jp"),
        ('"a b"@x.org', "", '"a b"@x.org'),
    ],
)
def test_a_mailbox_comes_back_as_it_was(text, name, address):
    written = letter(sender=text, to=(text, "z@z.org", text))
    message = parsed(written)
    assert [address for _, address in addresses(message, "To")] == [address, "z@z.org", address]
    if len(name) < 20:
        assert addresses(message, "From") == [(name, address)]
    # The parser of Python 3.11 puts a space between adjacent encoded words of a name; RFC 2047 section 6.2 does not.
    assert same(addresses(message, "From")[0][0], name)


def test_many_recipients_are_folded():
    to = tuple(f"person{number}@example.org" for number in range(200))
    assert [address for _, address in addresses(parsed(letter(to=to)), "To")] == list(to)
    assert max(map(len, head(letter(to=to)))) <= 78


def test_bcc_is_never_written():
    raw = octets(letter(bcc=("secret@x.org",), headers={"Bcc": "secret@x.org", "bcc": "secret@x.org"}))
    assert b"secret" not in raw


def test_a_local_part_beyond_ascii_is_utf8_and_said_so():
    written = letter(sender="Jürgen <jürgen@exämple.org>")
    assert needs_smtputf8(written) and "jürgen@exämple.org".encode() in octets(written)
    assert not needs_smtputf8(letter(sender="Jürgen <j@exämple.org>"))


def test_custom_headers_replace_defaults():
    headers = {
        "Date": "Thu, 01 Jan 1970 00:00:00 +0000",
        "message-id": "<own@x>",
        "Reply-To": "own@x.org",
        "X-Tag": "a",
        "x-tag": "ü",
    }
    message = parsed(letter(headers=headers, reply_to=("r@x.org",)))
    assert message.get_all("Date") == [headers["Date"]]
    assert message.get_all("Message-ID") == ["<own@x>"]
    assert message.get_all("Reply-To") == ["own@x.org"]
    assert message.get_all("X-Tag") == ["ü"]


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_custom_headers_never_replace_what_the_letter_decides(name):
    plain = octets(letter())
    assert octets(letter(headers={name: "x", name.upper(): "y"})) == plain


@pytest.mark.parametrize("name", ["", "a b", "a:b", "ü", "a\r\nBcc", "x" * 201])
def test_a_header_name_that_is_none_is_refused(name):
    with pytest.raises(ComposeError):
        octets(letter(headers={name: "x"}))


CONTROLS = ["\r\nBcc: x@y", "\n", "\r", "\0", "\x1b", "\x85", "\u2028", "\u2029", "\x7f"]


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize(
    "field", ["sender", "to", "cc", "reply_to", "subject", "headers", "filename", "content_id", "content_type"]
)
def test_a_control_character_cannot_inject_a_header(field, control):
    evil = f"a{control}b@x.org"
    one = {
        "headers": {"headers": {"X-Evil": evil}},
        "filename": {"attachments": (Attachment(evil, PNG),)},
        "content_id": {"attachments": (Attachment("a", PNG, content_id=evil),), "body_html": "x"},
        "content_type": {"attachments": (Attachment("a", PNG, "text/plain; name=" + evil),)},
    }
    fields = one.get(field) or {field: evil if field in ("sender", "subject") else (evil,)}
    if field == "content_type":
        assert parsed(letter(**fields)).get_payload(1).get_content_type() == "application/octet-stream"
        return
    with pytest.raises(ComposeError):
        octets(letter(**fields))


@pytest.mark.parametrize("message_id", ["", "<>", "a b", "<a>\r\nX: y", "ü@x", "<a><b>", "x" * 1000])
def test_a_message_id_that_is_none_is_refused(message_id):
    with pytest.raises(ComposeError):
        compose(letter(), message_id=message_id, date_us=0, boundary_seed=b"")


def test_a_message_id_may_end_in_a_domain_beyond_ascii():
    written = compose(letter(), message_id="<1.2@exämple.org>", date_us=0, boundary_seed=b"")
    assert b"Message-ID: <1.2@xn--exmple-cua.org>\r\n" in written


# Attachments


@pytest.mark.parametrize(
    "name",
    [
        "a.pdf",
        "a b.pdf",
        'q"uo\\te.pdf',
        "Übersicht.pdf",
        "日本" * 60 + ".pdf",
        "x" * 300 + ".pdf",
        "a;b=c.pdf",
        "100%.pdf",
        "a'b.pdf",
        "é" + "'" * 90,
    ],
)
def test_a_file_name_comes_back_as_it_was(name):
    message = parsed(letter(attachments=(Attachment(name, PNG),)))
    (part,) = message.iter_attachments()
    assert part.get_filename() == name
    assert all(len(line) <= 78 for line in octets(letter(attachments=(Attachment(name, PNG),))).split(b"\r\n"))


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("image/png", "image/png"), ("text/plain; charset=utf-8", "text/plain"),
        ("message/rfc822", "application/octet-stream"),
        ("multipart/mixed", "application/octet-stream"), ("nonsense", "application/octet-stream"),
        (None, "application/pdf"),
    ],
)  # fmt: skip
def test_the_type_of_an_attachment(given, kind):
    message = parsed(letter(attachments=(Attachment("x.pdf", PNG, given),)))
    assert next(message.iter_attachments()).get_content_type() == kind


def test_every_guessed_type_is_a_type():
    for ending, kind in CONTENT_TYPES.items():
        (part,) = parsed(letter(attachments=(Attachment(f"x.{ending}", PNG),))).iter_attachments()
        assert part.get_content_type() == kind


@pytest.mark.parametrize("content", [None, "a", "aa=a", "a\r\nb", "aGk", "ü" * 4, "a=b="])
def test_content_that_is_no_base64_is_refused(content):
    with pytest.raises(ComposeError):
        octets(letter(attachments=(Attachment("a", content),)))


# Anything


def printable(**more) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), **more)


words = st.one_of(
    printable(max_size=200),
    st.text('ab =?_."\\,<>ü', max_size=120),
    st.lists(st.text("abc", max_size=90)).map(" ".join),
)
bodies = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=300), st.text("a\n\r .=ü\t", max_size=1500)
)


@settings(max_examples=300, deadline=None)
@given(
    subject=words, name=words, body=bodies, html=st.none() | bodies, tag=words,
    filename=printable(min_size=1, max_size=150), content=st.none() | st.binary(max_size=200),
)  # fmt: skip
def test_anything_that_ingest_lets_in_comes_back(subject, name, body, html, tag, filename, content):
    assume(not any(re.search(r"=\?.*\?.*\?", text, re.DOTALL) for text in (subject, name, tag)))
    assume("<" not in name and name == name.strip() and not name.startswith('"'))
    attachments = () if content is None else (Attachment(filename, base64.b64encode(content).decode()),)
    written = letter(
        sender=f"{name} <a@b.org>",
        subject=subject,
        body=body,
        body_html=html,
        headers={"X-Tag": tag},
        attachments=attachments,
    )
    message = parsed(written)
    assert set(message.keys()) <= {
        "From",
        "To",
        "Subject",
        "Date",
        "Message-ID",
        "X-Tag",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
    }
    assert message["Subject"] == subject.strip(" ") or not subject.isascii()
    assert same(message["Subject"], subject) and same(message["X-Tag"], tag)
    ((display, address),) = addresses(message, "From")
    assert address == "a@b.org" and same(display, name)
    texts = [part for part in message.walk() if part.get_content_maintype() == "text" and not part.get_filename()]
    assert [part.get_payload(decode=True).decode().replace("\r\n", "\n") for part in texts] == [
        lines(text) for text in (body, html) if text is not None
    ]
    if content is not None:
        (part,) = message.iter_attachments()
        assert part.get_payload(decode=True) == content and same(part.get_filename(), filename)


def same(read: str, written: str) -> bool:
    """The parser reads runs of white space between encoded words and at the ends in its own way."""
    return "".join(read.split()) == "".join(written.split())


def lines(text: str) -> str:
    text = re.sub(r"\r\n|\r", "\n", text)
    return text if text.endswith("\n") else text + "\n"
