"""At every start and at the end: the log is whole, the views are what it says, and nothing is missing from the counts.

accepted = sent + failed + withdrawn + waiting + in flight + held, by the log, by the rows and by the kept counts.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from events.message import RetentionPassed
from store import replay
from store.files import read_mark
from store.verifying import verify

from .facts import states

_TOTALS = "select state, sum(n) from totals group by state having sum(n) <> 0"
_ROWS = "select number, state from messages"


def check_files(connection: Any, log: Any, database: Path) -> Iterator[str]:
    """`connection` reads the files of a life that is over."""
    mark = read_mark(database)
    verdict = verify(connection, mark.seq if mark else None)
    if verdict.damage:
        yield f"verify says: {verdict.line}"
    for difference in replay.check(connection):
        yield f"refolded views differ: {difference.line}"
    yield from _conserved(connection, log)


def _conserved(connection: Any, log: Any) -> Iterator[str]:
    by_log = states(log)
    rows = dict(connection.execute(_ROWS))
    passed = any(isinstance(entry.fact, RetentionPassed) for entry in log)
    for number, state in by_log.items():
        if rows.get(number, state) != state or (number not in rows and not passed):
            yield f"message {number} is {state} by the log and {rows.get(number)} in the view"
    totals, counted = dict(connection.execute(_TOTALS)), Counter(by_log.values())
    if totals != counted:
        yield f"the counts are {totals}, and the log says {dict(counted)}"
