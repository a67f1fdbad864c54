"""A gateway on a free loopback port, over a real store, with a small scripted side that accepts and controls."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio

from events import commands
from events.account import AccountPaused, AccountRemoved, AccountResumed, AccountSaved
from events.attempt import AttemptEnded, AttemptStarted
from events.commands import Control, Decision, Refused, Submission
from events.exchange import Heard, State, say
from events.fact import OWN, Draft, Entry
from events.letter import Envelope, Letter
from events.lifecycle import ALREADY_SENT
from events.message import DoubtResolved, MessageAccepted, MessageRejected
from events.schedule import DispatchActivated, DispatchSuspended
from events.values import Outcome
from gateway.door import Door
from gateway.server import listening, serve
from gateway.settings import Settings
from store import reading
from store.beside import LetterRow, Replies, Sealed
from store.clock import SystemClock
from store.opening import Store, open_store

TOKEN = "a token"
AUTH = {"X-API-Token": TOKEN}
HOUR_US = 3_600_000_000


class Service:
    """The running gateway, its store, and the scripted side."""

    def __init__(self, store: Store, door: Door, submissions: Any, controls: Any) -> None:
        self.store = store
        self.door = door
        self.port = 0
        self.submissions = submissions
        self.controls = controls
        self.accounts: dict[str, int] = {}
        self.submitted: list[Submission] = []
        self.decide: Callable[[dict[str, Any]], str | None] = lambda message: None
        self.holding: trio.Event | None = None
        self.exchanges: list[Heard] = []
        self.steps: list[commands.Bulk] = []
        self.bulk: Callable[[commands.Bulk], Awaitable[Any]] = nothing_in_bulk

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **kwargs: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=AUTH, timeout=20, **kwargs)

    # The scripted side

    async def ingest(self) -> None:
        async for submission in self.submissions:
            self.submitted.append(submission)
            if self.holding is not None:
                await self.holding.wait()
            submission.reply.put(tuple([await self._take(bytes(item)) for item in submission.items]))

    async def _take(self, item: bytes) -> Decision:
        try:
            message = msgspec.json.decode(item)
        except msgspec.DecodeError:
            return Decision(None, reason="not JSON", recorded=False)
        if not isinstance(message, dict) or "id" not in message:
            return Decision(None, reason="missing id", recorded=False)
        if reason := self.decide(message):
            entry = await self.one(Draft(MessageRejected(id=message["id"], reason=reason, by="api"), message=OWN))
            return Decision(message["id"], entry.seq, reason, entry.seq)
        if number := await self.store.read(reading.message_number, message["id"]):
            return Decision(message["id"], None, str(ALREADY_SENT), recorded=False) if number else Decision(None)
        number = await self.accept(message["id"], to=message.get("to", ["b@example.org"]))
        return Decision(message["id"], number, seq=number)

    async def control(self) -> None:
        async for control in self.controls:
            control.reply.put(await self._carry_out(control))

    async def _carry_out(self, control: Control) -> Any:
        match control.command:
            case commands.RunNow():
                return {"ok": True}
            case commands.Suspend():
                await self.one(Draft(DispatchSuspended(by=control.by)))
                return {"ok": True, "active": False}
            case commands.Activate():
                await self.one(Draft(DispatchActivated(by=control.by)))
                return {"ok": True, "active": True}
            case commands.SaveAccount(account=account):
                await self.account(account.id, account.user, account.password)
                return {"ok": True}
            case commands.SaveVolume() | commands.RemoveVolume():
                return {"ok": True}
            case commands.Bulk() as step:
                self.steps.append(step)
                return await self.bulk(step)
            case commands.Exchange() as exchange:
                self.exchanges.append(exchange.heard)
                return say(State(self.store.log_id), [], 7, None)
            case commands.CleanupMessages():
                return {"ok": True, "removed": 0}
            case commands.ResolveMessage(id=name, resolution=resolution):
                number = await self.store.read(reading.message_number, name)
                fact = DoubtResolved(resolution=resolution, by=control.by)
                (answer,) = (await self.store.record([Draft(fact, message=number)])).answers
                return {"ok": True} if isinstance(answer, Entry) else Refused(str(answer.reason), 409)
            case commands.DeleteMessages(ids=ids):
                return {"ok": True, "removed": 0, "not_found": list(ids)}
            case commands.RemoveAccount(id=name) | commands.PauseAccount(id=name) | commands.ResumeAccount(id=name):
                if name not in self.accounts:
                    return Refused(f"account not found: {name}", 404)
                await self.one(Draft(_ACCOUNT_FACTS[type(control.command)](by=control.by), account=self.accounts[name]))
                return {"ok": True}

    # Facts

    async def one(self, draft: Draft, beside: Any = None) -> Entry:
        recorded = await self.store.record([draft], beside={0: beside} if beside else {})
        (answer,) = recorded.answers
        assert isinstance(answer, Entry), answer
        return answer

    async def account(self, name: str, user: str | None = None, password: str | None = None, **fields: Any) -> int:
        fact = AccountSaved(
            id=name, host="relay.example", port=25, credentials="c" * 16, has_password=bool(password), **fields
        )
        sealed = Sealed(self.store.secrets.seal(msgspec.json.encode({"user": user, "password": password})))
        entry = await self.one(Draft(fact, account=self.accounts.get(name, OWN)), sealed)
        self.accounts[name] = entry.account or 0
        return entry.account or 0

    async def accept(
        self, name: str, account: str = "default", *, to: Any = ("b@example.org",), due_us: int = 0, priority: int = 2
    ) -> int:
        if account not in self.accounts:
            await self.account(account)
        to = tuple(to)
        fact = MessageAccepted(
            id=name,
            priority=priority,
            due_us=due_us,
            expires_us=self.store.clock.now_us() + HOUR_US,
            size=10,
            recipients=tuple(f"digest{index}" for index in range(len(to))),
            letter="d",
            by="api",
        )
        letter = Letter(id=name, sender="a@example.org", to=to, subject=f"About {name}", body="Hello")
        envelope = Envelope("a@example.org", to, f"About {name}")
        row = LetterRow(msgspec.json.encode(envelope), msgspec.json.encode(letter), b"salt")
        return (await self.one(Draft(fact, message=OWN, account=self.accounts[account]), row)).seq

    async def start(self, number: int, account: str = "default", recipients: tuple[int, ...] = (0,)) -> int:
        fact = AttemptStarted(revision=number, recipients=recipients)
        return (await self.one(Draft(fact, message=number, account=self.accounts[account]))).seq

    async def end(
        self, number: int, attempt: int, *outcomes: Outcome, then: str = "done", texts: Any = (), **fields: Any
    ) -> int:
        outcomes = outcomes or (Outcome(0, "delivered", 250, queue_id="q1"),)
        fact = AttemptEnded(attempt=attempt, outcomes=outcomes, next=then, took_us=2000, **fields)
        beside = Replies(tuple(texts)) if texts else None
        return (await self.one(Draft(fact, message=number, account=self.accounts["default"]), beside)).seq

    async def send(self, name: str) -> int:
        """Accept and deliver; the seq of the end."""
        number = await self.accept(name)
        return await self.end(number, await self.start(number))

    async def refuse(self, name: str) -> int:
        number = await self.accept(name)
        refused = Outcome(0, "refused", 550, "5.1.1")
        texts = ((0, "550 5.1.1 no such user"),)
        return await self.end(number, await self.start(number), refused, then="failed", cause="refused", texts=texts)


async def nothing_in_bulk(step: commands.Bulk) -> Any:
    return {"matched": 0, "changed": 0, "without_content": 0, "in_doubt": 0, "next": None}


_ACCOUNT_FACTS: dict[type, Any] = {
    commands.RemoveAccount: AccountRemoved,
    commands.PauseAccount: AccountPaused,
    commands.ResumeAccount: AccountResumed,
}


@asynccontextmanager
async def running(
    folder: Path, *, scripted: bool = True, disk_low: bool = False, **settings: Any
) -> AsyncIterator[Service]:
    """A service; at the end it is stopped, and must stop within its drain time."""
    settings = {"port": 0, "api_token": TOKEN, "drain_seconds": 3.0} | settings
    stopping = trio.Event()
    submissions, taken = trio.open_memory_channel[Submission](64)
    controls, controlled = trio.open_memory_channel[Control](64)
    async with open_store(folder / "letterbook.db", folder / "letterbook.key", clock=SystemClock()) as store:
        door = Door(
            store,
            submissions,
            controls,
            Settings(**settings),
            stopping=stopping,
            disk_low=lambda: disk_low,
            version="0.1.0",
        )
        service = Service(store, door, taken, controlled)
        async with trio.open_nursery() as nursery:
            service.port = await nursery.start(serve_it, door)
            if scripted:
                nursery.start_soon(service.ingest)
                nursery.start_soon(service.control)
            try:
                yield service
            finally:
                stopping.set()
                with trio.move_on_after(settings["drain_seconds"] + 2, shield=True) as scope:
                    await door_closed(service)
                nursery.cancel_scope.cancel()
                assert not scope.cancelled_caught, "the server did not end in time"


_CLOSED = "closed"


async def serve_it(door: Door, *, task_status: Any) -> None:
    closed = trio.Event()
    setattr(door, _CLOSED, closed)
    try:
        async with listening(door.settings.host, door.settings.port) as listeners:
            await serve(door, listeners, task_status=task_status)
    finally:
        closed.set()


async def door_closed(service: Service) -> None:
    await getattr(service.door, _CLOSED).wait()
