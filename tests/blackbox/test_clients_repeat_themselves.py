"""Clients that post again what they have posted, and clients that post the same id at the same moment."""

import random
from collections import Counter

import trio

from letterbook.capture import CaptureRelay

from .service import mail, subject_id

MESSAGES = 2000
CLIENTS = 8
PAIRS = 200


async def in_parallel(work, do):
    """Several clients take pieces of work in turn until none is left."""

    async def client():
        while work:
            await do(work.pop())

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(client)


async def test_two_thousand_messages_each_posted_up_to_four_times_are_mailed_once(service):
    it = await service(delivery_retry_delays="0.2")
    chance = random.Random("repeats")
    posts = [number for number in range(MESSAGES) for _ in range(chance.randint(2, 4))]
    chance.shuffle(posts)
    batches = []
    while posts:
        size = chance.randint(1, 15)
        batches.append(posts[:size])
        del posts[:size]
    reasons = Counter()

    async def post(numbers):
        # Every fifth message is deferred at first, so that some are repeated while they wait for their retry.
        to = {number: f"{'ok' if number % 5 else '451-then-250'}+{number}@example.org" for number in numbers}
        messages = [mail(f"m{number}", address, account_id="a") for number, address in to.items()]
        answer = await it.post("/commands/add-messages", {"messages": messages})
        reasons.update(each["reason"] for each in answer["rejected"])
        assert answer["queued"] + len(answer["rejected"]) == len(messages)

    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        await in_parallel(batches, post)
        results = await it.until_results(MESSAGES)
        arrived = Counter(subject_id(message.content) for message in relay.messages)
    assert arrived == {f"m{number}": 1 for number in range(MESSAGES)}
    assert len(results) == MESSAGES and {result["status"] for result in results} == {"sent"}
    assert set(reasons) <= {"already sent", "in flight"} and reasons["already sent"]


async def test_two_clients_post_the_same_id_at_once(service):
    """One message comes of it, with the content of the later fact, and is mailed once."""
    it = await service()
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        await it.post("/commands/suspend")
        # The two contents differ in length, and a fact says how long its letter is: so the log tells whose it was.
        short, long = "short\n", "a longer letter\n"
        posts = [mail(f"pair{number}", account_id="a", body=body) for number in range(PAIRS) for body in (short, long)]

        async def post(message):
            answer = await it.post("/commands/add-messages", {"messages": [message]})
            assert answer == {"ok": True, "queued": 1, "rejected": []}

        await in_parallel(posts, post)
        accepted, revised = await it.events("MessageAccepted"), await it.events("MessageRevised")
        assert len(accepted) == len(revised) == PAIRS
        assert (await it.status())["pending"] == PAIRS
        sizes = {fact["message_id"]: fact["size"] for fact in accepted}
        later = {fact["message_id"]: long if fact["size"] > sizes[fact["message_id"]] else short for fact in revised}
        await it.post("/commands/activate")
        await it.until_results(PAIRS)
        mailed = [(subject_id(message.content), message.content) for message in relay.messages]
    assert Counter(message_id for message_id, _ in mailed) == Counter(list(later))
    for message_id, content in mailed:
        body = content.partition(b"\r\n\r\n")[2].decode().replace("\r\n", "\n")
        assert body == later[message_id]


async def test_a_key_in_the_header_stands_in_for_the_id(service):
    """However often a request is repeated, at the same moment, later, or after a restart: one mail, and one answer."""
    it = await service()
    letter = {name: value for name, value in mail("key", account_id="a").items() if name != "id"}
    key = {"Idempotency-Key": "b5f1c8a2 {order 17}"}

    async def send(body=letter, **headers):
        response = await it.client.post("/commands/send-message", json=body, headers=headers)
        return response.status_code, response.json()

    answers = []
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)

        async def ask(_):
            answers.append(await send(**key))

        await in_parallel(list(range(3 * CLIENTS)), ask)
        status, first = answers[0]
        assert status == 200 and first["ok"] and first["result"]["id"] == key["Idempotency-Key"]
        assert all(answer == answers[0] for answer in answers)
        assert await send({**letter, "subject": "Another"}, **key) == answers[0]
        assert await send({**letter, "id": key["Idempotency-Key"]}) == answers[0]
        # An id of the message's own comes first; without either, and with an empty key, one is made.
        status, own = await send({**letter, "id": "own"}, **key)
        assert own["result"]["id"] == "own"
        for headers in ({}, {"Idempotency-Key": ""}):
            status, made = await send(**headers)
            assert status == 200 and len(made["result"]["id"]) == 32
        assert await it.stop() == 0
        await it.start()
        assert await send(**key) == answers[0]
        assert len(relay.messages) == 4
    (fact,) = [fact for fact in await it.events("MessageAccepted") if fact["id"] == key["Idempotency-Key"]]
    assert fact["priority"] == 0


async def test_a_key_that_failed_is_tried_again_for_whom_it_has_not_reached(service):
    it = await service()
    letter = mail("key", ["ann@example.org", "550@example.org"], account_id="a")
    del letter["id"]
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port)
        for _ in range(2):
            response = await it.client.post("/commands/send-message", json=letter, headers={"Idempotency-Key": "k"})
            answer = response.json()
            assert answer["ok"] is False and answer["result"]["status"] == "error"
            assert answer["result"]["error"].startswith("1 of 2 refused: 550 ")
        assert [message.recipients for message in relay.messages] == [("ann@example.org",)]
