"""The exchange that an upstream starts: who may, what is refused whole, and what is confirmed when."""

import pytest

from .service import running

TOKEN = "a sync token"
PATH = "/commands/proxy-sync"
NOTHING = {"messages": [], "token": None, "delivery_report": [], "report_cursor": 7, "ack_cursor": None}


def body(*messages, **fields):
    return {"sync_token": TOKEN, "messages": list(messages), **fields}


def message(name: str):
    return {"id": name, "to": ["b@example.org"]}


@pytest.mark.parametrize(("configured", "shown"), [("", ""), ("", TOKEN), ("", None), (TOKEN, "other"), (TOKEN, None)])
async def test_only_who_shows_the_token_may_exchange(tmp_path, configured, shown):
    async with running(tmp_path, sync_token=configured) as service, service.client() as client:
        answer = await client.post(PATH, json=body(message("a"), token="t", sync_token=shown))
        sentence = "Invalid or missing sync_token"
        assert answer.status_code == 401 and answer.json() == {"ok": False, "error": sentence, "detail": sentence}
        assert service.submitted == [] and service.exchanges == []


async def test_an_exchange_says_our_half_with_nulls_and_confirms_what_is_stored(tmp_path):
    async with running(tmp_path, sync_token=TOKEN) as service, service.client() as client:
        log = service.store.log_id
        answer = await client.post(PATH, json=body(log=log, ack_cursor=3))
        assert answer.json() == {"log": log, "confirm": None, **NOTHING}
        assert (service.exchanges[0].log, service.exchanges[0].ack_cursor) == (log, 3)
        for token in ("t", 7, "ü" * 2_000):
            answer = await client.post(PATH, json=body(message(f"m{token}"[:9]), {"no": "id"}, token=token))
            assert answer.status_code == 200 and answer.json()["confirm"] == token
        assert [len(submission.items) for submission in service.submitted] == [2, 2, 2]
        digests = {submission.token for submission in service.submitted}
        assert digests == {service.store.secrets.token_digest(f"{token}") for token in ("t", 7, "ü" * 2_000)}
        everything = body(log="x", confirm="c", token=None, delivery_report=[{}], report_cursor=9, ack_cursor=None)
        assert (await client.post(PATH, json=everything)).status_code == 200


WRONG = [
    ({"messages": [message("a")]}, "token"),
    ({"messages": [message("a")], "token": ""}, "token"),
    ({"messages": [message("a")] * 3, "token": "t"}, "Cannot enqueue more than 2 messages at once"),
    ({"token": "t" * 2_001}, "token"),
    ({"token": ["t"]}, "token"),
    ({"ack_cursor": "9"}, "ack_cursor"),
    ({"messages": {}}, "messages"),
    ({"surprise": 1}, "surprise"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=[f"{fields}"[:40] for fields, _ in WRONG])
async def test_what_cannot_be_taken_is_a_400_that_stores_and_acknowledges_nothing(tmp_path, fields, words):
    async with running(tmp_path, sync_token=TOKEN, max_batch=2) as service, service.client() as client:
        answer = await client.post(PATH, json={"sync_token": TOKEN, "ack_cursor": 5, **fields})
        assert answer.status_code == 400 and words in answer.json()["error"]
        assert service.submitted == [] and service.exchanges == []


async def test_while_no_mail_is_taken_nothing_is_confirmed_and_reports_go_on(tmp_path):
    async with running(tmp_path, sync_token=TOKEN, disk_low=True) as service, service.client() as client:
        answer = await client.post(PATH, json=body(message("a"), token="t"))
        assert answer.status_code == 200 and answer.json()["confirm"] is None
        assert len(service.exchanges) == 1 and service.submitted == []
