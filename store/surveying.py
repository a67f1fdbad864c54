"""Surveying: read from the database what `recovery` decides by. None of these statements scans the log."""

import sqlite3

from events.service import ClockStepped
from events.wire import decode_row

from .files import Mark
from .recovery import Situation, own_mark
from .schema import PUT_BACK, VIEW_VERSIONS

_LAST_FACT = "select seq, at_us, kind from log order by seq desc limit 1"
"""Where the log ends, and by which fact."""

_META = "select name, value from meta"
"""The log's id and the versions of its views: a dozen rows."""

_OPEN_ATTEMPTS = "select count(*) from attempts"
"""As many as there were connections."""

_STEPPED = (
    "select seq, at_us, kind, version, message, account, data from log"
    " where seq > ? and kind = 'ClockStepped' order by seq desc limit 1"
)
"""The last step of the clock after the mark: of a second's facts, and never of more than TAIL_MAX."""

TAIL_MAX = 100_000
"""Facts among which a step is looked for where there is no mark, or one that could not be written for long."""


_ORDERLY = ("ServiceStopped", "ImportFinished")
"""The last facts of what ended as it should."""


def survey(connection: sqlite3.Connection, mark: Mark | None, now_us: int) -> Situation:
    """The situation of a log that has been identified (`meta` holds its id)."""
    meta = dict(connection.execute(_META))
    last_seq, last_at_us, kind = connection.execute(_LAST_FACT).fetchone() or (0, 0, "")
    (open_attempts,) = connection.execute(_OPEN_ATTEMPTS).fetchone()
    put_back = int(meta[PUT_BACK]) if PUT_BACK in meta else None
    own = own_mark(mark, meta["log"], last_seq, put_back)
    stepped_to_us, stepped_at_us = _last_step(connection, max(own.seq if own else 0, last_seq - TAIL_MAX))
    return Situation(
        log=meta["log"],
        last_seq=last_seq,
        last_at_us=last_at_us,
        put_back=put_back,
        stopped=kind in _ORDERLY,
        mark=mark,
        stale_views=stale_views(meta),
        open_attempts=open_attempts,
        now_us=now_us,
        stepped_to_us=stepped_to_us,
        stepped_at_us=stepped_at_us,
    )


def _last_step(connection: sqlite3.Connection, after: int) -> tuple[int, int]:
    """What the clock showed after its last step beyond a seq, and that fact's stamp; 0 where there was none, or one of
    an earlier release, which does not say."""
    row = connection.execute(_STEPPED, (after,)).fetchone()
    entry = decode_row(row) if row else None
    return (entry.fact.to_us, entry.at_us) if entry and isinstance(entry.fact, ClockStepped) else (0, 0)


def stale_views(meta: dict[str, str]) -> tuple[str, ...]:
    """The views that this release folds in another way than the one that wrote them, or that are new."""
    return tuple(name for name, version in VIEW_VERSIONS.items() if meta.get(f"view:{name}") != str(version))
