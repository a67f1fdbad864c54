"""Fetching from an application and reporting to it, over HTTP, across `kill -9` at the worst moments: what it gave us
once is stored once, and every result reaches it, in order."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import trio

from letterbook.capture import CaptureRelay
from tests.actors.application import say, served

from .service import LOOK_S, mail, subject_id

BATCHES = 5
IN_A_BATCH = 40
MESSAGES = BATCHES * IN_A_BATCH


class Upstream:
    """Gives its batches one after the other, each with a token, and the next only when the token has come back. It
    calls `strike(what, number)` at the moments at which a service may die: a batch was answered, a report has come."""

    def __init__(self, batches=()):
        self.batches = list(batches)
        self.offered = Counter()
        self.reports = []
        self.strike = lambda what, number: None
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
        self._it = it

    def __call__(self, what, number):
        if (what, number) in self.moments:
            self._it.process.kill()
            self.moments.discard((what, number))


async def keep_serving(it, killer):
    """Start the service again after each kill, until none is to come."""
    while killer.moments:
        while it.process.poll() is None:
            await trio.sleep(LOOK_S)
            if not killer.moments:
                return
        await it.ended()
        await it.start()


async def test_a_batch_with_a_token_is_stored_once_and_every_report_arrives_in_order(service):
    batches = [
        [mail(f"m{batch}-{number}", account_id="a") for number in range(IN_A_BATCH)] for batch in range(BATCHES)
    ]
    upstream = Upstream(batches)
    async with CaptureRelay().listening() as relay:
        with upstream.listening() as url:
            # The upstream is asked only when something is fetched anew or the service has started: no timer helps.
            it = await service(
                fetch_url=url, fetch_interval_seconds=3600, delivery_retry_delays="0.1", scheduler_active="false"
            )
            await it.account("a", relay.port)
            await killed_after_storing(it)
            killer = Killer(it, ("fetch", 3), ("report", 20), ("report", 90))
            upstream.strike = killer
            await it.post("/commands/activate")
            with trio.fail_after(90):
                await keep_serving(it, killer)
                if it.process.poll() is not None:
                    await it.ended()
                    await it.start()
                results = await it.until_results(MESSAGES)
                while {report["id"] for report in upstream.reports if report["status"] == "sent"} < ids(results):
                    await trio.sleep(LOOK_S)
            accepted, fetched = await it.events("MessageAccepted"), await it.events("BatchFetched")
            revised = await it.events("MessageRevised")
            in_doubt = {
                fact["message_id"] for kind in ("AttemptInterrupted", "AttemptEnded") for fact in await it.events(kind)
                if any(outcome["status"] == "in_doubt" for outcome in fact["outcomes"])
            }  # fmt: skip
            assert await it.stop() == 0
        arrived = Counter(subject_id(message.content) for message in relay.messages)
    assert len(accepted) == MESSAGES and len(fetched) == BATCHES and revised == []
    assert max(upstream.offered.values()) > 1, "no kill made the upstream offer a batch again"
    assert set(arrived) == {message["id"] for batch in batches for message in batch}
    assert {message_id for message_id, count in arrived.items() if count > 1} <= in_doubt
    first_told = list(dict.fromkeys(report["id"] for report in upstream.reports if report["status"] == "sent"))
    assert first_told == [result["id"] for result in results]


def ids(results):
    return {result["id"] for result in results}


async def killed_after_storing(it):
    """Kill it once the first batch is on disk; the token may or may not have come back by then."""
    await it.until("/events", lambda page: bool(page["events"]), kind="BatchFetched")
    await it.kill()
    await it.start()
