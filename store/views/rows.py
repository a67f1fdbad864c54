"""What a view is: a table of rows and two pure functions over them.

`facts` are the kinds that can touch it, `keys(entry)` names the rows that one of these does, `evolve(row, entry)`
gives the row after it. Both are O(1) and total: any sequence of facts, in any order, gives some row and never an
exception, so a view can be refolded from any log. Policy is in the facts, so neither reads configuration, clock or
chance.

A row is a Struct whose first field is the key and whose fields are the table's columns, in order.
"""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from msgspec import Struct

from events.fact import Entry, Fact

Row = TypeVar("Row", bound=Struct)
Key = int | str


class View(Struct, Generic[Row], frozen=True):
    """One table of rows, folded from the log. `version` goes up whenever the same log would give other rows."""

    name: str
    version: int
    row: type[Row]
    facts: tuple[type[Fact], ...]
    keys: Callable[[Entry], Iterable[Key]]
    evolve: Callable[[Row | None, Entry], Row | None]

    @property
    def key(self) -> str:
        return self.row.__struct_fields__[0]
