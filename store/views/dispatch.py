"""The view `dispatch`: one row that says whether attempts may start at all."""

from msgspec import Struct

from events.fact import Entry
from events.schedule import DispatchActivated, DispatchSuspended

from .rows import View

ONLY = 0
"""The key of the only row."""


class DispatchRow(Struct, frozen=True):
    key: int = ONLY
    active: bool = True
    restored: bool = False
    since_us: int = 0
    by: str = ""


ACTIVE = DispatchRow()
"""What holds before any fact says otherwise."""


def keys(entry: Entry) -> tuple[int, ...]:
    return (ONLY,) if isinstance(entry.fact, DispatchSuspended | DispatchActivated) else ()


def evolve(row: DispatchRow | None, entry: Entry) -> DispatchRow | None:
    match entry.fact:
        case DispatchSuspended() as fact:
            restored = fact.restored or (row is not None and row.restored)
            return DispatchRow(ONLY, False, restored, entry.at_us, fact.by)
        case DispatchActivated() as fact:
            return DispatchRow(ONLY, True, False, entry.at_us, fact.by)
    return row


DISPATCH = View("dispatch", 1, DispatchRow, (DispatchSuspended, DispatchActivated), keys, evolve)
