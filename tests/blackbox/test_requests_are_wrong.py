"""Wrong requests to a whole service: whatever comes, the answer is the contract's error or the item's rejection, and
nothing of it reaches a relay. Every wrong on every route is tried in tests/letterbook/test_both_doors.py."""

import pytest

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


async def test_a_subject_of_ten_megabytes_is_refused_alone_and_does_not_come_back(shared):
    await shared.account("nowhere", 9)
    await shared.post("/account/nowhere/pause")
    items = [mail("long", account_id="nowhere") | {"subject": "x" * 10_000_000}, mail("short", account_id="nowhere")]
    answer = await shared.post("/commands/add-messages", {"messages": items})
    assert answer == {"ok": True, "queued": 1, "rejected": [{"id": "long", "reason": "invalid field: subject"}]}
    assert len((await shared.client.get("/messages")).content) < 1_000_000
    await shared.post("/commands/delete-messages", {"ids": ["short"]})


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
