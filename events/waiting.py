"""Why a message has not gone yet: a closed list, a sentence each, and the one function that decides.

The scheduler passes a message by exactly where `why` speaks; the API, the metrics and the simulation call it
too. What none of the reasons explains is `no_free_connection`: everything that is ours to grant is granted,
and a sender has yet to come for it. A caller that knows better (the scheduler, just before it offers the
message) asks `why(..., or_else=None)`.
"""

from typing import Literal, Protocol

from msgspec import Struct

from .rules import EVERYTHING, Release

Reason = Literal[
    "held",
    "restored",
    "suspended",
    "disk",
    "account_paused",
    "due_later",
    "retry",
    "quota",
    "outside_rules",
    "relay_unreachable",
    "no_free_connection",
]

SENTENCES: dict[Reason, str] = {
    "held": "It waits for a person: resolve it.",
    "restored": "The log was restored from a backup: activate says whether waiting mail is held or sent.",
    "suspended": "Dispatch is suspended: activate it.",
    "disk": "The disk is nearly full: free some space.",
    "account_paused": "Its account is paused: resume it.",
    "due_later": "Its sender asked for a later moment.",
    "retry": "An attempt failed for now; the next one is due later.",
    "quota": "Its account has used up what its limits allow.",
    "outside_rules": "No rule lets mail go at this moment.",
    "relay_unreachable": "Its relay cannot be reached; it is being probed.",
    "no_free_connection": "It may go, and waits for a connection of its account to be free.",
}


class WaitingFor(Struct, frozen=True, omit_defaults=True):
    """The reason, and the moment (microseconds) until which it holds, where that is known."""

    reason: Reason
    until_us: int | None = None


class MessageLike(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def due_us(self) -> int: ...
    @property
    def due_cause(self) -> str | None: ...
    @property
    def priority(self) -> int: ...


class AccountLike(Protocol):
    @property
    def paused(self) -> bool: ...
    @property
    def throttled_until_us(self) -> int | None: ...


class RelayLike(Protocol):
    @property
    def until_us(self) -> int | None: ...


class DispatchLike(Protocol):
    @property
    def active(self) -> bool: ...
    @property
    def restored(self) -> bool: ...


_DUE_REASONS: dict[str, Reason] = {"retry": "retry", "relay": "relay_unreachable"}
"""Why a message is due later, by the word in the fact that made it so; other words: somebody asked for it."""

NO_FREE_CONNECTION = WaitingFor("no_free_connection")


def why_account(
    account: AccountLike,
    relay: RelayLike | None,
    dispatch: DispatchLike,
    now_us: int,
    disk_low: bool = False,
    outside: WaitingFor | None = None,
) -> WaitingFor | None:
    """What keeps all mail of an account from going now; None where nothing does. Rules keep some of it: what they say
    of one message is `outside`."""
    if not dispatch.active:
        return WaitingFor("restored" if dispatch.restored else "suspended")
    if disk_low:
        return WaitingFor("disk")
    if account.paused:
        return WaitingFor("account_paused")
    if account.throttled_until_us is not None and account.throttled_until_us > now_us:
        return WaitingFor("quota", account.throttled_until_us)
    if outside:
        return outside
    if relay is not None and relay.until_us is not None:
        return WaitingFor("relay_unreachable", relay.until_us)
    return None


def why(
    message: MessageLike,
    account: AccountLike,
    relay: RelayLike | None,
    dispatch: DispatchLike,
    now_us: int,
    *,
    disk_low: bool = False,
    release: Release = EVERYTHING,
    or_else: WaitingFor | None = NO_FREE_CONNECTION,
) -> WaitingFor | None:
    """Why this waiting or held message has not gone; None for one that is in flight or has ended."""
    if message.state == "held":
        return WaitingFor("held")
    if message.state != "waiting":
        return None
    if message.due_us > now_us:
        return WaitingFor(_DUE_REASONS.get(message.due_cause or "", "due_later"), message.due_us)
    lets_go = release.lets_go(message.priority, message.due_us)
    outside = None if lets_go else WaitingFor("outside_rules", release.next_us)
    return why_account(account, relay, dispatch, now_us, disk_low, outside) or or_else
