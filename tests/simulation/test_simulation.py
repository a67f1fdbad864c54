"""Many seeds, each a run of its own: `make sim SEEDS=n` tries n of them, `make sim SEED=n` tells the story of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkers import (
    clock,
    duplicates,
    followers,
    forgotten,
    legal,
    limits,
    order,
    refold,
    reports,
    resolved,
    rules,
    starts,
    truth,
)

from .eye import Eye
from .observed import Observed
from .run import simulate
from .scenario import scenario

CHECKERS = (clock, starts, truth, duplicates, forgotten, legal, limits, order, reports, resolved, rules, followers)

SEEDS_DEFAULT = 20
LINES_SHOWN = 40

ONE = os.environ.get("SEED", "")
SEEDS = [int(ONE)] if ONE else list(range(int(os.environ.get("SEEDS") or SEEDS_DEFAULT)))
TWICE = SEEDS[:1]


@contextmanager
def _folder() -> Iterator[Path]:
    """In memory where the system has such a place: a run commits a thousand times, and no power is cut here."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="letterbook-sim-", dir=memory if usable else None) as folder:
        yield Path(folder)


def _checkpoint(observed: Observed, eye: Eye) -> None:
    for sentence in refold.check_files(eye.connection, eye.log(), eye.path):
        observed.surprise(sentence)


def run(seed: int) -> Observed:
    with _folder() as folder:
        return simulate(scenario(seed), folder, _checkpoint)


def broken(observed: Observed) -> list[str]:
    """Every promise that was not kept."""
    found = [sentence for checker in CHECKERS for sentence in checker.check(observed)]
    return observed.surprises + found


def report(observed: Observed, sentences: list[str]) -> str:
    lines = [f"seed {observed.seed}: {len(sentences)} promises broken", *sentences[:LINES_SHOWN]]
    return "\n".join([*lines, f"the story of it: make sim SEED={observed.seed}"])


@pytest.mark.parametrize("seed", SEEDS)
def test_every_promise_is_kept(seed: int) -> None:
    observed = run(seed)
    if ONE:
        print("\n".join(observed.story))
    sentences = broken(observed)
    assert not sentences, report(observed, sentences)


@pytest.mark.parametrize("seed", TWICE)
def test_the_same_seed_gives_the_same_log(seed: int) -> None:
    assert run(seed).hash == run(seed).hash
