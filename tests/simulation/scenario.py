"""What will happen, from a seed: pure data, decided before anything runs.

`Scenario` is the whole of a run: the relays and their weather, the accounts, what clients and the upstream do when,
and how each life of the service ends. What happens within a conversation is drawn while it runs (`relay.py`).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from events.message import Resolution

from .chance import stream
from .observed import Message, Offered
from .relay import HEALTHY, WEATHERS, Temper

CHAOS_S = ((60, 300), (60, 300), (60, 300), (200, 500), (500, 1_200))
"""An hour of virtual time costs some two seconds even when nothing happens, so most runs are short."""

LIVES = (2, 5)
MESSAGES = (25, 110)
PATTERNS = ("a", "b", "c", "nobody", "grey")

Ending = Literal["crash", "torn commit", "stop", "stop now"]


@dataclass(frozen=True)
class LifePlan:
    """How a life ends: at a moment, after so many steps of the scheduler, in the middle of its n-th turn, or some steps
    after its n-th MAIL, while a conversation is under way."""

    ending: Ending
    after: Literal["seconds", "steps", "turns", "mails"]
    amount: float
    delivery: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One thing that somebody does at a moment."""

    at: float
    name: str
    payload: dict[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    insists: bool = False


Deed = Literal[
    "suspend", "pause", "remove", "hold", "retry", "resolve", "revise next", "delete next", "delete this", "revise this"
]


@dataclass(frozen=True)
class Reflex:
    """What somebody does just after the n-th MAIL has left, some turns of the scheduler later: so a command falls among
    the few steps in which the next attempt is granted, recorded and begun."""

    nth_mail: int
    turns: int
    deed: Deed


@dataclass(frozen=True)
class Scenario:
    seed: int
    tempers: dict[str, Temper]
    accounts: dict[str, dict[str, Any]]
    lives: tuple[LifePlan, ...]
    steps: tuple[Step, ...]
    reflexes: tuple[Reflex, ...]
    upstream_trouble: float
    chaos_s: float


def scenario(seed: int) -> Scenario:
    chance = stream(seed, "scenario")
    storm = chance.choice((0.0, 0.02, 0.08, 0.2))
    tempers = {f"relay{n}.example": _temper(chance, storm) for n in range(chance.randint(1, 3))}
    accounts = {
        name: _account(chance, name, list(tempers)) for name in ("anna", "bert", "carl", "dora")[: chance.randint(1, 4)]
    }
    chaos_s = float(chance.randint(*chance.choice(CHAOS_S)))
    writer = _Writer(chance, chaos_s, list(accounts), list(tempers))
    steps = [Step(0.5, "addAccount", fields, insists=True) for fields in accounts.values()]
    steps += writer.posts() + writer.commands(accounts) + writer.weather() + _rules(stream(seed, "rules"), chaos_s)
    lives = tuple(_life(chance, chaos_s) for _ in range(chance.randint(*LIVES)))
    return Scenario(
        seed=seed,
        tempers=tempers,
        accounts=accounts,
        lives=lives,
        steps=tuple(sorted(steps, key=lambda step: step.at)),
        reflexes=tuple(_reflex(chance) for _ in range(chance.choice((0, 3, 12)))),
        upstream_trouble=chance.choice((0, 0, 0.1, 0.4)),
        chaos_s=chaos_s,
    )


def _reflex(chance: random.Random) -> Reflex:
    return Reflex(chance.randint(1, 80), chance.randint(0, 40), chance.choice(get_args(Deed)))


def _temper(chance: random.Random, storm: float) -> Temper:
    return Temper(
        fault=chance.choice((0.0, storm, storm)),
        cut=chance.choice((0.0, storm, storm * 2)),
        latency_s=chance.choice((0.0, 0.01, 0.1, 1.0)),
        pipelining=chance.random() < 0.7,
    )


def _account(chance: random.Random, name: str, hosts: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": name, "host": chance.choice(hosts), "port": 25, "tls": "none"}
    fields["max_connections"] = chance.choice((None, 1, 1, 2, 5))
    fields["batch_size"] = chance.choice((None, 1, 3))
    fields["ttl"] = chance.choice((None, 0, 5, 60))
    fields["max_messages_per_connection"] = chance.choice((None, None, 1, 4))
    if chance.random() < 0.3:
        fields |= {"user": f"user{chance.randint(1, 2)}", "password": "secret"}
    return fields | _limits(chance)


def _limits(chance: random.Random) -> dict[str, Any]:
    """Limits that a run of hours can meet: a few a minute, some dozens an hour."""
    return {
        "limit_per_minute": chance.choice((None, None, 1, 2, 5, 10)),
        "limit_per_hour": chance.choice((None, None, None, 30, 60)),
        "limit_per_day": chance.choice((None, None, None, 400)),
        "limit_behavior": chance.choice(("defer", "defer", "defer", "reject")),
    }


def _life(chance: random.Random, chaos_s: float) -> LifePlan:
    delivery = {
        "retry_delays": chance.choice(((1.0,), (5.0, 30.0), (20.0, 120.0, 300.0))),
        "max_retries": chance.randint(1, 5),
        "in_doubt": chance.choice(("resend", "resend", "hold")),
        "in_doubt_max": chance.randint(1, 4),
        "max_connections": chance.choice((1, 2, 4, 32)),
        "batch_size_per_account": chance.choice((1, 1, 4)),
        "send_interval_seconds": chance.choice((1.0, 5.0, 3_600.0)),
        "max_age_seconds": chance.choice((600.0, 7_200.0, 432_000.0, 432_000.0)),
        "send_wait_seconds": chance.choice((1.0, 30.0)),
        "delivery_report_retention_seconds": chance.choice((30.0, 86_400.0)),
    }
    ending: Ending = chance.choice(("crash", "crash", "crash", "torn commit", "torn commit", "stop", "stop now"))
    if ending == "torn commit":
        return LifePlan(ending, "turns", chance.choice((2, 5, 20, 60, 150)) + chance.randint(0, 9), delivery)
    if chance.random() < 0.5:
        return LifePlan(ending, "mails", chance.choice((1, 3, 10, 30)) + chance.randint(0, 3), delivery)
    if chance.random() < 0.5:
        return LifePlan(ending, "steps", int(10 ** chance.uniform(2, 4.5)), delivery)
    return LifePlan(ending, "seconds", chance.choice((0.5, 0.5, 1)) * chance.uniform(1, chaos_s), delivery)


def _rules(chance: random.Random, chaos_s: float) -> list[Step]:
    """In every third run: rules of minutes, and of hours that are not now, made, replaced and taken back at moments
    that meet everything else. The runs begin at 22:13 UTC on a Tuesday."""
    if chance.random() < 0.65:
        return []
    steps = []
    for at in sorted(chance.uniform(0, chaos_s) for _ in range(chance.randint(1, 6))):
        count = chance.choice((0, 1, 1, 1, 2, 3))
        steps.append(Step(at, "schedule", {"rules": [_rule(chance) for _ in range(count)]}, insists=True))
        if chance.random() < 0.3:
            steps.append(Step(at + chance.uniform(0, 60), "run now"))
    return steps


def _rule(chance: random.Random) -> dict[str, Any]:
    hours = chance.choice(
        ({}, {}, {"start_hour": 22}, {"start_hour": 8, "end_hour": 18}, {"start_hour": 23, "end_hour": 2})
    )
    crosses = hours.get("end_hour", 24) <= hours.get("start_hour", 0)
    return {
        **hours,
        "cross_midnight": crosses,
        "interval_minutes": chance.choice((1, 2, 5, 15)),
        "priority": chance.randint(0, 2),
        "days": chance.choice((None, None, [1], [1, 2], [3])),
        "enabled": chance.random() < 0.85,
    }


JUMPS_S = (3_600, 5 * 86_400, 365 * 86_400)
"""A wrong time zone, a virtual machine that was paused over days, a battery that is empty."""


class _Writer:
    """Writes the steps of clients, of the upstream, and of the weather."""

    def __init__(self, chance: random.Random, chaos_s: float, accounts: list[str], hosts: list[str]) -> None:
        self._chance = chance
        self._chaos_s = chaos_s
        self._accounts = accounts
        self._hosts = hosts
        self._made: list[Message] = []
        self._versions: dict[str, int] = {}

    def _moment(self) -> float:
        """Often in bursts: what happens in one moment races."""
        chance = self._chance
        return (
            float(chance.randint(1, 8)) * self._chaos_s / 8.5
            if chance.random() < 0.4
            else chance.uniform(1, self._chaos_s)
        )

    # Messages

    def posts(self) -> list[Step]:
        count = self._chance.randint(*MESSAGES)
        steps: list[Step] = []
        while len(self._made) < count:
            steps += self._post()
        return steps

    def _post(self) -> Iterator[Step]:
        chance, at = self._chance, self._moment()
        drawn = chance.random()
        if drawn < 0.35:
            yield self._add(at, (self._new(),))
        elif drawn < 0.6:
            yield self._add(at, tuple(self._new() for _ in range(chance.randint(2, 12))))
        elif drawn < 0.7:
            yield Step(at, "sendMessage", messages=(self._new(),))
        elif drawn < 0.8:
            yield Step(at, "offer", messages=tuple(self._new_or_again() for _ in range(chance.randint(1, 5))))
        elif drawn < 0.9 and self._made:
            again = self._again(chance.choice(self._made), other=chance.random() < 0.6)
            yield self._add(at, (again, *(self._new() for _ in range(chance.randint(0, 2)))))
        else:
            # Two clients at once, with the same id.
            first = self._new()
            yield self._add(at, (first,))
            yield self._add(at + chance.choice((0, 0, 0.001, 0.05)), (self._again(first, other=True), self._new()))

    def _add(self, at: float, messages: tuple[Message, ...]) -> Step:
        return Step(at, "addMessages", messages=messages, insists=self._chance.random() < 0.7)

    def _new_or_again(self) -> Message:
        if self._made and self._chance.random() < 0.2:
            return self._again(self._chance.choice(self._made), other=True)
        return self._new()

    def _new(self) -> Message:
        chance = self._chance
        number = len(self._made)
        message = Message(
            id=f"m{number}",
            version=1,
            account=chance.choice(self._accounts) if chance.random() < 0.98 else "nobody",
            to=self._to(f"m{number}"),
            priority=chance.choice((0, 1, 2, 2, 2, 3)),
            defer_s=chance.choice((0, 0, 0, 0, 0, 0, chance.randint(1, 300))),
            expire_s=chance.choice((0, 0, 0, 0, 0, 0, 0, chance.randint(20, 3_600))),
            padding=chance.choice((0, 0, 0, 0, 30_000)),
        )
        self._made.append(message)
        self._versions[message.id] = 1
        return message

    def _to(self, who: str) -> tuple[str, ...]:
        count = self._chance.choice((1, 1, 1, 1, 2, 3))
        return tuple(f"{kind}.{who}@example.org" for kind in self._chance.sample(PATTERNS, count))

    def _again(self, message: Message, *, other: bool) -> Message:
        """The same id, with the same content or another one, sometimes for another account or other people."""
        if not other:
            return message
        self._versions[message.id] += 1
        chance = self._chance
        return Message(
            id=message.id,
            version=self._versions[message.id],
            account=chance.choice(self._accounts) if chance.random() < 0.2 else message.account,
            to=self._to(message.id) if chance.random() < 0.5 else message.to,
            priority=chance.choice((message.priority, 0, 3)),
        )

    # Commands

    def commands(self, accounts: dict[str, dict[str, Any]]) -> list[Step]:
        chance = self._chance
        kinds = (self._delete, self._suspend, self._pause, self._remove, self._change, self._run_now, self._jump,
                 self._disk_full, self._bug, self._decide, self._bulk, self._hold)  # fmt: skip
        steps: list[Step] = []
        for kind in chance.choices(kinds, (5, 2, 2, 2, 2, 2, 1, 1, 1, 3, 6, 2), k=chance.randint(0, 14)):
            steps += kind(self._moment(), accounts)
        return steps

    def _delete(self, at: float, accounts: Any) -> Iterator[Step]:
        ids = [each.id for each in self._chance.sample(self._made, min(len(self._made), self._chance.randint(1, 8)))]
        yield Step(at, "deleteMessages", {"ids": ids})

    def _suspend(self, at: float, accounts: Any) -> Iterator[Step]:
        yield Step(at, "suspend")
        yield Step(at + self._chance.uniform(0, 200), "activate", insists=True)

    def _pause(self, at: float, accounts: Any) -> Iterator[Step]:
        name = {"id": self._chance.choice(self._accounts)}
        yield Step(at, "pauseAccount", name)
        yield Step(at + self._chance.uniform(0, 200), "resumeAccount", name, insists=True)

    def _remove(self, at: float, accounts: dict[str, dict[str, Any]]) -> Iterator[Step]:
        name = self._chance.choice(self._accounts)
        yield Step(at, "deleteAccount", {"id": name})
        if self._chance.random() < 0.7:
            yield Step(at + self._chance.choice((0, 0.1, 30)), "addAccount", accounts[name], insists=True)

    def _change(self, at: float, accounts: dict[str, dict[str, Any]]) -> Iterator[Step]:
        name = self._chance.choice(self._accounts)
        changed = accounts[name] | _limits(self._chance)
        if self._chance.random() < 0.3:
            changed["host"] = self._chance.choice(self._hosts)
            changed["password"] = "secret" if changed.get("user") else None
        if self._chance.random() < 0.3:
            changed["max_connections"] = self._chance.choice((None, 1, 3))
        yield Step(at, "addAccount", changed)

    def _decide(self, at: float, accounts: Any) -> Iterator[Step]:
        """Somebody goes through what is held, which he may have put aside himself."""
        if self._chance.random() < 0.5:
            yield Step(at - 0.1, "bulk", {"action": "hold", "where": self._where()})
        yield Step(at, "resolve held", {"as": self._chance.choice(get_args(Resolution))})

    def _bulk(self, at: float, accounts: Any) -> Iterator[Step]:
        chance = self._chance
        action = chance.choice(("withdraw", "retry", "retry", "release", "release"))
        fields = {"action": action, "where": self._where(), "dry_run": chance.random() < 0.2}
        yield Step(at, "bulk", fields, insists=chance.random() < 0.5)

    def _hold(self, at: float, accounts: Any) -> Iterator[Step]:
        where = self._where()
        yield Step(at, "bulk", {"action": "hold", "where": where})
        until = at + self._chance.choice((0, 0.1, 10, 200))
        yield Step(until, "bulk", {"action": "release", "where": where}, insists=True)

    def _where(self) -> dict[str, Any]:
        chance = self._chance
        return chance.choice(
            (
                {"before_ts": 9_000_000_000},
                {"account_id": chance.choice(self._accounts)},
                {"priority": chance.randint(0, 3)},
                {"subject_contains": f"m{chance.randint(0, 9)}"},
                {"to_domain": "example.org", "priority": 2},
            )
        )

    def _run_now(self, at: float, accounts: Any) -> Iterator[Step]:
        yield Step(at, "run now")

    def _jump(self, at: float, accounts: Any) -> Iterator[Step]:
        by_s = self._chance.choice((-700, -45, -3, 3, 45, 400, *JUMPS_S, *(-by_s for by_s in JUMPS_S)))
        yield Step(at, "jump", {"by_s": by_s})
        if abs(by_s) in JUMPS_S and self._chance.random() < 0.5:
            yield Step(at + self._chance.choice((5, 60, 400)), "jump", {"by_s": -by_s})

    def _disk_full(self, at: float, accounts: Any) -> Iterator[Step]:
        yield Step(at, "disk full")
        yield Step(at + self._chance.choice((0.5, 5, 60)), "disk free")

    def _bug(self, at: float, accounts: Any) -> Iterator[Step]:
        yield Step(at, "bug", {"host": self._chance.choice(self._hosts)})

    # Weather

    def weather(self) -> list[Step]:
        steps = []
        for host in self._hosts:
            for _ in range(self._chance.choice((0, 0, 1, 3))):
                at = self._moment()
                steps.append(Step(at, "weather", {"host": host, "weather": self._chance.choice(WEATHERS[1:])}))
                until = at + self._chance.choice((2, 60, 400))
                steps.append(Step(until, "weather", {"host": host, "weather": HEALTHY}))
        if self._chance.random() < 0.3:
            at = self._moment()
            steps += [Step(at, "upstream gone"), Step(at + self._chance.choice((5, 300)), "upstream back")]
        return steps


def batch(step: Step, number: int) -> Offered:
    return Offered(f"batch{number}", step.messages)
