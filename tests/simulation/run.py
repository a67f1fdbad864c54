"""One run of a scenario: lives of the service one after another, everybody around them, and what was observed."""

import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trio.testing

from letterbook.config import Config
from letterbook.config_keys import Delivery, Fetch, Server, Smtp, Storage
from letterbook.system import Stop, System, World, running
from store import following
from store.clock import COMPARE_EVERY_S, SystemClock
from tests.checkers.facts import contents

from .chance import seeded_scheduling, stream
from .clients import Clients
from .crash import DATABASE, KEY, PAGES_MAX, PAGES_MIN, Tearing, Torn, copy_files, is_free, limit_pages, shut
from .eye import Eye
from .machine import SlowTurner, slow_down
from .messages import WALL_S
from .network import LifeNetwork
from .observed import Followed, Life, Observed
from .relay import Relay, SimulatedBug
from .scenario import LifePlan, Reflex, Scenario, Step, batch
from .upstream import Upstream

CALM_S_MAX = 2 * 3_600.0
"""Longer than any retry and any back-off of these scenarios can keep a message."""

LIMITED_S = 200.0
"""After so much calm the accounts' limits are lifted: what an hour's limit holds back would only take time."""

LIFE_S_MAX = 900.0
UNWIND_S_MAX = 60.0
DRAIN_S = 20.0

LOOKED_AT_CLOCK_S = 2 * COMPARE_EVERY_S
"""By then the last jump has been found, however little there was to wait for."""

LATER_VERSIONS = 1_000
"""Contents that are made while a run goes on are numbered from here."""

NO_LIMITS = {"limit_per_minute": None, "limit_per_hour": None, "limit_per_day": None}
CALM_DELIVERY: dict[str, Any] = {"retry_delays": (2.0,), "max_retries": 20, "send_interval_seconds": 3_600.0}


Checkpoint = Callable[[Observed, Eye], None]


def simulate(plan: Scenario, folder: Path, checkpoint: Checkpoint = lambda observed, eye: None) -> Observed:
    """Run a scenario. `checkpoint` looks at the files at every start and at the end."""
    observed = Observed(plan.seed)
    with seeded_scheduling(plan.seed), _overflowing_early(), _lines_that_only_a_bug_writes(observed):
        run = Run(plan, folder, observed, checkpoint)
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(run.main, clock=clock, instruments=[run.steps])
    return observed


@contextmanager
def _overflowing_early() -> Iterator[None]:
    """Followers hold 40 facts instead of 10,000, so that a slow one overflows in a run of some hundred facts."""
    held, page = following.FACTS_WAITING_MAX, following.PAGE_FACTS
    following.FACTS_WAITING_MAX, following.PAGE_FACTS = 40, 25
    try:
        yield
    finally:
        following.FACTS_WAITING_MAX, following.PAGE_FACTS = held, page


class _Catcher(logging.Handler):
    """Lines that only a bug writes."""

    def __init__(self, observed: Observed) -> None:
        super().__init__(logging.WARNING)
        self._observed = observed

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and SimulatedBug.__name__ not in logging.Formatter().formatException(record.exc_info):
            text = f"{text}\n{logging.Formatter().formatException(record.exc_info)}"
            self._observed.surprise(text)
        else:
            self._observed.tell("log line", text)


@contextmanager
def _lines_that_only_a_bug_writes(observed: Observed) -> Iterator[None]:
    logger = logging.getLogger("letterbook")
    catcher, propagate = _Catcher(observed), logger.propagate
    logger.addHandler(catcher)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(catcher)
        logger.propagate = propagate


class Steps(trio.abc.Instrument):
    """Counts the scheduler's steps, and calls once when there have been enough."""

    def __init__(self) -> None:
        self.left = -1
        self.then: Callable[[], None] = lambda: None

    def call_after(self, steps: int, then: Callable[[], None]) -> None:
        self.left, self.then = steps, then

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.left >= 0:
            self.left -= 1
            if self.left < 0:
                self.then()


class Living:
    """One life: the service on its files, with the world as this life sees it."""

    def __init__(self, number: int, database: Path, network: LifeNetwork, stop: Stop) -> None:
        self.number = number
        self.database = database
        self.network = network
        self.stop = stop
        self.scope = trio.CancelScope()
        self.gone = trio.Event()
        self.over = trio.Event()
        self.how = ""
        self.left: Path | None = None
        self.system: System
        self.turner: SlowTurner

    def last_seq(self) -> int:
        return self.system.store.last_seq


class Run:
    """The whole of one run."""

    def __init__(self, plan: Scenario, folder: Path, observed: Observed, checkpoint: Checkpoint) -> None:
        self._plan = plan
        self._folder = folder
        self._observed = observed
        self._checkpoint = checkpoint
        self.steps = Steps()
        self._skew_s = 0.0
        self._living: Living | None = None
        self._eye_at: tuple[Path, Eye] | None = None
        self._relays = {
            host: Relay(host, temper, stream(plan.seed, host), observed, self.eye, self._mail_leaves)
            for host, temper in plan.tempers.items()
        }
        self._upstream = Upstream(plan.upstream_trouble, stream(plan.seed, "upstream"), observed)
        self._clients = Clients(observed, stream(plan.seed, "clients"), lambda: self._living)
        self._batches = 0
        self._mails = 0
        self._mails_left = -1
        self._around: trio.Nursery
        self._after_mails: Callable[[], None] = lambda: None
        self._chaos_over = trio.Event()

    # Looking at the files

    def eye(self) -> Eye:
        """On the files of the life that is, or was last."""
        assert self._eye_at is not None
        return self._eye_at[1]

    def _look_at(self, database: Path) -> None:
        self._close_eye()
        self._eye_at = (database, Eye(database))

    def _close_eye(self) -> None:
        if self._eye_at is not None:
            self._eye_at[1].close()
            self._eye_at = None

    # The course of a run

    async def main(self) -> None:
        async with trio.open_nursery() as around:
            self._around = around
            around.start_soon(self._act, around)
            await self._lives(around)
            self._observed.log = self.eye().log()
            (self._observed.hash,) = (
                self.eye().connection.execute("select hex(hash) from commits order by last_seq desc limit 1").fetchone()
            )
            self._close_eye()
            around.cancel_scope.cancel()

    async def _lives(self, around: trio.Nursery) -> None:
        folder = self._folder / "life0"
        folder.mkdir()
        database = folder / DATABASE
        for number, plan in enumerate(self._plan.lives):
            if self._chaos_over.is_set():
                break
            database = await self._live(around, number, database, plan, partial(self._until_its_end, plan))
            await trio.sleep(stream(self._plan.seed, f"pause {number}").choice((0.0, 1.0, 70.0)))
        last = len(self._plan.lives)
        final = LifePlan("stop", "seconds", 0, CALM_DELIVERY)
        await self._live(around, last, database, final, self._calm)

    async def _act(self, around: trio.Nursery) -> None:
        for step in self._plan.steps:
            await trio.sleep_until(step.at)
            around.start_soon(self._do, step)
        await trio.sleep_until(self._plan.chaos_s)
        self._chaos_over.set()

    async def _do(self, step: Step) -> None:
        match step.name:
            case "weather":
                self._relays[step.payload["host"]].weather = step.payload["weather"]
                self._observed.tell(step.payload["host"], f"is {step.payload['weather']}")
            case "upstream gone" | "upstream back":
                self._upstream.gone = step.name == "upstream gone"
                self._observed.tell("upstream", step.name)
            case "bug":
                self._relays[step.payload["host"]].bug = True
            case "disk full" | "disk free":
                if self._living is not None:
                    self._observed.tell("disk", step.name)
                    limit_pages(self._living.turner, PAGES_MIN if step.name == "disk full" else PAGES_MAX)
            case "offer":
                self._batches += 1
                self._upstream.offer(batch(step, self._batches))
            case "jump":
                self._jump(step.payload["by_s"])
            case "resolve held":
                listed = await self._clients.ask("listHeld", {})
                for row in (listed.answer or {}).get("held", ()):
                    await self._clients.act(Step(0, "resolveMessage", {"id": row["id"], **step.payload}))
            case _:
                await self._clients.act(step)

    def _jump(self, by_s: float) -> None:
        self._skew_s += by_s
        self._observed.jumps.append((trio.current_time(), by_s))
        self._observed.tell("clock", f"jumps by {by_s} s")

    # A life

    def _world(self, number: int, network: LifeNetwork, client: Any) -> World:
        seed = self._plan.seed
        return World(
            SystemClock(self._wall_ns, lambda: int(trio.current_time() * 1e9) + number * 10**12),
            network,
            stream(seed, f"chance of life {number}"),
            stream(seed, f"entropy of life {number}").randbytes,
            client,
            threaded=False,
        )

    def _wall_ns(self) -> int:
        return int((WALL_S + self._skew_s + trio.current_time()) * 1e9)

    async def _live(
        self,
        around: trio.Nursery,
        number: int,
        database: Path,
        plan: LifePlan,
        live: Callable[[Living], Awaitable[None]],
    ) -> Path:
        """One life, to its end; the files that the next one finds."""
        seen = Life(number, trio.current_time())
        self._observed.lives.append(seen)
        network = LifeNetwork(around, self._relays, number)  # type: ignore[arg-type]
        life = Living(number, database, network, Stop())
        self._observed.tell(
            "operator", f"starts life {number}: {plan.ending} after {plan.amount:g} {plan.after}, {plan.delivery}"
        )
        with life.scope:
            await self._serve(life, plan, live, seen)
        self._living = None
        life.gone.set()
        life.over.set()
        seen.ended_at, seen.how = trio.current_time(), life.how
        if not is_free(database):
            self._observed.surprise(f"life {number} is over, and its lock is still held")
        left = life.left or database
        self._look_at(left)
        self._checkpoint(self._observed, self.eye())
        return left

    async def _serve(self, life: Living, plan: LifePlan, live: Callable[[Living], Awaitable[None]], seen: Life) -> None:
        config = _config(life.database, plan)
        async with self._upstream.client(life.number) as client:
            world = self._world(life.number, life.network, client)
            async with running(config, world, life.stop) as system, trio.open_nursery() as nursery:
                life.system = system
                life.turner = slow_down(
                    system.store,
                    stream(self._plan.seed, f"machine of life {life.number}"),
                    lambda seq: self._observed.true_at.update({seq: trio.current_time()}),
                )
                self._look_at(life.database)
                seen.first_seq = self.eye().last_seq()
                await nursery.start(system.door.watch.run)
                nursery.start_soon(self._follow, life)
                self._living = life
                await live(life)
                self._living = None
                nursery.cancel_scope.cancel()

    async def _follow(self, life: Living) -> None:
        """A follower of nobody's, from anywhere in the log, that now and then falls asleep."""
        chance = stream(self._plan.seed, f"follower of life {life.number}")
        followed = Followed(life.number, chance.randint(0, life.last_seq()))
        self._observed.followed.append(followed)
        async with life.system.store.follow(followed.after) as batches:
            async for each in batches:
                followed.seqs += [entry.seq for entry in each.entries]
                followed.entries += each.entries
                if chance.random() < 0.2:
                    await trio.sleep(chance.choice((0, 0.01, 5, 100)))

    async def _until_its_end(self, plan: LifePlan, life: Living) -> None:
        """Until the plan says so, or for LIFE_S_MAX, or until the chaos is over."""
        end = trio.Event()
        crash = partial(self._crash, life)
        with trio.move_on_after(min(plan.amount, LIFE_S_MAX) if plan.after == "seconds" else LIFE_S_MAX):
            if plan.after == "steps":
                self.steps.call_after(int(plan.amount), crash if plan.ending == "crash" else end.set)
            elif plan.after == "turns":
                index = life.system.store.wal_index
                chance = self._chance_of_end(life)
                tearing = Tearing(life.database, index, life.turner.run, int(plan.amount), chance, crash)
                life.turner.run = tearing.turn
            elif plan.after == "mails":
                self._mails_left = int(plan.amount)
                then = crash if plan.ending == "crash" else end.set
                self._after_mails = partial(self.steps.call_after, self._chance_of_end(life).randint(0, 150), then)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_when, self._chaos_over, end)
                await end.wait()
                nursery.cancel_scope.cancel()
        self.steps.left = self._mails_left = -1
        if plan.ending == "stop":
            await self._stop(life, "stop")
        elif plan.ending == "stop now":
            life.stop.now.set()
            await self._stop(life, "stop now")
        else:
            crash()
            await trio.lowlevel.checkpoint()

    def _chance_of_end(self, life: Living) -> random.Random:
        return stream(self._plan.seed, f"end of life {life.number}")

    def _mail_leaves(self, message_id: str) -> None:
        self._mails += 1
        self._mails_left -= 1
        if self._mails_left == 0:
            self._after_mails()
        for reflex in self._plan.reflexes:
            if reflex.nth_mail == self._mails and not self._chaos_over.is_set():
                self._around.start_soon(self._react, reflex, message_id)

    async def _react(self, reflex: Reflex, message_id: str) -> None:
        for _ in range(reflex.turns):
            await trio.lowlevel.checkpoint()
        given = {message.id: message for message in contents(self._observed).values()}
        about = given[message_id]
        match reflex.deed:
            case "suspend":
                await self._do(Step(0, "suspend"))
                await trio.sleep(5)
                await self._do(Step(0, "activate", insists=True))
            case "pause":
                await self._do(Step(0, "pauseAccount", {"id": about.account}))
                await trio.sleep(5)
                await self._do(Step(0, "resumeAccount", {"id": about.account}, insists=True))
            case "remove":
                await self._do(Step(0, "deleteAccount", {"id": about.account}))
                await self._do(Step(0, "addAccount", self._plan.accounts[about.account], insists=True))
            case "hold":
                where = {"account_id": about.account}
                await self._do(Step(0, "bulk", {"action": "hold", "where": where}))
                await trio.sleep(5)
                await self._do(Step(0, "bulk", {"action": "release", "where": where}, insists=True))
            case "retry":
                await self._do(Step(0, "bulk", {"action": "retry", "where": {"account_id": about.account}}))
            case "resolve":
                await self._do(Step(0, "resolve held", {"as": "sent"}))
            case deed:
                found = message_id if deed.endswith("this") else self.eye().beside(message_id)
                if found is None:
                    return
                if deed.startswith("delete"):
                    await self._do(Step(0, "deleteMessages", {"ids": [found]}))
                else:
                    revised = replace(given[found], version=given[found].version + LATER_VERSIONS)
                    await self._do(Step(0, "addMessages", messages=(revised,)))

    async def _stop(self, life: Living, how: str) -> None:
        """As the gateway does: no new requests, and those under way have a moment to be answered."""
        life.how = how
        self._observed.tell("operator", how)
        life.stop.asked.set()
        await trio.sleep(1)

    def _crash(self, life: Living, torn: Torn | None = None) -> None:
        """Now, without a checkpoint in between: everything that a process has is gone."""
        if life.gone.is_set():
            return
        life.how = "crash" if torn is None else "torn commit"
        self._observed.tell("operator", f"life {life.number}: {life.how}{f' at {torn.wal_bytes}' if torn else ''}")
        life.left = copy_files(life.database, self._folder / f"life{life.number + 1}", torn)
        shut(life.system.store)
        life.network.die()
        life.gone.set()
        self._living = None
        life.scope.cancel()

    # The end

    async def _calm(self, life: Living) -> None:
        """Relays are healthy, everything may go, and after a while nothing waits."""
        await self._chaos_over.wait()
        self._observed.calm_at = trio.current_time()
        self._observed.tell("operator", "calm")
        for relay in self._relays.values():
            relay.clear_up()
        self._upstream.calm, self._upstream.gone = True, False
        if self._skew_s:
            self._jump(-self._skew_s)
        if any(step.name == "schedule" for step in self._plan.steps):
            await self._clients.act(Step(0, "schedule", {"rules": []}, insists=True))
        for step in (Step(0, "activate"), *(Step(0, "resumeAccount", {"id": name}) for name in self._plan.accounts)):
            await self._clients.act(step)
        await self._until_nothing_waits(LIMITED_S)
        for fields in self._plan.accounts.values():
            await self._clients.act(Step(0, "addAccount", fields | NO_LIMITS))
        await self._until_nothing_waits(CALM_S_MAX)
        await trio.sleep_until(self._observed.calm_at + LOOKED_AT_CLOCK_S)
        await self._stop(life, "stop")

    async def _until_nothing_waits(self, patience_s: float) -> None:
        deadline = trio.current_time() + patience_s
        while trio.current_time() < deadline and self._unfinished():
            await trio.sleep(10)

    def _unfinished(self) -> bool:
        """Whether mail waits, a batch is not confirmed, or a result is not told."""
        eye = self.eye()
        states = eye.states()
        return not self._upstream.empty or "waiting" in states or "in_flight" in states or not eye.all_reported()


async def _when(event: trio.Event, then: trio.Event) -> None:
    await event.wait()
    then.set()


def _config(database: Path, plan: LifePlan) -> Config:
    return Config(
        server=Server(drain_seconds=DRAIN_S),
        storage=Storage(db_path=database, key_file=database.with_name(KEY), min_free_mb=0),
        smtp=Smtp(ehlo_name="sim.example"),
        fetch=Fetch(url="http://upstream.example", interval_seconds=30.0),
        delivery=Delivery(**plan.delivery),
    )
