"""The application's side, as a real HTTP server on a free port and as a transport under virtual time."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any


class Application:
    """Answers requests in turn, the last answer again and again.

    An answer is JSON, bytes, a status (0: there is nobody), or a function of the request that gives one of these.
    """

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers) or [{}]
        self.asked: list[Asked] = []

    def answer(self, method: str, url: httpx.URL, body: bytes) -> tuple[int, bytes]:
        asked = Asked(method, url.path, dict(url.params), json.loads(body) if body else None)
        self.asked.append(asked)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer(asked)
        match answer:
            case int():
                return answer, b""
            case bytes():
                return 200, answer
        return 200, json.dumps(answer).encode()

    def client(self) -> httpx.AsyncClient:
        """A client whose requests come here without a socket, so that virtual time holds still meanwhile."""

        async def handle(request: httpx.Request) -> httpx.Response:
            status, body = self.answer(request.method, request.url, request.content)
            if status == 0:
                raise httpx.ConnectError("refused")
            return httpx.Response(status, content=body)

        return httpx.AsyncClient(transport=httpx.MockTransport(handle))


@contextmanager
def served(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A server on a free port of this machine whose every request goes to `answer`; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:
                self.close_connection = True

        do_POST = do_GET  # noqa: N815  # the name that http.server looks for

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def say(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json") -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
