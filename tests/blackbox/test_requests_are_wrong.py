"""Wrong requests to a whole service: whatever comes, the answer is the contract's error or the item's rejection, and
nothing of it reaches a relay. What the door alone decides is tried in tests/gateway."""

import msgspec
import pytest

from events.payloads import MessagePayload
from gateway.commands import COMMANDS
from letterbook.capture import CaptureRelay

from .service import mail

STANDING: dict[str, object] = {"delivery_send_wait_seconds": 0.1}

EVIL = ("\r", "\n", "\r\nRCPT TO:<mallory@example.org>", "\r\nBcc: mallory@example.org", "\0", "\x1b", "\x7f")

FILE = {"filename": "a", "content": "YQ=="}

PLACES = {
    "from": lambda evil: {"from": f"clerk{evil}@example.org"},
    "from's name": lambda evil: {"from": f"A{evil}B <clerk@example.org>"},
    "to": lambda evil: {"to": f"bob@example.org, an{evil}n@example.org"},
    "to's list": lambda evil: {"to": ["ann@example.org", f"b{evil}ob@example.org"]},
    "cc": lambda evil: {"cc": f"ann@exam{evil}ple.org"},
    "bcc": lambda evil: {"bcc": [f"{evil}ann@example.org"]},
    "reply_to": lambda evil: {"reply_to": f"ann{evil}@example.org"},
    "return_path": lambda evil: {"return_path": f"ann{evil}@example.org"},
    "subject": lambda evil: {"subject": f"About{evil}this"},
    "message_id": lambda evil: {"message_id": f"<a{evil}@example.org>"},
    "a header's value": lambda evil: {"headers": {"X-Text": f"a{evil}b"}},
    "a header's name": lambda evil: {"headers": {f"X-Te{evil}xt": "a"}},
    "a file's name": lambda evil: {"attachments": [FILE | {"filename": f"a{evil}.txt"}]},
    "a file's type": lambda evil: {"attachments": [FILE | {"content_type": f"text/pl{evil}ain"}]},
    "a file's content_id": lambda evil: {"attachments": [FILE | {"content_id": f"a{evil}b"}]},
}

ODD = (None, True, 0, -1, 1e300, "", "\0", "x" * 1000, [], [[]], {}, {"a": {"b": [None]}}, ["a", 1])
"""Values that are the wrong type for nearly everything."""


@pytest.mark.parametrize("place", PLACES)
async def test_control_characters_are_refused_at_the_door(shared, place):
    await shared.account("nowhere", 9)
    await shared.post("/account/nowhere/pause")
    items = [mail(f"{place}-{number}", account_id="nowhere") | PLACES[place](evil) for number, evil in enumerate(EVIL)]
    answer = await shared.post("/commands/add-messages", {"messages": items})
    assert (answer["ok"], answer["queued"]) == (True, 0), answer
    assert [each["id"] for each in answer["rejected"]] == [item["id"] for item in items]
    reasons = {each["reason"].split(" in ")[0].split(":")[0] for each in answer["rejected"]}
    assert reasons <= {"control character", "invalid address", "invalid field"}, answer


def is_an_error(response):
    assert response.status_code in (400, 404, 405, 409), (response.request.url, response.status_code, response.text)
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()
    assert body["ok"] is False and body["error"] == body["detail"] and "Traceback" not in body["error"]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
async def test_whatever_the_fields_hold_it_is_an_answer_and_never_a_500(shared, command):
    path = command.path.replace("<id>", "unknown")
    for value in ODD:
        response = await shared.client.request(command.method, path, **filled(command, value))
        answer = response.json() if response.headers["content-type"].startswith("application/json") else {}
        assert response.status_code < 500 or command.name == "ready", (value, response.text)
        if response.status_code >= 400 and command.name != "ready":
            is_an_error(response)
        assert answer.get("queued", 0) == 0


def filled(command, value):
    """A request with this value in every field of the command; dispatch is not stopped for those who come after."""
    if command.name in ("suspend", "activate"):
        return {"content": b"[" if value is None else b'{"restored": 7}' if command.name == "activate" else b"]"}
    if command.source != "body":
        return {"params": {name: str(value)[:100] for name in fields(command.payload)}}
    return {"json": dict.fromkeys(fields(command.payload), value)}


def fields(payload):
    if isinstance(payload, type) and issubclass(payload, msgspec.Struct):
        return [field.encode_name for field in msgspec.structs.fields(payload)]
    return [field.encode_name for field in msgspec.structs.fields(MessagePayload)]


async def test_afterwards_it_is_as_if_nothing_had_come(shared):
    """The same process still delivers, and what it refused was never mailed."""
    async with CaptureRelay().listening() as relay:
        await shared.account("good", relay.port)
        await shared.post("/commands/activate")
        await shared.add([mail("good", account_id="good")])
        await shared.until_results(1, "good")
        (message,) = relay.messages
    assert message.recipients == ("ann@example.org",)
    assert await shared.events("AttemptStarted") and "Traceback" not in shared.lines
