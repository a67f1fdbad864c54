"""What threads and disks add, which code that runs inline does not have: commits and readings take time.

A turn waits before it is done and again before anybody hears of it, so facts are on disk that nobody knows of; a
reading is of a moment that is past when it arrives. Virtual time passes meanwhile, and everybody else goes on.
"""

import random
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import trio

from store.opening import Store
from store.writer import Request, TurnResult

LATENCIES_S = (0.0, 0.001, 0.02, 0.3)
"""A drive that lies, a fast one, a slow one, and one that shares its spindle with a backup."""


class SlowTurner:
    """Around the inline turner of a store; `run` is the turn itself, and may be wrapped."""

    def __init__(
        self, inline: Any, chance: random.Random, latency_s: float, wrote: Callable[[int], None] = lambda seq: None
    ) -> None:
        self._inline = inline
        self._chance = chance
        self._latency_s = latency_s
        self._wrote = wrote

    @property
    def run(self) -> Callable[[Sequence[Request]], TurnResult]:
        return self._inline._run

    @run.setter
    def run(self, run: Callable[[Sequence[Request]], TurnResult]) -> None:
        self._inline._run = run

    async def turn(self, requests: Sequence[Request]) -> TurnResult:
        await trio.sleep(self._chance.random() * self._latency_s)
        result: TurnResult = await self._inline.turn(requests)
        for entry in result.entries:
            self._wrote(entry.seq)
        await trio.sleep(self._chance.random() * self._latency_s)
        return result

    def close(self) -> None:
        self._inline.close()


class SlowReaders:
    """Around the inline readers of a store."""

    def __init__(self, inline: Any, chance: random.Random, latency_s: float) -> None:
        self._inline = inline
        self._chance = chance
        self._latency_s = latency_s

    async def read(self, reading: Callable[[sqlite3.Connection], Any]) -> Any:
        found = await self._inline.read(reading)
        await trio.sleep(self._chance.random() * self._latency_s)
        return found

    def close(self) -> None:
        self._inline.close()


def slow_down(store: Store, chance: random.Random, wrote: Callable[[int], None] = lambda seq: None) -> SlowTurner:
    """Give a store that runs inline the latencies of a machine; `wrote` hears the seq of every fact."""
    turner = SlowTurner(store.recorder._turner, chance, chance.choice(LATENCIES_S), wrote)
    store.recorder._turner = turner
    store._readers = SlowReaders(store._readers, chance, chance.choice(LATENCIES_S))  # type: ignore[assignment]
    return turner
