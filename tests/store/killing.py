"""`kill -9` at a chosen step: a process of its own does the work, and kills itself before its n-th call that changes a
file, or has SQLite change one."""

import os
import signal
import sqlite3
from collections.abc import Callable

READS = ("select", "explain")
"""Between two of these nothing has changed."""

CALLS = ("replace", "rename", "link", "unlink", "fsync", "fdatasync", "ftruncate")


def killed_at(nth: int, work: Callable[[], object]) -> bool:
    """Whether the work was killed before its n-th step; else it came to its end."""
    child = os.fork()
    if child == 0:
        _work_until(nth, work)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0, "the work failed"
    return False


def _work_until(nth: int, work: Callable[[], object]) -> None:
    """In the child: never returns."""
    try:
        _arm(nth)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def changes(statement: str) -> bool:
    statement = statement.lower().lstrip()
    if statement.startswith("pragma"):
        return "checkpoint" in statement or "journal_mode" in statement
    return not statement.startswith(READS)


def _arm(nth: int) -> None:
    left = nth

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **named: object) -> object:
            step()
            return call(*args, **named)

        return run

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))

    class Counting(sqlite3.Connection):
        def execute(self, *args, **named):
            if changes(args[0]):
                step()
            return super().execute(*args, **named)

        def close(self) -> None:
            step()
            super().close()

    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **named: connect(*args, factory=Counting, **named)
