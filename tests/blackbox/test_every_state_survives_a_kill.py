"""Every state and every step, through the real process: caused from outside, killed by `kill -9`, the same afterwards.

ROWS has a row a pair of LIFECYCLE. A row names the *places* it is tried in (ways to be in the state: a message waits
for many reasons) and the *deed* that asks for the step, with what the client is told and the facts that come of it. So
a message is made for each place and deed of the table, all of them in one log, and everything is asked about once more
after each kill. Where nobody outside can ask for a step, the row says why; that none was taken is seen in the
timelines, which have exactly the facts that the table names.

Dispatch is suspended before the deeds, so that what becomes of a message is the deed's doing alone. Mail in doubt is
held, and `flying` stays in flight until the first kill: what the next start adds to that is stated as data, too.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple
from urllib.parse import quote

import trio

from events.lifecycle import LIFECYCLE, STATES, STEPS, Refusal, State
from letterbook.capture import CaptureRelay

from .relays import GatedRelay, free_port
from .service import LOOK_S, WAIT_S_MAX, Service, kinds, mail, subject_id

SECRET = "words-of-a-letter-and-of-nothing-else"
DOMAIN = "addressed-to-nobody-else.example"
"""Of all recipients: neither of the two may be found in the files once everything was erased."""

LATER = 4_000_000_000

# How a message comes to be in a state.


class Place(NamedTuple):
    """A way to be in a state: the account and the recipients it is sent with, and what is done to it then."""

    state: State | None
    account: str = "open"
    to: str | tuple[str, ...] = "ann"
    then: tuple[str, ...] = ()
    fields: tuple[tuple[str, object], ...] = ()


DOUBTED, REFUSED = "drop-after-dot", "550"

PLACES = {
    "unknown": Place(None),
    "paused": Place("waiting", "paused"),
    "later": Place("waiting", fields=(("deferred_ts", LATER),)),
    "retrying": Place("waiting", "deferring", to="451"),
    "throttled": Place("waiting", "limited"),
    "unreachable": Place("waiting", "down"),
    "starting": Place("waiting", "starting"),
    "flying": Place("in_flight", "gated"),
    "flying-withdrawn": Place("in_flight", "gated", then=("delete",)),
    "doubted": Place("held", to=DOUBTED),
    "doubted-and-refused": Place("held", to=(DOUBTED, REFUSED)),
    "put-aside": Place("held", "paused", then=("hold",)),
    "sent": Place("sent"),
    "sent-erased": Place("sent", then=("delete",)),
    "failed": Place("failed", to=REFUSED),
    "failed-erased": Place("failed", to=REFUSED, then=("delete",)),
    "withdrawn": Place("withdrawn", "paused", then=("delete",)),
    "withdrawn-erased": Place("withdrawn", "paused", then=("delete", "delete")),
    "rejected": Place("rejected", to=()),
    # What the relay behind the second gate will do with them.
    "to-451": Place("in_flight", "ending", "451-at-dot"),
    "to-451-withdrawn": Place("in_flight", "ending", "451-at-dot", ("delete",)),
    "to-drop": Place("in_flight", "ending", DOUBTED),
    "to-drop-withdrawn": Place("in_flight", "ending", DOUBTED, ("delete",)),
    "to-550": Place("in_flight", "ending", "550-at-dot"),
    "to-550-withdrawn": Place("in_flight", "ending", "550-at-dot", ("delete",)),
    "to-250": Place("in_flight", "ending"),
    "to-250-withdrawn": Place("in_flight", "ending", then=("delete",)),
}

WAITING = ("paused", "later", "retrying", "throttled", "unreachable")
FLYING = ("flying", "flying-withdrawn")
HELD = ("doubted", "doubted-and-refused", "put-aside")
OF_STATE: dict[State | None, tuple[str, ...]] = {
    None: ("unknown",),
    "waiting": WAITING,
    "in_flight": FLYING,
    "held": HELD,
    "sent": ("sent", "sent-erased"),
    "failed": ("failed", "failed-erased"),
    "withdrawn": ("withdrawn", "withdrawn-erased"),
    "rejected": ("rejected",),
}

# What a client is told.

Told = Callable[[str], object]


def queued(_: str) -> object:
    return {"ok": True, "queued": 1, "rejected": []}


def rejected(reason: str) -> Told:
    return lambda message_id: {"ok": True, "queued": 0, "rejected": [{"id": message_id, "reason": reason}]}


def removed(_: str) -> object:
    return {"ok": True, "removed": 1, "not_found": []}


def not_found(message_id: str) -> object:
    return {"ok": True, "removed": 0, "not_found": [message_id]}


def bulk(count: int) -> Told:
    return lambda _: {"ok": True, "matched": count, "changed": count}


def released_in_doubt(_: str) -> object:
    return {"ok": True, "matched": 1, "changed": 1, "in_doubt": 1}


def done(_: str) -> object:
    return {"ok": True}


def not_held(state: str) -> Told:
    sentence = f"the message is not held, it is {state.replace('_', ' ')}: GET /held lists held mail"
    return lambda _: {"ok": False, "error": sentence, "detail": sentence}


def no_such_id(_: str) -> object:
    sentence = "No message with this id is known"
    return {"ok": False, "error": sentence, "detail": sentence}


def nothing(_: str) -> object:
    return None


# The table.


class Row(NamedTuple):
    """A deed at some places: what the client is told, and the facts that come of it, none where it is refused."""

    deed: str
    places: tuple[str, ...]
    told: Told
    adds: tuple[str, ...] = ()


Rows = tuple[Row, ...] | str
"""The rows of a pair, or why nobody outside can cause it."""

FIRST = "a first fact is only proposed again where a message is sent again: the row of MessageRevised"
NEW = "a message that is sent under an unknown id is accepted: the row of MessageAccepted"
NO_OWNER = "it ends what an account has, and this is nobody's"
OWN = "the service alone decides it, and offers nothing but what waits"
OF_AN_ATTEMPT = "only a relay's answer makes it, and without an attempt nobody asks a relay"
IN_ITS_CASE = "the case is told apart in held alone: the row of the same resolution without it"
IMPORTED = (
    "only `letterbook import` makes it, in one commit and without a service: tests/letterbook/test_import_command.py"
)
REQUEUED = "trying again is told apart by the state: the row of MessageRequeued"

RESOLUTIONS = {"DoubtResolved resend": "resend", "DoubtResolved sent": "call-sent", "DoubtResolved error": "call-error"}
NOT_RESENT = {"in_flight": "in flight", "held": "in flight", "sent": "already sent"}
FAULTY = "missing to"

ROWS: dict[tuple[State | None, str], Rows] = {
    (None, "MessageAccepted"): (Row("send", ("unknown",), queued, ("MessageAccepted",)),),
    **{(state, "MessageAccepted"): FIRST for state in STATES},
    (None, "MessageRejected"): (Row("send-faulty", ("unknown",), rejected(FAULTY), ("MessageRejected",)),),
    **{
        (state, "MessageRejected"): (Row("send-faulty", OF_STATE[state], rejected(NOT_RESENT.get(state, FAULTY))),)
        for state in STATES
    },
    (None, "MessageRevised"): NEW,
    **{
        (state, "MessageRevised"): (
            (Row("send", OF_STATE[state], rejected(NOT_RESENT[state])),)
            if state in NOT_RESENT
            else (Row("send", OF_STATE[state], queued, ("MessageRevised",)),)
        )
        for state in STATES
    },
    **{(state, "MessageRequeued"): (Row("retry", OF_STATE[state], bulk(0)),) for state in (None, *STATES)},
    ("waiting", "MessageRequeued"): (Row("retry", tuple(place for place in WAITING if place != "retrying"), bulk(0)),),
    # Erased content has no subject to be found by.
    ("failed", "MessageRequeued"): (
        Row("retry", ("failed",), bulk(1), ("MessageRequeued",)),
        Row("retry", ("failed-erased",), bulk(0)),
    ),
    **{(state, "MessageExpedited"): REQUEUED for state in (None, *STATES)},
    ("waiting", "MessageExpedited"): (Row("retry", ("retrying",), bulk(1), ("MessageExpedited",)),),
    (None, "MessageWithdrawn"): (Row("delete", ("unknown",), not_found), Row("withdraw", ("unknown",), bulk(0))),
    **{
        (state, "MessageWithdrawn"): (
            Row("delete", OF_STATE[state], removed),
            Row("withdraw", OF_STATE[state], bulk(0)),
        )
        for state in STATES
    },
    **{
        (state, "MessageWithdrawn"): (
            Row("delete", OF_STATE[state], removed, ("MessageWithdrawn",)),
            Row("withdraw", OF_STATE[state], bulk(1), ("MessageWithdrawn",)),
        )
        for state in ("waiting", "held")
    },
    ("in_flight", "MessageWithdrawn"): (
        Row("delete", ("flying",), removed, ("MessageWithdrawn",)),
        Row("withdraw", ("flying",), bulk(1), ("MessageWithdrawn",)),
        Row("delete", ("flying-withdrawn",), removed),
        Row("withdraw", ("flying-withdrawn",), bulk(0)),
    ),
    **{(state, "MessageHeld"): (Row("hold", OF_STATE[state], bulk(0)),) for state in (None, *STATES)},
    ("waiting", "MessageHeld"): (Row("hold", WAITING, bulk(1), ("MessageHeld",)),),
    (None, "MessageFailed"): NO_OWNER,
    **{(state, "MessageFailed"): (Row("remove", OF_STATE[state], done),) for state in STATES},
    ("waiting", "MessageFailed"): (
        Row("remove", WAITING, done, ("MessageFailed",)),
        Row("expire", ("paused",), queued, ("MessageRevised", "MessageFailed")),
    ),
    # Held mail does not expire.
    ("held", "MessageFailed"): (Row("remove", HELD, done, ("MessageFailed",)),),
    **{
        (state, step): (Row(deed, OF_STATE[state], not_held(state or "")),)
        for state in STATES
        for step, deed in RESOLUTIONS.items()
    },
    **{(None, step): (Row(deed, ("unknown",), no_such_id),) for step, deed in RESOLUTIONS.items()},
    ("held", "DoubtResolved resend"): (
        Row("resend", HELD, done, ("DoubtResolved",)),
        Row("release", ("doubted", "doubted-and-refused"), released_in_doubt, ("DoubtResolved",)),
        Row("release", ("put-aside",), bulk(1), ("DoubtResolved",)),
    ),
    **{
        (state, "DoubtResolved resend"): (
            Row("resend", OF_STATE[state], not_held(state) if state else no_such_id),
            Row("release", OF_STATE[state], bulk(0)),
        )
        for state in (None, *STATES)
        if state != "held"
    },
    ("held", "DoubtResolved sent"): (Row("call-sent", ("doubted", "put-aside"), done, ("DoubtResolved",)),),
    **{(state, "DoubtResolved sent, some refused"): IN_ITS_CASE for state in (None, *STATES)},
    ("held", "DoubtResolved sent, some refused"): (
        Row("call-sent", ("doubted-and-refused",), done, ("DoubtResolved",)),
    ),
    ("held", "DoubtResolved error"): (Row("call-error", HELD, done, ("DoubtResolved",)),),
    **{(state, step): IMPORTED for state in (None, *STATES) for step in STEPS if step.startswith("MessageImported")},
    **{(state, "AttemptStarted"): OWN for state in (None, *STATES)},
    ("waiting", "AttemptStarted"): (Row("resume", ("starting",), done, ("AttemptStarted",)),),
    **{(state, step): OF_AN_ATTEMPT for state in (None, *STATES) for step in STEPS if step.startswith("AttemptEnded")},
    **{
        ("in_flight", step): (Row("answer", places, nothing, ("AttemptEnded",)),)
        for step, places in {
            "AttemptEnded due": ("to-451",),
            "AttemptEnded due, withdrawn meanwhile": ("to-451-withdrawn",),
            "AttemptEnded held": ("to-drop",),
            "AttemptEnded held, withdrawn meanwhile": ("to-drop-withdrawn",),
            "AttemptEnded failed": ("to-550", "to-550-withdrawn"),
            "AttemptEnded done": ("to-250", "to-250-withdrawn"),
        }.items()
    },
}


class Case(NamedTuple):
    """A message: where it is, what is done to it, and where that leads."""

    place: str
    row: Row
    after: State | None

    @property
    def id(self) -> str:
        # A slash must come through every path.
        return f"{self.place}/{self.row.deed}"

    @property
    def account(self) -> str:
        """Accounts that are removed have mail of their own in every place."""
        name = PLACES[self.place].account
        return f"gone-{name}" if self.row.deed == "remove" else name


def after(pair: tuple[State | None, str], row: Row) -> State | None:
    """Where a row leads by the lifecycle: nowhere else if it has no facts."""
    if not row.adds:
        return "rejected" if pair[0] == "rejected" else pair[0]
    state = LIFECYCLE[pair]
    assert not isinstance(state, Refusal), f"{pair} is refused, and the row has facts"
    return state


CASES = {
    case.id: case
    for pair, rows in ROWS.items()
    if not isinstance(rows, str)
    for row in rows
    for place in row.places
    for case in (Case(place, row, after(pair, row)),)
}

STATUSES: dict[State | None, tuple[str, ...]] = {
    None: ("unknown",),
    "waiting": ("pending", "deferred"),
    "in_flight": ("in_flight",),
    "held": ("held",),
    "sent": ("sent",),
    "failed": ("error",),
    "withdrawn": ("withdrawn",),
    "rejected": ("error",),
}


class Start(NamedTuple):
    """What a start adds to a message that it finds in flight, and the status after it."""

    adds: tuple[str, ...]
    status: str


HELD_FOR_DOUBT = Start(("AttemptInterrupted",), "held")
WITHDRAWN_AT_LAST = Start(("AttemptInterrupted",), "withdrawn")
SWEPT = Start(("AttemptInterrupted", "MessageFailed"), "error")
"""Its account was removed while it was in flight."""


def at_start(case: Case) -> Start | None:
    """What the start after the deeds adds to this message."""
    if case.after != "in_flight":
        return None
    if case.place == "flying-withdrawn" or "MessageWithdrawn" in case.row.adds:
        return WITHDRAWN_AT_LAST
    return SWEPT if case.row.deed == "remove" else HELD_FOR_DOUBT


def test_the_table_has_every_pair_of_the_lifecycle():
    assert set(ROWS) == set(LIFECYCLE)


def test_every_pair_that_leads_somewhere_is_caused_and_no_refused_one_is():
    leads = {pair for pair, state in LIFECYCLE.items() if not isinstance(state, Refusal)}
    leads -= {(None, "MessageImported sent"), (None, "MessageImported failed")}
    caused = {pair for pair, rows in ROWS.items() if not isinstance(rows, str) and any(row.adds for row in rows)}
    assert caused == leads
    for (state, step), rows in ROWS.items():
        assert isinstance(rows, str) or {PLACES[place].state for row in rows for place in row.places} == {state}, step


def test_every_client_s_deed_is_tried_in_every_place_that_a_message_can_be_in():
    client = {"send", "send-faulty", "retry", "delete", "withdraw", "hold", "resend", "release", "call-sent"}
    client |= {"call-error", "remove"}
    places = {place for places in OF_STATE.values() for place in places}
    missing = {f"{place}/{deed}" for place in places for deed in client} - CASES.keys()
    assert missing == {"unknown/remove"}


# The world of the test.


class World:
    """The service, its relays, and all messages of the table."""

    def __init__(self, it: Service) -> None:
        self.it = it
        self.relay = CaptureRelay()
        # A relay that defers one message after the other is soon taken to be in trouble, for all its accounts.
        self.deferring = CaptureRelay()
        self.gated, self.ending = GatedRelay(), GatedRelay()
        self.removed: dict[str, object] = {}
        self.deeds = {
            "send": self.send,
            "send-faulty": self.send_faulty,
            "expire": self.expire,
            "delete": self.delete,
            "remove": self.remove,
            "resume": self.resume,
            "answer": self.answer,
            **dict.fromkeys(("retry", "withdraw", "hold", "release"), self.in_bulk),
            **dict.fromkeys(("resend", "call-sent", "call-error"), self.resolve),
        }

    @property
    def relays(self) -> tuple[CaptureRelay, ...]:
        return self.relay, self.deferring, self.gated, self.ending

    def received(self) -> Counter[str]:
        return Counter(subject_id(message.content) for relay in self.relays for message in relay.messages)

    async def post(self, path: str, body: object = None) -> Any:
        return (await self.it.client.post(path, json=body or {})).json()

    # Deeds

    async def send(self, case: Case, deed: str) -> object:
        return await self.add(letter(case.id, "paused"))

    async def send_faulty(self, case: Case, deed: str) -> object:
        return await self.add(letter(case.id, "paused", to=()))

    async def expire(self, case: Case, deed: str) -> object:
        return await self.add(letter(case.id, "paused", expires_ts=int(time.time()) + 1))

    async def add(self, message: dict[str, object]) -> Any:
        return await self.post("/commands/add-messages", {"messages": [message]})

    async def delete(self, case: Case, deed: str) -> object:
        return await self.post("/commands/delete-messages", {"ids": [case.id]})

    async def in_bulk(self, case: Case, deed: str) -> object:
        where = {"subject_contains": f"About {case.id}", "account_id": case.account}
        return await self.post("/commands/bulk", {"action": deed, "where": where})

    async def resolve(self, case: Case, deed: str) -> object:
        path = f"/messages/{quote(case.id, safe='')}/resolve"
        return await self.post(path, {"as": deed.removeprefix("call-")})

    async def remove(self, case: Case, deed: str) -> object:
        """Once an account, whose messages are told the same."""
        if case.account not in self.removed:
            self.removed[case.account] = (await self.it.client.delete(f"/account/{case.account}")).json()
        return self.removed[case.account]

    async def resume(self, case: Case, deed: str) -> object:
        return await self.post(f"/account/{case.account}/resume")

    async def answer(self, case: Case, deed: str) -> object:
        self.ending.gate.set()


def letter(message_id: str, account: str, to: str | tuple[str, ...] = "ann", **fields: object) -> dict[str, object]:
    names = (to,) if isinstance(to, str) else to
    addresses = [f"{name}@{DOMAIN}" for name in names]
    return mail(message_id, addresses, account_id=account, body=f"{SECRET}\n", **fields)


# Bringing everything into its place.

NEEDS_LIMIT = "used-up"


def accounts() -> list[str]:
    return sorted({case.account for case in CASES.values() if PLACES[case.place].state is not None})


async def open_accounts(world: World) -> None:
    ports = {
        "gated": world.gated.port,
        "starting": world.gated.port,
        "ending": world.ending.port,
        "deferring": world.deferring.port,
        "down": free_port(),
    }
    for account in accounts():
        name = account.removeprefix("gone-")
        limit = {"limit_per_hour": 1} if name == "limited" else {}
        await world.it.account(account, ports.get(name, world.relay.port), max_connections=50, **limit)
        if name in ("paused", "starting"):
            await world.it.post(f"/account/{account}/pause")
        if name == "limited":
            await world.it.add([letter(f"{NEEDS_LIMIT}/{account}", account)])
    await world.it.until("/results", lambda page: len(page["results"]) == limited())


def limited() -> int:
    """How many accounts are over their limit: each has sent a message more than the table has."""
    return sum(account.endswith("limited") for account in accounts())


def placed(state: State) -> list[Case]:
    """The messages of the places of a state."""
    return [case for case in CASES.values() if PLACES[case.place].state == state]


async def bring_all(world: World) -> None:
    """Send all messages, wait until each has come to its state, and do what is to be done to it there."""
    cases = [case for case in CASES.values() if PLACES[case.place].state is not None]
    messages = [
        letter(case.id, case.account, place.to, **dict(place.fields))
        for case in cases
        for place in (PLACES[case.place],)
    ]
    answer = await world.post("/commands/add-messages", {"messages": messages})
    assert (answer["queued"], len(answer["rejected"])) == (
        len(cases) - len(placed("rejected")),
        len(placed("rejected")),
    )
    doubted = [case for case in placed("held") if DOUBTED in PLACES[case.place].to]
    in_flight, retrying = len(placed("in_flight")), [case.id for case in cases if case.place == "retrying"]
    await world.it.until("/status", lambda status: (status["held"], status["in_flight"]) == (len(doubted), in_flight))
    await world.it.until(
        "/deferred", lambda page: {row["id"] for row in page["deferred"] if row["cause"] == "retry"} == set(retrying)
    )
    await world.it.until("/status", blocked)
    with trio.fail_after(WAIT_S_MAX):
        while world.gated.at_gate + world.ending.at_gate < in_flight:
            await trio.sleep(LOOK_S)
    ended = {case.id for case in (*placed("sent"), *placed("failed"))}
    await world.it.until("/results", lambda page: ended <= {row["id"] for row in page["results"]}, limit=1000)
    for case in cases:
        for deed in PLACES[case.place].then:
            await world.deeds[deed](case, deed)


def blocked(status: dict[str, Any]) -> bool:
    """Whether the accounts over their limits are known to be throttled, and the relays that are down unreachable."""
    signs = {"limited": "throttled_until", "down": "unreachable_until"}
    rows = status["accounts"]
    return all(signs[kind] in rows[name] for name in rows if (kind := name.removeprefix("gone-")) in signs)


# Looking at everything.


class Picture(NamedTuple):
    """All that can be asked for: records by id, lists by name and id, counts, and what the relays have."""

    records: dict[str, dict[str, Any]]
    lists: dict[str, dict[str, str]]
    counts: dict[str, Any]
    states: dict[str, int]
    received: Counter[str]

    def status(self, message_id: str) -> str:
        return str(self.records[message_id].get("status", "unknown"))

    def facts(self, message_id: str) -> list[str]:
        return kinds(self.records[message_id].get("timeline", ()))


Timelines = dict[str, list[str]]
"""The kinds of facts by message."""


async def timelines(world: World) -> Timelines:
    found: Timelines = {}
    for fact in await world.it.events():
        if "message_id" in fact:
            found.setdefault(fact["message_id"], []).append(fact["kind"])
    return found


async def listed(world: World) -> dict[str, dict[str, Any]]:
    """Everything in the list of messages, but what was sent to use up a limit."""
    rows = (await world.it.get("/messages", limit=10_000))["messages"]
    return {row["id"]: row for row in rows if not row["id"].startswith(NEEDS_LIMIT)}


LISTS = ("pending", "deferred", "held", "results")
COUNTS = ("active", "reasons", "pending", "deferred", "in_flight", "held")


def all_reported(page: dict[str, Any]) -> bool:
    """Without an upstream a result counts as reported a moment after it is final."""
    return all("reported_ts" in row for row in page["messages"] if row["status"] in ("sent", "error"))


async def picture(world: World) -> Picture:
    await world.it.until("/messages", all_reported, limit=10_000)
    records = {case_id: await record(world, case_id) for case_id in CASES}
    lists = {}
    for name in LISTS:
        rows = (await world.it.get(f"/{name}", limit=10_000))[name]
        lists[name] = {f"{row['id']}@{row.get('seq', '')}": json.dumps(steady(row)) for row in rows}
    status = await world.it.status()
    counts = {name: status[name] for name in COUNTS}
    found = Picture(records, lists, counts, await states(world), world.received())
    conserved(found)
    return found


async def record(world: World, message_id: str) -> dict[str, Any]:
    """The message's record, {} for an unknown id."""
    response = await world.it.client.get(f"/messages/{quote(message_id, safe='')}")
    assert response.status_code in (200, 404)
    return steady(response.json()) if response.status_code == 200 else {}


def steady(row: dict[str, Any]) -> dict[str, Any]:
    """A row without when a relay that is down is tried again: each try says so anew."""
    waiting = row.get("waiting_for", {})
    if waiting.get("reason") == "relay_unreachable":
        return row | {"waiting_for": {"reason": waiting["reason"]}}
    return row


async def states(world: World) -> dict[str, int]:
    """`letterbook_messages` of /metrics."""
    text = (await world.it.client.get("/metrics")).text
    mark = 'letterbook_messages{state="'
    lines = [line.removeprefix(mark).split('"} ') for line in text.splitlines() if line.startswith(mark)]
    return {state: int(float(count)) for state, count in lines}


def conserved(found: Picture) -> None:
    """What is counted is what is there, and nothing that was accepted is missing."""
    by_status = Counter(record["status"] for record in found.records.values() if record)
    count = found.states
    assert count["accepted"] == sum(
        count[name] for name in ("sent", "failed", "withdrawn", "waiting", "in_flight", "held")
    )
    assert (
        count["waiting"]
        == by_status["pending"] + by_status["deferred"]
        == found.counts["pending"] + found.counts["deferred"]
    )
    assert count["in_flight"] == by_status["in_flight"] == found.counts["in_flight"]
    assert count["held"] == by_status["held"] == found.counts["held"] == len(found.lists["held"])
    assert count["sent"] == by_status["sent"] + limited()
    assert count["failed"] + count["rejected"] == by_status["error"]
    assert count["withdrawn"] == by_status["withdrawn"]
    assert (
        len(found.lists["pending"]) == found.counts["pending"]
        and len(found.lists["deferred"]) == found.counts["deferred"]
    )


# The test.


async def do_all(world: World) -> dict[str, object]:
    """All deeds, and what was told: what starts starts before the suspension, which everything else comes after."""
    told = {}
    first = [case for case in CASES.values() if case.row.deed == "resume"]
    for case in first:
        told[case.id] = await world.deeds["resume"](case, "resume")
    flying = world.gated.at_gate + len(first)
    with trio.fail_after(WAIT_S_MAX):
        while world.gated.at_gate < flying:
            await trio.sleep(LOOK_S)
    assert await world.post("/commands/suspend") == {"ok": True, "active": False}
    order = sorted(CASES.values(), key=lambda case: ("expire", "remove").count(case.row.deed), reverse=True)
    for case in order:
        if case not in first:
            told[case.id] = await world.deeds[case.row.deed](case, case.row.deed)
    failed = sum(case.row.adds.count("MessageFailed") for case in CASES.values())
    await world.it.until("/events", lambda page: len(page["events"]) == failed, kind="MessageFailed", limit=1000)
    in_flight = sum(case.after == "in_flight" for case in CASES.values())
    await world.it.until("/status", lambda status: status["in_flight"] == in_flight)
    return told


def wrong_after_deeds(before: Timelines, told: dict[str, object], now: Picture) -> list[object]:
    """Where a message is not as its row says."""
    return [
        (case.id, told[case.id], now.status(case.id), now.facts(case.id))
        for case in CASES.values()
        if told[case.id] != case.row.told(case.id)
        or now.facts(case.id) != [*before.get(case.id, ()), *case.row.adds]
        or now.status(case.id) not in STATUSES[case.after]
    ]


def wrong_after_start(before: Picture, now: Picture) -> list[object]:
    """Where a start has changed more, or less, than is said."""
    wrong: list[object] = []
    for case in CASES.values():
        start = at_start(case)
        if start is None:
            same = now.records[case.id] == before.records[case.id]
        else:
            same = now.facts(case.id) == [*before.facts(case.id), *start.adds] and now.status(case.id) == start.status
        if not same:
            wrong.append((case.id, before.records[case.id], now.records[case.id]))
    moved = {case.id for case in CASES.values() if at_start(case)}
    for name in LISTS:
        was, is_now = without(before.lists[name], moved), without(now.lists[name], moved)
        if was != is_now:
            wrong.append((name, was.items() - is_now.items(), is_now.items() - was.items()))
    return wrong


def without(rows: dict[str, str], moved: set[str]) -> dict[str, str]:
    """A list without these messages."""
    return {key: row for key, row in rows.items() if key.partition("@")[0] not in moved}


async def again(world: World) -> None:
    """`kill -9`, here and now, and a start."""
    await world.it.kill()
    await world.it.start()


async def test_whatever_was_answered_is_so_after_kill_9_in_every_state(service):
    world = World(await service(delivery_in_doubt="hold", delivery_retry_delays="3600", delivery_max_connections=100))
    async with AsyncExitStack() as stack:
        for relay in world.relays:
            await stack.enter_async_context(relay.listening())
        await open_accounts(world)
        await bring_all(world)
        before = await timelines(world)
        told = await do_all(world)
        done_all = await picture(world)
        assert not wrong_after_deeds(before, told, done_all)
        await again(world)
        started = await after_interruptions(world, done_all)
        erased = await all_erased(world, started)
        sent_again = await all_sent_again(world, erased)
        await all_delivered(world, sent_again)
        await world.it.kill()
    await world.it.run_all([("verify",), ("rebuild", "--check")])


async def after_interruptions(world: World, before: Picture) -> Picture:
    """The first start: what was in flight is in doubt, and nothing else has changed."""
    swept = sum(at_start(case) == SWEPT for case in CASES.values())
    failed = sum(case.row.adds.count("MessageFailed") for case in CASES.values()) + swept
    await world.it.until("/events", lambda page: len(page["events"]) == failed, kind="MessageFailed", limit=1000)
    await world.it.until("/status", lambda status: status["in_flight"] == 0)
    now = await picture(world)
    assert not wrong_after_start(before, now)
    assert (now.received, now.counts["active"]) == (before.received, False)
    return now


async def all_erased(world: World, before: Picture) -> dict[str, str]:
    """Everything is deleted, whatever its state, and deleted again, which erases what the first time has only
    withdrawn. It is killed at the answer, between the facts and the erasure or in it, which the next start ends: a
    letter is gone when the write-ahead file was cut, and that is tried until it succeeds. Gives all statuses.
    """
    known = [message_id for message_id, record in before.records.items() if record]
    used_up = [f"{NEEDS_LIMIT}/{account}" for account in accounts() if account.endswith("limited")]
    assert found_in_files(world, SECRET, DOMAIN) == {SECRET, DOMAIN}
    assert await delete_all(world, before.records) == (len(known), set(before.records) - set(known))
    assert await delete_all(world, [*known, *used_up]) == (len(known) + len(used_up), set())
    await again(world)
    with trio.fail_after(WAIT_S_MAX):
        while found_in_files(world, SECRET, DOMAIN, "as the address asks"):
            await trio.sleep(LOOK_S)
    now, facts = await listed(world), await timelines(world)
    open_ = {message_id for message_id in known if before.status(message_id) in ("pending", "deferred", "held")}
    statuses = {each: "withdrawn" if each in open_ else before.status(each) for each in known}
    assert {message_id: row["status"] for message_id, row in now.items()} == statuses
    assert not [row for row in now.values() if "message" in row]
    for each in known:
        assert facts[each] == [*before.facts(each), *(["MessageWithdrawn"] if each in open_ else [])], each
    assert world.received() == before.received
    return statuses


async def delete_all(world: World, ids: Iterable[str]) -> tuple[int, set[str]]:
    answer = await world.post("/commands/delete-messages", {"ids": list(ids)})
    return answer["removed"], set(answer["not_found"])


def found_in_files(world: World, *words: str) -> set[str]:
    """Which of the words can be read in what the service keeps."""
    files = world.it.folder.glob(f"{world.it.db.name}*")
    content = b"".join(path.read_bytes() for path in files if path.suffix != ".lock")
    return {word for word in words if word.encode() in content}


async def all_sent_again(world: World, statuses: dict[str, str]) -> list[str]:
    """Every id comes again with new content, and the service is killed at the answer: what was not sent waits."""
    await world.it.account("last", world.relay.port)
    messages = [letter(message_id, "last", "last") for message_id in statuses]
    answer = await world.post("/commands/add-messages", {"messages": messages})
    await again(world)
    sent = {message_id for message_id, status in statuses.items() if status == "sent"}
    assert {(each["id"], each["reason"]) for each in answer["rejected"]} == {(each, "already sent") for each in sent}
    waiting = [message_id for message_id in statuses if message_id not in sent]
    assert answer["queued"] == len(waiting)
    now = await listed(world)
    assert {message_id for message_id, row in now.items() if row["status"] == "pending"} == set(waiting)
    return waiting


async def all_delivered(world: World, waiting: list[str]) -> None:
    """Dispatch is still suspended; activated, it delivers all that waits, each once. Then it is let go of."""
    before = world.received()
    assert (await world.it.status())["active"] is False
    assert await world.post("/commands/activate") == {"ok": True, "active": True}
    await world.it.until("/status", lambda status: (status["pending"], status["in_flight"]) == (0, 0))
    assert world.received() - before == Counter(waiting)
    assert {row["status"] for message_id, row in (await listed(world)).items() if message_id in waiting} == {"sent"}
    counted = await states(world)
    assert counted["accepted"] == counted["sent"]
    everything = len(await listed(world)) + limited()
    await world.it.until("/messages", all_reported, limit=10_000)
    cleaned = await world.post("/commands/cleanup-messages", {"older_than_seconds": 0})
    assert cleaned == {"ok": True, "removed": everything}
    assert await listed(world) == {} and await world.it.results() == []
