"""The scheduler: what may go now, and in which order. How it works:

For each account and priority there is a *window*: the first WINDOW_MAX waiting messages by (due, number), folded
from the log. A window is *complete* when nothing waits beyond its last message; otherwise what comes in beyond the
last is not kept, and a refill reads the window anew from the view. A refill is as of some seq: facts up to that seq
say nothing new to that window and are passed over. What was folded beyond it while the read was under way stands in the
journal, and about the messages that it names the journal is right, the read is not. One refill is under way at a time,
so the journal ends with it. Memory is bounded by accounts, not by messages, and an immediate arrival always finds a
place in the window of its own priority.

Which messages are out is known apart from the windows: `offered` until a sender has them or they are released,
`granted` until their attempt has begun, `flying` until it has ended. Such a message is passed by, whatever a window
says. What a window shows may be stale by a few facts; then admission refuses the start, the number
comes back by `release` with the seq at which it was judged, and nothing of that account is offered before the
follower has passed that seq.

`plan` gives candidates: priority immediate first over all accounts, then round robin over the accounts, `batch_size`
messages a turn. An account has a turn only while it has credit: connected senders that wait, less what is offered. One
without credit is *hungry*, and the next sender of it that is ready wakes the loop. An account is passed by exactly
where `events.waiting` gives a reason, a message where the rules keep it (`timetable.py`), and the account while it is
*blocked*: the rate limiter refused one of its messages, so nothing more of it is offered until the moment that came
with the refusal, the end of one of its attempts, a slot given back, or new limits. A refusal leaves the order alone, so
nobody is overtaken.

`plan` also says what is wanted: for each account how many connections could be used now. The sender pool opens them.
Moments are of the clock as the facts that were folded say: a step of it counts from its fact, which also moves what
waits. So nothing is ever judged by the clock of one side of a step and the waits of the other.

Everything here is synchronous and touches nothing; `actors/delivery.py` is the loop around it.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from events.account import (
    AccountPaused,
    AccountRemoved,
    AccountResumed,
    AccountSaved,
    AccountThrottled,
    RelayReached,
    RelayUnreachable,
)
from events.attempt import AttemptEnded, AttemptInterrupted, AttemptStarted
from events.fact import Entry
from events.message import (
    DoubtResolved,
    MessageAccepted,
    MessageExpedited,
    MessageFailed,
    MessageHeld,
    MessageRequeued,
    MessageRevised,
    MessageWithdrawn,
)
from events.rules import EVERYTHING
from events.schedule import DispatchActivated, DispatchSuspended, RuleRemoved, RuleSaved
from events.service import ClockStepped, ClockTrusted
from events.waiting import WaitingFor, why_account
from store.dispatching import NEVER_US, QueueRow, Queues, UnitState, first_recipients
from store.views import ACCOUNTS, DISPATCH, RELAYS, RULES
from store.views.accounts import AccountRow, RelayRow
from store.views.dispatch import ACTIVE, DispatchRow
from store.views.messages import RETRIABLE

from .timetable import Timetable

WINDOW_MAX = 100
"""Messages kept an account and priority: three times the connections there are, so a refill is rarely waited for."""

REFILLS_MAX = 16
"""Windows of one refill, those first that were read longest ago: with all of some hundred accounts' it would hold the
loop for as long as it takes to take them in, and a reader for a fifth of a second."""

REFILL_BELOW = 40
"""A window that is incomplete is read again when fewer are left: what is left lasts while the read is under way."""

_OPENING = (AccountSaved, AccountResumed, DispatchActivated, RelayReached, RelayUnreachable, ClockStepped, ClockTrusted,
            RuleSaved, RuleRemoved)  # fmt: skip
"""Facts after which mail may go that could not before, a relay needs a probe, or moments are others."""

_CLOSING = (AccountPaused, AccountRemoved, AccountThrottled, DispatchSuspended)
"""Facts after which connections are wanted no more: a demand that stays would have idle ones made anew for ever."""

PRIORITIES = range(4)
IMMEDIATE = 0


class Candidate(Struct, frozen=True):
    """A message that may go now; `recipients` are those of the attempt, `more` whether others are open too."""

    number: int
    account: int
    priority: int
    revision: int
    recipients: tuple[int, ...]
    more: bool = False
    expires_us: int = NEVER_US


class Wanted(Struct, frozen=True):
    """How many connections an account could use now, and whether for mail of priority immediate."""

    connections: int
    immediate: bool


class Plan(Struct, frozen=True):
    """What to offer, what is wanted, which windows (account, priority) to refill, and when time alone may change it."""

    candidates: tuple[Candidate, ...]
    demand: dict[int, Wanted]
    refills: tuple[tuple[int, int], ...]
    wake_us: int | None


class _Window:
    """The first waiting messages of one account and priority, in order, as of `as_of` or later. `unknown_at` is the seq
    of the last fact that brought a message of which only the view knows the place."""

    __slots__ = ("as_of", "complete", "items", "order", "unknown_at")

    def __init__(self, complete: bool, as_of: int) -> None:
        self.order: list[tuple[int, int]] = []
        self.items: dict[int, QueueRow] = {}
        self.complete = complete
        self.as_of = as_of
        self.unknown_at = 0

    @property
    def wants_refill(self) -> bool:
        return self.unknown_at > self.as_of or (not self.complete and len(self.order) < REFILL_BELOW)

    @property
    def bare(self) -> bool:
        """Whether nothing of it waits, as far as anybody knows."""
        return self.complete and not self.order and self.unknown_at <= self.as_of

    def add(self, item: QueueRow) -> int | None:
        """Put a message in its place; returns the number that has no room, which may be its own."""
        key = (item.due_us, item.number)
        if not self.complete and (not self.order or key > self.order[-1]):
            # Nobody knows what lies between the window's last and this one.
            return item.number
        insort(self.order, key)
        self.items[item.number] = item
        if len(self.order) <= WINDOW_MAX:
            return None
        _, number = self.order.pop()
        del self.items[number]
        self.complete = False
        return number

    def remove(self, number: int) -> None:
        item = self.items.pop(number)
        del self.order[bisect_left(self.order, (item.due_us, number))]

    def replace(self, rows: Iterable[QueueRow], complete: bool, as_of: int) -> None:
        """Take other rows, which are in order."""
        self.items = {row.number: row for row in rows}
        self.order = [(row.due_us, row.number) for row in self.items.values()]
        self.complete = complete
        self.as_of = as_of


class _Account:
    """An account's windows, how much of it is offered or busy, and what keeps it from being offered."""

    __slots__ = ("barrier", "blocked", "blocked_until_us", "busy", "offered", "relay", "row", "windows")

    def __init__(self, row: AccountRow, complete: bool, as_of: int) -> None:
        self.take(row)
        self.windows = tuple(_Window(complete, as_of) for _ in PRIORITIES)
        self.offered = 0
        self.busy = 0
        self.barrier = 0
        self.blocked = False
        self.blocked_until_us: int | None = None

    def take(self, row: AccountRow) -> None:
        """Be as this row says."""
        self.row = row
        self.relay = row.relay

    def live_windows(self) -> list[tuple[int, _Window]]:
        """(priority, window) of those in which something waits, or may wait."""
        return [(priority, window) for priority, window in enumerate(self.windows) if not window.bare]


Heads = Iterator[tuple[int, QueueRow]]
"""(priority, message) in the order in which an account's mail goes."""

Offer = tuple[int, int, Heads, Heads]
"""An account, its credit, its immediate mail and its other mail."""


class _Insert(Struct, frozen=True):
    seq: int
    account: int
    priority: int
    item: QueueRow

    @property
    def number(self) -> int:
        return self.item.number


class _Leave(Struct, frozen=True):
    seq: int
    number: int


class Scheduler:
    """See the module's text. Moments are microseconds of the wall clock."""

    def __init__(self, batch_size: int = 1, timetable: Timetable | None = None) -> None:
        self._batch_size = batch_size
        self._timetable = timetable
        self._release = EVERYTHING
        self._accounts: dict[int, _Account] = {}
        # Those that may have mail waiting: a plan looks at no others.
        self._live: dict[int, _Account] = {}
        self._relays: dict[str, RelayRow] = {}
        self._dispatch: DispatchRow = ACTIVE
        self._where: dict[int, _Window] = {}
        self._out: dict[int, Candidate] = {}
        self._granted: set[int] = set()
        self._flying: dict[int, Candidate] = {}
        self._marked: set[int] = set()
        self._hungry: set[int] = set()
        self._woken: set[int] = set()
        self._stirred = True
        self._barrier: float = math.inf
        self._rest_until_us = 0
        self._disk_low = False
        self._expiry = True
        self._journal: list[_Insert | _Leave] = []
        self._refilling: list[tuple[int, int]] = []
        self._turn = 0
        self._moved = 0
        self.position = 0

    # What the views say

    def start(self, state: UnitState) -> None:
        """Begin from what the views say as of a seq; the windows of accounts with waiting mail ask to be refilled."""
        self.position = state.seq
        self._moved = state.moved
        self._dispatch = state.dispatch
        if self._timetable:
            self._timetable.take(state.rules)
        self._relays = {row.key: row for row in state.relays}
        for row in state.accounts:
            known = self._accounts[row.number] = _Account(row, row.number not in state.waiting, state.seq)
            self._live[row.number] = known

    def account(self, number: int) -> AccountRow | None:
        known = self._accounts.get(number)
        return known.row if known else None

    def relay(self, key: str) -> RelayRow | None:
        """The relay's row, while it is known unreachable."""
        return self._relays.get(key)

    def relays(self) -> Iterable[str]:
        """The keys of the relays that are known unreachable."""
        return self._relays.keys()

    def fold(self, entry: Entry) -> None:
        """Follow a fact."""
        self.position = entry.seq
        fact = entry.fact
        match fact:
            case MessageAccepted():
                self._stirred = True
                self._arrived(entry, fact, len(fact.recipients), None)
            case MessageRevised():
                self._stirred = True
                self._leave(_Leave(entry.seq, entry.message or 0))
                self._arrived(entry, fact, len(fact.reach), fact.reach)
            case AttemptStarted():
                self._started(entry)
            case AttemptEnded() | AttemptInterrupted():
                self._ended(entry, fact)
            case MessageWithdrawn() | MessageHeld() | MessageFailed():
                self._leave(_Leave(entry.seq, entry.message or 0))
                if entry.message in self._flying:
                    self._marked.add(entry.message)
            case DoubtResolved() if fact.resolution == "resend":
                self._back(entry)
            case MessageRequeued():
                self._back(entry)
            case MessageExpedited():
                self._leave(_Leave(entry.seq, entry.message or 0))
                self._back(entry)
            case _:
                self._fold_rows(entry)

    def _fold_rows(self, entry: Entry) -> None:
        kind = type(entry.fact)
        self._stirred |= kind in _OPENING or kind in _CLOSING
        if kind in RULES.facts:
            if self._timetable:
                self._timetable.fold(entry)
        elif isinstance(entry.fact, ClockStepped | ClockTrusted):
            self._stepped(entry, entry.fact)
        elif kind in ACCOUNTS.facts and entry.account is not None:
            self._fold_account(entry, entry.account)
        elif kind in RELAYS.facts:
            for key in map(str, RELAYS.keys(entry)):
                if row := RELAYS.evolve(self._relays.get(key), entry):
                    self._relays[key] = row
                else:
                    self._relays.pop(key, None)
        elif kind in DISPATCH.facts:
            self._dispatch = DISPATCH.evolve(self._dispatch, entry) or ACTIVE

    def _fold_account(self, entry: Entry, number: int) -> None:
        known = self._accounts.get(number)
        row = ACCOUNTS.evolve(known.row if known else None, entry)
        if row is None:
            return
        if known is None:
            self._accounts[number] = _Account(row, True, entry.seq)
            return
        known.take(row)
        if not isinstance(entry.fact, AccountThrottled):
            known.blocked = False

    def _stepped(self, entry: Entry, fact: ClockStepped | ClockTrusted) -> None:
        """The wall clock has moved, so moments at which a slot would be free are wrong: they are asked for again. Where
        what waits was moved with it, all windows are read anew, and no reading from before counts."""
        self._rest_until_us = 0
        for known in self._accounts.values():
            known.blocked = False
            if known.row.throttled_until_us is not None:
                known.take(replace(known.row, throttled_until_us=None))
        if isinstance(fact, ClockStepped) and not fact.waits_us:
            return
        self._moved = entry.seq
        self._where.clear()
        for number, known in self._accounts.items():
            self._live[number] = known
            for window in known.windows:
                window.replace((), False, entry.seq)

    # Windows

    def _arrived(
        self, entry: Entry, fact: MessageAccepted | MessageRevised, count: int, reach: tuple[int, ...] | None
    ) -> None:
        number = entry.message or entry.seq
        recipients, more = first_recipients(count, reach)
        item = QueueRow(number, fact.due_us, entry.seq, recipients, more, fact.expires_us)
        self._insert(_Insert(entry.seq, entry.account or 0, fact.priority, item))

    def _insert(self, insert: _Insert) -> None:
        known = self._accounts.get(insert.account)
        if known is None:
            return
        self._live[insert.account] = known
        if self._refilling:
            self._journal.append(insert)
        window = known.windows[insert.priority]
        if insert.seq > window.as_of:
            self._put(window, insert.item)

    def _put(self, window: _Window, item: QueueRow) -> None:
        self._take_out(item.number)
        self._where[item.number] = window
        if (gone := window.add(item)) is not None:
            del self._where[gone]

    def _leave(self, leave: _Leave) -> None:
        """A message is waiting no more, or not as it was."""
        if self._refilling:
            self._journal.append(leave)
        window = self._where.get(leave.number)
        if window and leave.seq > window.as_of:
            self._take_out(leave.number)

    def _unknown(self, entry: Entry, account: int, priority: int) -> None:
        """A message waits again, and only the view knows for whom its next attempt is, or of which priority it is."""
        known = self._live[account] = self._accounts[account]
        known.windows[priority].unknown_at = entry.seq
        self._stirred = True

    def _back(self, entry: Entry) -> None:
        """A message waits of which the fact says neither the priority nor whom the next attempt is for."""
        if entry.account in self._accounts:
            for priority in PRIORITIES:
                self._unknown(entry, entry.account, priority)

    def _take_out(self, number: int) -> None:
        if window := self._where.pop(number, None):
            window.remove(number)

    def _started(self, entry: Entry) -> None:
        number = entry.message or 0
        self._leave(_Leave(entry.seq, number))
        if candidate := self._out.pop(number, None):
            if number in self._granted:
                self._granted.discard(number)
            else:
                self.granted(number, candidate)
            self._flying[number] = candidate

    def _ended(self, entry: Entry, fact: AttemptEnded | AttemptInterrupted) -> None:
        number = entry.message or 0
        candidate = self._flying.pop(number, None)
        marked = number in self._marked
        self._marked.discard(number)
        if candidate is None:
            return
        known = self._accounts[candidate.account]
        known.busy -= 1
        if known.blocked:
            known.blocked = False
            self._wake(candidate.account)
        if fact.next != "due" or marked:
            return
        self._stirred = True
        if candidate.more:
            self._unknown(entry, candidate.account, candidate.priority)
            return
        recipients = tuple(outcome.recipient for outcome in fact.outcomes if outcome.status in RETRIABLE)
        due_us = fact.due_us or entry.at_us
        item = QueueRow(number, due_us, candidate.revision, recipients, expires_us=candidate.expires_us)
        self._insert(_Insert(entry.seq, candidate.account, candidate.priority, item))

    def refilling(self, windows: Iterable[tuple[int, int]]) -> None:
        """These windows are being read from the view: keep what is folded meanwhile."""
        self._refilling.extend(windows)

    def refilled(self, read: Queues) -> None:
        """Take what was read for these windows, in their order, all of it as of one seq. What was read on the other
        side of a step of the clock is read again."""
        as_of, queues = read.as_of, read.queues
        if read.moved != self._moved:
            self._refilling.clear()
            self._journal.clear()
            self._stirred = True
            return
        changed = {step.number: step for step in self._journal if step.seq > as_of}
        for (account, priority), rows in zip(self._refilling, queues, strict=True):
            self._refill(self._accounts[account].windows[priority], as_of, rows, changed)
        refilled = frozenset(self._refilling)
        for step in changed.values():
            if isinstance(step, _Insert) and (step.account, step.priority) in refilled:
                self._put(self._accounts[step.account].windows[step.priority], step.item)
        self._refilling.clear()
        self._journal.clear()
        self._stirred = True

    def _refill(
        self, window: _Window, as_of: int, rows: Sequence[QueueRow], changed: Mapping[int, _Insert | _Leave]
    ) -> None:
        for number in window.items:
            del self._where[number]
        window.replace((), True, as_of)
        fresh = [row for row in rows if row.number not in changed]
        for row in fresh:
            self._take_out(row.number)
            self._where[row.number] = window
        window.replace(fresh, len(rows) < WINDOW_MAX, as_of)

    # What is out

    def granted(self, number: int, candidate: Candidate | None = None) -> None:
        """A sender has taken the candidate: it is no longer offered, and the sender no longer waits."""
        candidate = candidate or self._out[number]
        self._granted.add(number)
        known = self._accounts[candidate.account]
        known.offered -= 1
        known.busy += 1

    def release(self, number: int, seq: int) -> None:
        """A candidate comes back without an attempt; its account rests until the follower has passed `seq`."""
        candidate = self._out.pop(number, None)
        if candidate is None:
            return
        known = self._accounts[candidate.account]
        if number in self._granted:
            self._granted.discard(number)
            known.busy -= 1
            # Its slot is free again, and no end will say so.
            known.blocked = False
        else:
            known.offered -= 1
        known.barrier = max(known.barrier, seq)
        if not known.blocked:
            self._wake(candidate.account)

    def _wake(self, account: int) -> None:
        """Something of this account may go as soon as a sender of it is ready, or is already."""
        self._hungry.add(account)
        self._woken.add(account)

    def rest(self, until_us: int) -> None:
        """Offer nothing at all before this moment: the log takes no starts now."""
        self._rest_until_us = until_us

    def block(self, account: int, until_us: int | None) -> None:
        """The account has no free slot: nothing of it is offered before `until_us`, or an end of its, or new limits."""
        if known := self._accounts.get(account):
            known.blocked = True
            known.blocked_until_us = until_us
            self._hungry.discard(account)
            self._woken.discard(account)

    # Deciding

    def stirs(self, credit: Callable[[int], int]) -> bool:
        """Whether something has changed since the last plan that may let mail go, or call for a connection."""
        return self._stirred or self.position >= self._barrier or any(credit(account) > 0 for account in self._woken)

    def hungry(self, account: int) -> bool:
        """Whether a sender of this account that is ready now would be given something."""
        return account in self._hungry

    def plan(self, now_us: int, credit: Callable[[int], int], *, disk_low: bool = False, expiry: bool = True) -> Plan:
        """What may go now; `credit(account)` is how many connected senders wait. What is offered is out from then.
        Without `expiry` the clock is not trusted to say that a message's time is over."""
        self._stirred = False
        self._disk_low = disk_low
        self._expiry = expiry
        self._release = release = self._timetable.release(now_us) if self._timetable else EVERYTHING
        self._hungry.clear()
        self._woken.clear()
        self._barrier = math.inf
        if now_us < self._rest_until_us:
            return Plan((), {}, (), self._rest_until_us)
        demand: dict[int, Wanted] = {}
        refills: list[tuple[int, int, int]] = []
        wakes: list[int] = [] if release is EVERYTHING else [release.until_us]
        offers: list[Offer] = []
        for number, known in list(self._live.items()):
            windows = known.live_windows()
            if not windows:
                del self._live[number]
            if not windows or known.row.removed:
                continue
            refills += [(each.as_of, number, priority) for priority, each in windows if each.wants_refill]
            reason = self._why(known, now_us)
            if self._may_go(known, reason, now_us, wakes):
                if not self._want(known, windows, now_us, demand, wakes):
                    continue
                if (free := credit(number) - known.offered) <= 0:
                    self._hungry.add(number)
                else:
                    first, others = (self._heads(known, now_us, each) for each in (PRIORITIES[:1], PRIORITIES[1:]))
                    offers.append((number, free, first, others))
            elif reason is not None and reason.reason == "relay_unreachable":
                # That is how the relay is found again.
                self._want(known, windows, now_us, demand, wakes)
        # One at a time; an account that wants one again and again does not keep the others from theirs.
        asked = () if self._refilling else tuple(each[1:] for each in nsmallest(REFILLS_MAX, refills))
        return Plan(tuple(self._choose(offers)), demand, asked, min(wakes, default=None))

    def _may_go(self, known: _Account, reason: WaitingFor | None, now_us: int, wakes: list[int]) -> bool:
        """Whether nothing keeps the account's mail; a moment at which that may change is noted."""
        if reason:
            if reason.until_us is not None and reason.until_us > now_us:
                wakes.append(reason.until_us)
            return False
        if known.blocked and known.blocked_until_us is not None:
            if known.blocked_until_us > now_us:
                wakes.append(known.blocked_until_us)
            else:
                known.blocked = False
        if self.position < known.barrier:
            self._barrier = min(self._barrier, known.barrier)
        return not known.blocked and self.position >= known.barrier

    def _why(self, known: _Account, now_us: int) -> WaitingFor | None:
        return why_account(known.row, self._relays.get(known.relay), self._dispatch, now_us, self._disk_low)

    def _want(
        self,
        known: _Account,
        windows: Sequence[tuple[int, _Window]],
        now_us: int,
        demand: dict[int, Wanted],
        wakes: list[int],
    ) -> bool:
        """Note how many connections the account could use, and when its next message is due; whether one is now."""
        due = immediate = 0
        for priority, window in windows:
            by_us = self._let_go_us(priority, now_us)
            now = bisect_left(window.order, (by_us + 1, 0))
            due += now
            if priority == IMMEDIATE:
                immediate = now
            # What the rules keep is woken for with them, whenever it is due.
            if now < len(window.order) and by_us == now_us:
                wakes.append(window.order[now][0])
        # What is granted is counted twice until its attempt has begun: a connection too many is wanted for a moment.
        if connections := due + known.busy:
            demand[known.row.number] = Wanted(connections, immediate > 0)
        return due > 0

    def _let_go_us(self, priority: int, now_us: int) -> int:
        """By when mail of a priority must have been due to go now: what `Release.lets_go` says, for a whole window."""
        return now_us if priority == IMMEDIATE else min(now_us, self._release.up_to_us)

    def _heads(self, known: _Account, now_us: int, priorities: range) -> Heads:
        for priority in priorities:
            window = known.windows[priority]
            by_us = self._let_go_us(priority, now_us)
            for due_us, number in window.order:
                if due_us > by_us:
                    break
                if number not in self._out and number not in self._flying:
                    item = window.items[number]
                    # What has expired is passed by until retention has ended it; a wrong clock expires nothing.
                    if item.expires_us > now_us or not self._expiry:
                        yield priority, item
            else:
                if not window.complete:
                    # More of this priority waits beyond the window: a lower one must not overtake it.
                    return

    def _choose(self, offers: list[Offer]) -> list[Candidate]:
        """Immediate first over all accounts, then in turns; the next plan begins with another account."""
        chosen: list[Candidate] = []
        free = {number: credit for number, credit, _, _ in offers}
        self._turn += 1
        start = self._turn % len(offers) if offers else 0
        offers = offers[start:] + offers[:start]
        for number, credit, immediate, _ in offers:
            free[number] -= self._offer(number, islice(immediate, credit), chosen)
        waiting = [(number, heads) for number, _, _, heads in offers]
        while waiting:
            waiting = [each for each in waiting if self._take_turn(*each, free, chosen)]
        return chosen

    def _take_turn(self, number: int, heads: Heads, free: dict[int, int], chosen: list[Candidate]) -> bool:
        """Whether the account may have another turn."""
        batch = min(self._accounts[number].row.batch_size or self._batch_size, free[number])
        taken = self._offer(number, islice(heads, batch), chosen) if batch > 0 else 0
        free[number] -= taken
        if batch <= 0:
            self._hungry.add(number)
        return 0 < taken == batch

    def _offer(self, account: int, heads: Iterable[tuple[int, QueueRow]], chosen: list[Candidate]) -> int:
        known = self._accounts[account]
        before = len(chosen)
        for priority, row in heads:
            candidate = Candidate(row.number, account, priority, row.revision, row.recipients, row.more, row.expires_us)
            self._out[row.number] = candidate
            chosen.append(candidate)
        known.offered += len(chosen) - before
        return len(chosen) - before
