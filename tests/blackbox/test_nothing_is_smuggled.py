"""What looks like the end of a message, like a header or like a recipient arrives as what it was written for: at
aiosmtpd and at Postfix's smtpd, as exactly one message each, with nothing injected."""

import base64
import email
import email.policy
import re
from email.message import EmailMessage
from typing import NamedTuple

import pytest
import trio

from .postfix import Postfix, Unavailable, postfix
from .relays import StockRelay
from .service import mail

STANDING: dict[str, object] = {"delivery_max_retries": 0}

SMUGGLED = "MAIL FROM:<evil@example.net>\nRCPT TO:<bob@example.org>\nDATA\nSubject: smuggled\n\nbody\n.\nQUIT\n"
BODIES = {
    "bare CR": "one\rtwo\r",
    "bare LF": "one\ntwo\n",
    "LF dot LF": f"one\n.\n{SMUGGLED}",
    "CR dot CR": f"one\r.\r{SMUGGLED}",
    "LF dot CRLF": f"one\n.\r\n{SMUGGLED}",
    "CRLF dot LF": f"one\r\n.\n{SMUGGLED}",
    "CRLF dot CR": f"one\r\n.\r{SMUGGLED}",
    "CRLF dot CRLF": f"one\r\n.\r\n{SMUGGLED}",
    "CR dot CRLF": f"one\r.\r\n{SMUGGLED}",
    "LF dot CR": f"one\n.\r{SMUGGLED}",
    "dots at the beginning of lines": "...\n.\n..\n.a\n..b\n\n.",
    "a dot alone": ".",
    "nothing": "",
    "a long line": "x" * 60_000,
    "a long line of dots": "." * 60_000,
    "a line of 999": "x" * 997 + "\n" + "x" * 998 + "\n" + "x" * 999 + "\n",
    "beyond ASCII": "Grüße 漢字 🎈\n.\nÿ\n",
    "U+2028 and U+0085": f"one\u2028.\u2028two\u0085.\u0085{SMUGGLED}",
    "a vertical tab and a form feed": f"one\x0b.\x0btwo\x0c.\x0c{SMUGGLED}",
    "spaces at the end": "one \n . \n \ntwo\t\n",
    "a boundary": "--=_0\nContent-Type: text/html\n\n--=_0--\n",
    "a From line": "From evil@example.net\n>From\n",
    "headers": "Bcc: evil@example.net\nSubject: smuggled\n\nbody\n",
}
TEXTS = {
    "encoded line ends": "=?utf-8?q?x=0D=0ABcc:_evil=40example.net=0D=0A=0D=0Abody?=",
    "a header": "x: Bcc: evil@example.net",
    "long": "many words " * 400,
    "one long word": "x" * 3000,
    "beyond ASCII": "Grüße 漢字 🎈 " * 30,
    "quotes": 'a "b" \\c; d=e, <f@example.net>',
    "only spaces": "   ",
    "nothing": "",
    "a dot": ".",
}
NAMES = {
    "a second mailbox": '"Ann <evil@example.net>, Eve" <ann@example.org>',
    "a comma": "Doe, Ann <ann@example.org>",
    "a group": "friends: evil@example.net; <ann@example.org>",
    "a comment": "Ann (evil@example.net) <ann@example.org>",
    "quotes left open": '"Ann <ann@example.org>',
    "a backslash at the end": '"Ann\\\\" <ann@example.org>',
    "an encoded comma": "=?utf-8?q?Ann=2C_evil=40example.net?= <ann@example.org>",
    "beyond ASCII": "Änn, 漢字 <ann@example.org>",
}
FILES = ['a"; filename="b.exe', "../../a\\b", "ü" * 100, "=?utf-8?q?=0D=0ABcc:_e?=", 'x"\\', "a;b=c", " "]
MESSAGE_IDS = ["<a.b=c@example.com>", "a!#$%&'*+/=?^_`{|}~.-:,;()[]\"\\@x"]


class Letter(NamedTuple):
    """A message as it is asked for, and what its part of text must be."""

    fields: dict[str, object]
    body: str = "words\n"


def letters() -> dict[str, Letter]:
    """One for each row of each table, by a name that is its id too."""
    found = {f"body: {name}": Letter({"body": body}, body) for name, body in BODIES.items()}
    found |= {f"subject: {name}": Letter({"subject": text}) for name, text in TEXTS.items()}
    found |= {f"value: {name}": Letter({"headers": {"X-Tag": text}}) for name, text in TEXTS.items()}
    found |= {f"to: {name}": Letter({"to": [text]}) for name, text in NAMES.items()}
    found |= {f"reply-to: {name}": Letter({"reply_to": [text]}) for name, text in NAMES.items()}
    found |= {f"from: {name}": Letter({"from": text}) for name, text in NAMES.items()}
    content = base64.b64encode(b"a file").decode()
    found |= {f"file: {name}": Letter({"attachments": [{"filename": name, "content": content}]}) for name in FILES}
    return found | {f"id: {name}": Letter({"message_id": name}) for name in MESSAGE_IDS}


LETTERS = letters()
HEADERS = {"From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", "X-Number"}
EXTRA = {"Reply-To", "X-Tag", "Content-Transfer-Encoding"}


def asked_of(account: str) -> list[dict[str, object]]:
    """Every letter of the tables, with its number in a header."""
    asked = []
    for number, (name, letter) in enumerate(LETTERS.items()):
        given = mail(f"{account}/{name}", body="words\n", account_id=account) | letter.fields
        headers = given.get("headers", {})
        assert isinstance(headers, dict)
        asked.append(given | {"headers": headers | {"X-Number": str(number)}})
    return asked


async def send_all(service, account: str) -> list[dict]:
    """Send every letter of the tables; the results, of which every one is good."""
    asked = asked_of(account)
    await service.add(asked)
    results = await service.until_results(len(asked), account)
    assert {result["id"]: result["status"] for result in results} == {each["id"]: "sent" for each in asked}
    return results


def normal(text: str) -> str:
    return re.sub(r"\r\n|\r", "\n", text).rstrip("\n")


def check(name: str, content: bytes, added: frozenset[str] = frozenset()) -> None:
    """A mail as it has arrived is what its letter says, and nothing more."""
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    keys = [key for key in message if key not in added]
    assert len(keys) == len(set(keys)) and HEADERS <= set(keys) <= HEADERS | EXTRA, keys
    assert ("Reply-To" in keys, "X-Tag" in keys) == (name.startswith("reply-to"), name.startswith("value"))
    assert [each.addr_spec for each in message["To"].addresses] == ["ann@example.org"]
    text = next(part for part in message.walk() if part.get_content_maintype() == "text")
    body = text.get_payload(decode=True)
    assert isinstance(body, bytes)
    assert normal(body.decode()) == normal(LETTERS[name].body)
    assert len(list(message.walk())) == (3 if name.startswith("file") else 1)


def named(results: list[dict], account: str) -> dict[str, dict]:
    return {result["id"].removeprefix(f"{account}/"): result for result in results}


async def test_at_aiosmtpd(shared, authority, ca_file):
    with StockRelay(authority, {"me": "secret"}).listening() as relay:
        await shared.account(
            "stock", relay.port, user="me", password="secret", tls="starttls-required", tls_ca_file=str(ca_file), ttl=1
        )
        await send_all(shared, "stock")
        arrived = list(relay.arrived)
        await shared.post("/commands/suspend")
        with trio.fail_after(60):
            await relay.until_left()
        await shared.post("/commands/activate")
    assert len(arrived) == len(LETTERS), "one message each"
    names = {str(number): name for number, name in enumerate(LETTERS)}
    for each in arrived:
        assert each.recipients == ("ann@example.org",)
        check(names.pop(str(email.message_from_bytes(each.content)["X-Number"])), each.content)
    assert not names


@pytest.fixture(scope="module")
def relay():
    try:
        with postfix() as made:
            yield made
    except Unavailable as reason:
        pytest.skip(f"{reason}; aiosmtpd and the strict reader of the unit tests say the same")


async def test_at_postfix(shared, relay: Postfix):
    await shared.account("postfix", relay.port, max_connections=1)
    results = named(await send_all(shared, "postfix"), "postfix")
    assert len(list((relay.folder / "queue" / "hold").iterdir())) == len(LETTERS), "one message each"
    assert not list((relay.folder / "queue" / "incoming").iterdir())
    for name, result in results.items():
        (recipient,) = result["recipients"]
        assert recipient["address"] == "ann@example.org"
        check(name, relay.held(recipient["queue_id"]), frozenset({"Received"}))


async def test_what_could_end_a_line_of_a_header_is_refused_at_the_door(shared):
    asked = [
        mail(f"refused-{number}-{ord(control):x}") | {field: f"a{control}Bcc: evil@example.net"}
        for control in "\r\n\0\x0b\x0c\x85\u2028\u2029"
        for number, field in enumerate(("subject", "message_id"))
    ] + [mail("refused-nul", body="a\0b"), mail("refused-header", headers={"X-A\r\nBcc": "evil@example.net"})]
    answer = await shared.post("/commands/add-messages", {"messages": asked})
    assert answer["queued"] == 0
    assert {each["id"] for each in answer["rejected"]} == {each["id"] for each in asked}
