"""A thousand messages over five accounts arrive once each, byte for byte, and in the order of their priority: at a
relay that nobody here wrote, with STARTTLS and a login, and at the capture relay of the demo."""

import base64
import email
import random
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from email.header import decode_header, make_header
from email.utils import collapse_rfc2231_value, getaddresses

import trio

from letterbook.capture import CaptureRelay

from .relays import Arrived, StockRelay
from .service import SENDER

MESSAGES = 1000
ACCOUNTS = [f"account-{number}" for number in range(5)]
PASSWORDS = {account: f"pässword of {account}" for account in ACCOUNTS}

BODIES = (
    "One line without an end",
    "Ümläute, 漢字 and 🎈 in a body.\n.a line that begins with a dot\n..and one with two\n.\nand a dot alone\n",
    "A line of " + 2000 * "very " + "long text.\n",
    "Spaces at the end   \n\ttabs\t\n\n\nFrom a line that old mailboxes mistake\n",
    "",
)
SUBJECTS = (
    "Plain",
    "Ümläute und 漢字 🎈",
    "A subject so long that it must be folded, and then folded once more, since it goes on and on " + 6 * "and on, ",
    "=? a question that looks like an encoded word ?=",
)


def letters(chance):
    """All different in what a relay could break: text, length, headers, parts, recipients, priority."""
    for number in range(MESSAGES):
        letter = {
            "id": f"letter/{number} ü",
            "account_id": chance.choice(ACCOUNTS),
            "from": SENDER,
            "to": [f"Ännchen {number} <ann-{number}@example.org>", f"bob-{number}@example.org"],
            "subject": f"{chance.choice(SUBJECTS)} #{number}",
            "body": chance.choice(BODIES),
            "headers": {"X-Number": str(number), "X-Text": f"Grüße {number}"},
            "priority": chance.randrange(4),
        }
        if number % 5 == 1:
            letter |= {"bcc": f"secret-{number}@example.org"}
        if number % 5 == 2:
            letter |= {"content_type": "html", "body": f"<p>{letter['body']}</p>"}
        if number % 5 == 3:
            content = base64.b64encode(chance.randbytes(200 + number)).decode()
            letter["attachments"] = [{"filename": f"Rechnung-ü-{number}.bin", "content": content}]
        yield letter


def text_of(header):
    """A header without its encoded words and its folding."""
    return str(make_header(decode_header(header.replace("\r\n", "").replace("\n", ""))))


def addresses_of(header):
    return [(text_of(name), address) for name, address in getaddresses([header.replace("\r\n", "")])]


def lines(text):
    """A text's lines: SMTP ends the last one, whether it was ended or not."""
    return text.replace("\r\n", "\n").rstrip("\n")


def check(letter, arrived):
    """What has arrived is what was asked for."""
    number = letter["headers"]["X-Number"]
    message = email.message_from_bytes(arrived.content)
    wanted = [(f"Ännchen {number}", f"ann-{number}@example.org"), ("", f"bob-{number}@example.org")]
    recipients = {address for _, address in wanted} | ({letter["bcc"]} if "bcc" in letter else set())
    assert len(arrived.recipients) == len(recipients) and set(arrived.recipients) == recipients
    assert arrived.sender == "clerk@letterbook.test"
    assert text_of(message["Subject"]) == letter["subject"]
    assert text_of(message["X-Text"]) == letter["headers"]["X-Text"]
    assert addresses_of(message["From"]) == [("Näme with ümlauts", "clerk@letterbook.test")]
    assert addresses_of(message["To"]) == wanted
    assert message["Bcc"] is None and message["Message-ID"] and message["Date"]
    body, *attachments = message.get_payload() if message.is_multipart() else [message]
    assert body.get_content_type() == f"text/{letter.get('content_type', 'plain')}"
    assert lines(body.get_payload(decode=True).decode(body.get_content_charset())) == lines(letter["body"])
    attached = [(part.get_filename(), part.get_payload(decode=True)) for part in attachments]
    given = [(each["filename"], base64.b64decode(each["content"])) for each in letter.get("attachments", ())]
    assert [(text_of(collapse_rfc2231_value(name)), content) for name, content in attached] == given


async def deliver(service, letters, received):
    """Queue everything while dispatch is suspended, let it go, and wait for what came of it."""
    await service.post("/commands/suspend")
    await service.add(letters)
    await service.post("/commands/activate")
    with trio.fail_after(60):
        await received(MESSAGES)
    results = await service.until_results(MESSAGES)
    assert {result["id"]: result["status"] for result in results} == {letter["id"]: "sent" for letter in letters}
    assert len(results) == MESSAGES


def check_all(letters, arrivals, account_of):
    """Each once, each as it was written, and on each account by priority, then in the order in which it came."""
    by_number = {letter["headers"]["X-Number"]: letter for letter in letters}
    numbers = [parsed_number(arrived.content) for arrived in arrivals]
    assert Counter(numbers) == Counter(list(by_number))
    order = defaultdict(list)
    for number, arrived in zip(numbers, arrivals, strict=True):
        letter = by_number[number]
        check(letter, arrived)
        assert account_of(arrived) == letter["account_id"]
        order[letter["account_id"]].append((letter["priority"], int(number)))
    assert set(order) == set(ACCOUNTS)
    for account, came in order.items():
        assert came == sorted(came), account


def parsed_number(content):
    for line in content.split(b"\r\n"):
        if line.startswith(b"X-Number: "):
            return line.removeprefix(b"X-Number: ").decode()
    raise AssertionError(content)


async def test_a_stock_relay_with_starttls_and_auth_takes_a_thousand_messages(service, authority, ca_file):
    chance = random.Random("stock relay")
    wanted = list(letters(chance))
    with StockRelay(authority, PASSWORDS).listening() as relay:
        it = await service()
        for account in ACCOUNTS:
            await it.account(
                account, relay.port, user=account, password=PASSWORDS[account], tls="starttls-required",
                tls_ca_file=str(ca_file), max_connections=1,
            )  # fmt: skip
        await deliver(it, wanted, relay.until_received)
        ends = await it.events("AttemptEnded")
        assert await it.stop() == 0
        arrivals = list(relay.arrived)
    check_all(wanted, arrivals, lambda arrived: arrived.login)
    assert all(end["tls"] and end["verified"] for end in ends)


@asynccontextmanager
async def capture_relays():
    """One relay an account, so that where a message came in tells whose it was."""
    async with trio.open_nursery() as nursery:
        relays = {account: CaptureRelay() for account in ACCOUNTS}
        for relay in relays.values():
            await nursery.start(relay.serve)
        yield relays
        nursery.cancel_scope.cancel()


async def test_capture_relays_take_a_thousand_messages(service):
    chance = random.Random("capture relay")
    wanted = list(letters(chance))
    async with capture_relays() as relays:

        async def received(count):
            for account, relay in relays.items():
                await relay.until_received(sum(letter["account_id"] == account for letter in wanted))
            assert sum(relay.received for relay in relays.values()) == count

        it = await service()
        for account, relay in relays.items():
            await it.account(account, relay.port, max_connections=1)
        await deliver(it, wanted, received)
        assert all(relay.connections_max == 1 for relay in relays.values())
        arrivals = [
            Arrived(account, message.sender, message.recipients, message.content)
            for account, relay in relays.items()
            for message in relay.messages
        ]
    check_all(wanted, arrivals, lambda arrived: arrived.login)
