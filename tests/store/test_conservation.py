"""2,000 messages, each posted two to four times at random moments while attempts run: nobody is mailed twice.

Posters and senders decide by what they have read, which is old by the time the writer judges it. Refused, they look
at the row that they were refused by and decide once more, as ingest does.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from events.attempt import AttemptEnded
from events.fact import OWN, Draft, Entry
from events.lifecycle import Refusal, follow
from events.message import MessageAccepted, MessageRevised
from events.values import Outcome
from store.clock import TrioClock
from store.opening import Store, open_store, page
from store.views.messages import RETRIABLE, MessageRow
from store.writer import Declined

from .building import T0_US, account_saved
from .telling import start
from .test_folding import accepted_ever, conserved, mailed_again

MESSAGES = 2_000
POSTERS = 16
SENDERS = 24
ROUNDS_MAX = 4


def recipients_of(name: str, chance: random.Random) -> tuple[str, ...]:
    return tuple(f"{name}:{who}" for who in chance.sample("abc", chance.choice((1, 1, 2, 3))))


def draft(name: str, row: MessageRow | None, people: Sequence[str]) -> Draft | None:
    """What posting this comes to, by a row that may be old; None where it is refused at once."""
    content = {"id": name, "priority": 2, "due_us": 0, "expires_us": 2 * T0_US, "size": 1, "letter": "l"}
    if row is None:
        return Draft(MessageAccepted(recipients=tuple(people), **content), message=OWN, account=1)
    reached = row.reached_digests()
    reach = tuple(index for index, digest in enumerate(people) if digest not in reached)
    if not reach or isinstance(follow(row.state, "MessageRevised"), Refusal):
        return None
    return Draft(MessageRevised(recipients=tuple(people), reach=reach, **content), message=row.number, account=1)


class Rush:
    def __init__(self, store: Store, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.refused: Counter[str] = Counter()
        self.posting = POSTERS

    async def pause(self) -> None:
        for _ in range(self.chance.choice((0, 0, 1, 3))):
            await trio.lowlevel.checkpoint()

    async def post(self, names: Sequence[str]) -> None:
        """Post a few at a time."""
        for first in range(0, len(names), 20):
            wanted = {name: recipients_of(name, self.chance) for name in names[first : first + 20]}
            known = await self.store.read(known_rows, list(wanted))
            await self.pause()
            await self._post(wanted, known)
        self.posting -= 1

    async def _post(self, wanted: dict[str, Sequence[str]], known: dict[str, MessageRow | None]) -> None:
        for _ in range(ROUNDS_MAX):
            drafts = [each for name in wanted if (each := draft(name, known.get(name), wanted[name]))]
            if not drafts:
                return
            answers = (await self.store.record(drafts)).answers
            wanted, known = self._again(drafts, answers, wanted)

    def _again(self, drafts, answers, wanted):
        refused = {}
        for each, answer in zip(drafts, answers, strict=True):
            if isinstance(answer, Declined):
                self.refused[answer.reason] += 1
                refused[each.fact.id] = answer.row
        return {name: wanted[name] for name in refused}, refused

    async def send(self) -> None:
        """Take some of what waits, by a read that is old soon, and deliver it to some."""
        while True:
            rows = (await self.store.read(waiting_rows))[:200]
            if not rows:
                if not self.posting:
                    return
                await trio.lowlevel.checkpoint()
                continue
            for row in self.chance.sample(rows, min(len(rows), 10)):
                await self._attempt(row)

    async def _attempt(self, row: MessageRow) -> None:
        open_ = [index for index, state in enumerate(row.states()) if state.status in RETRIABLE]
        tried = open_[: self.chance.randint(1, 3)]
        (answer,) = (await self.store.record([start(row.number, row.revision, tried)], urgent=True)).answers
        if not isinstance(answer, Entry):
            self.refused[answer.reason] += 1
            return
        await self.pause()
        statuses = {index: self.chance.choice(("delivered", "delivered", "refused", "deferred")) for index in tried}
        after = [statuses.get(index, state.status) for index, state in enumerate(row.states())]
        then = "due" if RETRIABLE & set(after) else "done" if set(after) == {"delivered"} else "failed"
        outcomes = tuple(Outcome(index, status) for index, status in statuses.items())
        fact = AttemptEnded(attempt=answer.seq, outcomes=outcomes, next=then, due_cause="more")
        assert (await self.store.record([Draft(fact, message=row.number, account=1)], urgent=True)).complete


def known_rows(connection, names: Sequence[str]) -> dict[str, MessageRow | None]:
    marks = ", ".join("?" * len(names))
    found = connection.execute(
        f"select m.* from ids join messages m on m.number = ids.number where ids.id in ({marks})", names
    )
    return {columns[1]: MessageRow(*columns) for columns in found}


def waiting_rows(connection) -> list[MessageRow]:
    found = connection.execute("select * from messages indexed by messages_waiting where state = 'waiting' limit 200")
    return [MessageRow(*columns) for columns in found]


def totals(connection) -> dict[str, int]:
    return dict(connection.execute("select state, sum(n) from totals group by state having sum(n) <> 0"))


def deliveries(log: Sequence[Entry]) -> Iterator[str]:
    """The digest of each recipient that was delivered to, as often as it was."""
    envelopes: dict[int | None, tuple[str, ...]] = {}
    for entry in log:
        if isinstance(entry.fact, MessageAccepted | MessageRevised):
            envelopes[entry.message] = entry.fact.recipients
        elif isinstance(entry.fact, AttemptEnded):
            for outcome in entry.fact.outcomes:
                if outcome.status == "delivered":
                    yield envelopes[entry.message][outcome.recipient]


async def test_nobody_is_mailed_twice_however_often_a_message_is_posted(tmp_path: Path):
    chance = random.Random(11)
    posts = [f"m{index}" for index in range(MESSAGES) for _ in range(chance.randint(2, 4))]
    chance.shuffle(posts)
    async with open_store(
        tmp_path / "log.db", tmp_path / "log.key", clock=TrioClock(T0_US), entropy=chance.randbytes, threaded=False
    ) as store:
        await store.record([account_saved()])
        rush = Rush(store, chance)
        async with trio.open_nursery() as nursery:
            for poster in range(POSTERS):
                nursery.start_soon(rush.post, posts[poster::POSTERS])
            for _ in range(SENDERS):
                nursery.start_soon(rush.send)
        log = await store.read(page, 0, 1_000_000)
        counts = await store.read(totals)
        assert sorted(entry.fact.id for entry in log if entry.kind == "MessageAccepted") == sorted(set(posts))
        assert mailed_again(log) == []
        assert set(Counter(deliveries(log)).values()) == {1}
        assert conserved(counts, accepted_ever(log)) and set(counts) <= {"sent", "failed"}
        assert {"known id", "other revision", "reached meanwhile"} <= set(rush.refused)
