"""The hand-off with confirmation tokens against the upstream that is shipped, over real sockets, in both directions at
once and across `kill -9`: every message is stored and mailed once, every result is told."""

import importlib.util
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPException
from http.server import ThreadingHTTPServer
from pathlib import Path

import trio

from letterbook.capture import CaptureRelay

from .service import LOOK_S, TOKEN, mail, subject_id

BATCHES, IN_A_BATCH = 6, 25
SYNC_TOKEN, SECRET = "sync", "secret"
KILLS = (2, "before"), (4, "after"), (9, "before"), (13, "after")
"""At which of the upstream's exchanges the service dies: before it is heard, or after, when the answer is not out."""

SPEC = importlib.util.spec_from_file_location(
    "upstream", Path(__file__).parents[2] / "docs" / "examples" / "upstream.py"
)
shipped = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(shipped)


class Killing(shipped.Upstream):
    """The shipped one, which kills the service at some of its exchanges."""

    def __init__(self, path):
        super().__init__(path)
        self.it = None
        self.heard = 0
        self.kills = set(KILLS)
        self.victims = set()

    def hear(self, theirs):
        self.heard += 1
        self._strike("before")
        super().hear(theirs)
        self._strike("after")

    def _strike(self, when):
        # One that it could not keep because nothing was heard at that moment is made up for at the next.
        due = sorted(kill for kill in self.kills if kill[0] <= self.heard and kill[1] == when)
        if due and self.it.pid not in self.victims:
            self.kills.discard(due[0])
            self.victims.add(self.it.pid)
            self.it.process.kill()


@contextmanager
def listening(upstream, secret=""):
    server = ThreadingHTTPServer(("127.0.0.1", 0), shipped.handler(upstream, secret))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def exchange(upstream, url):
    """The other direction: whatever becomes of it, another one follows."""
    try:
        await trio.to_thread.run_sync(shipped.start_exchange, upstream, url, TOKEN, SYNC_TOKEN)
    except (OSError, ValueError, HTTPException):
        # Nobody there, no address yet, or an answer that was cut off by a kill.
        return


async def test_every_message_is_stored_once_and_every_result_is_told_whoever_starts_and_dies(service, tmp_path):
    upstream = Killing(str(tmp_path / "app.db"))
    ids = {f"m{batch}-{index}" for batch in range(BATCHES) for index in range(IN_A_BATCH)}
    async with CaptureRelay().listening() as relay:
        with listening(upstream, SECRET) as url:
            upstream.it = it = await service(
                client_proxy_sync_url=f"{url}/proxy-sync",
                client_client_sync_token=SECRET,
                server_sync_token=SYNC_TOKEN,
                fetch_interval_seconds=0.2,
                client_batch=20,
                delivery_retry_delays="0.1",
                # Every kill may find the same mail under way, and a second doubt would hold it for a person.
                delivery_in_doubt_max=2 * len(KILLS),
            )
            await it.account("a", relay.port)
            for batch in range(BATCHES):
                upstream.add([mail(f"m{batch}-{index}", account_id="a") for index in range(IN_A_BATCH)])
            with trio.fail_after(120):
                while upstream.kills or upstream.unconfirmed() or told(upstream) != ids:
                    if it.process.poll() is not None:
                        await it.ended()
                        await it.start()
                    await exchange(upstream, it.url)
                    await trio.sleep(LOOK_S)
            accepted, fetched = await it.events("MessageAccepted"), await it.events("BatchFetched")
            assert await it.events("MessageRevised") == []
            in_doubt = {
                fact["message_id"]
                for kind in ("AttemptInterrupted", "AttemptEnded")
                for fact in await it.events(kind)
                if any(outcome["status"] == "in_doubt" for outcome in fact["outcomes"])
            }
            await it.stop()
        arrived = Counter(subject_id(message.content) for message in relay.messages)
    assert len(upstream.victims) == len(KILLS)
    assert len(fetched) == BATCHES and Counter(fact["message_id"] for fact in accepted) == Counter(ids)
    assert set(arrived) == ids and {each for each, count in arrived.items() if count > 1} <= in_doubt
    upstream.close()


def told(upstream):
    return {report["id"] for report in upstream.reports() if report["sent_ts"]}


async def test_the_shipped_upstream_fetches_and_takes_batches_too(service, tmp_path):
    upstream = shipped.Upstream(str(tmp_path / "app.db"))
    async with CaptureRelay().listening() as relay:
        with listening(upstream, SECRET) as url:
            it = await service(
                client_client_sync_url=f"{url}/reports",
                client_client_sync_token=SECRET,
                delivery_test_mode="true",
                delivery_retry_delays="0.1",
            )
            await it.account("a", relay.port)
            await it.add([mail("m", account_id="a")])
            await it.until_results(1)
            assert upstream.reports() == [], "in test mode nothing goes of itself"
            await it.post("/commands/run-now")
            with trio.fail_after(60):
                while told(upstream) != {"m"}:
                    await trio.sleep(LOOK_S)
            assert await it.stop() == 0
    [report] = upstream.reports()
    assert json.dumps(report["sent_ts"]).isdigit() and report["account_id"] == "a" and report["error"] is None
    upstream.close()
