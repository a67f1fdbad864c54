"""What the actors' tests are given."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory: a thousand commits wait there for no disk."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for stores, in memory where the machine allows it; it is gone after the test."""
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="letterbook-", dir=memory) as name:
        yield Path(name)
