"""The API's description, OpenAPI 3.1, made from the table of commands and the types that decode and encode.

So it cannot differ from what the service does: a row of the table is an operation, its payload's type the body or the
parameters, its answer's type the answer, its handler's docstring the words. What is no command (the stream, this
description and its page) is described by hand at the end of this file.

Two things are said more strictly than they are decoded. A message must have what `payloads.REQUIRED` names, though a
request whose messages lack it is answered with their rejections; and an answer never holds null, which is left out.

Making it takes some milliseconds, so whoever serves it makes it when it is first asked for.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from events import payloads
from events.values import PRIORITY_LABELS

from . import answers, queries
from .commands import COMMANDS, MAY_BE_MISSING, Command
from .errors import JSON
from .metrics import CONTENT_TYPE as TEXT
from .settings import LIST_LIMIT_MAX
from .writing import ID_CHARACTERS_MAX

Schema = dict[str, Any]

HTML = "text/html; charset=utf-8"
NDJSON = "application/x-ndjson"
SCHEMAS = "#/components/schemas/"
TEMPLATE = SCHEMAS + "{name}"

ERRORS = {
    400: ("BadRequest", "The request does not fit; the sentence names the field or the parameter."),
    401: ("Unauthorized", "No token, or a wrong one."),
    404: ("NotFound", "Nothing has this name: no route, message or account; or a moment outside the log."),
    405: ("MethodNotAllowed", "The route does not take this method; `Allow` names those it takes."),
    408: ("RequestTimeout", "The body did not come in time."),
    409: ("Conflict", "A cursor of another log or past its end, or a message that is not in the state for this."),
    413: ("ContentTooLarge", "The body is larger than `max_body_mb` allows."),
    415: ("UnsupportedMediaType", "The body is not JSON by its Content-Type."),
    426: ("UpgradeRequired", "This is a websocket: ask for an upgrade."),
    429: ("TooManyRequests", "Too many wrong tokens from this address. The right token is always let in."),
    431: ("RequestHeaderFieldsTooLarge", "The head of the request is too large."),
    503: ("ServiceUnavailable", "Stopping, disk nearly full, backlog or memory over the limit: ask again later."),
}
"""Every error of the API by its status, with its name here and when it comes."""

EVERYBODY = frozenset({431})
SECURED = frozenset({401, 429})
WITH_BODY = frozenset({400, 408, 413, 415, 503})
HEADERS = {405: "Allow", 426: "Upgrade", 429: "Retry-After", 503: "Retry-After"}

INTRODUCTION = f"""\
Outbound mail, accepted over HTTP and written to a log before anything is done with it.

**Token.** Every route but `/health`, `/ready`, `/docs` and `/openapi.json` wants the header `X-API-Token: T` or
`Authorization: Bearer T`, if the service is configured with one.

**Errors** are always `{{"ok":false,"error":S,"detail":S}}`, S one sentence that says what to change. Another method
than those of a route is a 405. A fault within a message is that message's rejection and no error of the request.

**Bodies.** null means absent, everywhere. An unknown field of a message is ignored, and so are those of `run-now`,
`suspend`, `activate` and `events/ticket`; an unknown field of any other body is a 400. Unknown parameters are ignored.
A whole number is written without a fraction: `7`, not `7.0`.

**Times** are Unix seconds (integers, UTC). Names that end in `_at`, and `timestamp`, are ISO 8601; names that end in
`_us` are microseconds. A field that is null is left out of answers.

**Lists** take `limit` ({LIST_LIMIT_MAX:,} at most) and `after`, which is exclusive: give the `next` of the page before.
A seq belongs to a log, so `log` stands beside it."""

TAGS = (
    ("Messages", ("/commands/send", "/commands/add", "/commands/delete", "/commands/cleanup", "/commands/bulk")),
    ("Lists", ("/messages", "/pending", "/deferred", "/held", "/results")),
    ("Accounts", ("/account",)),
    ("Volumes", ("/volume",)),
    ("The log", ("/events", "/audit")),
    ("Dispatch", ("/commands",)),
    ("The service", ("/",)),
)
"""A route is under the first of these whose beginning it has."""


def description(version: str, commands: Iterable[Command] = COMMANDS) -> bytes:
    """The whole document as JSON."""
    return msgspec.json.encode(document(version, tuple(commands)))


def document(version: str, commands: tuple[Command, ...] = COMMANDS) -> Schema:
    """The whole document."""
    schemas = _Schemas(commands)
    paths: dict[str, dict[str, Schema]] = {}
    for command in commands:
        paths.setdefault(_path(command), {})[command.method.lower()] = _operation(command, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Letterbook", "version": version, "description": INTRODUCTION},
        "security": [{"token": []}, {"bearer": []}],
        "tags": [{"name": name} for name, _ in TAGS if name in {_tag(path) for path in paths}],
        "paths": paths | _others(),
        "components": {
            "schemas": schemas.components,
            "responses": {name: _error(status, sentence) for status, (name, sentence) in ERRORS.items()},
            "securitySchemes": {
                "token": {"type": "apiKey", "in": "header", "name": "X-API-Token"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


# Types


class _Schemas:
    """The schemas of all payloads and answers.

    The two are kept apart, since null is allowed in the one and absent from the other. Where both have a type of the
    same name, that of the payload has `Payload` behind it.
    """

    def __init__(self, commands: tuple[Command, ...]) -> None:
        given = [payloads.MessagePayload, *(command.payload for command in commands if _has_fields(command.payload))]
        answered = [kind for command in commands for answer in command.answers.values() for kind in _kinds(answer)]
        theirs = _components([*answered, answers.Error, answers.Fact])
        ours = _components(given)
        self._names = {name: f"{name}Payload" if name in theirs else name for name in ours}
        self._given = {name: _renamed(schema, self._names) for name, schema in ours.items()}
        _require(self._given[payloads.MessagePayload.__name__])
        spread = {command.payload.__name__ for command in commands if command.source != "body" or command.path_fields}
        shared = {self._names[name]: schema for name, schema in self._given.items() if name not in spread}
        own = {name: s if name in answers.NULLS_STAND else _without_null(s) for name, s in theirs.items()}
        self.components = {**own, **shared}

    def fields(self, payload: Any) -> dict[str, Schema]:
        """The fields of a payload whose place is the path or the query, by their names."""
        properties: dict[str, Schema] = self._given[payload.__name__]["properties"]
        return properties

    def required(self, payload: Any) -> Iterable[str]:
        needed: list[str] = self._given[payload.__name__].get("required", [])
        return needed

    def body(self, command: Command) -> Schema:
        """The schema of a command's body, without what stands in its path."""
        if not _has_fields(command.payload):
            return _ref(payloads.MessagePayload.__name__)
        own = self._given[command.payload.__name__]
        if not command.path_fields:
            return _ref(self._names[command.payload.__name__])
        kept = {name: field for name, field in own["properties"].items() if name not in command.path_fields}
        required = [name for name in self.required(command.payload) if name in kept]
        return {**own, "properties": kept, "required": required}

    @staticmethod
    def answer(answer: Any) -> Schema:
        refs = [{"type": "string"} if kind is str else _ref(kind.__name__) for kind in _kinds(answer)]
        return {"anyOf": refs} if isinstance(answer, tuple) else refs[0]


def _ref(name: str) -> Schema:
    return {"$ref": SCHEMAS + name}


def _once(kinds: Iterable[Any]) -> list[Any]:
    return [kind for kind in dict.fromkeys(kinds) if kind is not str]


def _kinds(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def _has_fields(payload: Any) -> bool:
    """Whether it is a Struct: what send-message takes is any object, for ingest judges it."""
    return hasattr(payload, "__struct_fields__")


def _components(kinds: Iterable[Any]) -> dict[str, Schema]:
    """The schemas of these types and of all that they hold, by their names."""
    found = msgspec.json.schema_components(_once(kinds), ref_template=TEMPLATE)[1]
    return {name: _said(schema) for name, schema in found.items()}


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """The same with its references renamed."""
    if isinstance(schema, dict):
        found = {key: _renamed(value, names) for key, value in schema.items()}
        if "$ref" in found:
            name = found["$ref"].removeprefix(SCHEMAS)
            found["$ref"] = SCHEMAS + names.get(name, name)
        return found
    return [_renamed(each, names) for each in schema] if isinstance(schema, list) else schema


def _said(schema: Schema) -> Schema:
    """With its docstring as plain text; a title would only repeat the name."""
    said = {key: value for key, value in schema.items() if key != "title"}
    if "description" in said:
        said["description"] = " ".join(said["description"].split())
    return said


def _not_null(schema: Schema) -> Schema:
    """Of a field that may be null, what it is otherwise."""
    found = {key: value for key, value in schema.items() if key != "default" or value is not None}
    if "anyOf" not in found:
        return found
    kinds = [kind for kind in found.pop("anyOf") if kind != {"type": "null"}]
    if len(kinds) == 1:
        return {**kinds[0], **found}
    return {"anyOf": kinds, **found}


def _without_null(schema: Schema) -> Schema:
    if "properties" not in schema:
        return schema
    return {**schema, "properties": {name: _not_null(field) for name, field in schema["properties"].items()}}


def _require(message: Schema) -> None:
    """Say of a message what it must have; what send-message can do without is said where messages are listed."""
    message["required"] = [name for name in payloads.REQUIRED if name != "id"]
    for name in payloads.REQUIRED:
        message["properties"][name] = _not_null(message["properties"][name])


# Operations


def _path(command: Command) -> str:
    return command.path.replace("<", "{").replace(">", "}")


def _tag(path: str) -> str:
    return next(name for name, beginnings in TAGS if path.startswith(beginnings))


def sentences(command: Command) -> str:
    """What its handler says of itself."""
    return inspect.getdoc(command.handler) or ""


def _operation(command: Command, schemas: _Schemas) -> Schema:
    words = sentences(command)
    operation: Schema = {
        "operationId": command.name.title().replace(" ", "") if " " in command.name else command.name,
        "tags": [_tag(command.path)],
        "summary": words.split("\n", 1)[0].removesuffix("."),
        "description": words,
        "parameters": [*_parameters(command, schemas), *_beside_lines(command), *_headers(command)],
        "responses": dict(_responses(command, schemas)),
    }
    if command.source == "body":
        operation["requestBody"] = _body(command, schemas)
    if command.open:
        operation["security"] = []
    return {key: value for key, value in operation.items() if value or key == "security"}


def _parameters(command: Command, schemas: _Schemas) -> Iterator[Schema]:
    for name in command.path_fields:
        # An empty one would be another path.
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": "Percent-encoded, a slash too.",
            "schema": {"type": "string", "minLength": 1},
        }
    if command.source == "query":
        for name, field in schemas.fields(command.payload).items():
            if name not in command.path_fields:
                schema = _not_null(field)
                words = {"description": schema.pop("description")} if "description" in schema else {}
                required = {"required": True} if name in schemas.required(command.payload) else {}
                yield {"name": name, "in": "query", **required, **words, "schema": schema}


def _beside_lines(command: Command) -> Iterator[Schema]:
    """Lines hold items alone, so what stands beside the items in a JSON body is a parameter."""
    if command.streamed:
        yield {
            "name": "default_priority",
            "in": "query",
            "description": f"Beside {NDJSON}: {', '.join(PRIORITY_LABELS)}, or a number.",
            "schema": {"type": "string"},
        }


def _headers(command: Command) -> Iterator[Schema]:
    if not _has_fields(command.payload):
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Stands for the message's `id` where it has none; printable.",
            "schema": {"type": "string", "maxLength": ID_CHARACTERS_MAX},
        }


def _body(command: Command, schemas: _Schemas) -> Schema:
    content: Schema = {JSON: {"schema": schemas.body(command)}}
    if command.streamed:
        content[NDJSON] = {"schema": {"type": "string", "description": "One message a line, any number of them."}}
    may_be_missing = _has_fields(command.payload) and command.payload in MAY_BE_MISSING
    return {"required": not may_be_missing, "content": content}


def _responses(command: Command, schemas: _Schemas) -> Iterator[tuple[str, Schema]]:
    for status, answer in command.answers.items():
        kind = TEXT if answer is str else JSON
        yield f"{status}", {"description": _WORDS[status], "content": {kind: {"schema": schemas.answer(answer)}}}
    for status in sorted(errors_of(command) - command.answers.keys()):
        yield f"{status}", {"$ref": f"#/components/responses/{ERRORS[status][0]}"}


_WORDS = {200: "It is done, or this is what was asked for.", 202: "Taken; no outcome yet.", 503: "Not ready."}


def errors_of(command: Command) -> set[int]:
    """The errors that can answer it: what its payload and its path can be wrong about, and what it says itself."""
    fields = command.payload.__struct_fields__ if _has_fields(command.payload) else ("message",)
    found = {*EVERYBODY, *command.refuses}
    found |= set() if command.open else SECURED
    found |= WITH_BODY if command.source == "body" else set()
    found |= {503} if command.decides != "gateway" else set()
    found |= {400} if fields else set()
    found |= {404} if command.path_fields else set()
    found |= {409} if "log" in fields else set()
    return found


def _error(status: int, sentence: str) -> Schema:
    headers = {HEADERS[status]: {"schema": {"type": "string"}}} if status in HEADERS else {}
    content = {JSON: {"schema": _ref(answers.Error.__name__)}}
    return {"description": sentence, **({"headers": headers} if headers else {}), "content": content}


# What is no command


STREAM_WORDS = """\
The live stream: ask for an upgrade to a websocket (RFC 6455).

One JSON text frame a fact, as in `/events`, in the order of the log, without gap or repeat; `{"heartbeat":SEQ,"log":L}`
at once and every 15 s. `after` resumes; without it the stream begins now. With `batch` frames are `{"events":[..]}` of
at most 500 facts. A client need send nothing; one that takes no bytes for 60 s is dropped; 1001 closes at a stop.
Browsers, which cannot set a header here, give a `ticket`; a bad one closes with 4401."""


def _others() -> dict[str, dict[str, Schema]]:
    fields = msgspec.json.schema_components([queries.Stream], ref_template=TEMPLATE)[1]["Stream"]["properties"]
    parameters = [{"name": name, "in": "query", "schema": _not_null(schema)} for name, schema in fields.items()]
    refused = {f"{status}": {"$ref": f"#/components/responses/{ERRORS[status][0]}"} for status in (401, 426, 429, 431)}
    upgraded = {"101": {"description": "The websocket is open."}, **refused}
    return {
        "/events/stream": {"get": {**_about("stream", "/events", STREAM_WORDS, upgraded), "parameters": parameters}},
        "/openapi.json": {"get": _page("openapi", "This description.", {JSON: {"schema": {"type": "object"}}})},
        "/docs": {"get": _page("docs", "This description as a page.", {HTML: {"schema": {"type": "string"}}})},
    }


def _page(name: str, words: str, content: Schema) -> Schema:
    headers = {"431": {"$ref": "#/components/responses/RequestHeaderFieldsTooLarge"}}
    responses = {"200": {"description": _WORDS[200], "content": content}, **headers}
    return {**_about(name, "/", words, responses), "security": []}


def _about(name: str, path: str, words: str, responses: Schema) -> Schema:
    summary = words.split("\n", 1)[0].removesuffix(".")
    return {
        "operationId": name, "tags": [_tag(path)], "summary": summary, "description": words, "responses": responses
    }  # fmt: skip
