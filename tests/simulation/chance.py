"""Chance from one number: a stream of its own for each part, and Trio's scheduler made to follow its own too.

Streams are named, so that a new draw in one part does not change what happens in all the others.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import trio


def stream(seed: int, name: str) -> random.Random:
    """The random numbers of one part of one run."""
    return random.Random(f"{seed} {name}")


@contextmanager
def seeded_scheduling(seed: int) -> Iterator[None]:
    """Trio runs what is ready in an order that it draws; within this block it draws from the seed."""
    run = trio._core._run
    state, allowed = run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING
    run._r.seed(f"{seed} scheduling")
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        run._r.setstate(state)
        run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]
