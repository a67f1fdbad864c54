"""`kill -9` in the middle of 2,000 messages, restarted, ten times in a row."""

import random
from collections import Counter

import httpx
import trio

from letterbook.capture import CaptureRelay

from .service import LOOK_S, WAIT_S_MAX, mail, subject_id

MESSAGES = 2000
KILLS = 10
BATCH = 20


class Fate:
    """Kills the service while its relay holds the n-th message and has not answered yet: the worst moment there is."""

    def __init__(self, chance):
        self.taken = 0
        self.struck = trio.Event()
        self._chance = chance
        self._service = None
        self._at = None

    def arm(self, service):
        """Strike some messages from now: never the same step of a delivery twice."""
        self.struck = trio.Event()
        self._service = service
        self._at = self.taken + self._chance.randrange(20, MESSAGES // KILLS)

    async def on_message(self, message):
        self.taken += 1
        if self._at is not None and self.taken >= self._at:
            self._at = None
            self._service.process.kill()
            self.struck.set()


async def keep_posting(it, messages, accepted):
    """A client that goes on across restarts: what was not answered is posted again."""
    for start in range(0, len(messages), BATCH):
        batch = messages[start : start + BATCH]
        while not await posted(it, batch, accepted):
            await trio.sleep(LOOK_S)


async def posted(it, batch, accepted):
    """Whether the service answered; a message repeated may have been accepted, or sent, by the request before."""
    try:
        response = await it.client.post("/commands/add-messages", json={"messages": batch})
    except (httpx.HTTPError, AssertionError, RuntimeError):
        # Killed in the middle, or not there again yet.
        return False
    if response.status_code == 503:
        return False
    answer = response.json()
    assert {each["reason"] for each in answer["rejected"]} <= {"already sent", "in flight"}
    accepted.update(message["id"] for message in batch)
    return True


async def test_ten_kills_in_the_middle_of_two_thousand_messages(service):
    it = await service(
        # Mail in doubt is sent again soon and as often as it takes, so that the end is known.
        delivery_retry_delays="0.1", delivery_max_retries=1000, delivery_in_doubt_max=1000, delivery_max_connections=16
    )  # fmt: skip
    fate = Fate(random.Random("kill -9"))
    accepted = set()
    messages = [mail(f"m{number}", account_id="a") for number in range(MESSAGES)]
    async with CaptureRelay(on_message=fate.on_message).listening() as relay:
        await it.account("a", relay.port)
        with trio.fail_after(2 * WAIT_S_MAX):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_posting, it, messages, accepted)
                for _ in range(KILLS):
                    fate.arm(it)
                    await fate.struck.wait()
                    await it.ended()
                    await it.start()
        await it.until_results(MESSAGES)
        arrived = Counter(subject_id(message.content) for message in relay.messages)
        interrupted, ended = await it.events("AttemptInterrupted"), await it.events("AttemptEnded")
        status, starts = await it.status(), await it.events("ServiceStarted")
        assert await it.stop() == 0
    in_doubt = {
        fact["message_id"]
        for fact in (*interrupted, *ended)
        if any(outcome["status"] == "in_doubt" for outcome in fact["outcomes"])
    }
    twice = {message_id for message_id, count in arrived.items() if count > 1}
    assert len(starts) == KILLS + 1
    assert accepted == {message["id"] for message in messages} == set(arrived)
    assert twice <= in_doubt, "delivered twice, and the log does not say that it may be"
    assert twice, "no kill met a message whose final dot was sent: the test has lost its point"
    assert status["pending"] + status["deferred"] + status["in_flight"] + status["held"] == 0
    verified, checked = await it.run("verify"), await it.run("rebuild", "--check")
    assert (verified.code, checked.code) == (0, 0), (verified.err, checked.err)
