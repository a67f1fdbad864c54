"""The Quart application: a route a row of the table, the live stream, and one shape for every error.

It translates between HTTP and commands, and nothing else.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import unquote

from quart import Response, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed
from werkzeug.routing import Map

from .auth import deciding_headers, refusal
from .commands import COMMANDS, Command, Reader
from .door import Door
from .errors import Answer, Trouble, bad, error
from .front import LEASE, Front
from .pages import PAGES, Page
from .settings import BODY_S_MAX, CLI_AGENT, SEND_S_MAX
from .stream import Streams
from .writing import Call

BY_API = "api"
BY_CLI = "cli"
"""Who asks over HTTP: there is one token, and our own command line says that it is a person's."""

STREAM = "/events/stream"
OPEN_PATHS = frozenset(command.path for command in COMMANDS if command.open) | PAGES.keys()

SENTENCES = {
    400: "The request is malformed",
    404: "There is no such route",
    405: "The route does not take this method",
    408: "The body did not come in time",
    413: "The body is larger than max_body_mb allows",
    415: "Send the body as Content-Type: application/json",
    431: "The head of the request is too large: send a shorter address and fewer headers",
    426: "This is a websocket: ask for an upgrade",
    500: "An unexpected error; the log has more",
}


def make_app(door: Door) -> Front:
    """The ASGI application of one door."""
    app = QuartTrio("gateway", static_folder=None)
    app.url_map = _strict(app.url_map)
    app.config.update(
        MAX_CONTENT_LENGTH=door.settings.max_body_bytes,
        BODY_TIMEOUT=BODY_S_MAX,
        RESPONSE_TIMEOUT=SEND_S_MAX,
        PROVIDE_AUTOMATIC_OPTIONS=False,
    )
    app.before_websocket(partial(_authorize_websocket, door))
    app.register_error_handler(HTTPException, _http_error)
    for command in COMMANDS:
        app.add_url_rule(command.path, command.name, _view(door, command), methods=[command.method])
    for path, page in PAGES.items():
        app.add_url_rule(path, path, _page_view(door, page), methods=["GET"])
    streams = Streams(door)
    app.add_url_rule(STREAM, "upgrade", _upgrade, methods=["GET"])
    app.add_websocket(STREAM, "stream", _stream_view(streams))
    streamed = {command.path: partial(command.streamed, door, BY_API) for command in COMMANDS if command.streamed}
    front: Any = app  # ASGI, typed otherwise
    return Front(front, door.gate, door.bodies, door.settings.max_body_bytes, OPEN_PATHS, streamed)


def _strict(url_map: Map) -> Map:
    """Paths are what they say: nothing is redirected."""
    url_map.merge_slashes = False
    return url_map


def _respond(answer: Answer) -> Response:
    return Response(answer.data, answer.status, dict(answer.headers), content_type=answer.content_type)


# Who may come in


async def _authorize_websocket(door: Door) -> Response | None:
    """A ticket is judged by the stream, after the upgrade, since browsers show nothing of a refusal before it."""
    if websocket.args.get("ticket") is not None and not door.gate.open:
        return None
    answer = refusal(door.gate, deciding_headers(websocket.scope["headers"]), websocket.remote_addr or "")
    return _respond(answer) if answer else None


# Errors


async def _http_error(problem: HTTPException) -> Response:
    status = problem.code or 500
    answer = error(status, SENTENCES.get(status, problem.name))
    headers = answer.headers
    if isinstance(problem, MethodNotAllowed) and problem.valid_methods:
        headers = (("Allow", ", ".join(sorted(problem.valid_methods))),)
    return _respond(Answer(answer.body, status, headers=headers))


async def _upgrade() -> Response:
    answer = error(426, SENTENCES[426])
    return _respond(Answer(answer.body, 426, headers=(("Upgrade", "websocket"), ("Connection", "Upgrade"))))


# Routes


def _view(door: Door, command: Command) -> Callable[..., Awaitable[Response]]:
    reader = Reader(command)

    async def view(**path: str) -> Response:
        try:
            payload = await _payload(command, reader, path)
            lease: Any = request.scope.get(LEASE)
            by = BY_CLI if request.headers.get("User-Agent") == CLI_AGENT else BY_API
            call = Call(payload, by, lease, request.headers.get("Idempotency-Key"))
            return _respond(await command.handler(door, call))
        except Trouble as trouble:
            return _respond(trouble.answer)

    return view


def _page_view(door: Door, page: Page) -> Callable[[], Awaitable[Response]]:
    async def view() -> Response:
        return _respond(await page(door.version))

    return view


async def _payload(command: Command, reader: Reader, path: dict[str, str]) -> Any:
    named = {name: _unquoted(value) for name, value in path.items()}
    match command.source:
        case "path":
            return reader.fields(named)
        case "query":
            return reader.fields(request.args.to_dict())
    data = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    if data:
        _check_content_type()
    return reader.beside_path(data, named) if named else reader.body(data)


def _check_content_type() -> None:
    """A body says nothing of its type, or that it is JSON. Raises Trouble 415."""
    mimetype = request.mimetype
    if mimetype and mimetype != "application/json" and not mimetype.endswith("+json"):
        raise Trouble(415, SENTENCES[415])


def _unquoted(value: str) -> str:
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        raise bad("the id in the path is not percent-encoded UTF-8") from None


def _stream_view(streams: Streams) -> Callable[[], Awaitable[Response | None]]:
    async def stream() -> Response | None:
        refusal = await streams.serve(websocket.args.to_dict())
        return _respond(refusal) if refusal else None

    return stream
