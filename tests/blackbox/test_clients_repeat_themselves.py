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
