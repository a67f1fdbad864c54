"""Every state that a message can be in, everything that a client can do about it there, and `kill -9` after it.

One process brings a message into each state for each action, and each action gets its answer. Then the process is
killed; what the next one answers is what this one did, and the table says what that is. The lifecycle's table is walked
by what the log says: a step that nobody has taken here fails the last check until there is a row for it.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import trio

from events.lifecycle import LIFECYCLE, Refusal, in_the_case_of
from letterbook.capture import CaptureRelay

from .relays import Line, ScriptedRelay
from .service import Service, mail

STATES = (
    "unknown", "waiting", "deferred", "in_flight", "held", "sent", "failed", "withdrawn", "rejected", "erased",
)  # fmt: skip
ACTIONS = ("again", "faulty", "delete", "hold", "retry", "release", "resend", "as-sent", "as-error", "remove")


class After(NamedTuple):
    """What the client is answered, and the message's status then; `later` is its status after the kill, where that
    leaves an attempt open: the next start calls it in doubt."""

    answer: object
    status: str | None
    later: str | None = None


def row(state: str, status: str | None, **others: After) -> Iterator[tuple[tuple[str, str], After]]:
    """All actions in one state. What is not named changes nothing: a bulk action is for none, a resolution refused."""
    nothing = {
        **dict.fromkeys(("hold", "retry", "release"), After(0, status)),
        **dict.fromkeys(("resend", "as-sent", "as-error"), After(404 if state == "unknown" else 409, status)),
        "remove": After(True, status),
    }
    named = {action.replace("_", "-"): after for action, after in others.items()}
    return (((state, action), after) for action, after in (nothing | named).items())


def in_flight(**others: After) -> Iterator[tuple[tuple[str, str], After]]:
    for key, after in row("in_flight", "in_flight", **others):
        yield key, after if after.later else after._replace(later="held")


QUEUED = After("queued", "pending")

TABLE: dict[tuple[str, str], After] = {
    **dict(row(
        "unknown", None, again=QUEUED, faulty=After("missing subject", "error"), delete=After("not found", None),
    )),
    **dict(row(
        "waiting", "pending", again=QUEUED, faulty=After("missing subject", "pending"),
        delete=After("removed", "withdrawn"), hold=After(1, "held"), remove=After(True, "error"),
    )),
    **dict(row(
        "deferred", "deferred", again=QUEUED, faulty=After("missing subject", "deferred"),
        delete=After("removed", "withdrawn"), hold=After(1, "held"), retry=After(1, "pending"),
        remove=After(True, "error"),
    )),
    # What is taken back in flight is withdrawn when its attempt has ended, and an account's mail ended.
    **dict(in_flight(
        again=After("in flight", "in_flight"), faulty=After("in flight", "in_flight"),
        delete=After("removed", "in_flight", "withdrawn"), remove=After(True, "in_flight", "error"),
    )),
    **dict(row(
        "held", "held", again=After("in flight", "held"), faulty=After("in flight", "held"),
        delete=After("removed", "withdrawn"), release=After(1, "pending"), resend=After(200, "pending"),
        as_sent=After(200, "sent"), as_error=After(200, "error"), remove=After(True, "error"),
    )),
    **dict(row(
        "sent", "sent", again=After("already sent", "sent"), faulty=After("already sent", "sent"),
        delete=After("removed", "sent"),
    )),
    **dict(row(
        "failed", "error", again=QUEUED, faulty=After("missing subject", "error"), delete=After("removed", "error"),
        retry=After(1, "pending"),
    )),
    **dict(row(
        "withdrawn", "withdrawn", again=QUEUED, faulty=After("missing subject", "withdrawn"),
        delete=After("removed", "withdrawn"),
    )),
    **dict(row(
        "rejected", "error", again=QUEUED, faulty=After("missing subject", "error"), delete=After("removed", "error"),
    )),
    **dict(row(
        "erased", "sent", again=After("already sent", "sent"), faulty=After("already sent", "sent"),
        delete=After("removed", "sent"),
    )),
}  # fmt: skip


def test_the_table_has_every_action_in_every_state():
    assert set(TABLE) == {(state, action) for state in STATES for action in ACTIONS}


async def test_what_was_answered_in_any_state_is_what_the_next_process_answers(service):
    never, soon = trio.Event(), trio.Event()
    async with AsyncExitStack() as stack:
        it = await service(delivery_in_doubt="hold", delivery_retry_delays="3600")
        live, doubt = [await stack.enter_async_context(CaptureRelay().listening()) for _ in range(2)]
        hangs, slow = [await stack.enter_async_context(relay(gate).listening()) for gate in (never, soon)]
        ports = {"live": live.port, "doubt": doubt.port, "in_flight": hangs.port, "slow": slow.port, "idle": live.port}
        await bring_about(it, ports)
        answers = {key: await act(it, *key) for key in TABLE}
        assert answers == {key: after.answer for key, after in TABLE.items()}
        await beyond_the_table(it, soon)
        await it.until("/messages", settled, limit=10_000)
        before = await seen(it)
        received = live.received + doubt.received
        await it.kill()
        await it.start()
        await it.until("/status", lambda status: status["in_flight"] == 0)
        await it.until("/messages", settled, limit=10_000)
        after = await seen(it)
        for key, row in TABLE.items():
            assert before.status(name(key)) == row.status, key
            assert after.status(name(key)) == (row.later or row.status), key
        moved = {name(key) for key, row in TABLE.items() if row.later}
        for kept, was in zip(after.without(moved), before.without(moved), strict=True):
            assert kept == was
        assert live.received + doubt.received == received
        await answered_last(it)
        walked = {step for message in await everything(it) for step in steps(message["timeline"])}
        assert walked == {pair for pair, state in LIFECYCLE.items() if not isinstance(state, Refusal)}
        assert (await it.stop(), (await it.run("rebuild", "--check")).code, (await it.run("verify")).code) == (0, 0, 0)


# The world


def relay(before_final: trio.Event) -> ScriptedRelay:
    rows = Line("RCPT TO:<451", b"451 4.3.0 not now\r\n"), Line("DATA", b"354 go on\r\n")
    return ScriptedRelay(*rows, before_final=before_final)


ACCOUNTS = {
    "waiting": "idle", "held": "idle", "withdrawn": "idle", "unknown": "idle", "rejected": "idle", "deferred": "live",
    "failed": "live", "sent": "live", "erased": "live", "in_flight": "in_flight",
}  # fmt: skip
ADDRESSES = {"deferred": "451@example.org", "failed": "550@example.org"}


def name(key: tuple[str, str]) -> str:
    return "-".join(key)


def account(state: str, action: str) -> str:
    """An account to be removed has only the message that this is tried with."""
    return f"remove-{state}" if action == "remove" else ACCOUNTS[state]


def letter(state: str, action: str) -> dict[str, object]:
    address = ADDRESSES.get(state, "ann@example.org")
    return mail(name((state, action)), address, account_id=account(state, action))


async def bring_about(it: Service, ports: Mapping[str, int]) -> None:
    """One message in each state for each action; then no account sends any more."""
    for state in STATES:
        port = ports[ACCOUNTS[state]]
        for each in {ACCOUNTS[state], f"remove-{state}"}:
            await it.account(each, port, max_connections=len(ACTIONS))
            if port == ports["idle"] and ACCOUNTS[state] == "idle":
                await it.post(f"/account/{each}/pause")
    await it.account("doubt", ports["doubt"])
    await it.account("slow", ports["slow"])
    await it.add([letter(state, action) for state, action in TABLE if state not in ("unknown", "rejected")])
    await it.add([
        mail("some-refused", ["550@example.org", "drop-after-dot@example.org"], account_id="doubt"),
        mail("taken-back-and-delivered", account_id="slow"),
        mail("taken-back-and-deferred", ["ann@example.org", "451@example.org"], account_id="slow"),
    ])  # fmt: skip
    rejected = [letter(*key) | {"from": "nobody"} for key in TABLE if key[0] == "rejected"]
    answer = await it.post("/commands/add-messages", {"messages": rejected})
    assert len(answer["rejected"]) == len(ACTIONS)
    reached = {"in_flight": len(ACTIONS) + 2, "deferred": len(ACTIONS), "held": 1}
    await it.until("/status", lambda status: {key: status[key] for key in reached} == reached)
    await it.until_results(4 * len(ACTIONS))
    taken_back = [name(key) for key in TABLE if key[0] == "withdrawn"]
    erased = [name(key) for key in TABLE if key[0] == "erased"]
    await it.post("/commands/delete-messages", {"ids": taken_back + erased})
    assert await bulk(it, "hold", "About held-") == len(ACTIONS)
    for each in {*ACCOUNTS.values(), *(f"remove-{state}" for state in STATES)}:
        await it.post(f"/account/{each}/pause")


async def bulk(it: Service, action: str, subject: str) -> object:
    return (await it.post("/commands/bulk", {"action": action, "where": {"subject_contains": subject}}))["changed"]


async def act(it: Service, state: str, action: str) -> object:
    """Do it, and give the heart of the answer."""
    id_, message = name((state, action)), letter(state, action)
    match action:
        case "again" | "faulty":
            if action == "faulty":
                del message["subject"]
            answer = await it.post("/commands/add-messages", {"messages": [message]})
            return answer["rejected"][0]["reason"] if answer["rejected"] else "queued"
        case "delete":
            answer = await it.post("/commands/delete-messages", {"ids": [id_]})
            return "removed" if answer["removed"] else "not found"
        case "hold" | "retry" | "release":
            return await bulk(it, action, f"About {id_}")
        case "remove":
            return (await it.client.delete(f"/account/remove-{state}")).json()["ok"]
    resolution = action.removeprefix("as-")
    return (await it.client.post(f"/messages/{id_}/resolve", json={"as": resolution})).status_code


async def beyond_the_table(it: Service, soon: trio.Event) -> None:
    """What takes more than one message in one state: a resolution where somebody was refused, and mail that is taken
    back while its relay thinks."""
    await it.post("/messages/some-refused/resolve", {"as": "sent"})
    await it.post("/commands/delete-messages", {"ids": ["taken-back-and-delivered", "taken-back-and-deferred"]})
    soon.set()
    for message, status in (("delivered", "sent"), ("deferred", "withdrawn")):
        await it.until(f"/messages/taken-back-and-{message}", lambda record, status=status: record["status"] == status)


async def answered_last(it: Service) -> None:
    """The last answers before a kill hold as well: nothing else had the time to be written."""
    await it.account("late", 25)
    await it.post("/account/late/pause")
    await it.add([mail(f"late-{number}", account_id="late") for number in range(4)])
    await it.post("/commands/bulk", {"action": "hold", "where": {"subject_contains": "late-3"}})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.add, [mail("late-4", account_id="late")])
        nursery.start_soon(it.add, [mail("late-0", account_id="late", subject="Newer")])
        nursery.start_soon(it.post, "/commands/delete-messages", {"ids": ["late-1"]})
        nursery.start_soon(bulk, it, "hold", "late-2")
        nursery.start_soon(it.post, "/messages/late-3/resolve", {"as": "error"})
    await it.kill()
    await it.start()
    records = [await it.message(f"late-{number}") for number in range(5)]
    assert [record["status"] for record in records] == ["pending", "withdrawn", "held", "error", "pending"]
    assert records[0]["message"]["subject"] == "Newer"


# What a client sees of it


class Seen(NamedTuple):
    """All records by id, the ids of each list, and the counts."""

    records: dict[str, Any]
    lists: dict[str, list[str]]

    def status(self, message_id: str) -> str | None:
        return self.records[message_id].get("status")

    def without(self, ids: set[str]) -> "Seen":
        """What is not about these messages."""
        records = {key: record for key, record in self.records.items() if key not in ids}
        return Seen(records, {path: [each for each in found if each not in ids] for path, found in self.lists.items()})


async def seen(it: Service) -> Seen:
    records = {}
    for key in [*map(name, TABLE), "some-refused", "taken-back-and-delivered", "taken-back-and-deferred"]:
        records[key] = (await it.client.get(f"/messages/{key}")).json()
    lists = {path: [each["id"] for each in (await it.get(f"/{path}", limit=10_000))[path]] for path in LISTS}
    status, states = await it.status(), await counted(it)
    open_ = {key: status[key] for key in ("in_flight", "held")}
    assert open_ == {key: states[key] for key in open_} and status["pending"] + status["deferred"] == states["waiting"]
    accepted = states.pop("accepted")
    rejected = states.pop("rejected")
    assert accepted == sum(states.values())
    assert accepted + rejected == sum("id" in record for record in records.values())
    return Seen(records, lists)


LISTS = ("pending", "deferred", "held", "results", "messages")


async def counted(it: Service) -> dict[str, int]:
    """How many messages are in each state, as /metrics says it."""
    found = re.findall(r'^letterbook_messages\{state="(\w+)"\} (\d+)', (await it.client.get("/metrics")).text, re.M)
    return {state: int(count) for state, count in found}


def settled(page: Mapping[str, Any]) -> bool:
    """Removing an account is answered at once; its mail is ended in steps, and what is in flight after its attempt.
    Results are reported a moment after they are final."""
    return not [
        each["id"]
        for each in page["messages"]
        if (each["id"].endswith("-remove") and each["status"] in ("pending", "deferred", "held"))
        or (each["status"] in ("sent", "error") and "reported_ts" not in each)
    ]


async def everything(it: Service) -> list[dict[str, Any]]:
    ids = [each["id"] for each in (await it.get("/messages", limit=10_000))["messages"]]
    return [await it.message(each) for each in ids]


def steps(timeline: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str | None, str]]:
    """What the lifecycle's table was asked, by a message's facts."""
    state, withdrawing, refused = None, False, False
    for fact in timeline:
        kind = fact["kind"].replace("Interrupted", "Ended")
        word = {"AttemptEnded": fact.get("next"), "DoubtResolved": fact.get("resolution")}.get(kind)
        refused = refused or any(outcome["status"] == "refused" for outcome in fact.get("outcomes", ()))
        step = f"{kind} {word}" if word else kind
        step = in_the_case_of(step, withdrawing=withdrawing, some_refused=refused)
        if (state, step) not in LIFECYCLE:
            # An erasure: it changes no state.
            continue
        yield state, step
        found = LIFECYCLE[state, step]
        assert not isinstance(found, Refusal), (state, step)
        withdrawing = found == "in_flight" and (withdrawing or kind == "MessageWithdrawn")
        state = found
