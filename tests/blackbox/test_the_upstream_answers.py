"""Fetching from an application and reporting to it, over HTTP, across `kill -9` at the worst moments: what it gave us
once is stored once, and every result reaches it, in order."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import httpx
import trio

from letterbook.capture import CaptureRelay
from tests.actors.application import say, served

from .service import LOOK_S, mail, subject_id

BATCHES = 5
IN_A_BATCH = 40
MESSAGES = BATCHES * IN_A_BATCH
WAIT_S = 20

KILLS = ("fetch", 0), ("token", 1), ("report", 20), ("report", 150)
"""When the service dies: see Upstream."""


class Upstream:
    """Gives its batches one after the other, each with a token, and the next only when the token has come back.

    `strike(what, number)` is called at the moments at which a service may die, and says whether it did: a batch has
    just been answered ("fetch"), its token has come back and is not yet heeded ("token"), a report has come and is not
    yet acknowledged ("report").
    """

    def __init__(self):
        self.batches = []
        self.offered = Counter()
        self.reports = []
        self.strike = lambda what, number: False
        self._confirmed = 0
        self._lock = threading.Lock()

    @contextmanager
    def listening(self):
        with served(self._answer) as url:
            yield url

    def _answer(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        url = urlsplit(handler.path)
        with self._lock:
            if url.path.endswith("/fetch-messages"):
                self._fetch(handler, parse_qs(url.query))
            else:
                self._report(handler, json.loads(body))

    def _fetch(self, handler, query):
        if query.get("token") == [f"token-{self._confirmed}"]:
            if self.strike("token", self._confirmed):
                return
            self._confirmed += 1
        number = self._confirmed
        if number == len(self.batches):
            say(handler, 200, b'{"messages": []}')
            return
        self.offered[number] += 1
        more = number + 1 < len(self.batches)
        answer = {"messages": self.batches[number], "token": f"token-{number}", "more_messages": more}
        say(handler, 200, json.dumps(answer).encode())
        self.strike("fetch", number)

    def _report(self, handler, report):
        self.reports.append(report)
        self.strike("report", len(self.reports))
        say(handler, 200, b"{}")


class Killer:
    """Kills the service at the moments named, each once; the kill happens in the upstream's own thread."""

    def __init__(self, it, *moments):
        self.moments = set(moments)
        self.victims = set()
        self._it = it

    def __call__(self, what, number):
        if (what, number) not in self.moments:
            return False
        self.victims.add(self._it.pid)
        self._it.process.kill()
        self.moments.discard((what, number))
        return True


async def keep_serving(it, killer):
    """Start the service again after each kill, until none is to come. Two moments may strike the same process."""
    while killer.moments or it.pid in killer.victims:
        if it.pid in killer.victims:
            await it.ended()
            await it.start()
        else:
            await trio.sleep(LOOK_S)


async def test_a_batch_with_a_token_is_stored_once_and_every_report_arrives_in_order(service):
    upstream = Upstream()
    async with CaptureRelay().listening() as relay:
        with upstream.listening() as url:
            # It asks when it starts and when it is told to, and not because some time has passed.
            it = await service(fetch_url=url, fetch_interval_seconds=3600, delivery_retry_delays="0.1")
            await it.account("a", relay.port)
            upstream.strike = killer = Killer(it, *KILLS)
            upstream.batches = [
                [mail(f"m{batch}-{number}", account_id="a") for number in range(IN_A_BATCH)] for batch in range(BATCHES)
            ]
            await run_now(it)
            with trio.fail_after(90):
                await keep_serving(it, killer)
                results = await it.until_results(MESSAGES)
                with trio.move_on_after(WAIT_S):
                    while not ids(results) <= told(upstream):
                        await trio.sleep(LOOK_S)
            accepted, fetched = await it.events("MessageAccepted"), await it.events("BatchFetched")
            revised = await it.events("MessageRevised")
            in_doubt = {fact["message_id"] for fact in await ends_in_doubt(it)}
            assert await it.stop() == 0
        arrived = Counter(subject_id(message.content) for message in relay.messages)
    assert not killer.moments
    assert len(accepted) == MESSAGES and len(fetched) == BATCHES and revised == []
    assert upstream.offered[1] == 2, "stored, killed before the token was heeded: offered again"
    assert set(arrived) == {message["id"] for batch in upstream.batches for message in batch}
    assert {message_id for message_id, count in arrived.items() if count > 1} <= in_doubt
    assert [(result["id"], result["status"]) for result in results if result["id"] not in told(upstream)] == []
    assert list(told(upstream)) == [result["id"] for result in results]


async def run_now(it):
    """Its first fetch can end in a kill before it has answered us."""
    try:
        await it.post("/commands/run-now")
    except httpx.TransportError:
        return


def told(upstream):
    """The ids of the messages reported as sent, in the order in which each was first heard of."""
    return dict.fromkeys(report["id"] for report in upstream.reports if report["status"] == "sent").keys()


def ids(results):
    return {result["id"] for result in results}


async def ends_in_doubt(it):
    ends = await it.events("AttemptInterrupted") + await it.events("AttemptEnded")
    return [fact for fact in ends if any(outcome["status"] == "in_doubt" for outcome in fact["outcomes"])]
