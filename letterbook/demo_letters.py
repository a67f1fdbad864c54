"""The mail of the demo, and what must come of each letter.

The relay's answer stands in the address (letterbook/capture.py): 451-then-250@ defers once, 550@ refuses.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any, Literal, NamedTuple

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c63646060f80f0001050101a27bd8a80000000049454e44ae426082"
)
"""A picture of one dot."""

CSV = b"what,how many,euro\npaper,500,12.50\nink,2,9.80\n"

SHOP = "Paper & Ink <shop@example.com>"


class Expected(NamedTuple):
    """A letter, and what must come of it: its status, how its error begins, and who gets it from the relay."""

    message: Mapping[str, Any]
    status: Literal["sent", "error"]
    delivered_to: tuple[str, ...]
    error: str = ""
    attempts: int = 1

    @property
    def id(self) -> str:
        return str(self.message["id"])


def _letter(message_id: str, to: Sequence[str], subject: str, body: str, **more: Any) -> dict[str, Any]:
    return {"id": message_id, "from": SHOP, "to": list(to), "subject": subject, "body": body, **more}


IMMEDIATE = Expected(
    _letter("code-7291", ["ada@example.org"], "Your code is 7291", "It holds for ten minutes."),
    "sent",
    ("ada@example.org",),
)
"""Goes ahead of the queue, by send-message."""

INVOICE = Expected(
    _letter(
        "invoice-42",
        ["bruno@example.org"],
        "Your invoice",
        "Two articles, 22.30 euro. The list is attached.\n",
        body_html='<p><img src="cid:logo" alt=""> Two articles, <b>22.30 euro</b>. The list is attached.</p>\n',
        attachments=[
            {"filename": "logo.png", "content": b64encode(PNG).decode(), "content_id": "logo"},
            {"filename": "articles.csv", "content": b64encode(CSV).decode()},
        ],
    ),
    "sent",
    ("bruno@example.org",),
)

QUEUED = (
    Expected(
        _letter("welcome-1", ["Zoë <zoe@example.org>"], "Welcome, Zoë, schön!", "Good to have you here.\n"),
        "sent",
        ("zoe@example.org",),
    ),
    Expected(
        _letter("newsletter-9", ["carla@example.org"], "News in March", "Nothing much.\n", priority="low"),
        "sent",
        ("carla@example.org",),
    ),
    INVOICE,
    Expected(
        _letter("reminder-3", ["451-then-250@example.org"], "A reminder", "The relay is busy at first.\n"),
        "sent",
        ("451-then-250@example.org",),
        attempts=2,
    ),
    Expected(
        _letter("goodbye-5", ["550@example.org"], "To nobody", "Nobody has this mailbox.\n"),
        "error",
        (),
        "550 5.1.1",
    ),
    Expected(
        _letter(
            "minutes-8",
            ["dora@example.org", "550+emil@example.org", "fritz@example.org"],
            "The minutes",
            "One of three has moved away.\n",
        ),
        "error",
        ("dora@example.org", "fritz@example.org"),
        "1 of 3 refused: 550 5.1.1",
    ),
)
"""These go in one batch, by add-messages."""

ALL = (IMMEDIATE, *QUEUED)

Captured = Mapping[str, bytes]
"""What the relay has, by recipient."""


def faults(results: Mapping[str, Mapping[str, Any]], captured: Captured) -> list[str]:
    """What did not happen as it should; `results` are those of the API by id."""
    found = [fault for expected in ALL for fault in _faults_of(expected, results.get(expected.id), captured)]
    return found + _faults_of_invoice(captured.get(INVOICE.delivered_to[0], b""))


def _faults_of(expected: Expected, result: Mapping[str, Any] | None, captured: Captured) -> list[str]:
    if result is None:
        return [f"{expected.id} has no result"]
    wrong = []
    if result["status"] != expected.status or not str(result.get("error", "")).startswith(expected.error):
        wrong.append(f"{expected.id} is {result['status']} ({result.get('error')})")
    if result["attempts"] != expected.attempts:
        wrong.append(f"{expected.id} took {result['attempts']} attempts")
    delivered = tuple(one["address"] for one in result["recipients"] if one["status"] == "delivered")
    if delivered != expected.delivered_to or not captured.keys() >= set(delivered):
        wrong.append(f"{expected.id} was delivered to {delivered}")
    return wrong


def _faults_of_invoice(content: bytes) -> list[str]:
    """Whether picture and attachment came through."""
    mail = message_from_bytes(content, _class=EmailMessage, policy=default)
    parts = {part.get_content_type(): part for part in mail.walk()}
    picture, table = parts.get("image/png"), parts.get("text/csv")
    if picture is None or picture["content-id"] != "<logo>" or picture.get_payload(decode=True) != PNG:
        return [f"{INVOICE.id} came without its picture"]
    if table is None or table.get_filename() != "articles.csv" or table.get_payload(decode=True) != CSV:
        return [f"{INVOICE.id} came without its attachment"]
    return [] if "text/html" in parts and "text/plain" in parts else [f"{INVOICE.id} came without its text"]
