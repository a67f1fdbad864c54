"""The API's description as one page of HTML: whole, so that the browser's own search finds everything, without script,
and without any other address: its style stands in it.

Pure: what it shows is in the description it is given. All text goes through `escape`.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib import resources
from typing import Any

Schema = Mapping[str, Any]

STYLE = (resources.files(__package__) / "docs.css").read_text(encoding="utf-8")

_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()

POLICY = (
    f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may use its own style, and nothing else from anywhere."""

HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)

ADDRESS = "http://127.0.0.1:8000"
"""Of the examples: where a service listens that is not told otherwise."""

EXAMPLE_DEPTH_MAX = 5


def page(document: Schema) -> bytes:
    """The whole page."""
    info = document["info"]
    operations = list(_operations(document))
    tags = [tag["name"] for tag in document["tags"]]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(info['title'])} API</title><style>{STYLE}</style></head><body>",
        *_navigation(tags, operations),
        f"<main><h1>{escape(info['title'])} API <small>{escape(info['version'])}</small></h1>",
        _prose(info["description"]),
        '<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>',
    ]
    for tag in tags:
        parts.append(f"<h2>{escape(tag)}</h2>")
        for method, path, operation in operations:
            if tag in operation["tags"]:
                parts += _operation(document, method, path, operation)
    parts.append("<h2>Types</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += _type(document, name, schema)
    parts.append("</main></body></html>")
    return "\n".join(parts).encode()


def _operations(document: Schema) -> Iterator[tuple[str, str, Schema]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


# Text


def _prose(text: str) -> str:
    """Paragraphs, with `code` and **strong** words."""
    return "".join(f"<p>{_words(paragraph)}</p>" for paragraph in text.split("\n\n"))


def _words(text: str) -> str:
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    cells = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{cells}</tbody></table></div>'


def _method(method: str) -> str:
    return f'<span class="method {method}">{method}</span>'


def anchor(method: str, path: str) -> str:
    """A fragment's characters only (RFC 3986 section 3.5)."""
    return re.sub(r"[^\w-]+", "-", f"{method.lower()}{path}").strip("-")


# Parts


def _navigation(tags: Iterable[str], operations: list[tuple[str, str, Schema]]) -> Iterator[str]:
    yield "<nav>"
    for tag in tags:
        yield f"<h2>{escape(tag)}</h2><ul>"
        for method, path, operation in operations:
            if tag in operation["tags"]:
                link = f'<a class="path" href="#{anchor(method, path)}">{escape(path)}</a>'
                yield f"<li>{_method(method)} {link}</li>"
        yield "</ul>"
    yield "</nav>"


def _operation(document: Schema, method: str, path: str, operation: Schema) -> Iterator[str]:
    yield f'<section id="{anchor(method, path)}"><h3>{_method(method)} <span class="path">{escape(path)}</span></h3>'
    yield _prose(operation.get("description", ""))
    if "parameters" in operation:
        yield "<h4>Parameters</h4>"
        rows = (_parameter(parameter) for parameter in operation["parameters"])
        yield _table(("name", "in", "type", ""), rows)
    body = operation.get("requestBody")
    if body:
        yield from _body(document, body)
    yield "<h4>Example</h4>"
    yield f"<pre>{escape(_curl(document, method, path, operation))}</pre>"
    yield "<h4>Answers</h4>"
    yield _table(("status", "body", ""), (_answer(document, *each) for each in operation["responses"].items()))
    yield "</section>"


def _parameter(parameter: Schema) -> tuple[str, ...]:
    name = _name(parameter["name"], must=parameter.get("required", False))
    return name, parameter["in"], _kind(parameter["schema"]), _words(parameter.get("description", ""))


def _name(name: str, *, must: bool) -> str:
    return f'<code class="must" title="must be there">{escape(name)}</code>' if must else f"<code>{escape(name)}</code>"


def _body(document: Schema, body: Schema) -> Iterator[str]:
    for kind, content in body["content"].items():
        yield f"<h4>Body, {escape(kind)}{'' if body.get('required') else ', may be missing'}</h4>"
        schema = content["schema"]
        if "description" in schema:
            yield _prose(schema["description"])
        if "$ref" in schema:
            yield f"<p>{_kind(schema)}</p>"
        yield from _fields(_resolved(document, schema))


def _fields(schema: Schema) -> Iterator[str]:
    fields = schema.get("properties", {})
    if fields:
        needed = schema.get("required", ())
        rows = (
            (_name(name, must=name in needed), _kind(field), _words(field.get("description", "")))
            for name, field in fields.items()
        )
        yield _table(("field", "type", ""), rows)


def _answer(document: Schema, status: str, answer: Schema) -> tuple[str, ...]:
    found = _resolved(document, answer)
    kinds = (_kind(content["schema"]) for content in found.get("content", {}).values())
    return f"<code>{escape(status)}</code>", " or ".join(kinds), _words(found["description"])


def _type(document: Schema, name: str, schema: Schema) -> Iterator[str]:
    yield f'<section id="type-{escape(name)}"><h3 class="path">{escape(name)}</h3>'
    yield _prose(schema.get("description", ""))
    if schema.get("properties"):
        yield from _fields(schema)
    else:
        yield '<p class="quiet">No fields.</p>'
    yield "</section>"


# Schemas


def _resolved(document: Schema, schema: Schema) -> Schema:
    """What a reference means."""
    while "$ref" in schema:
        found: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        schema = found
    return schema


def _kind(schema: Schema) -> str:
    """A type in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#type-{name}">{name}</a>'
    if "enum" in schema:
        return ", ".join(f"<code>{escape(json.dumps(word))}</code>" for word in schema["enum"])
    if "const" in schema:
        return f"<code>{escape(json.dumps(schema['const']))}</code>"
    for key, between in (("anyOf", " or "), ("allOf", " with ")):
        if key in schema:
            kinds = dict.fromkeys(_kind(each) for each in schema[key] if each not in _UNSAID and "required" not in each)
            return between.join(kinds) + "".join(_more(schema))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    values = schema.get("additionalProperties")
    of = f" of {_kind(values)}" if isinstance(values, Mapping) else ""
    return escape(schema.get("type", "anything")) + of + "".join(_more(schema))


_UNSAID = ({"type": "null"},)
"""Null means absent in every body, and the page says so once."""


def _more(schema: Schema) -> Iterator[str]:
    """Its bounds and its default."""
    for least, most, unit in (("minimum", "maximum", ""), ("minLength", "maxLength", " characters")):
        if most in schema:
            yield f", {schema.get(least, 0):,} to {schema[most]:,}{unit}"
    if schema.get("default") is not None:
        yield f", else <code>{escape(json.dumps(schema['default']))}</code>"


# Examples


def example(document: Schema, schema: Schema, depth: int = 0) -> Any:
    """A value that fits, with the fields that must be there and those that have an example."""
    schema = _resolved(document, schema)
    if "examples" in schema:
        return schema["examples"][0]
    for key in ("enum", "anyOf", "allOf"):
        if key in schema:
            first = schema[key][0]
            return first if key == "enum" else example(document, first, depth)
    match schema.get("type"):
        case "object":
            return _object(document, schema, depth)
        case "array":
            return [example(document, schema["items"], depth + 1)]
        case "string":
            return "a"
        case "boolean":
            return True
    return schema.get("minimum", 1)


def _object(document: Schema, schema: Schema, depth: int) -> dict[str, Any]:
    needed = schema.get("required", ())
    shown = {
        name: field for name, field in schema.get("properties", {}).items() if name in needed or "examples" in field
    }
    if depth > EXAMPLE_DEPTH_MAX:
        return {}
    return {name: example(document, field, depth + 1) for name, field in shown.items()}


def _curl(document: Schema, method: str, path: str, operation: Schema) -> str:
    """The command line that asks for it."""
    query = "&".join(
        f"{each['name']}={example(document, each['schema'])}"
        for each in operation.get("parameters", ())
        if each["in"] == "query" and each.get("required")
    )
    url = f"{ADDRESS}{path}{f'?{query}' if query else ''}"
    words = ["curl -s", *(["-X", method] if method not in ("GET",) and "requestBody" not in operation else [])]
    words.append(f"'{url}'" if query or "{" in url else url)
    lines = [" ".join(words)]
    if operation.get("security") != []:
        lines.append('-H "X-API-Token: $TOKEN"')
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        lines += ["-H 'Content-Type: application/json'", f"-d '{json.dumps(example(document, schema))}'"]
    return " \\\n    ".join(lines)
