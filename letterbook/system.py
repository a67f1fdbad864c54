"""The one place where everything is wired: read it downwards to see the whole service.

    world (clock, network, chance) ── passed in, never reached for
    store: recorder, followers                       up first, down last
      delivery: sender pool, rate limiter, scheduler
        ingest, control                              take commands from two channels
          fetcher, reporter, retention               the application's side, and time
            gateway: door, watch, HTTP               up last, down first

Each actor is kept by supervision: what crashes is started again within a budget, then the service stops with a clear
line. The recorder is never started again. At the stop the layers go in reverse order: HTTP answers what it has taken,
the channels close behind it, ingest and control finish what is in them, attempts under way end within the drain
deadline, and only then the store closes.
"""

import logging
import os
import random
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib.metadata import version as installed_version
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import trio
from msgspec import Struct
from msgspec.structs import asdict

from actors.attachments import AttachmentPolicy, Attachments
from actors.batch_reporter import BatchReporter, give_up_refused
from actors.bell import Bell
from actors.control import run_control
from actors.delivery import Delivery
from actors.fetcher import Fetcher
from actors.ingest import run_ingest
from actors.judgement import RetryPolicy
from actors.network import Network, TrioNetwork
from actors.parse import DEFAULT_ACCOUNT, Policy
from actors.proxy_sync import Reports, Syncer
from actors.reporter import Reporter, count_as_reported
from actors.retention import Retention
from actors.sender_pool import DeliveryPolicy
from actors.supervision import keep
from actors.timetable import Timetable
from actors.upstream import Line, credentials
from events import payloads
from events.commands import (
    Control,
    Refused,
    Reply,
    SaveAccount,
    SaveVolume,
    Schedule,
    Submission,
    Suspend,
    Unavailable,
)
from events.fact import Draft
from events.service import ServiceStarted, ServiceStopped
from events.values import MICROSECONDS
from gateway import lists, server
from gateway.answers import Result
from gateway.commands import handle_command
from gateway.door import Door
from gateway.settings import LIST_LIMIT, Settings
from store import reading
from store.clock import Clock, SystemClock
from store.files import see_unlocked
from store.housekeeping import MB, disk_low, figures
from store.opening import OpeningError, Store, open_store
from store.recorder import EndsGivenUp, NotRecorded
from store.views.rules import NO_RULES
from store.worklists import dispatch_row, living_accounts, rules_row

from .config import Config
from .config_keys import Client
from .logs import FIELDS, Lines
from .outcomes import telling

logger = logging.getLogger("letterbook")

SUBMISSIONS_MAX = 64
"""Batches that wait for ingest; their bodies are bounded together by `body_memory_mb`."""

CONTROLS_MAX = 64

END_RECORDING_S = 3.0
"""After the drain deadline, cancelled senders have this long to record how far they had come."""

DISK_LOOK_S = 1.0

ROOM_AGAIN = 1.1
"""A disk that was low is so until there is a tenth more than `min_free_mb`: else a file that comes and goes would have
the service say yes and no by turns."""

SWITCH_INTERVAL_S = 0.0002
"""The loop holds Python's lock for so long before the writer's thread may have it; the default of 5 ms starved it."""

CONFIG = "config"


class World(Struct, frozen=True):
    """What is outside. `threaded=False` runs the store inline, under virtual time; `client` calls the upstream."""

    clock: Clock
    network: Network
    chance: random.Random
    entropy: Callable[[int], bytes]
    client: httpx.AsyncClient
    threaded: bool = True


class Disk:
    """What is left of the disk, as of a second ago."""

    def __init__(self, config: Config, store: Store) -> None:
        self._path = config.storage.db_path
        self._store = store
        self._min_free_mb = config.storage.min_free_mb
        self._low = disk_low(self._path, self._min_free_mb)

    def low(self) -> bool:
        return self._low

    def look(self) -> None:
        self._low = disk_low(self._path, self._min_free_mb * (ROOM_AGAIN if self._low else 1.0))

    def gauges(self) -> dict[str, float]:
        """Sizes in bytes, and what follows from how they grow."""
        found = figures(self._path, self._store.wal_index, self._store.growth)
        sizes = {"wal_bytes": float(found.wal_bytes), "log_bytes": float(found.log_bytes)}
        if found.bytes_a_day is not None:
            sizes["log_bytes_per_day"] = found.bytes_a_day
        if found.days_left is not None:
            sizes["disk_days_left"] = found.days_left
        return sizes


class Stop:
    """When to stop: `asked` begins the drain, `now` cuts it short."""

    def __init__(self, asked: trio.Event | None = None, now: trio.Event | None = None) -> None:
        self.asked = trio.Event() if asked is None else asked
        self.now = trio.Event() if now is None else now


class System:
    """A running service, without its HTTP server: the store, the actors, and the door in front of them."""

    def __init__(self, config: Config, world: World, store: Store, stop: Stop, lines: Lines | None = None) -> None:
        self.config = config
        self.world = world
        self.store = store
        self.stop = stop
        self.lines = lines
        self.version = installed_version("letterbook")
        self._disk = Disk(config, store)
        self.retention = Retention(store, config.delivery.delivery_report_retention_seconds)
        self.delivery: Delivery | None = None
        self.timetable = Timetable(ZoneInfo(config.scheduler.timezone), store.clock)
        give_submissions, self._submissions = trio.open_memory_channel[Submission](SUBMISSIONS_MAX)
        give_controls, self._controls = trio.open_memory_channel[Control](CONTROLS_MAX)
        self._inlets = (give_submissions, give_controls)
        self._draining = trio.Event()
        self._calls = {name: Line() for name in ("fetch", "report", "sync")}
        self._fetcher: Fetcher | None = None
        self._reports = Reports(store, config.client.batch)
        self._bells = {name: Bell() for name in ("fetcher", "reporter")}
        self.timetable.listeners.append(self._bells["fetcher"].ring)
        self.door = Door(
            store,
            give_submissions,
            give_controls,
            settings(config),
            stopping=stop.asked,
            disk_low=lambda: self._no_room,
            version=self.version,
            remarks=self._remarks,
            gauges=self._gauges,
            labelled=self._labelled,
            passed_us=self.timetable.passed_us,
            entropy=world.entropy,
        )

    # Actors

    def _new_delivery(self) -> Delivery:
        config, world = self.config, self.world
        return Delivery(
            self.store,
            world.network,
            delivery_policy(config),
            world.chance,
            batch_size=config.delivery.batch_size_per_account,
            longest_sleep_s=config.delivery.send_interval_seconds,
            disk_low=lambda: self._no_room,
            expiry=lambda: not self.retention.doubted,
            timetable=self.timetable,
            attachments=Attachments(self.store, attachment_policy(config)),
        )

    async def _deliver(self) -> None:
        """Each start of the unit is a new one: nothing of a crashed one is left but what is in the log."""
        self.delivery = unit = self._new_delivery()
        await unit.run(self._draining, self.config.server.drain_seconds)

    async def _ingest(self) -> None:
        await run_ingest(self._submissions, self.store, accepting_policy(self.config), self.retention.clock_row)

    async def _control(self) -> None:
        await run_control(
            self._controls,
            self.store,
            (self._run_delivery_now, *(bell.ring for bell in self._bells.values())),
            self.retention.let_go,
            self._reports,
            max_age_us=int(self.config.delivery.max_age_seconds * MICROSECONDS),
        )

    def _run_delivery_now(self) -> None:
        if self.delivery:
            self.delivery.run_now()

    async def _fetch(self, url: str) -> None:
        world, config = self.world, self.config
        self._fetcher = Fetcher(
            world.client,
            url,
            self._inlets[0],
            self.store.secrets,
            world.chance,
            interval_s=config.fetch.interval_seconds,
            batch_max=config.delivery.max_batch,
            test_mode=config.delivery.test_mode,
            bell=self._bells["fetcher"],
            line=self._calls["fetch"],
            timetable=self.timetable,
            accepting=lambda: not (self._no_room or self.door.over_backlog),
        )
        await self._fetcher.run()

    async def _report(self) -> None:
        """To whom results are told, and how."""
        config = self.config
        if config.client.client_sync_url:
            await self._report_in_batches(config.client.client_sync_url)
            return
        await give_up_refused(self.store)
        if config.client.proxy_sync_url:
            await self._exchange(config.client.proxy_sync_url)
        elif config.fetch.url:
            await self._report_one_by_one(config.fetch.url)
        elif config.server.sync_token:
            # Whoever calls POST /commands/proxy-sync is told, and acknowledges.
            await trio.sleep_forever()
        else:
            await count_as_reported(self.store)

    async def _report_in_batches(self, url: str) -> None:
        client = self.config.client
        await BatchReporter(
            self.store,
            self.world.client,
            url,
            self.world.chance,
            headers=client_credentials(client),
            batch_max=client.batch,
            test_mode=self.config.delivery.test_mode,
            bell=self._bells["reporter"],
            line=self._calls["report"],
            mail_waits=self._mail_waits,
        ).run()

    async def _exchange(self, url: str) -> None:
        config = self.config
        await Syncer(
            self.store,
            self.world.client,
            url,
            self._inlets[0],
            self._reports,
            self.world.chance,
            line=self._calls["sync"],
            interval_s=config.fetch.interval_seconds,
            # A plain string: what hides itself from being printed cannot be encoded either.
            sync_token=str(config.server.sync_token),
            headers=client_credentials(config.client),
            batch_max=config.delivery.max_batch,
            test_mode=config.delivery.test_mode,
            bell=self._bells["reporter"],
            accepting=lambda: not (self._no_room or self.door.over_backlog),
        ).run()

    async def _report_one_by_one(self, url: str) -> None:
        await Reporter(
            self.store,
            self.world.client,
            url,
            self.world.chance,
            test_mode=self.config.delivery.test_mode,
            bell=self._bells["reporter"],
            line=self._calls["report"],
        ).run()

    def _mail_waits(self) -> None:
        if self._fetcher:
            self._fetcher.mail_waits()

    # Room on the disk

    @property
    def _no_room(self) -> bool:
        """Whether nothing new is begun: little of the disk is left, or the log takes nothing at this moment."""
        return self._disk.low() or self.store.trouble is not None

    async def _watch_disk(self) -> None:
        while True:
            await trio.sleep(DISK_LOOK_S)
            before = self._no_room
            self._disk.look()
            if before and not self._no_room and self.delivery:
                self.delivery.look_again()

    # What others ask

    def _remarks(self) -> tuple[str, ...]:
        return ("clock",) if self.retention.doubted else ()

    def _gauges(self) -> Mapping[str, float]:
        connections = self.delivery.pool.connections() if self.delivery else {}
        return {"connections": sum(connections.values()), **self._disk.gauges()}

    def _labelled(self) -> Mapping[str, Mapping[str, float]]:
        calls = self._calls
        found: dict[str, Mapping[str, float]] = {
            "upstream_trouble": {name: 1 for name, line in calls.items() if line.failing},
            "reports_given_up_total": {"": sum(line.given_up for line in calls.values())},
        }
        if self.lines is not None:
            found["log_lines_total"] = self.lines.written
            found["log_lines_dropped_total"] = {"": self.lines.dropped}
        return found

    # Life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Everything but HTTP, until `stop.asked`; then the layers end in reverse order. Raises GivenUp."""
        await self._say_what_was_found()
        rules = await self.store.read(rules_row)
        self.timetable.take(NO_RULES if rules is None else rules)
        async with telling(self.store, self.lines, self.config.logging.delivery_activity):
            async with trio.open_nursery() as house:
                house.start_soon(self._keep_delivering)
                async with trio.open_nursery() as desks:
                    desks.start_soon(keep, "ingest", self._ingest)
                    desks.start_soon(keep, "control", self._control)
                    await self._first_facts()
                    await self._stand_by(task_status)
                    for inlet in self._inlets:
                        inlet.close()
                self._draining.set()
            await self._record_stop()

    async def _keep_delivering(self) -> None:
        """The unit, until it has drained or the drain is cut short. Ends that the log does not take by then are given
        up: they wait for room on a full disk, and nothing else could end that."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cut_short, nursery.cancel_scope)
            nursery.start_soon(self._give_up, self._draining, self.config.server.drain_seconds)
            nursery.start_soon(self._give_up, self.stop.now, 0.0)
            await keep("delivery", self._deliver)
            nursery.cancel_scope.cancel()

    async def _give_up(self, stop: trio.Event, drain_s: float) -> None:
        await stop.wait()
        await trio.sleep(drain_s + END_RECORDING_S)
        await self.store.recorder.close(trio.current_time())

    async def _stand_by(self, task_status: trio.TaskStatus[None]) -> None:
        """The outer layers, for as long as the service runs; they hold nothing that must be finished."""
        url = self.config.fetch.url
        async with trio.open_nursery() as outer:
            outer.start_soon(self._watch_disk)
            outer.start_soon(keep, "reporter", self._report)
            outer.start_soon(keep, "retention", self.retention.run)
            if url is not None:
                outer.start_soon(keep, "fetcher", partial(self._fetch, url))
            task_status.started()
            await self.stop.asked.wait()
            outer.cancel_scope.cancel()

    async def _cut_short(self, scope: trio.CancelScope) -> None:
        await self.stop.now.wait()
        scope.cancel()

    async def _say_what_was_found(self) -> None:
        """One line, before anything has happened: what this start begins with."""
        store = self.store
        states, living = await store.read(_found)
        fields = {
            "version": self.version,
            "log": store.log_id,
            "seq": store.last_seq,
            "start": store.recovered.label,
            **{state: states.get(state, 0) for state in ("waiting", "held", "in_flight")},
            "accounts": living,
        }
        logger.info("the log is open", extra={FIELDS: fields})

    async def _first_facts(self) -> None:
        """What configuration decides becomes facts before anything else happens."""
        started = ServiceStarted(version=self.version, recovery=self.store.recovered.label)
        try:
            await self.store.record([Draft(started)], urgent=True)
        except NotRecorded as error:
            raise OpeningError(f"{self.store.path} takes nothing, for {error}: mend that, then start again") from None
        if (account := default_account(self.config)) is not None:
            await self._ask(SaveAccount(account))
        for volume in self.config.volumes:
            await self._ask(SaveVolume(payloads.Volume(**asdict(volume)), yields=True))
        rules = self.config.scheduler.rules
        if rules and await self.store.read(rules_row) is None:
            await self._ask(Schedule(rules))
        if not self.config.scheduler.active and (await self.store.read(dispatch_row)).since_us == 0:
            await self._ask(Suspend())

    async def _ask(self, command: SaveAccount | SaveVolume | Schedule | Suspend) -> None:
        reply: Reply[dict[str, Any] | Refused | Unavailable] = Reply()
        await self._inlets[1].send(Control(command, CONFIG, reply))
        answer = await reply.get()
        if isinstance(answer, Refused | Unavailable):
            logger.error("what the configuration says is not taken: %s", answer)

    async def _record_stop(self) -> None:
        try:
            await self.store.record([Draft(ServiceStopped())], urgent=True)
        except NotRecorded:
            logger.warning("the log could not take the last fact: the next start will call this stop unclean")


def _found(connection: reading.Connection) -> tuple[dict[str, int], int]:
    """(messages by state, how many living accounts there are)."""
    return reading.totals(connection), len(living_accounts(connection))


# Configuration, as each part wants it.


def settings(config: Config) -> Settings:
    return Settings(
        host=config.server.host,
        port=config.server.port,
        api_token=config.server.api_token,
        sync_token=config.server.sync_token,
        max_body_bytes=config.server.max_body_mb * MB,
        body_memory_bytes=config.server.body_memory_mb * MB,
        drain_seconds=config.server.drain_seconds,
        max_backlog=config.server.max_backlog,
        max_batch=config.delivery.max_batch,
        send_wait_seconds=config.delivery.send_wait_seconds,
        timezone=config.scheduler.timezone,
        legacy_prefix=config.metrics.legacy_prefix,
    )


def accepting_policy(config: Config) -> Policy:
    delivery = config.delivery
    return Policy(
        max_age_us=int(delivery.max_age_seconds * MICROSECONDS),
        default_priority=delivery.default_priority,
        message_bytes_max=delivery.max_message_mb * MB,
    )


def delivery_policy(config: Config) -> DeliveryPolicy:
    delivery = config.delivery
    return DeliveryPolicy(
        retry=RetryPolicy(
            max_retries=delivery.max_retries,
            retry_delays=delivery.retry_delays,
            hold_in_doubt=delivery.in_doubt == "hold",
            in_doubt_max=delivery.in_doubt_max,
        ),
        connections_max=delivery.max_connections,
        ehlo_name=config.smtp.ehlo_name or socket.getfqdn(),
        message_id_domain=config.smtp.message_id_domain,
    )


def attachment_policy(config: Config) -> AttachmentPolicy:
    keys = config.attachments
    return AttachmentPolicy(
        timeout_s=keys.timeout_seconds,
        bytes_max=keys.max_mb * MB,
        total_bytes_max=keys.max_total_mb * MB,
        memory_bytes_max=keys.memory_mb * MB,
        message_bytes_max=config.delivery.max_message_mb * MB,
        allowed=keys.allow_private_networks,
    )


def client_credentials(client: Client) -> dict[str, str]:
    return credentials(client.client_sync_token, client.client_sync_user, client.client_sync_password)


def default_account(config: Config) -> payloads.Account | None:
    """The account of `[smtp]`, or None where it names no relay."""
    smtp = config.smtp
    if smtp.host is None:
        return None
    return payloads.Account(
        id=DEFAULT_ACCOUNT,
        host=smtp.host,
        port=smtp.port,
        user=smtp.user,
        # A plain string: what hides itself from being printed cannot be encoded and sealed either.
        password=str(smtp.password) or None,
        use_tls=smtp.use_tls,
        tls=smtp.tls,
        auth=smtp.auth,
    )


# Running


@asynccontextmanager
async def running(config: Config, world: World, stop: Stop, lines: Lines | None = None) -> AsyncIterator[System]:
    """A service without HTTP, from the block's beginning to its end. Raises FileError, OpeningError, Fault, GivenUp,
    and at the end EndsGivenUp.

    `lines` are where each message's end is told.
    """
    async with open_store(
        config.storage.db_path,
        config.storage.key_file,
        clock=world.clock,
        entropy=world.entropy,
        threaded=world.threaded,
        wal_mb_max=config.storage.wal_mb_max,
        drain_s=END_RECORDING_S,
    ) as store:
        system = System(config, world, store, stop, lines)
        async with trio.open_nursery() as nursery:
            await nursery.start(system.run)
            try:
                yield system
            finally:
                stop.asked.set()
    if attempts := store.recorder.given_up:
        raise EndsGivenUp(store.path, attempts, store.trouble)


@asynccontextmanager
async def real_world() -> AsyncIterator[World]:
    """This machine: its clocks, its network, its chance."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    async with httpx.AsyncClient() as client:
        yield World(SystemClock(), TrioNetwork(), random.SystemRandom(), os.urandom, client)


class Serving(Struct, frozen=True):
    """Where a service can be reached."""

    host: str
    port: int

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


async def serve(
    config: Config,
    *,
    stopping: trio.Event,
    stopping_now: trio.Event | None = None,
    ready: Callable[[Serving], None] | None = None,
    lines: Lines | None = None,
    outside: Callable[[], AbstractAsyncContextManager[World]] = real_world,
) -> None:
    """The whole service, until `stopping`; `stopping_now` cuts the drain short, `ready` hears where it listens.

    Raises FileError, OpeningError, Fault, GivenUp, EndsGivenUp, and OSError where the port cannot be had.
    """
    # Whoever starts it twice hears of the first, and not of its port; and without a port nothing is made.
    see_unlocked(config.storage.db_path)
    async with (
        server.listening(config.server.host, config.server.port) as listeners,
        outside() as world,
        running(config, world, Stop(stopping, stopping_now), lines) as system,
        trio.open_nursery() as nursery,
    ):
        port = await nursery.start(server.serve, system.door, listeners)
        if ready:
            ready(Serving(config.server.host, port))


class Service:
    """A service inside a program of one's own."""

    def __init__(self, system: System) -> None:
        self._door = system.door
        self._store = system.store

    async def handle_command(self, name: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The contract's answer to a command; errors are answers too."""
        return await handle_command(self._door, name, payload)

    async def results(self, after: int = 0) -> AsyncIterator[Result]:
        """Final results in log order, those there are and those to come, until the service stops."""
        while not self._door.stopping.is_set():
            seen = self._store.last_seq
            page = await self._store.read(lists.results, self._door.look(), after, LIST_LIMIT)
            for result in page.results:
                after = result.seq
                yield result
            if not page.results:
                await self._door.watch.after(seen)


@asynccontextmanager
async def open_service(config: Config) -> AsyncIterator[Service]:
    """The service without its HTTP server, for a program that runs under Trio."""
    async with real_world() as world, running(config, world, Stop()) as system, trio.open_nursery() as nursery:
        await nursery.start(system.door.watch.run)
        yield Service(system)
        nursery.cancel_scope.cancel()
