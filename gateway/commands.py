"""The table of commands: a row a command, with its name, its route, the type of what it is given, the type of what it
answers, and who decides. `handle_command` and the HTTP routes are made from it, and the bad-input test walks it.
"""

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from events import payloads

from . import answers, asking, bulk, ndjson, queries, sync, writing
from .bodies import Lease
from .door import Door
from .errors import Answer, Trouble, bad, convert, decode
from .writing import Call

Handler = Callable[[Door, Call], Awaitable[Answer]]
Source = Literal["body", "query", "path"]
Decider = Literal["ingest", "control", "gateway"]
Streamed = Callable[[Door, str, Mapping[str, str], Lease, ndjson.Receive], Awaitable[Answer | None]]


class Command(Struct, frozen=True):
    """One row. `answer` is a type, `str` for text, several types where the request says which, or all of that by
    status where it is not 200 alone. `refuses` are the errors that its payload and path do not show already: what
    everybody can meet is in openapi.py. `streamed` takes the payload's items as NDJSON. The handler's docstring is what
    the API's description says of the route.
    """

    name: str
    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    payload: Any
    answer: Any
    decides: Decider
    handler: Handler
    open: bool = False
    streamed: Streamed | None = None
    refuses: tuple[int, ...] = ()

    @property
    def answers(self) -> Mapping[int, Any]:
        """Its answers that are no errors, by status."""
        return self.answer if isinstance(self.answer, dict) else {200: self.answer}

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields of its payload that stand in the path."""
        return tuple(re.findall(r"<(\w+)>", self.path))

    @property
    def source(self) -> Source:
        """Where its payload stands in a request, or what of it the path does not say."""
        if self.path_fields and set(self.payload.__struct_fields__) <= set(self.path_fields):
            return "path"
        return "query" if self.method == "GET" else "body"


INGEST: Decider = "ingest"
CONTROL: Decider = "control"
GATEWAY: Decider = "gateway"
NOTHING = queries.Nothing
READY = {200: answers.Ready, 503: answers.Ready}
SENT = {200: answers.SendAnswer, 202: answers.SendPending}
PAST = (
    answers.PendingList, answers.DeferredList, answers.HeldList, answers.ResultList, answers.AccountList,
    answers.MessageRecord,
)  # fmt: skip

COMMANDS: tuple[Command, ...] = (
    Command("health", "GET", "/health", NOTHING, answers.Health, GATEWAY, asking.health, open=True),
    Command("ready", "GET", "/ready", NOTHING, READY, GATEWAY, asking.ready, open=True),
    Command("status", "GET", "/status", NOTHING, answers.StatusAnswer, GATEWAY, asking.status),
    Command("run now", "POST", "/commands/run-now", payloads.Empty, answers.Ok, CONTROL, writing.run_now),
    Command("suspend", "POST", "/commands/suspend", payloads.Empty, answers.Active, CONTROL, writing.suspend),
    Command("activate", "POST", "/commands/activate", payloads.Activate, answers.Active, CONTROL, writing.activate),
    Command("sendMessage", "POST", "/commands/send-message", dict[str, Raw], SENT, INGEST, writing.send_message),
    Command(
        "addMessages", "POST", "/commands/add-messages", payloads.AddMessages, answers.Added, INGEST,
        writing.add_messages, streamed=ndjson.add_messages,
    ),
    Command(
        "deleteMessages", "POST", "/commands/delete-messages", payloads.DeleteMessages, answers.Deleted, CONTROL,
        writing.delete_messages,
    ),
    Command(
        "cleanupMessages", "POST", "/commands/cleanup-messages", payloads.CleanupMessages, answers.Removed, CONTROL,
        writing.cleanup_messages,
    ),
    Command(
        "proxySync", "POST", "/commands/proxy-sync", payloads.ProxySync, answers.Exchange, CONTROL, sync.proxy_sync
    ),
    Command("bulk", "POST", "/commands/bulk", payloads.Bulk, answers.BulkAnswer, CONTROL, bulk.bulk),
    Command("addAccount", "POST", "/account", payloads.Account, answers.Ok, CONTROL, writing.add_account),
    Command("listAccounts", "GET", "/accounts", NOTHING, answers.AccountList, GATEWAY, asking.accounts),
    Command("deleteAccount", "DELETE", "/account/<id>", queries.Id, answers.Ok, CONTROL, writing.delete_account),
    Command("pauseAccount", "POST", "/account/<id>/pause", queries.Id, answers.Ok, CONTROL, writing.pause_account),
    Command("resumeAccount", "POST", "/account/<id>/resume", queries.Id, answers.Ok, CONTROL, writing.resume_account),
    Command("addVolume", "POST", "/volume", payloads.Volume, answers.Ok, CONTROL, writing.add_volume),
    Command("listVolumes", "GET", "/volumes", queries.Volumes, answers.VolumeList, GATEWAY, asking.volumes),
    Command("getVolume", "GET", "/volume/<name>", queries.Name, answers.VolumeRecord, GATEWAY, asking.volume),
    Command("deleteVolume", "DELETE", "/volume/<name>", queries.Name, answers.Ok, CONTROL, writing.delete_volume),
    Command("addRule", "POST", "/commands/rules", payloads.Rule, answers.RuleList, CONTROL, writing.add_rule),
    Command("listRules", "GET", "/commands/rules", NOTHING, answers.RuleList, GATEWAY, asking.rules),
    Command(
        "setRuleEnabled", "PATCH", "/commands/rules/<id>", payloads.RuleChange, answers.RuleList, CONTROL,
        writing.change_rule,
    ),
    Command(
        "deleteRule", "DELETE", "/commands/rules/<id>", queries.RuleId, answers.RuleList, CONTROL, writing.delete_rule
    ),
    Command(
        "schedule", "POST", "/commands/schedule", payloads.Schedule, answers.ScheduleAnswer, CONTROL, writing.schedule
    ),
    Command("pendingMessages", "GET", "/pending", queries.Listing, answers.PendingList, GATEWAY, asking.pending),
    Command("listDeferred", "GET", "/deferred", queries.Listing, answers.DeferredList, GATEWAY, asking.deferred),
    Command("listHeld", "GET", "/held", queries.Listing, answers.HeldList, GATEWAY, asking.held),
    Command(
        "resolveMessage", "POST", "/messages/<id>/resolve", payloads.Resolve, answers.Ok, CONTROL,
        writing.resolve_message, refuses=(409,),
    ),
    Command("results", "GET", "/results", queries.Results, answers.ResultList, GATEWAY, asking.results),
    Command("listMessages", "GET", "/messages", queries.Messages, answers.MessageList, GATEWAY, asking.messages),
    Command("showMessage", "GET", "/messages/<id>", queries.Id, answers.MessageRecord, GATEWAY, asking.message),
    Command("events", "GET", "/events", queries.Events, answers.EventList, GATEWAY, asking.events),
    Command("ticket", "POST", "/events/ticket", payloads.Empty, answers.Ticket, GATEWAY, asking.ticket),
    Command("auditAt", "GET", "/audit/at", queries.At, PAST, GATEWAY, asking.audit_at, refuses=(404,)),
    Command("metrics", "GET", "/metrics", NOTHING, str, GATEWAY, asking.show_metrics),
)  # fmt: skip

BY_NAME: Mapping[str, Command] = {command.name: command for command in COMMANDS}

IGNORES_FIELDS = frozenset({payloads.Empty, payloads.Activate})
"""Bodies whose unknown fields are ignored, as the replaced service did."""

MAY_BE_MISSING = IGNORES_FIELDS | {payloads.CleanupMessages}
"""Bodies all of whose fields are optional: none at all is `{}`."""

_OBJECT = msgspec.json.Decoder(dict[str, Raw])

BY_PROGRAM = "program"
"""Who asks where a program of one's own calls `handle_command`."""


_FIELDS = msgspec.json.Decoder(dict[str, Any])


class Reader:
    """Reads a command's payload; a decoder is made once."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._decoder = msgspec.json.Decoder(command.payload)
        self._may_be_missing = command.payload in MAY_BE_MISSING if isinstance(command.payload, type) else False

    def body(self, data: bytes) -> Any:
        """The payload of a body. Raises Trouble 400."""
        if self._may_be_missing and not data.strip():
            data = b"{}"
        return decode(data, self._decoder)

    def beside_path(self, data: bytes, path: Mapping[str, str]) -> Any:
        """The payload of a body together with what the path says. Raises Trouble 400."""
        fields = decode(data, _OBJECT)
        for name in path:
            if name in fields:
                raise bad(f"the body does not fit: {name} stands in the path, leave it out")
        return self.body(msgspec.json.encode({**fields, **path}))

    def fields(self, fields: dict[str, Any]) -> Any:
        """The payload of a query or a path. Raises Trouble 400."""
        return convert(fields, self._command.payload)


async def handle_command(door: Door, name: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The answer to a command by name, as a JSON object; errors are answers too."""
    command = BY_NAME.get(name)
    if command is None:
        return {"ok": False, "error": "unknown command"}
    try:
        answer = await command.handler(door, Call(_payload(command, {} if payload is None else payload), BY_PROGRAM))
    except Trouble as trouble:
        answer = trouble.answer
    if isinstance(answer.body, bytes):
        return {"ok": True, "text": answer.body.decode()}
    decoded: dict[str, Any] = msgspec.json.decode(answer.data)
    return decoded


def _payload(command: Command, fields: Mapping[str, Any]) -> Any:
    """What a program gives goes through the same bytes as what comes over HTTP, so that it is judged alike: NaN is no
    JSON, and half of a surrogate pair is the fault of the message in which it stands."""
    reader = Reader(command)
    try:
        data = json.dumps(fields, default=msgspec.to_builtins).encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise bad(f"the payload cannot be written as JSON: {error}") from None
    return reader.body(data) if command.source == "body" else reader.fields(decode(data, _FIELDS))
