"""An application's side of Letterbook, whole and small: Python's standard library, one file, one SQLite database.

It keeps batches of messages under tokens until they are confirmed, and the reports that come back, and speaks all three
protocols of docs/api.md "The upstream". With a service that starts the exchanges (docs/proxy-sync.md has more):

    python3 upstream.py --db app.db serve --port 9000 &
    LETTERBOOK_CLIENT_PROXY_SYNC_URL=http://127.0.0.1:9000/proxy-sync letterbook serve &
    echo '[{"id":"a1","from":"me@example.org","to":"you@example.org","subject":"Hi","body":"Hello"}]' |
        python3 upstream.py --db app.db add
    curl -X POST http://127.0.0.1:8000/commands/run-now      # or wait for a minute
    python3 upstream.py --db app.db reports

or start them here, against a service with `[server] sync_token = S`:

    python3 upstream.py --db app.db sync http://127.0.0.1:8000 --api-token T --sync-token S

or without confirmation: `[fetch] url = http://127.0.0.1:9000` fetches and reports one at a time, and `[client]
client_sync_url = http://127.0.0.1:9000/reports` reports in batches.

Nothing is answered before it is on disk, so a crash at any moment loses nothing. After the *service* was restored from
a backup, `offer-again HOURS` gives it once more what it had confirmed since: by the tokens it knows what it still has.
"""

import argparse
import hmac
import json
import sqlite3
import sys
import threading
import time
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Message = dict[str, Any]

TABLES = """
create table if not exists batches (n integer primary key, token text unique, messages text, confirmed real);
create table if not exists reports (report text primary key, came real);
create table if not exists cursors (log text primary key, seq integer, heard real);
"""
CURSOR = """
insert into cursors values (?, ?, ?)
on conflict (log) do update set seq = max(seq, excluded.seq), heard = excluded.heard
"""


class Upstream:
    """The database, and what may be said and heard. Each method is one transaction, on disk when it returns."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, timeout=30)
        self._db.executescript(TABLES)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._db.close()

    def add(self, messages: list[Message]) -> str:
        """Keep a batch under a new token; one is never used twice, not even after a backup was restored."""
        token = uuid.uuid4().hex
        with self._lock, self._db:
            self._db.execute("insert into batches (token, messages) values (?, ?)", (token, json.dumps(messages)))
        return token

    def offer_again(self, hours: float) -> int:
        with self._lock, self._db:
            since = time.time() - hours * 3600
            return self._db.execute("update batches set confirmed = null where confirmed > ?", (since,)).rowcount

    def unconfirmed(self) -> int:
        with self._lock:
            return int(self._db.execute("select count(*) from batches where confirmed is null").fetchone()[0])

    def reports(self) -> list[Message]:
        with self._lock:
            return [json.loads(report) for (report,) in self._db.execute("select report from reports order by rowid")]

    # One exchange: what the service says, in its body or in its answer, and what we say

    def hear(self, theirs: Message) -> None:
        """Its confirmation, and its reports with their cursor: together or not at all."""
        with self._lock, self._db:
            self._confirm(theirs["confirm"])
            self._take(theirs["delivery_report"])
            self._db.execute(CURSOR, (theirs["log"], theirs["report_cursor"], time.time()))

    def say(self) -> Message:
        """The oldest batch that is not confirmed, and how far we have the reports of the log that we heard last."""
        with self._lock:
            token, messages = self._oldest()
            heard = self._db.execute("select log, seq from cursors order by heard desc limit 1").fetchone()
        log, cursor = heard or (None, None)
        own = {"log": log, "confirm": None, "messages": messages, "token": token}
        return {**own, "delivery_report": [], "report_cursor": 0, "ack_cursor": cursor}

    # The two older protocols

    def fetch(self, token: str | None) -> Message:
        with self._lock, self._db:
            self._confirm(token)
            token, messages = self._oldest()
        return {"messages": messages, **({"token": token, "more_messages": True} if token else {})}

    def take(self, reports: list[Message]) -> Message:
        with self._lock, self._db:
            self._take(reports)
        return {"queued": self.unconfirmed()}

    def _confirm(self, token: str | None) -> None:
        self._db.execute("update batches set confirmed = ? where token = ?", (time.time(), token))

    def _take(self, reports: list[Message]) -> None:
        """A report that comes again is the same text, and is kept once."""
        rows = [(json.dumps(report, sort_keys=True), time.time()) for report in reports]
        self._db.executemany("insert or ignore into reports values (?, ?)", rows)

    def _oldest(self) -> tuple[str | None, list[Message]]:
        statement = "select token, messages from batches where confirmed is null order by n limit 1"
        found = self._db.execute(statement).fetchone()
        return (found[0], json.loads(found[1])) if found else (None, [])


def start_exchange(upstream: Upstream, url: str, api_token: str, sync_token: str) -> bool:
    """Be the side that starts; whether there is more to say at once. Raises OSError or HTTPException for nothing."""
    body = json.dumps({**upstream.say(), "sync_token": sync_token}).encode()
    headers = {"Content-Type": "application/json", "X-API-Token": api_token}
    request = urllib.request.Request(f"{url.rstrip('/')}/commands/proxy-sync", body, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        theirs = json.load(answer)
    upstream.hear(theirs)
    return bool(theirs["delivery_report"] or theirs["confirm"])


def handler(upstream: Upstream, secret: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = parse_qs(urlsplit(self.path).query).get("token", [None])[0]
            self._answer(lambda: upstream.fetch(token))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/proxy-sync":
                self._answer(lambda: (upstream.hear(body), upstream.say())[1])
            else:
                self._answer(lambda: upstream.take(body.get("delivery_report", [body])))

        def _answer(self, act: Any) -> None:
            shown = self.headers.get("Authorization", "").encode()
            good = not secret or hmac.compare_digest(shown, f"Bearer {secret}".encode())
            data = json.dumps(act() if good else {"error": "show the bearer token"}).encode()
            self.send_response(200 if good else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--db", default="app.db")
    what = parser.add_subparsers(dest="what", required=True)
    serve = what.add_parser("serve", help="wait for the service")
    serve.add_argument("--port", type=int, default=9000)
    serve.add_argument("--secret", default="", help="[client] client_sync_token of the service")
    sync = what.add_parser("sync", help="start exchanges until there is nothing more to say")
    sync.add_argument("url")
    sync.add_argument("--api-token", default="")
    sync.add_argument("--sync-token", required=True)
    what.add_parser("add", help="keep a JSON list of messages from standard input as a batch")
    what.add_parser("reports", help="print what the service has reported")
    what.add_parser("offer-again", help="give again what was confirmed").add_argument("hours", type=float)
    asked = parser.parse_args()
    upstream = Upstream(asked.db)
    match asked.what:
        case "serve":
            server = ThreadingHTTPServer(("127.0.0.1", asked.port), handler(upstream, asked.secret))
            print(f"listening on http://127.0.0.1:{server.server_address[1]}", flush=True)
            server.serve_forever()
        case "sync":
            while start_exchange(upstream, asked.url, asked.api_token, asked.sync_token):
                pass
        case "add":
            print(upstream.add(json.load(sys.stdin)))
        case "reports":
            print("\n".join(json.dumps(report) for report in upstream.reports()))
        case "offer-again":
            print(upstream.offer_again(asked.hours))


if __name__ == "__main__":
    main()
