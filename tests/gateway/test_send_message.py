"""send-message: one message, and its first outcome, in so far as it comes in time."""

import pytest
import trio

from events.account import AccountThrottled
from events.fact import Draft
from events.message import MessageHeld, MessageWithdrawn
from events.values import Outcome

from .service import HOUR_US, running


def message(**fields):
    return {"from": "a@example.org", "to": ["b@example.org"], "subject": "s", "body": "b", **fields}


async def sending(service, client, act, **fields):
    """POST a message, and meanwhile act on it once it is accepted; the answer."""
    answers = []

    async def post():
        answers.append(await client.post("/commands/send-message", json=message(**fields)))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            async with service.store.follow(service.store.last_seq) as batches:
                nursery.start_soon(post)
                async for batch in batches:
                    accepted = [entry for entry in batch.entries if entry.kind == "MessageAccepted"]
                    if accepted:
                        break
            await act(accepted[0].seq)
    return answers[0]


async def test_a_message_that_is_sent(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")

        async def deliver(number):
            await service.end(number, await service.start(number))

        answer = await sending(service, client, deliver, id="mine")
        body = answer.json()
        assert answer.status_code == 200 and body["ok"] is True
        result = body["result"]
        assert (result["id"], result["status"], result["smtp_code"]) == ("mine", "sent", 250)
        assert result["account"] == "default" and result["timestamp"].endswith("Z")
        assert result["recipients"] == [
            {"address": "b@example.org", "status": "delivered", "code": 250, "queue_id": "q1"}
        ]
        assert service.submitted[0].urgent and service.submitted[0].default_priority == 0


async def test_a_message_that_is_refused(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")

        async def refuse(number):
            refused = Outcome(0, "refused", 550, "5.1.1")
            texts = ((0, "550 5.1.1 no such user"),)
            await service.end(number, await service.start(number), refused, then="failed", cause="refused", texts=texts)

        body = (await sending(service, client, refuse)).json()
        assert body["ok"] is False and body["result"]["status"] == "error"
        assert body["result"]["error"] == "550 5.1.1 no such user" and body["result"]["smtp_code"] == 550


async def test_a_message_that_is_deferred(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        until_us = service.store.clock.now_us() + HOUR_US

        async def defer(number):
            deferred = Outcome(0, "deferred", 451)
            await service.end(
                number, await service.start(number), deferred, then="due", due_us=until_us, due_cause="retry",
                texts=((0, "451 busy"),),
            )  # fmt: skip

        result = (await sending(service, client, defer)).json()["result"]
        assert result["status"] == "deferred" and result["error"] == "451 busy"
        assert result["deferred_until"] == -(-until_us // 1_000_000)


async def test_over_the_limit_is_deferred_at_once_until_quota_frees(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        account = await service.account("default", limit_per_hour=5)
        until_us = service.store.clock.now_us() + HOUR_US

        async def throttle(number):
            await service.one(Draft(AccountThrottled(until_us=until_us, window_s=3600, limit=5), number, account))

        for name in ("first", "second"):
            answer = await sending(service, client, throttle, id=name)
            assert answer.status_code == 200
            result = answer.json()["result"]
            assert result["status"] == "deferred" and result["deferred_until"] == -(-until_us // 1_000_000)


async def test_a_held_and_a_withdrawn_message_have_an_outcome_too(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")

        async def hold(number):
            await service.one(Draft(MessageHeld(cause="operator"), message=number))

        async def withdraw(number):
            await service.one(Draft(MessageWithdrawn(), message=number))

        result = (await sending(service, client, hold)).json()["result"]
        assert result["status"] == "deferred" and result["error"] == "held until a person decides"
        result = (await sending(service, client, withdraw)).json()["result"]
        assert result["status"] == "error" and result["error"] == "withdrawn"


async def test_more_recipients_to_come_are_no_outcome(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")

        async def deliver_in_two(number):
            await service.end(number, await service.start(number), then="due", due_us=1, due_cause="more")
            await service.end(number, await service.start(number, recipients=(1,)), Outcome(1, "delivered", 250))

        result = (await sending(service, client, deliver_in_two, to=["b@example.org", "c@example.org"])).json()[
            "result"
        ]
        assert result["status"] == "sent" and len(result["recipients"]) == 2


async def test_on_time_out_it_is_pending(tmp_path):
    async with running(tmp_path, send_wait_seconds=0.05) as service, service.client() as client:
        answer = await client.post("/commands/send-message", json=message(id="slow"))
        assert answer.status_code == 202
        body = answer.json()
        assert body["status"] == "pending" and body["id"] == "slow" and body["result"]["status"] == "pending"


async def test_the_same_id_again_answers_with_that_messages_result(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.send("known")
        body = (await client.post("/commands/send-message", json=message(id="known"))).json()
        assert body["ok"] is True and body["result"]["status"] == "sent"
        again = await client.post("/commands/send-message", json=message(), headers={"Idempotency-Key": "known"})
        assert again.json() == body


async def test_a_rejection_is_told_with_the_id(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        service.decide = lambda message: "missing to"
        answer = await client.post("/commands/send-message", json={"from": "a@b.c"})
        assert answer.status_code == 200
        body = answer.json()
        assert body["ok"] is False and body["error"] == "missing to" and len(body["id"]) == 32


@pytest.mark.parametrize("key", ["x" * 300, "a\tb"])
async def test_a_key_that_cannot_be_an_id(tmp_path, key):
    async with running(tmp_path) as service, service.client() as client:
        answer = await client.post("/commands/send-message", json=message(), headers={"Idempotency-Key": key})
        assert answer.status_code == 400 and "Idempotency-Key" in answer.json()["error"]


async def test_a_client_that_goes_away_has_sent_all_the_same(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")
        service.holding = trio.Event()
        with trio.move_on_after(0.3):
            await client.post("/commands/send-message", json=message(id="gone"))
        assert service.door.bodies.held > 0
        service.holding.set()
        with trio.fail_after(30):
            while not service.door.watch.message_ids:
                await trio.lowlevel.checkpoint()
        assert list(service.door.watch.message_ids.values()) == ["gone"]
        assert (await client.get("/health")).status_code == 200


async def test_at_the_stop_those_who_wait_are_told_what_is_known(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.account("default")

        async def stop(number):
            service.door.stopping.set()

        answer = await sending(service, client, stop)
        assert answer.status_code == 202 and answer.json()["status"] == "pending"


async def test_a_bad_idempotency_key_is_refused_whether_it_is_needed_or_not(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        for message in ({}, {"id": "has-its-own"}):
            answer = await client.post("/commands/send-message", json=message, headers={"Idempotency-Key": "x" * 201})
            assert answer.status_code == 400 and "Idempotency-Key" in answer.json()["error"]
        assert service.submitted == []
