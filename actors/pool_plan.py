"""Which connections to open and which to give up: the sender pool's decision, without any I/O.

There are three kinds of places. *Serving* connections, at most `connections_max` of them over all accounts, carry
mail. *First* connects have FIRST_MAX places of their own, one a relay until it has answered once, and *probes* of
relays known to be unreachable have PROBES_MAX, one a relay: so a relay that accepts and never answers, or fifty of
them, take no place from those that serve. A first connect or a probe that succeeds becomes serving where there is
room; otherwise it ends, and its account waits for a place like any other whose relay is known to answer. Where all
places of such a kind are taken and another relay waits for one, those that have been at it for HANGS_US give way, and
their relays count as unreachable: relays that accept and are silent until the last deadline, which is five minutes for
the greeting alone, must not keep a living one waiting. Probes go in the order in which they are due.

Connections of one relay grow as they are answered: at most as many are being made as stand already. When a further
one fails while others stand, the relay is not unreachable, it takes no more than these: it is *crowded* for a while.
When a relay is known unreachable, connections to it that carry no mail are given up, those under way included.

An account in demand that finds all places taken gets that of a connection that idles where it is not wanted. One that
has no place at all is *starving*: it may also take a connection that is still being made after CONNECT_US. Else the
next to end its attempt gives up its place: on the account that has the most, if that has several; on any that has had
a turn, once the starving one has waited as long. Accounts with immediate mail come first, and nobody's turn is waited
for.

The plan writes its reservations into the very state that it reads, so it may be asked again at any time. What ends
is counted until it is gone, so no limit is exceeded meanwhile.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from msgspec import Struct

from store.views.accounts import AccountRow, RelayRow

from .scheduler import Wanted

ACCOUNT_CONNECTIONS_MAX = 20
"""As many as Postfix opens to one destination by default (default_destination_concurrency_limit)."""

FIRST_MAX = 64
"""Relays that are being tried for the first time at once: twice the default of serving connections, and cheap."""

PROBES_MAX = 8
"""Relays known down that are probed at once: 16 a minute, since none holds its place for longer than HANGS_US."""

HANGS_US = 30_000_000
"""How long a first connect or a probe keeps its place while another relay waits for one: as long as connecting alone
may take. Relays that make strangers wait for the greeting do so for 10 to 20 s."""

TURN_US = 2_000_000
"""How long a connection serves before it may be taken for a starving account: a login takes a tenth of that."""

CONNECT_US = 10_000_000
"""How long a connection may be in the making before a starving account takes its place: no living relay needs it."""

CROWDED_US = 30_000_000
"""How long a relay that refused a further connection is not asked for one more: two refusals a minute annoy nobody."""

Phase = Literal["connecting", "idle", "busy"]
Kind = Literal["serving", "first", "probe"]
Shape = tuple[str | int | bool | None, ...]
Accounts = Callable[[int], AccountRow | None]
Relays = Callable[[str], RelayRow | None]


def shape(row: AccountRow) -> Shape:
    """What a connection was made from: when an account says something else, its connections are made anew."""
    return (row.relay, row.tls, row.tls_verify, row.tls_ca_file, row.auth)


def connections_allowed(row: AccountRow) -> int:
    return row.max_connections or ACCOUNT_CONNECTIONS_MAX


class Place(Struct, eq=False):
    """One connection, or one that is being made; `since_us` is when that began, or when it began to serve. `leaving`
    means that it ends with what it is doing now."""

    account: int
    relay: str
    shape: Shape
    kind: Kind
    since_us: int = 0
    phase: Phase = "connecting"
    leaving: bool = False


class Plan(Struct, frozen=True):
    """Places to connect, places without mail to close, and when to plan again. Of the places to close,
    the relays of those that `hung` are unreachable."""

    connect: tuple[Place, ...]
    close: tuple[Place, ...]
    wake_us: int | None
    hung: tuple[Place, ...] = ()


class PoolPlan:
    """The places there are, and what is known of the relays behind them."""

    def __init__(self, connections_max: int) -> None:
        self._connections_max = connections_max
        # In the order in which they were made: places are compared by identity, and the same seed is the same run.
        self._places: dict[Place, None] = {}
        self._answered: set[str] = set()
        self._crowded_until_us: dict[str, int] = {}
        self._starving: dict[int, int] = {}
        self._waiting: dict[Kind, set[str]] = {}

    def places(self) -> Iterator[Place]:
        return iter(self._places)

    @property
    def serving(self) -> int:
        return sum(place.kind == "serving" for place in self._places)

    @property
    def contended(self) -> bool:
        """Whether an account waits for a place that another one has."""
        return bool(self._starving)

    # What happens to places

    def answered(self, place: Place, now_us: int) -> None:
        """The place's relay has answered: it serves, or it ends where there is no room."""
        self._answered.add(place.relay)
        if place.kind != "serving" and self.serving >= self._connections_max:
            place.leaving = True
            return
        place.kind, place.phase, place.since_us = "serving", "idle", now_us

    def refused(self, place: Place, now_us: int) -> bool:
        """A connect has failed. Whether the relay is unreachable: it is not while other connections to it stand, unless
        it was a probe, for then they do not speak for it either."""
        if place.kind != "probe" and self._standing(place.relay):
            self._crowded_until_us[place.relay] = now_us + CROWDED_US
            return False
        self._answered.discard(place.relay)
        return True

    def serves(self, place: Place) -> bool:
        """Whether a connection stands that was made from the same words as this place."""
        return any(each.shape == place.shape and _stands(each) for each in self._places)

    def yields(self, place: Place, now_us: int) -> bool:
        """Whether a connection that has ended its attempt gives up its place to a starving account."""
        if len(self._starving) <= self._leaving():
            return False
        longest_us = now_us - min(self._starving.values())
        serving = Counter(each.account for each in self._places if each.kind == "serving" and not each.leaving)
        if serving[place.account] > 1 and serving[place.account] == max(serving.values()):
            return True
        return longest_us >= TURN_US and (longest_us == now_us or now_us - place.since_us >= TURN_US)

    def left(self, place: Place) -> None:
        """The connection is gone."""
        self._places.pop(place, None)

    def outdated(self, account: Accounts, relay: Relays) -> list[Place]:
        """Mark as leaving what must not serve again; those without mail are returned, to be closed at once.

        That is whatever belongs to an account that was removed, says something else or wants fewer connections, and
        what waits at a relay that is known unreachable.
        """
        kept: Counter[int] = Counter()
        close = []
        for place in sorted(self._places, key=_worth, reverse=True):
            if place.leaving:
                continue
            row = account(place.account)
            stays = row is not None and not row.removed and shape(row) == place.shape
            waits = place.kind == "serving" and place.phase != "busy" and relay(place.relay) is not None
            if row is None or not stays or waits or kept[place.account] >= connections_allowed(row):
                place.leaving = True
            else:
                kept[place.account] += 1
            if place.leaving and place.phase != "busy":
                close.append(place)
        return close

    # The plan

    def plan(
        self, demand: Mapping[int, Wanted], account: Accounts, relay: Relays, now_us: int, wall_ahead_us: int = 0
    ) -> Plan:
        """What to do for the accounts in demand. Moments are of the monotonic clock, those of relays' rows of the wall
        clock, which is so much ahead."""
        close = self.outdated(account, relay)
        have = Counter(place.account for place in self._places if not place.leaving)
        total = Counter(place.account for place in self._places)
        connect: list[Place] = []
        wakes: list[int] = []
        short = 0
        starving: dict[int, int] = {}
        self._waiting = {"first": set(), "probe": set()}
        for number in self._in_turn(demand, have, account, relay):
            row = account(number)
            if row is None or row.removed:
                continue
            for _ in range(min(demand[number].connections - have[number], connections_allowed(row) - total[number])):
                kind = self._may_connect(row, relay(row.relay), now_us, wall_ahead_us, wakes)
                short += kind == "full"
                if kind == "full" and not have[number]:
                    starving[number] = 0 if demand[number].immediate else self._starving.get(number) or now_us
                if kind is None or kind == "full":
                    break
                connect.append(self._reserve(row, kind, now_us))
                have[number] += 1
        self._starving = starving
        close += self._make_room(short, demand, have, now_us, wakes)
        hung = tuple(self._give_way(now_us, wakes))
        return Plan(tuple(connect), (*close, *hung), min(wakes, default=None), hung)

    def _in_turn(
        self, demand: Mapping[int, Wanted], have: Mapping[int, int], account: Accounts, relay: Relays
    ) -> list[int]:
        """Immediate first, then those without any connection, of these who has starved longest; then the others. Of
        relays to be probed, the one whose moment came first: otherwise the same few could have all the places."""

        def turn(number: int) -> tuple[bool, bool, float, int]:
            row = account(number)
            down = relay(row.relay) if row is not None else None
            starving = self._starving.get(number, float("inf"))
            return not demand[number].immediate, have.get(number, 0) > 0, starving, down.until_us if down else 0

        return sorted(demand, key=turn)

    def _reserve(self, row: AccountRow, kind: Kind, now_us: int) -> Place:
        place = Place(row.number, row.relay, shape(row), kind, now_us)
        self._places[place] = None
        return place

    def _may_connect(
        self, row: AccountRow, unreachable: RelayRow | None, now_us: int, wall_ahead_us: int, wakes: list[int]
    ) -> Kind | Literal["full"] | None:
        """The kind of place for one more connection; "full" where all places serve, None where it has to wait."""
        relay = row.relay
        if unreachable is not None:
            if (until_us := unreachable.until_us - wall_ahead_us) > now_us:
                wakes.append(until_us)
                return None
            return self._special("probe", relay, PROBES_MAX)
        standing = self._standing(relay)
        if standing and (until_us := self._crowded_until_us.get(relay, 0)) > now_us:
            wakes.append(until_us)
            return None
        if relay not in self._answered:
            return self._special("first", relay, FIRST_MAX)
        making = sum(place.relay == relay and place.phase == "connecting" for place in self._places)
        if making >= max(standing, 1):
            return None
        return "serving" if self.serving < self._connections_max else "full"

    def _special(self, kind: Kind, relay: str, places_max: int) -> Kind | None:
        """One a relay, within the places of its kind; a relay that finds them all taken waits for one."""
        same = [place for place in self._places if place.kind == kind]
        if any(place.relay == relay for place in same):
            return None
        if len(same) < places_max:
            return kind
        self._waiting[kind].add(relay)
        return None

    def _give_way(self, now_us: int, wakes: list[int]) -> Iterator[Place]:
        """First connects and probes that hang, as many as relays wait for such a place that is not about to be free."""
        for kind, relays in self._waiting.items():
            same = sorted((place for place in self._places if place.kind == kind), key=lambda place: place.since_us)
            short = len(relays) - sum(place.leaving for place in same)
            for place in [place for place in same if not place.leaving][: max(short, 0)]:
                if place.since_us + HANGS_US > now_us:
                    wakes.append(place.since_us + HANGS_US)
                    break
                place.leaving = True
                yield place

    def _standing(self, relay: str) -> int:
        """How many connections to a relay serve, and will go on."""
        return sum(place.relay == relay and _stands(place) for place in self._places)

    def _leaving(self) -> int:
        return sum(place.leaving and place.kind == "serving" for place in self._places)

    def _make_room(
        self, short: int, demand: Mapping[int, Wanted], have: Mapping[int, int], now_us: int, wakes: list[int]
    ) -> Iterator[Place]:
        """Give up connections that carry no mail, for as many accounts as are short of one that no place is about to be
        free for."""
        leaving = self._leaving()
        spare = dict(have)
        for place in sorted(self._places, key=_worth):
            if place.kind != "serving" or place.leaving or place.phase == "busy" or leaving >= short:
                continue
            wanted = demand[place.account].connections if place.account in demand else 0
            hangs_us = place.since_us + CONNECT_US
            if place.phase == "connecting" and hangs_us > now_us and leaving < len(self._starving):
                wakes.append(hangs_us)
            elif spare[place.account] > wanted if place.phase == "idle" else leaving < len(self._starving):
                place.leaving = True
                spare[place.account] -= 1
                leaving += 1
                yield place


def _stands(place: Place) -> bool:
    return place.phase != "connecting" and not place.leaving


def _worth(place: Place) -> tuple[int, int]:
    """What is given up first comes first: idle before connecting before busy, and the longest at it."""
    return ("idle", "connecting", "busy").index(place.phase), place.since_us
