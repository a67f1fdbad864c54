"""The fetcher under rules: it asks at their ticks, in virtual time. The tests begin at 22:13:20 UTC."""

import datetime as dt
import random
from contextlib import asynccontextmanager

import pytest
import trio

from actors.fetcher import Fetcher
from actors.ingest import run_ingest
from actors.parse import Policy
from actors.timetable import Timetable
from events.fact import Entry
from events.schedule import RuleRemoved

from .application import Application
from .opened import T0_US, message, opened, save_account
from .test_delivery_rules import rule, until


class Timed(Application):
    """Keeps when it was asked."""

    def __init__(self, *answers):
        super().__init__(*answers)
        self.times = []

    def answer(self, method, url, body):
        now = dt.datetime.fromtimestamp(T0_US / 1e6 + trio.current_time(), dt.UTC)
        self.times.append(f"{now:%H:%M:%S}")
        return super().answer(method, url, body)


@asynccontextmanager
async def fetching(folder, application, *rules):
    send, receive = trio.open_memory_channel(4)
    async with opened(folder) as store, application.client() as client, trio.open_nursery() as nursery:
        await save_account(store)
        nursery.start_soon(run_ingest, receive, store, Policy())
        timetable = Timetable(dt.UTC, store.clock)
        for seq, each in enumerate(rules, 1):
            timetable.fold(Entry(seq, T0_US, None, None, each))
        chance = random.Random(1)
        fetcher = Fetcher(
            client, "http://app.example", send, store.secrets, chance, interval_s=60.0, timetable=timetable
        )
        timetable.listeners.append(fetcher.bell.ring)
        nursery.start_soon(fetcher.run)
        yield fetcher, timetable
        nursery.cancel_scope.cancel()


async def test_it_asks_at_ticks_and_goes_on_while_there_is_more(tmp_path, autojump_clock):
    more = {"messages": [message("a")], "more_messages": True}
    application = Timed({"messages": []}, more, more | {"messages": [message("b")]}, {"messages": []})
    async with fetching(tmp_path, application, rule(interval=15)):
        await until(22, 46)
        # At the start it goes on with the tick of 22:00.
        assert application.times == ["22:13:20", "22:15:00", "22:15:00", "22:15:00", "22:30:00", "22:45:00"]


async def test_outside_a_window_it_asks_for_nothing_until_run_now_rings(tmp_path, autojump_clock):
    application = Timed({"messages": []})
    async with fetching(tmp_path, application, rule(8, 9, 60)) as (fetcher, _):
        await until(23, 0)
        assert application.times == []
        fetcher.bell.ring()
        await until(8, 1, day=15)
        assert application.times == ["23:00:01", "08:00:00"]


async def test_after_a_failure_it_asks_at_the_next_tick(tmp_path, autojump_clock):
    application = Timed({"messages": []}, 500, {"messages": []})
    async with fetching(tmp_path, application, rule(interval=5)):
        await until(22, 21)
        assert application.times == ["22:13:20", "22:15:00", "22:20:00"]


@pytest.mark.parametrize("gone", [RuleRemoved(rule=1), rule(8, 9, number=1, enabled=False)])
async def test_a_change_of_the_rules_is_seen_while_it_waits(tmp_path, autojump_clock, gone):
    application = Timed({"messages": []})
    async with fetching(tmp_path, application, rule(8, 9)) as (_, timetable):
        await until(22, 20)
        timetable.fold(Entry(2, T0_US, None, None, rule(8, 23, 5, number=1)))
        await until(22, 26)
        assert application.times == ["22:20:01", "22:25:00"]
        timetable.fold(Entry(3, T0_US, None, None, gone))
        await until(22, 27)
        assert application.times[2:] == ["22:26:01", "22:27:01"]
