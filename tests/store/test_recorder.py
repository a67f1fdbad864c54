"""The recorder: one suite that the inline and the threaded one pass, and what happens when SQLite cannot go on."""

import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from events.fact import Draft, Entry
from events.message import MessageHeld, MessageWithdrawn
from events.schedule import DispatchSuspended
from store import recorder as module
from store.faults import Fault, faults_of
from store.recorder import InlineTurner, NotRecorded, Recorder, RunTurn, ThreadTurner
from store.writer import Recorded, Request, TurnResult, Writer

from .building import accepted, account_saved, database, letter, writer
from .telling import end, start


class World:
    """A recorder on a real writer: `turns` are the requests of each turn, `published` what followers were given."""

    def __init__(self, to: Writer) -> None:
        self.writer = to
        self.turns: list[Sequence[Request]] = []
        self.published: list[Entry] = []
        self.errors: list[BaseException] = []
        self.recorder: Recorder

    def run_turn(self, requests: Sequence[Request]) -> TurnResult:
        self.turns.append(requests)
        with faults_of(Path("l.db")):
            if self.errors:
                raise self.errors.pop(0)
            if not requests:
                self.writer.probe()
            return self.writer.turn(requests)

    def publish(self, entries: tuple[Entry, ...], size: int) -> None:
        assert size > 0
        self.published += entries

    async def record(self, *drafts: Draft, **how) -> Recorded:
        return await self.recorder.record(drafts, **how)

    async def outcome(self, into: list, *drafts: Draft, **how) -> None:
        """Record, and keep what came of it: the kinds and reasons, or why nothing was recorded."""
        try:
            recorded = await self.record(*drafts, **how)
        except NotRecorded as refused:
            into.append(str(refused))
        else:
            into.append([getattr(answer, "reason", None) or answer.kind for answer in recorded.answers])


MakeTurner = Callable[[RunTurn], InlineTurner | ThreadTurner]


@asynccontextmanager
async def world(make: MakeTurner = InlineTurner, drain_s: float = 3.0) -> AsyncIterator[World]:
    with database() as connection:
        it = World(writer(connection))
        it.writer.turn([Request((account_saved(),), {})])
        turner = make(it.run_turn)
        it.recorder = Recorder(turner, it.publish)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(it.recorder.run)
                try:
                    yield it
                finally:
                    await it.recorder.close(trio.current_time() + drain_s)
        finally:
            turner.close()


both = pytest.mark.parametrize("make", [InlineTurner, ThreadTurner])


@both
async def test_what_is_recorded_is_on_disk_and_published_before_the_answer(make):
    async with world(make) as it:
        recorded = await it.record(accepted("a"), accepted("b"))
        assert recorded.complete and list(recorded.answers) == it.published
        assert it.writer.connection.execute("select max(seq) from log").fetchone() == (3,)
        assert it.recorder.turns == 1 and it.recorder.waiting == 0


@both
async def test_a_start_comes_back_with_its_row_and_letter(make):
    async with world(make) as it:
        content = letter("x")
        first = await it.record(accepted("a"), accepted("b"), beside={0: content})
        numbers = [answer.seq for answer in first.answers]
        recorded = await it.record(*map(start, numbers), urgent=True)
        assert recorded.started[0].letter == content and recorded.started[0].row.state == "in_flight"
        assert recorded.started[1].letter is None


class Gate(InlineTurner):
    """Turns that wait for the test."""

    def __init__(self, run: RunTurn) -> None:
        super().__init__(run)
        self.opened = trio.Event()

    async def turn(self, requests: Sequence[Request]) -> TurnResult:
        await self.opened.wait()
        return await super().turn(requests)


async def test_what_gathers_while_a_turn_runs_is_one_turn_the_urgent_first():
    async with world(Gate) as it, trio.open_nursery() as nursery:
        told: list = []
        for name in "abc":
            nursery.start_soon(it.outcome, told, accepted(name))
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(lambda: it.outcome(told, Draft(DispatchSuspended()), urgent=True))
        await trio.testing.wait_all_tasks_blocked()
        assert it.recorder.waiting == 3 and told == []
        it.recorder._turner.opened.set()
        await trio.testing.wait_all_tasks_blocked()
        kinds = [[type(request.drafts[0].fact).__name__ for request in turn] for turn in it.turns]
        assert kinds == [["MessageAccepted"], ["DispatchSuspended", "MessageAccepted", "MessageAccepted"]]
        assert len(told) == 4


async def test_what_is_posted_is_written_before_what_is_recorded_as_urgent_after_it():
    async with world(Gate) as it, trio.open_nursery() as nursery:
        it.recorder._turner.opened.set()
        number = (await it.record(accepted("a"), urgent=True)).answers[0].seq
        attempt = (await it.record(start(number), urgent=True)).answers[0].seq
        it.recorder.post([end(number, attempt, "done", "delivered")])
        nursery.start_soon(lambda: it.outcome([], Draft(DispatchSuspended()), urgent=True))
        await trio.testing.wait_all_tasks_blocked()
        assert [entry.kind for entry in it.published][-2:] == ["AttemptEnded", "DispatchSuspended"]
        await it.recorder.close(trio.current_time() + 1)
        it.recorder.post([end(number, attempt, "done", "delivered")])
        assert it.recorder.given_up == 1


@both
async def test_many_at_once_get_each_its_own_answer(make):
    async with world(make) as it:
        numbers: dict[str, int] = {}

        async def post(name: str) -> None:
            (answer,) = (await it.record(accepted(name))).answers
            assert isinstance(answer, Entry) and answer.fact.id == name
            numbers[name] = answer.seq

        async with trio.open_nursery() as nursery:
            for index in range(300):
                nursery.start_soon(post, f"m{index}")
        assert sorted(numbers.values()) == list(range(2, 302))
        assert [entry.seq for entry in it.published] == list(range(2, 302))
        assert dict(it.writer.connection.execute("select id, number from ids")) == numbers


@both
async def test_a_request_is_whole_or_not_at_all(make):
    async with world(make) as it:
        withdrawn = Draft(MessageWithdrawn(), message=99)
        refused = await it.record(accepted("a"), withdrawn, whole=True)
        assert [answer.reason for answer in refused.answers] == [
            "another fact of the same request did not fit",
            "unknown message",
        ]
        assert it.published == []
        rest = await it.record(accepted("a"), withdrawn)
        assert not rest.complete and [entry.kind for entry in it.published] == ["MessageAccepted"]


@both
async def test_a_cancelled_asker_has_recorded_all_the_same(make):
    async with world(make) as it:
        with trio.CancelScope() as scope:
            scope.cancel()
            recorded = await it.record(accepted("a"))
            assert recorded.complete
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught and len(it.published) == 1


@both
async def test_a_stop_from_outside_writes_what_is_queued(make):
    """The recorder outlives the cancellation of all around it, until it is closed."""
    told: list = []
    with trio.CancelScope() as outside:
        async with world(make) as it, trio.open_nursery() as nursery:
            nursery.start_soon(it.outcome, told, accepted("a"))
            await trio.lowlevel.checkpoint()
            outside.cancel()
            nursery.start_soon(it.outcome, told, accepted("b"))
    assert told == [["MessageAccepted"]] * 2


@both
async def test_after_close_nothing_is_recorded(make):
    async with world(make) as it:
        assert await it.recorder.close(trio.current_time()) == 0
        with pytest.raises(NotRecorded, match="stopping"):
            await it.record(accepted("a"))


@both
async def test_an_error_stops_the_recorder_and_answers_everyone(make):
    told: list = []
    with pytest.raises(ExceptionGroup) as raised:
        async with world(make) as it:
            it.errors = [sqlite3.DatabaseError("malformed")]
            async with trio.open_nursery() as nursery:
                for name in "abc":
                    nursery.start_soon(it.outcome, told, accepted(name))
    assert raised.group_contains(Fault, match="malformed", depth=1)
    assert told == ["the service is stopping"] * 3


@both
async def test_a_bug_in_a_turn_stops_the_recorder_too(make):
    told: list = []
    with pytest.raises(ExceptionGroup) as raised:
        async with world(make) as it:
            it.errors = [AssertionError("a bug")]
            await it.outcome(told, accepted("a"))
    assert raised.group_contains(AssertionError, match="a bug", depth=1)
    assert told == ["the service is stopping"]


# Turns are bounded


def sizes(it: World) -> list[int]:
    return [sum(len(request.drafts) for request in turn) for turn in it.turns]


async def gathered(it: World, *requests: tuple[Draft, ...], beside=None) -> None:
    """Ask for all of these before the first turn begins."""
    async with trio.open_nursery() as nursery:
        for drafts in requests:
            nursery.start_soon(lambda drafts=drafts: it.record(*drafts, beside=beside))


async def test_a_turn_takes_so_many_facts_and_never_splits_a_request(monkeypatch):
    monkeypatch.setattr(module, "FACTS_A_TURN_MAX", 10)
    async with world() as it:
        await gathered(it, *(tuple(accepted(f"{n}-{m}") for m in range(4)) for n in range(6)))
        assert sum(sizes(it)) == 24 and max(sizes(it)) <= 10 and all(size % 4 == 0 for size in sizes(it))
        await it.record(*(accepted(f"large-{m}") for m in range(25)))
        assert sizes(it)[-1] == 25


async def test_a_turn_takes_so_many_bytes(monkeypatch):
    large = letter("x")
    monkeypatch.setattr(module, "BYTES_A_TURN_MAX", 2 * large.size)
    async with world() as it:
        await gathered(it, *((accepted(name),) for name in "abcde"), beside={0: large})
        assert sum(sizes(it)) == 5 and max(sizes(it)) == 2


# A full disk


def broken(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("scripted")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (sqlite3.SQLITE_FULL, "the disk is full"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, "the disk is full"),
        (sqlite3.SQLITE_BUSY, "another program keeps the database locked"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, "another program keeps the database locked"),
    ],
)
async def test_what_may_pass_refuses_at_once_and_keeps_the_ends(code, why, autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    async with world() as it:
        number = (await it.record(accepted("a"))).answers[0].seq
        attempt = (await it.record(start(number), urgent=True)).answers[0].seq
        it.errors = [broken(code)] * 4
        told: list = []
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: it.outcome(told, end(number, attempt, "done", "delivered"), urgent=True))
            nursery.start_soon(it.outcome, told, accepted("b"))
            await trio.sleep(0.5)
            assert told == [why] and it.recorder.trouble == why
            await it.outcome(told, Draft(MessageHeld(cause="x"), message=number), urgent=True)
            assert told == [why, why] and trio.current_time() == began + 0.5
        assert told == [why, why, ["AttemptEnded"]] and trio.current_time() == began + 4
        assert it.recorder.trouble is None and (await it.record(accepted("c"))).complete
    lines = [record.getMessage() for record in caplog.records]
    assert [why in line for line in lines] == [True, True], lines


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR_FSYNC])
async def test_what_does_not_pass_stops_the_recorder(code):
    with pytest.raises(ExceptionGroup) as raised:
        async with world() as it:
            it.errors = [broken(code)]
            await it.outcome([], accepted("a"))
    assert raised.group_contains(Fault, depth=1)


async def test_a_full_disk_without_ends_is_tried_again_after_a_while(autojump_clock):
    async with world() as it:
        it.errors = [broken(sqlite3.SQLITE_FULL)] * 2
        told: list = []
        for _ in range(3):
            await it.outcome(told, accepted("a"))
        assert told == ["the disk is full"] * 3 and len(it.turns) == 1
        await trio.sleep(1.5)
        await it.outcome(told, accepted("a"))
        assert told == ["the disk is full"] * 4 and len(it.turns) == 2
        await trio.sleep(1.5)
        assert (await it.record(accepted("a"))).complete


async def test_ends_that_find_no_room_are_given_up_at_the_deadline(autojump_clock):
    told: list = []
    async with world() as it:
        number = (await it.record(accepted("a"))).answers[0].seq
        attempt = (await it.record(start(number))).answers[0].seq
        it.errors = [broken(sqlite3.SQLITE_FULL)] * 100
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.outcome, told, end(number, attempt, "done", "delivered"))
            await trio.sleep(2)
            began = trio.current_time()
            assert await it.recorder.close(began + 2.5) == 1
            assert trio.current_time() == began + 2.5
        assert trio.current_time() == began + 2.5
    assert told == ["the service is stopping"]


async def test_a_close_does_not_wait_for_a_full_disk_without_ends(autojump_clock):
    async with world() as it:
        it.errors = [broken(sqlite3.SQLITE_FULL)]
        await it.outcome([], accepted("a"))
        began = trio.current_time()
        await it.recorder.close(began + 3)
        assert trio.current_time() == began


@both
async def test_a_disk_that_is_really_full(make, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    with database(tmp_path / "log.db") as connection:
        it = World(writer(connection))
        turner = make(it.run_turn)
        it.recorder = Recorder(turner, it.publish)
        it.writer.turn([Request((account_saved(),), {})])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(it.recorder.run)
            number = (await it.record(accepted("a"))).answers[0].seq
            attempt = (await it.record(start(number))).answers[0].seq
            (pages,) = connection.execute("pragma page_count").fetchone()
            connection.execute(f"pragma max_page_count = {pages + 2}").close()
            with pytest.raises(NotRecorded, match="the disk is full"):
                await it.record(*(accepted(f"m{index}") for index in range(500)))
            assert not connection.in_transaction
            connection.execute("pragma max_page_count = 1000000").close()
            assert (await it.record(end(number, attempt, "done", "delivered"))).complete
            await trio.sleep(0.1)
            assert (await it.record(accepted("b"))).complete
            await it.recorder.close(trio.current_time() + 3)
        turner.close()
        assert [entry.seq for entry in it.published] == [2, 3, 4, 5]
        assert connection.execute("select count(*), max(seq) from log").fetchone() == (5, 5)


# A crash, as the simulation makes it


async def test_after_a_shut_nobody_hears_of_what_was_being_written():
    async with world() as it:
        told: list = []

        def turn(requests: Sequence[Request]) -> TurnResult:
            result = it.writer.turn(requests)
            it.recorder.shut()
            return result

        it.recorder._turner._run = turn
        await it.outcome(told, accepted("a"))
        await it.outcome(told, accepted("b"))
        assert told == ["the service is stopping"] * 2 and it.published == []
