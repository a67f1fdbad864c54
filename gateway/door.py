"""The door: what the gateway was given, and how a command is handed over to those who act.

A handler never owns a write: it puts a Submission or a Control into a channel, without waiting for room, and awaits
the reply. When its client goes away the handler is cancelled, and the command is carried out all the same.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import trio
from msgspec import Raw

from events.commands import Command, Control, Decision, Dropped, Refused, Reply, Submission, Unavailable
from store.opening import Store

from .auth import Gate
from .bodies import Bodies, Lease
from .errors import Trouble, unavailable
from .lists import Look
from .metrics import Metrics
from .settings import AUDITS_AT_ONCE, Settings
from .tickets import Tickets
from .watching import Watch

Given = TypeVar("Given")

STOPPING = "the service is stopping: ask again in a moment"
BUSY = "too much is waiting to be taken: ask again in a moment"
BACKLOG = "too many messages wait for delivery (max_backlog): ask again later"
DISK = "the disk is nearly full (min_free_mb): free some space, then ask again"
LATER = "nothing can be taken now, ask again in a moment"
NOT_READY = ("stopping", "restored", "suspended", "disk", "backlog")
"""What /ready can say; docs/operations.md has what to do."""

DROPPED = "the service could not say what became of this: ask again"


class Door:
    """Everything that the gateway has.

    `remarks` are words of others for /status that keep no mail (the clock), `gauges` numbers of others for the metrics
    (named as in metrics.GAUGES), and `labelled` those of metrics.LABELLED by label; all are asked for now and then and
    must not block.
    """

    def __init__(
        self,
        store: Store,
        submissions: "trio.MemorySendChannel[Submission]",
        controls: "trio.MemorySendChannel[Control]",
        settings: Settings,
        *,
        stopping: trio.Event,
        disk_low: Callable[[], bool],
        version: str,
        remarks: Callable[[], Sequence[str]] = tuple,
        gauges: Callable[[], Mapping[str, float]] = dict,
        labelled: Callable[[], Mapping[str, Mapping[str, float]]] = dict,
        passed_us: Callable[[], int] = lambda: -1,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.store = store
        self.settings = settings
        self.stopping = stopping
        self.disk_low = disk_low
        self.version = version
        self.entropy = entropy
        self.metrics = Metrics(settings.legacy_prefix)
        self.watch = Watch(store, self.metrics, stopping)
        self.gate = Gate(settings.api_token, store.clock.monotonic_us)
        self.tickets = Tickets(entropy, store.clock.monotonic_us)
        self.bodies = Bodies(settings.body_memory_bytes)
        self.audits = trio.CapacityLimiter(AUDITS_AT_ONCE)
        self.streams = 0
        self._submissions = submissions
        self._controls = controls
        self.remarks = remarks
        self._gauges = gauges
        self._labelled = labelled
        self._passed_us = passed_us
        self.zone = ZoneInfo(settings.timezone)

    def look(self) -> Look:
        """The present moment."""
        clock = self.store.clock
        return Look(clock.now_us(), self.store.log_id, self.disk_low(), zone=self.zone, passed_us=self._passed_us())

    # What is not ready

    @property
    def over_backlog(self) -> bool:
        return 0 < self.settings.max_backlog <= self.watch.backlog

    def reasons(self) -> tuple[str, ...]:
        """Why the service takes no mail, or sends none."""
        dispatch = self.watch.dispatch
        holds = (
            self.stopping.is_set(),
            not dispatch.active and bool(dispatch.restored),
            not dispatch.active and not dispatch.restored,
            self.disk_low(),
            self.over_backlog,
        )
        return tuple(compress(NOT_READY, holds))

    def _trouble(self) -> str | None:
        """Why the log takes nothing at this moment."""
        return f"{self.store.trouble}: {LATER}" if self.store.trouble else None

    def check_accepting(self) -> None:
        """Raises Trouble 503 while no mail is taken."""
        if self.stopping.is_set():
            raise unavailable(STOPPING)
        if trouble := self._trouble():
            raise unavailable(trouble)
        if self.disk_low():
            raise unavailable(DISK)
        if self.over_backlog:
            raise unavailable(BACKLOG)

    def gauges(self) -> dict[str, float]:
        """The numbers of others, and the gateway's own."""
        return {
            "follower_lag_facts": self.store.lag,
            "body_bytes": self.bodies.held,
            "streams": self.streams,
            **self._gauges(),
        }

    def labelled(self) -> dict[str, Mapping[str, float]]:
        """The same, of what has a label."""
        reasons = self.reasons()
        return {"not_ready": {reason: reason in reasons for reason in NOT_READY}, **self._labelled()}

    # Handing over

    async def submit(
        self,
        items: Sequence[bytes | Raw],
        by: str,
        lease: Lease | None = None,
        *,
        default_priority: int | None = None,
        token: str | None = None,
        urgent: bool = False,
        apart: bool = False,
        patient: bool = False,
    ) -> tuple[Decision, ...]:
        """What became of these messages, in their order; who is patient waits where the channel is full.

        Raises Trouble 503.
        """
        self.check_accepting()
        reply: Reply[tuple[Decision, ...]] = Reply()
        submission = Submission(items, by, reply, default_priority, token, urgent, apart)
        if patient:
            await _wait_to_hand_over(self._submissions, submission)
        else:
            _hand_over(self._submissions, submission)
        decisions = await self._answer(reply, lease)
        self.watch.backlog += sum(decision.number is not None and decision.recorded for decision in decisions)
        return decisions

    async def control(self, command: Command, by: str) -> dict[str, Any]:
        """The contract's answer to a command. Raises Trouble."""
        if self.stopping.is_set():
            raise unavailable(STOPPING)
        reply: Reply[dict[str, Any] | Refused | Unavailable] = Reply()
        _hand_over(self._controls, Control(command, by, reply))
        match await self._answer(reply, None):
            case Refused() as refused:
                raise Trouble(refused.status, refused.sentence)
            case Unavailable() as trouble:
                raise unavailable(self._trouble() or str(trouble) or BUSY)
            case answer:
                return answer

    async def _answer(self, reply: Reply[Given], lease: Lease | None) -> Given:
        try:
            return await reply.get()
        except Dropped:
            raise unavailable(self._trouble() or DROPPED) from None
        except trio.Cancelled:
            if lease:
                lease.keep_until(reply)
            raise


def _hand_over(channel: "trio.MemorySendChannel[Any]", command: Submission | Control) -> None:
    try:
        channel.send_nowait(command)
    except trio.WouldBlock:
        raise unavailable(BUSY) from None
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise unavailable(STOPPING) from None


async def _wait_to_hand_over(channel: "trio.MemorySendChannel[Any]", command: Submission) -> None:
    try:
        await channel.send(command)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise unavailable(STOPPING) from None
