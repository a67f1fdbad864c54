"""Which connections to open and which to give up: the sender pool's decision, without any I/O.

There are three kinds of places. *Serving* connections, at most `connections_max` of them over all accounts, carry
mail. *First* connects have FIRST_MAX places of their own, one a relay until it has answered once, and *probes* of
relays known to be unreachable have PROBES_MAX, one a relay: so a relay that accepts and never answers, or fifty of
them, take no place from those that serve. A first connect or a probe that succeeds becomes serving where there is
room; otherwise it is *parked* until there is.

When all places serve and an account in demand has none of them, it takes one: an idle connection of another account,
else the next connection to end its attempt on the account that has the most. Accounts with immediate mail come first.

The plan writes its reservations into the very state that it reads, so it may be asked again at any time.
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
"""Relays known down that are probed at once: with a connect time-out of some 30 s, 16 a minute."""

Phase = Literal["connecting", "parked", "idle", "busy"]
Kind = Literal["serving", "first", "probe"]
Shape = tuple[str | int | bool | None, ...]


def shape(row: AccountRow) -> Shape:
    """What a connection was made from: when an account says something else, its connections are made anew."""
    return (row.relay, row.tls, row.tls_verify, row.tls_ca_file, row.auth)


class Place(Struct, eq=False):
    """One connection, or one that is being made. `leaving` means that it ends with what it is doing now."""

    account: int
    relay: str
    shape: Shape
    kind: Kind
    phase: Phase = "connecting"
    leaving: bool = False


class Plan(Struct, frozen=True):
    """Places to connect, parked ones that may serve, idle ones to close, and when to plan again (wall clock)."""

    connect: tuple[Place, ...]
    admit: tuple[Place, ...]
    close: tuple[Place, ...]
    wake_us: int | None


class PoolPlan:
    """The places there are, and what is known of the relays behind them."""

    def __init__(self, connections_max: int) -> None:
        self._connections_max = connections_max
        self._places: set[Place] = set()
        self._answered: set[str] = set()
        self._turn = 0

    def places(self) -> Iterator[Place]:
        return iter(self._places)

    @property
    def serving(self) -> int:
        return sum(place.kind == "serving" for place in self._places)

    def answered(self, place: Place) -> None:
        """The place's relay has answered: it serves where there is room, else it is parked."""
        self._answered.add(place.relay)
        if place.kind != "serving" and self.serving >= self._connections_max:
            place.phase = "parked"
        else:
            place.kind = "serving"
            place.phase = "idle"

    def unreachable(self, place: Place) -> None:
        """The place's relay could not be reached; the next connect is a first one or a probe again."""
        self._answered.discard(place.relay)

    def left(self, place: Place) -> None:
        """The connection is gone."""
        self._places.discard(place)

    def plan(
        self,
        demand: Mapping[int, Wanted],
        account: Callable[[int], AccountRow | None],
        relay: Callable[[str], RelayRow | None],
        now_us: int,
    ) -> Plan:
        """What to do for the accounts in demand."""
        connect: list[Place] = []
        admit: list[Place] = []
        close: list[Place] = []
        wakes: list[int] = []
        have = Counter(place.account for place in self._places if not place.leaving)
        for number in self._in_turn(demand, have):
            row = account(number)
            if row is None or row.removed:
                continue
            parked = [place for place in self._places if place.account == number and place.phase == "parked"]
            wanted = min(demand[number].connections, row.max_connections or ACCOUNT_CONNECTIONS_MAX)
            for place in parked:
                self._seat(place, admit, close, have, demand)
            for _ in range(wanted - have[number]):
                made = self._make(row, relay(row.relay), have, demand, close, now_us, wakes)
                if made is None:
                    break
                self._places.add(made)
                have[number] += 1
                connect.append(made)
        return Plan(tuple(connect), tuple(admit), tuple(close), min(wakes, default=None))

    def _in_turn(self, demand: Mapping[int, Wanted], have: Mapping[int, int]) -> list[int]:
        """Immediate first, then those without any connection, then the others; each plan begins elsewhere."""
        numbers = sorted(demand)
        self._turn += 1
        start = self._turn % len(numbers) if numbers else 0
        numbers = numbers[start:] + numbers[:start]
        return sorted(numbers, key=lambda number: (not demand[number].immediate, have.get(number, 0) > 0))

    def _make(
        self,
        row: AccountRow,
        unreachable: RelayRow | None,
        have: Mapping[int, int],
        demand: Mapping[int, Wanted],
        close: list[Place],
        now_us: int,
        wakes: list[int],
    ) -> Place | None:
        """A place for one more connection of an account; None where it has to wait."""
        relay = row.relay
        if unreachable is not None:
            if unreachable.until_us > now_us:
                wakes.append(unreachable.until_us)
                return None
            return self._special(row, "probe", PROBES_MAX)
        if relay not in self._answered:
            return self._special(row, "first", FIRST_MAX)
        if self.serving >= self._connections_max:
            if not have.get(row.number):
                self._make_room(row.number, have, demand, close)
            if self.serving >= self._connections_max:
                return None
        return Place(row.number, relay, shape(row), "serving")

    def _special(self, row: AccountRow, kind: Kind, places_max: int) -> Place | None:
        """One a relay, within the places of its kind."""
        same = [place for place in self._places if place.kind == kind]
        if len(same) >= places_max or any(place.relay == row.relay for place in same):
            return None
        return Place(row.number, row.relay, shape(row), kind)

    def _seat(
        self,
        place: Place,
        admit: list[Place],
        close: list[Place],
        have: Mapping[int, int],
        demand: Mapping[int, Wanted],
    ) -> None:
        """Let a parked connection serve, or see to it that a place becomes free."""
        if self.serving >= self._connections_max and not self._serves(place.account):
            self._make_room(place.account, have, demand, close)
        if self.serving < self._connections_max:
            place.kind = "serving"
            place.phase = "idle"
            admit.append(place)

    def _serves(self, number: int) -> bool:
        return any(place.account == number and place.kind == "serving" for place in self._places)

    def _make_room(
        self, number: int, have: Mapping[int, int], demand: Mapping[int, Wanted], close: list[Place]
    ) -> None:
        """Free a place: an idle one elsewhere at once, else one of the account with the most when its attempt ends."""
        others = [place for place in self._places if place.kind == "serving" and place.account != number]
        if not others or any(place.leaving for place in others):
            return
        idle = [place for place in others if place.phase == "idle"]
        if idle:
            victim = min(idle, key=lambda place: (place.account in demand, -have.get(place.account, 0)))
            close.append(victim)
        else:
            victim = max(others, key=lambda place: have.get(place.account, 0))
        victim.leaving = True
