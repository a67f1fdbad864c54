"""A mail in a file becomes a message of the API; the standard library's own writer makes the files."""

from base64 import b64decode
from email.message import EmailMessage

import pytest

from letterbook.eml import NoMailError, message_of


def mail(body: str = "Hello\n") -> EmailMessage:
    made = EmailMessage()
    made["From"] = "Jürgen <juergen@example.com>"
    made["To"] = "Anna <anna@example.org>, bert@example.org"
    made["Subject"] = "Grüße"
    made.set_content(body)
    return made


def test_a_plain_mail():
    made = mail()
    made["Cc"] = "carl@example.org"
    made["Reply-To"] = "office@example.com"
    made["Message-ID"] = "<1@example.com>"
    assert message_of(bytes(made)) == {
        "from": "Jürgen <juergen@example.com>",
        "subject": "Grüße",
        "to": ["Anna <anna@example.org>", "bert@example.org"],
        "cc": ["carl@example.org"],
        "reply_to": ["office@example.com"],
        "message_id": "<1@example.com>",
        "body": "Hello\n",
        "headers": {},
    }


def test_text_and_html_with_an_inline_image_and_an_attachment():
    made = mail()
    made.add_alternative('<img src="cid:logo">', subtype="html")
    made.get_payload()[1].add_related(b"\x89PNG", "image", "png", cid="<logo>", filename="logo.png")
    made.add_attachment(b"%PDF", "application", "pdf", filename="Übersicht.pdf")
    fields = message_of(bytes(made))
    assert (fields["body"], fields["body_html"]) == ("Hello\n", '<img src="cid:logo">\n')
    image, attached = fields["attachments"]
    assert (image["filename"], image["content_type"], image["content_id"]) == ("logo.png", "image/png", "logo")
    assert (attached["filename"], b64decode(attached["content"])) == ("Übersicht.pdf", b"%PDF")
    assert "content_id" not in attached


def test_html_alone_is_the_body():
    made = mail()
    made.set_content("<b>Hi</b>", subtype="html")
    fields = message_of(bytes(made))
    assert (fields["body"], fields["content_type"]) == ("<b>Hi</b>\n", "html") and "body_html" not in fields


def test_headers_are_kept_but_for_those_of_the_way_here():
    made = mail()
    made["X-Campaign"] = "spring"
    made["List-Unsubscribe"] = "<https://example.com/off>"
    made["Received"] = "from a by b"
    made["DKIM-Signature"] = "v=1; b=x"
    made["Return-Path"] = "<bounce@example.com>"
    assert message_of(bytes(made))["headers"] == {
        "X-Campaign": "spring",
        "List-Unsubscribe": "<https://example.com/off>",
    }


def test_a_mail_within_the_mail_is_one_attachment():
    made = mail()
    made.add_attachment(mail("Inside\n"))
    (inner,) = message_of(bytes(made))["attachments"]
    assert inner["content_type"] == "message/rfc822" and inner["filename"] == "attachment-1.eml"
    assert b"Inside" in b64decode(inner["content"])


def test_an_old_character_set_becomes_text():
    data = b"From: a@b.c\nTo: d@e.f\nContent-Type: text/plain; charset=iso-8859-1\n\nSch\xf6n"
    assert message_of(data)["body"] == "Schön"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "it is no mail"), (b"From: a@b.c\nContent-Type: text/plain; charset=klingon\n\n\xff", "character set")],
)
def test_what_cannot_be_sent_is_said_in_one_line(data, words):
    with pytest.raises(NoMailError, match=words):
        message_of(data)
