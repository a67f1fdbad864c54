"""The sender pool's plan: places as data, what is wanted, and what the plan says."""

from typing import Any

from actors.pool_plan import (
    ACCOUNT_CONNECTIONS_MAX,
    CONNECT_US,
    CROWDED_US,
    FIRST_MAX,
    HANGS_US,
    PROBES_MAX,
    TURN_US,
    Place,
    Plan,
    PoolPlan,
)
from actors.scheduler import Wanted
from store.views.accounts import AccountRow, RelayRow

NOW_US = 1_000_000_000


def account(number: int, **fields: Any) -> AccountRow:
    given = {
        "number": number, "id": f"a{number}", "host": f"relay{number}", "port": 25, "credentials": "c", "tls": "auto",
        "has_password": False, "tls_verify": True, "tls_ca_file": None, "auth": "auto", "limit_per_minute": None,
        "limit_per_hour": None, "limit_per_day": None, "limit_behavior": "defer", "ttl": 300, "batch_size": None,
        "max_connections": None, "max_messages_per_connection": None, "use_tls": None, "created_us": 0,
    }  # fmt: skip
    return AccountRow(**given | fields)


class Given:
    """Accounts, relays in trouble, a clock, and a plan over them."""

    def __init__(self, *accounts: AccountRow, connections_max: int = 32) -> None:
        self.accounts = {row.number: row for row in accounts}
        self.relays: dict[str, RelayRow] = {}
        self.now_us = NOW_US
        self.pool = PoolPlan(connections_max)

    def plan(self, **wanted: int) -> Plan:
        """Accounts by name: `a1=3` wants three connections, `a1=-1` one for immediate mail."""
        demand = {int(name[1:]): Wanted(abs(count), count < 0) for name, count in wanted.items()}
        return self.pool.plan(demand, self.accounts.get, self.relays.get, self.now_us)

    def down(self, number: int, until_us: int) -> None:
        key = self.accounts[number].relay
        self.relays[key] = RelayRow(key, until_us, "connect_refused", None, 1, 0)

    def answer(self, plan: Plan) -> None:
        for place in plan.connect:
            self.pool.answered(place, self.now_us)

    def grow(self, **wanted: int) -> list[Place]:
        """Plan and let every relay answer until nothing more is to be opened."""
        while (plan := self.plan(**wanted)).connect:
            self.answer(plan)
        return list(self.pool.places())

    def close(self, plan: Plan) -> None:
        for place in plan.close:
            assert place.leaving
            self.pool.left(place)


def accounts_of(plan: Plan) -> list[int]:
    return [place.account for place in plan.connect]


def test_a_relay_is_connected_to_once_until_it_has_answered():
    given = Given(account(1))
    (place,) = given.plan(a1=10).connect
    assert place.kind == "first"
    assert given.plan(a1=10).connect == ()
    given.pool.answered(place, NOW_US)
    assert (place.kind, place.phase) == ("serving", "idle")


def test_connections_double_with_what_stands_up_to_what_is_wanted():
    given = Given(account(1))
    sizes = []
    while (plan := given.plan(a1=10)).connect:
        sizes.append(len(plan.connect))
        given.answer(plan)
    assert sizes == [1, 1, 2, 4, 2]


def test_an_account_has_as_many_connections_as_it_allows():
    assert len(Given(account(1, max_connections=3)).grow(a1=100)) == 3
    assert len(Given(account(1)).grow(a1=100)) == ACCOUNT_CONNECTIONS_MAX


def test_what_leaves_still_counts_against_the_accounts_limit():
    given = Given(account(1, max_connections=1))
    (place,) = given.grow(a1=1)
    place.phase = "busy"
    given.accounts[1] = account(1, max_connections=1, tls="none")
    assert given.plan(a1=1) == Plan((), (), None)
    assert place.leaving
    given.pool.left(place)
    assert accounts_of(given.plan(a1=1)) == [1]


def test_all_accounts_together_have_connections_max():
    given = Given(*(account(number) for number in range(1, 6)), connections_max=7)
    places = given.grow(a1=20, a2=20, a3=20, a4=20, a5=20)
    assert given.pool.serving == len(places) == 7
    assert {place.account for place in places} == {1, 2, 3, 4, 5}


def test_dead_relays_take_no_serving_place():
    given = Given(*(account(number) for number in range(1, 102)), connections_max=4)
    (place,) = given.plan(a101=1).connect
    given.pool.answered(place, NOW_US)
    plan = given.plan(**{f"a{number}": 5 for number in range(1, 101)}, a101=20)
    assert sum(each.kind == "first" for each in plan.connect) == FIRST_MAX
    assert given.pool.serving == 2
    given.pool.answered(next(place for place in plan.connect if place.account == 101), NOW_US)
    given.grow(a101=20)
    assert given.pool.serving == 4


def test_a_relay_known_down_is_probed_once_at_its_moment():
    given = Given(account(1), account(2, host="relay1"))
    given.down(1, NOW_US + 5)
    assert given.plan(a1=9, a2=9) == Plan((), (), NOW_US + 5)
    given.now_us += 5
    (probe,) = given.plan(a1=9, a2=9).connect
    assert probe.kind == "probe"
    assert given.plan(a1=9, a2=9).connect == ()


def test_few_relays_are_probed_at_once():
    given = Given(*(account(number) for number in range(1, 21)))
    for number in given.accounts:
        given.down(number, NOW_US)
    assert len(given.plan(**{f"a{number}": 1 for number in given.accounts}).connect) == PROBES_MAX


def test_what_waits_at_a_relay_that_went_down_is_given_up_so_that_it_can_be_probed():
    given = Given(account(1))
    busy, *others = given.grow(a1=4)
    busy.phase = "busy"
    making = Place(1, busy.relay, busy.shape, "serving")
    given.pool._places[making] = None
    given.down(1, NOW_US)
    plan = given.plan(a1=1)
    assert set(plan.close) == {*others, making}
    given.pool.left(busy)
    given.close(plan)
    assert [each.kind for each in given.plan(a1=1).connect] == ["probe"]


def test_a_relay_that_takes_no_further_connection_is_crowded_and_not_down():
    given = Given(account(1))
    given.grow(a1=2)
    for place in given.plan(a1=9).connect:
        assert given.pool.refused(place, given.now_us) is False
        given.pool.left(place)
    assert given.plan(a1=9) == Plan((), (), NOW_US + CROWDED_US)
    given.now_us += CROWDED_US
    assert len(given.plan(a1=9).connect) == 2


def test_a_connection_made_from_other_words_is_known_not_to_stand():
    """Two accounts at one relay, and one of them wants TLS that the relay does not have."""
    given = Given(account(1), account(2, host="relay1", tls="implicit"))
    (first,) = given.grow(a1=1)
    (other,) = given.plan(a1=1, a2=1).connect
    assert other.relay == first.relay
    assert given.pool.serves(first) and not given.pool.serves(other)
    assert given.pool.refused(other, NOW_US) is False


def test_a_relay_of_which_nothing_stands_is_down():
    given = Given(account(1))
    (place,) = given.plan(a1=1).connect
    assert given.pool.refused(place, NOW_US) is True


def test_a_probe_speaks_for_the_relay_although_an_old_conversation_goes_on():
    given = Given(account(1))
    (busy,) = given.grow(a1=1)
    busy.phase = "busy"
    given.down(1, NOW_US)
    (probe,) = given.plan(a1=2).connect
    assert given.pool.refused(probe, NOW_US) is True


def test_a_first_connect_that_finds_no_room_ends_and_its_account_starves():
    given = Given(account(1), account(2), connections_max=1)
    (busy,) = given.grow(a1=1)
    busy.phase = "busy"
    (first,) = given.plan(a1=1, a2=1).connect
    given.pool.answered(first, NOW_US)
    assert first.leaving and first.kind == "first"
    given.pool.left(first)
    assert not given.plan(a1=1, a2=1).connect
    assert given.pool.contended


def full(connections_max: int = 2, **fields: Any) -> Given:
    """Account 1 has all places, and all are busy; the relay of account 2 is known to answer."""
    given = Given(account(1), account(2), connections_max=connections_max)
    (place,) = given.grow(a2=1)
    given.pool.left(place)
    for place in given.grow(a1=connections_max):
        place.phase = "busy"
    return given


def test_a_starving_account_takes_a_connection_that_idles_unwanted():
    given = full()
    idle, _ = given.pool.places()
    idle.phase = "idle"
    plan = given.plan(a1=1, a2=1)
    assert plan.close == (idle,)
    given.close(plan)
    assert accounts_of(given.plan(a1=1, a2=1)) == [2]


def test_a_connection_that_idles_for_a_moment_only_is_left():
    given = full()
    next(given.pool.places()).phase = "idle"
    assert given.plan(a1=2, a2=1).close == ()


def test_the_next_to_end_on_the_account_with_the_most_gives_up_its_place():
    given = full()
    given.plan(a1=9, a2=1)
    one, other = given.pool.places()
    assert given.pool.yields(one, given.now_us)
    one.leaving = True
    assert not given.pool.yields(other, given.now_us)


def test_the_only_connection_of_an_account_has_its_turn_first():
    given = full(connections_max=1)
    (place,) = given.pool.places()
    given.plan(a1=9, a2=1)
    assert not given.pool.yields(place, given.now_us)
    given.now_us += TURN_US
    given.plan(a1=9, a2=1)
    assert given.pool.yields(place, given.now_us)


def test_immediate_mail_waits_for_nobodys_turn():
    given = full(connections_max=1)
    (place,) = given.pool.places()
    given.plan(a1=9, a2=-1)
    assert given.pool.yields(place, given.now_us)


def test_a_connect_that_hangs_is_given_up_for_a_starving_account():
    given = full(connections_max=1)
    (place,) = given.pool.places()
    place.phase = "connecting"
    assert given.plan(a1=9, a2=1) == Plan((), (), NOW_US + CONNECT_US)
    given.now_us += CONNECT_US
    assert given.plan(a1=9, a2=1).close == (place,)


def test_who_has_starved_longest_is_first():
    given = Given(*(account(number) for number in range(1, 5)), connections_max=1)
    for number in (2, 3, 4):
        (place,) = given.grow(**{f"a{number}": 1})
        given.pool.left(place)
    (busy,) = given.grow(a1=1)
    busy.phase = "busy"
    given.plan(a1=1, a4=1)
    given.now_us += 1
    given.plan(a1=1, a2=1, a3=1, a4=1)
    given.pool.left(busy)
    assert accounts_of(given.plan(a1=1, a2=1, a3=1, a4=1)) == [4]


def test_connections_of_a_removed_account_end_and_none_is_opened():
    given = Given(account(1))
    idle, busy = given.grow(a1=2)
    busy.phase = "busy"
    given.accounts[1] = account(1, removed=True)
    assert given.plan(a1=2) == Plan((), (idle,), None)
    assert busy.leaving


def test_an_account_that_allows_fewer_gives_up_what_is_too_much():
    given = Given(account(1))
    places = given.grow(a1=8)
    for place in places[:3]:
        place.phase = "busy"
    given.accounts[1] = account(1, max_connections=2)
    plan = given.plan(a1=8)
    assert set(plan.close) == set(places[3:])
    assert sum(place.leaving for place in places[:3]) == 1


# Relays that accept and are silent


def hanging(count: int, *, down: bool = False) -> Given:
    """So many relays, each but the last with its place; all of them silent."""
    given = Given(*(account(number) for number in range(1, count + 1)))
    for number in range(1, count + 1) if down else ():
        given.down(number, NOW_US - number)
    return given


def wanting(count: int) -> dict[str, int]:
    return {f"a{number}": 1 for number in range(1, count + 1)}


def test_first_connects_that_hang_give_way_to_as_many_as_wait():
    given = hanging(FIRST_MAX + 2)
    plan = given.plan(**wanting(FIRST_MAX + 2))
    assert (len(plan.connect), plan.close, plan.wake_us) == (FIRST_MAX, (), NOW_US + HANGS_US)
    given.now_us += HANGS_US
    late = given.plan(**wanting(FIRST_MAX + 2))
    assert late.hung == late.close == plan.connect[:2] and all(place.leaving for place in late.hung)
    assert given.plan(**wanting(FIRST_MAX + 2)).hung == (), "two places are about to be free"
    given.close(late)
    for place in late.hung:
        given.down(place.account, given.now_us + 1)
    assert accounts_of(given.plan(**wanting(FIRST_MAX + 2))) == [FIRST_MAX + 1, FIRST_MAX + 2]


def test_nobody_gives_way_while_nobody_waits():
    given = hanging(FIRST_MAX)
    given.plan(**wanting(FIRST_MAX))
    given.now_us += 10 * HANGS_US
    assert given.plan(**wanting(FIRST_MAX)) == Plan((), (), None)


def test_probes_that_hang_give_way_and_go_in_the_order_in_which_they_are_due():
    given = hanging(PROBES_MAX + 3, down=True)
    plan = given.plan(**wanting(PROBES_MAX + 3))
    assert accounts_of(plan) == list(range(PROBES_MAX + 3, 3, -1))
    given.now_us += HANGS_US
    late = given.plan(**wanting(PROBES_MAX + 3))
    assert len(late.hung) == 3
    given.close(late)
    for place in late.hung:
        given.down(place.account, given.now_us)
    assert accounts_of(given.plan(**wanting(PROBES_MAX + 3))) == [3, 2, 1]


def test_a_relay_with_several_accounts_waits_for_one_place():
    given = hanging(FIRST_MAX)
    given.accounts[FIRST_MAX + 1] = account(FIRST_MAX + 1, host="other")
    given.accounts[FIRST_MAX + 2] = account(FIRST_MAX + 2, host="other")
    given.plan(**wanting(FIRST_MAX + 2))
    given.now_us += HANGS_US
    assert len(given.plan(**wanting(FIRST_MAX + 2)).hung) == 1
