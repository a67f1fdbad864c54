"""The API's description is whole, valid, and agrees with what decodes, parses and answers."""

import json
import re
from html.parser import HTMLParser

import httpx
import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import openapi as schemathesis_openapi

from actors import parse as parsing
from actors.parse import Fault, Parsed, Policy, parse
from events import payloads
from gateway import docs_page, openapi
from gateway.commands import COMMANDS, Command
from gateway.pages import PAGES

from .service import AUTH, running

DOCUMENT = openapi.document("9.9.9")
SCHEMAS = DOCUMENT["components"]["schemas"]
MESSAGE = SCHEMAS["MessagePayload"]


def operation(command):
    return DOCUMENT["paths"][command.path.replace("<", "{").replace(">", "}")][command.method.lower()]


def of(commands):
    return pytest.mark.parametrize("command", commands, ids=lambda command: command.name)


# The document


def test_it_is_openapi_3_1():
    OpenAPIV31SpecValidator(json.loads(openapi.description("9.9.9"))).validate()
    assert DOCUMENT["openapi"] == "3.1.0" and DOCUMENT["info"]["version"] == "9.9.9"


@of(COMMANDS)
def test_a_row_has_a_sentence_a_payload_and_an_answer(command):
    words = openapi.sentences(command).split("\n")[0]
    assert words.endswith(".") and words[0].isupper(), f"the handler of {command.name} wants a docstring: what it does"
    assert command.payload is not None
    assert command.answers and None not in command.answers.values(), f"{command.name} wants the type of its answer"
    described = operation(command)
    assert described["description"].startswith(words)
    assert {str(status) for status in command.answers} <= described["responses"].keys()


def test_what_lacks_a_sentence_or_an_answer_is_seen():
    """The test above can fail: a row as it was before there was a description."""

    async def silent(door, call): ...

    row = Command("silent", "GET", "/silent", None, None, "gateway", silent)
    assert openapi.sentences(row) == "" and None in row.answers.values()


@of(COMMANDS)
def test_every_field_that_is_decoded_is_described(command):
    if command.payload == dict[str, msgspec.Raw]:
        return
    described = operation(command)
    parameters = {each["name"]: each["in"] for each in described.get("parameters", ())}
    body = described.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    properties = resolved(body).get("properties", {})
    for name in command.payload.__struct_encode_fields__:
        if name in command.path_fields:
            assert parameters[name] == "path"
        elif command.source == "query":
            assert parameters[name] == "query"
        else:
            assert name in properties
    assert len(properties) + len(parameters) - bool(command.streamed) == len(command.payload.__struct_fields__)


def resolved(schema):
    return SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def test_every_reference_leads_somewhere_and_every_type_is_used():
    named = set(re.findall(r'"#/components/schemas/(\w+)"', openapi.description("9.9.9").decode()))
    assert named == SCHEMAS.keys()


def test_answers_hold_no_null_and_requests_may():
    for name in ("MessageRecord", "Account", "SendAnswer"):
        assert '"null"' not in json.dumps(SCHEMAS[name])
    assert {"type": "null"} in SCHEMAS["AccountPayload"]["properties"]["user"]["anyOf"]


@of(COMMANDS)
def test_the_errors_are_those_that_can_come(command):
    responses = operation(command)["responses"]
    assert ("401" in responses) != command.open and ("404" in responses or not command.path_fields)
    assert ("security" in operation(command)) == command.open
    assert {"400", "413", "415", "503"} <= responses.keys() or command.source != "body"
    assert "409" in responses or "log" not in getattr(command.payload, "__struct_fields__", ())
    assert "503" in responses or command.decides == "gateway"


def test_every_error_has_the_one_shape():
    for name, _ in openapi.ERRORS.values():
        schema = DOCUMENT["components"]["responses"][name]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/Error"}
    assert SCHEMAS["Error"]["required"] == ["ok", "error", "detail"]


def test_the_ways_beside_json_are_described():
    add = DOCUMENT["paths"]["/commands/add-messages"]["post"]
    assert set(add["requestBody"]["content"]) == {"application/json", "application/x-ndjson"}
    (key,) = DOCUMENT["paths"]["/commands/send-message"]["post"]["parameters"]
    assert (key["name"], key["in"]) == ("Idempotency-Key", "header")
    stream = DOCUMENT["paths"]["/events/stream"]["get"]
    assert "websocket" in stream["summary"] and {"101", "426"} <= stream["responses"].keys()
    assert set(DOCUMENT["components"]["securitySchemes"]) == {"token", "bearer"}


# A message, and what the parser makes of it


NOW_US = 1_800_000_000_000_000
REASONS = (
    parsing.NOT_JSON, parsing.MISSING_ID, "missing from", "missing to", "missing subject", "missing body",
    parsing.INVALID_ADDRESS, parsing.CONTROL_IN, parsing.ACCOUNT_NOT_FOUND, parsing.NO_DEFAULT_ACCOUNT,
    parsing.INVALID_VOLUMES, parsing.TOO_LARGE, parsing.INVALID_FIELD,
)  # fmt: skip
"""Of the parser; those about ids that the log knows are admission's."""

MAIL = {"id": "m-1", "from": "a@example.org", "to": "b@example.org", "subject": "s", "body": "b"}


def parsed(message) -> Parsed | Fault:
    raw = json.dumps(message).encode()
    return parse(raw, policy=Policy(), accounts={"default", "news"}, now_us=NOW_US)


def validator():
    whole = {"$ref": "#/components/schemas/MessagePayload", "components": DOCUMENT["components"]}
    return jsonschema.Draft202012Validator(whole)


def test_the_schema_has_the_fields_of_the_parser_and_no_others():
    assert list(MESSAGE["properties"]) == list(payloads.MessagePayload.__struct_encode_fields__)
    assert [*MESSAGE["required"], "id"] == [*payloads.REQUIRED[1:], "id"]


@pytest.mark.parametrize("name", list(MESSAGE["properties"]))
def test_every_field_of_the_schema_is_read_by_the_parser(name):
    fault = parsed({**MAIL, name: {"wrong": []}})
    assert isinstance(fault, Fault) and (fault.field or "").startswith(name), fault


@pytest.mark.parametrize("name", payloads.REQUIRED)
def test_what_the_schema_requires_the_parser_misses(name):
    assert parsed({key: value for key, value in MAIL.items() if key != name}).reason == f"missing {name}"


def test_a_field_outside_the_schema_is_ignored():
    assert isinstance(parsed({**MAIL, "surprise": {"a": 1}}), Parsed)


ADD = schemathesis_openapi.from_dict(json.loads(openapi.description("9.9.9")))["/commands/add-messages"]["POST"]


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(case=ADD.as_strategy())
def test_what_fits_the_schema_is_taken_or_has_a_documented_reason(case):
    if not isinstance(case.body, dict):
        return  # lines: the same messages
    for message in case.body["messages"]:
        assert validator().is_valid(message)
        found = parsed(message)
        assert isinstance(found, Parsed) or found.reason.startswith(REASONS), found


TEXT = st.sampled_from(["", "x", "a@example.org", "A B <a@example.org>, b@example.org", "high", "plain", "YQ=="])
VALUE = st.one_of(
    st.none(), TEXT, st.integers(-5, 2**40), st.floats(allow_nan=False), st.booleans(), st.lists(TEXT, max_size=2),
    st.dictionaries(TEXT, st.one_of(st.none(), TEXT), max_size=2),
    st.lists(st.fixed_dictionaries({"filename": TEXT, "content": TEXT}), max_size=2),
)  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(fields=st.dictionaries(st.sampled_from(list(MESSAGE["properties"])), VALUE, max_size=3))
def test_what_the_parser_takes_fits_the_schema(fields):
    message = {**MAIL, **fields}
    if isinstance(parsed(message), Parsed):
        validator().validate(message)


def test_the_parser_takes_something_of_what_is_tried_above():
    full = {**MAIL, "to": ["a@example.org"], "headers": {"X-A": None}, "priority": "High", "deferred_ts": 1.5}
    full |= {"attachments": [{"filename": "a", "content": "YQ=="}], "content_type": "html", "unknown": 1}
    assert isinstance(parsed(full), Parsed) and validator().is_valid(full)
    assert isinstance(parsed({**MAIL, "priority": "urgent"}), Fault)


# Served


async def test_both_pages_are_open_and_hold_the_packages_version(tmp_path):
    async with running(tmp_path) as service, httpx.AsyncClient(base_url=service.url) as client:
        described = await client.get("/openapi.json")
        assert described.status_code == 200 and described.headers["content-type"] == "application/json"
        assert described.content == openapi.description(service.door.version)
        page = await client.get("/docs")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == docs_page.POLICY
        assert page.headers["x-content-type-options"] == "nosniff"
        for path in PAGES:
            assert (await client.post(path, headers=AUTH)).status_code == 405


async def test_a_whole_number_with_a_fraction_is_refused_as_the_description_says(tmp_path):
    assert "`7`, not `7.0`" in DOCUMENT["info"]["description"]
    async with running(tmp_path) as service, service.client() as client:
        answer = await client.post("/account", content=b'{"id":"a","host":"relay.example","port":25.0}')
        assert answer.status_code == 400 and "$.port" in answer.json()["error"]


# The page


class Read(HTMLParser):
    """What a browser would make of the page: its ids, its addresses, its tags."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in ("meta", "!doctype"):
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "src", "srcset", "action", "style", "data", "poster") or name.startswith("on"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


PAGE = docs_page.page(DOCUMENT)


def test_the_page_asks_no_other_host_for_anything():
    read = Read(PAGE)
    assert read.addresses and {each for each in read.addresses if not each.startswith("#")} == {"/openapi.json"}
    assert not read.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "base"}
    assert "url(" not in docs_page.STYLE and "@import" not in docs_page.STYLE
    assert set(re.findall(r"https?://[^/\s'\"<]+", PAGE.decode())) == {docs_page.ADDRESS}


def test_every_link_within_the_page_leads_somewhere():
    read = Read(PAGE)
    assert len(read.ids) == len(set(read.ids)) and read.open == []
    assert {each[1:] for each in read.addresses if each.startswith("#")} <= set(read.ids)
    assert len(read.ids) == sum(len(methods) for methods in DOCUMENT["paths"].values()) + len(SCHEMAS)


def test_the_page_says_of_every_route_what_it_does_and_how_to_ask():
    page = PAGE.decode()
    for path, methods in DOCUMENT["paths"].items():
        for method in methods:
            (section,) = re.findall(rf'<section id="{docs_page.anchor(method, path)}">(.*?)</section>', page, re.DOTALL)
            assert "<p>" in section and "curl -s" in section and "<h4>Answers</h4>" in section


def test_the_examples_fit():
    for methods in DOCUMENT["paths"].values():
        for each in methods.values():
            if "requestBody" in each:
                schema = each["requestBody"]["content"]["application/json"]["schema"]
                shown = docs_page.example(DOCUMENT, schema)
                whole = {**schema, "components": DOCUMENT["components"]}
                jsonschema.Draft202012Validator(whole).validate(shown)
    add = DOCUMENT["paths"]["/commands/add-messages"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    (message,) = docs_page.example(DOCUMENT, add)["messages"]
    assert isinstance(parsed(message), Parsed)


def test_words_of_the_description_cannot_become_html():
    hostile = json.loads(openapi.description("<b>9</b>"))
    hostile["paths"]["/health"]["get"]["description"] = "<script>alert(1)</script> `<i>`"
    page = docs_page.page(hostile).decode()
    assert "<script>" not in page and "<b>9" not in page and "<code>&lt;i&gt;</code>" in page
