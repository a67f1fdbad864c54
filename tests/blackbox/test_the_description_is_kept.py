"""The API's description against the running service, by an oracle nobody here wrote: schemathesis makes requests that
fit it and requests that do not, and judges every answer by it."""

import collections
import json
from typing import Any

import schemathesis
import trio
from schemathesis import config, engine, hooks
from schemathesis.engine import events

from letterbook.capture import CaptureRelay

from .service import TOKEN, mail

MAY_REFUSE = {
    "/account": "what fits as a type may not go together, such as a password without a user",
    "/audit/at": "one of seq and time is meant",
    "/commands/add-messages": "default_priority may be another word",
    "/commands/bulk": "where may not be empty",
    "/commands/rules": "an empty list of days, or hours that are no window",
    "/commands/rules/{id}": "the same",
    "/commands/schedule": "the same",
    "/volume": "config is another one for each backend",
}
"""Routes where what the description lets pass may still be a 400, and why."""

ACCEPTED = ["2xx", "404", "409"]
"""What is answered to a request that fits: an id may be unknown, a cursor past the end of the log."""

SETTINGS = {
    "generation": {"deterministic": True, "max-examples": 3, "no-shrink": True, "database": "none"},
    # A loaded machine is slow, and that is no fault.
    "request-timeout": 60,
    "suppress-health-check": ["all"],
    "phases": {"stateful": {"enabled": False}},
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "4xx"]},
        "positive_data_acceptance": {"expected-statuses": ACCEPTED},
    },
    "operations": [
        {
            # "Not ready" is rightful, and the only 503.
            "include-path": "/ready",
            "checks": {
                "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]},
                "positive_data_acceptance": {"expected-statuses": ["200", "503"]},
            },
        },
        {
            # Nobody here asks for an upgrade, and without one nothing else is looked at.
            "include-path": "/events/stream",
            "checks": {
                "positive_data_acceptance": {"expected-statuses": ["426"]},
                "negative_data_rejection": {"expected-statuses": ["401", "426", "429"]},
            },
        },
        {
            # Messages and a token go together, and a sync_token that is not the configured one is a 401.
            "include-path": "/commands/proxy-sync",
            "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400", "401"]}},
        },
        *(
            {"include-path": path, "checks": {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, "400"]}}}
            for path in MAY_REFUSE
        ),
    ],
}


def told_strictly(document: dict[str, Any]) -> dict[str, Any]:
    """The same, where an answer may have no field that is not described, and where the messages of a request may be
    anything: a fault within one is its own rejection, and no error of the request."""
    strict = json.loads(json.dumps(document))
    schemas = strict["components"]["schemas"]
    messages = schemas["AddMessages"]["properties"]["messages"]
    messages["items"] = {"anyOf": [messages["items"], {}]}
    send = strict["paths"]["/commands/send-message"]["post"]["requestBody"]["content"]["application/json"]
    send["schema"] = {"type": "object", "anyOf": [send["schema"], {}]}
    for name in answered(strict) - {"Fact", "Error"}:
        schemas[name]["additionalProperties"] = False
    return strict


def answered(document) -> set[str]:
    """The types of answers."""
    found: set[str] = set()
    waiting = [json.dumps([each["responses"] for methods in document["paths"].values() for each in methods.values()])]
    while waiting:
        text = waiting.pop()
        for name, schema in document["components"]["schemas"].items():
            if f'"#/components/schemas/{name}"' in text and name not in found:
                found.add(name)
                waiting.append(json.dumps(schema))
    return found


def is_a_guess_too_many(check) -> bool:
    """Wrong tokens by the dozen from one address are refused with a 429, which is no way in either."""
    return check.name == "ignored_auth" and "got `429 " in check.failure_info.failure.message


class Kept:
    """What came of it."""

    def __init__(self):
        self.requests = collections.Counter()
        self.statuses = collections.Counter()
        self.checks = collections.Counter()
        self.failures = []

    def take(self, event):
        if isinstance(event, events.ScenarioFinished):
            for checks in event.recorder.checks.values():
                self.requests[event.label] += 1
                for check in checks:
                    self.checks[check.name] += 1
                    if check.failure_info and not is_a_guess_too_many(check):
                        failure = check.failure_info.failure
                        words = f"{event.label}: {check.name}: {failure.title}: {failure.message}"
                        self.failures.append(f"{words}\n{check.failure_info.code_sample}")
            for made in event.recorder.interactions.values():
                if made.response:
                    self.statuses[made.response.status_code] += 1
        elif isinstance(event, events.NonFatalError | events.FatalError):
            self.failures.append(repr(event))


def written(value):
    """As clients write it: a whole number has no fraction, though 7.0 is an integer to JSON Schema."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: written(each) for name, each in value.items()}
    return [written(each) for each in value] if isinstance(value, list) else value


def harmless(relay_port):
    """Whatever relay an account names, it is ours; and nobody waits for facts to come."""

    def before_call(context, case, kwargs):
        if isinstance(case.body, dict | list):
            case.body = written(case.body)
        body, query = case.body, case.query or {}
        if case.operation.path == "/account" and isinstance(body, dict):
            if isinstance(host := body.get("host"), str) and host.isprintable() and 0 < len(host) < 256:
                body["host"] = "127.0.0.1"
            if isinstance(port := body.get("port"), int) and 1 <= port <= 65535:
                body["port"] = relay_port
        if isinstance(wait := query.get("wait"), int | float) and 0 <= wait <= 30:
            query["wait"] = 0

    return before_call


def keep(url, document, relay_port) -> Kept:
    settings = config.SchemathesisConfig.from_dict({**SETTINGS, "base-url": url, "headers": {"X-API-Token": TOKEN}})
    schema = schemathesis.openapi.from_dict(told_strictly(document), config=settings)
    kept = Kept()
    hook = schemathesis.hook("before_call")(harmless(relay_port))
    try:
        for event in engine.from_schema(schema).execute():
            kept.take(event)
    finally:
        hooks.unregister(hook)
    return kept


async def test_every_answer_is_as_described(service):
    async with CaptureRelay().listening() as relay:
        it = await service(smtp_host="127.0.0.1", smtp_port=relay.port, delivery_send_wait_seconds=0.05)
        document = await it.get("/openapi.json")
        await it.add([mail("known")])
        await it.until_results(1)
        kept = await trio.to_thread.run_sync(keep, it.url, document, relay.port)
        assert not kept.failures, f"{len(kept.failures)} failures\n\n" + "\n\n".join(kept.failures)
        assert (await it.get("/health"))["status"] == "ok" and "Traceback" not in it.lines
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert set(kept.requests) == routes
    assert set(CHECKS) <= kept.checks.keys() and {200, 400, 401, 404, 405} <= kept.statuses.keys()


CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "negative_data_rejection", "positive_data_acceptance", "ignored_auth",
    "unsupported_method",
)  # fmt: skip
"""What was judged, of every route that it can be judged of."""
