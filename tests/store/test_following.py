"""Following: no gap and no repeat, whatever is published when, and never more in memory than there may be."""

import random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from events.fact import Entry
from events.service import ServiceStopped
from store.following import BYTES_WAITING_MAX, FACTS_WAITING_MAX, PAGE_FACTS, Follower, Hub, LogGap


class Log:
    """A log of facts that say nothing, its hub, and how it was read: (after, given)."""

    def __init__(self, facts: int = 0) -> None:
        self.facts = facts
        self.reads: list[tuple[int, int]] = []
        self.hub = Hub(facts, self.page)

    async def page(self, after: int, limit: int) -> tuple[Entry, ...]:
        await trio.lowlevel.checkpoint()
        entries = self.entries(after, min(self.facts, after + limit))
        self.reads.append((after, len(entries)))
        return entries

    def entries(self, after: int, last: int) -> tuple[Entry, ...]:
        return tuple(Entry(seq, seq, None, None, ServiceStopped()) for seq in range(after + 1, last + 1))

    def commit(self, facts: int, size: int = 0) -> None:
        self.facts += facts
        self.hub.publish(self.entries(self.facts - facts, self.facts), size)


async def take(follower: Follower, up_to: int) -> list[int]:
    """The seqs that it gives until one is reached."""
    seqs: list[int] = []
    async for batch in follower:
        assert (batch.first, batch.last) == (batch.entries[0].seq, batch.entries[-1].seq)
        seqs += [entry.seq for entry in batch.entries]
        if batch.last >= up_to:
            break
    return seqs


async def test_it_reads_what_there_is_and_goes_on_with_what_comes():
    log = Log(5)
    async with log.hub.follow(2) as follower:
        assert await take(follower, 5) == [3, 4, 5]
        log.commit(2)
        log.commit(1)
        assert await take(follower, 8) == [6, 7, 8]
        assert log.reads == [(2, 3)]


async def test_it_waits_where_there_is_nothing():
    log = Log(5)
    async with log.hub.follow(5) as follower, trio.open_nursery() as nursery:
        got: list[int] = []

        async def follow() -> None:
            got.extend(await take(follower, 6))

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [] and log.reads == []
        log.commit(1)
        await trio.testing.wait_all_tasks_blocked()
        assert got == [6]


async def test_what_is_committed_while_it_reads_is_neither_missed_nor_repeated():
    """It registers first and reads then: the commit is in the page and in the batch."""
    log = Log(5)
    async with log.hub.follow(0) as follower:
        log.commit(3)
        assert await take(follower, 8) == list(range(1, 9))
        log.commit(1)
        assert await take(follower, 9) == [9]


async def test_a_position_ahead_of_the_log_waits_for_it():
    log = Log(5)
    async with log.hub.follow(7) as follower:
        log.commit(2)
        log.commit(3)
        assert await take(follower, 10) == [8, 9, 10]


@pytest.mark.parametrize(("facts", "size"), [(1_500, 0), (10, BYTES_WAITING_MAX // 4)])
async def test_too_much_waiting_is_dropped_and_read_from_the_log(facts, size):
    log = Log()
    async with log.hub.follow(0) as follower:
        for _ in range(9):
            log.commit(facts, size)
            assert follower.facts_waiting <= FACTS_WAITING_MAX
        assert log.hub.lag() == 9 * facts
        assert await take(follower, 9 * facts) == list(range(1, 9 * facts + 1))
        assert log.reads and log.hub.lag() == 0


async def test_a_follower_that_is_a_million_behind_is_bounded():
    log = Log(1_000_000)
    async with log.hub.follow(0) as follower:
        for page in range(40):
            batch = await anext(follower)
            assert (batch.first, len(batch.entries)) == (page * PAGE_FACTS + 1, PAGE_FACTS)
            log.commit(1_000)
            assert follower.facts_waiting <= FACTS_WAITING_MAX
        assert log.hub.lag() == 1_040_000 - 40 * PAGE_FACTS


async def test_a_cancelled_follower_has_lost_nothing():
    log = Log()
    async with log.hub.follow(0) as follower:
        log.commit(3)
        with trio.CancelScope() as scope:
            scope.cancel()
            await take(follower, 3)
        assert scope.cancelled_caught and follower.position == 0
        assert await take(follower, 3) == [1, 2, 3]
        assert log.reads == []


async def test_a_closed_hub_gives_out_what_there_is_and_ends():
    log = Log(3)
    async with log.hub.follow(0) as follower:
        log.commit(2)
        log.hub.close()
        assert [batch.last async for batch in follower] == [3 + 2]


async def test_closing_wakes_who_waits():
    log = Log()
    async with log.hub.follow(0) as follower, trio.open_nursery() as nursery:
        nursery.start_soon(take, follower, 1)
        await trio.testing.wait_all_tasks_blocked()
        log.hub.close()


async def test_who_goes_on_after_the_block_is_at_its_end():
    log = Log(3)
    async with log.hub.follow(0) as follower:
        pass
    assert [batch async for batch in follower] == []
    log.commit(1)
    assert follower.facts_waiting == 0 and log.hub.lag() == 0


async def test_a_log_with_a_gap_is_an_error_and_no_busy_loop():
    log = Log(5)
    log.facts = 3
    async with log.hub.follow(0) as follower:
        with pytest.raises(LogGap, match="no fact 4, though it goes to 5"):
            await take(follower, 5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 2**32), st.integers(1, 400))
def test_no_gap_and_no_repeat_under_random_commits(after, seed, largest):
    chance = random.Random(seed)

    async def main() -> None:
        log = Log(chance.randint(0, 40))
        seqs: list[int] = []

        async def follow() -> None:
            async with log.hub.follow(after) as follower:
                async for batch in follower:
                    assert follower.facts_waiting <= FACTS_WAITING_MAX
                    seqs.extend(entry.seq for entry in batch.entries)
                    for _ in range(chance.choice((0, 0, 1, 5, 30))):
                        await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for _ in range(chance.randint(1, 60)):
                log.commit(chance.randint(1, largest), chance.choice((0, 1, BYTES_WAITING_MAX // 3)))
                for _ in range(chance.choice((0, 1, 2))):
                    await trio.lowlevel.checkpoint()
            log.hub.close()
        assert seqs == list(range(after + 1, log.facts + 1))

    trio.run(main)
