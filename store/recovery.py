"""What to do at a start: a table that looks at what was found and says what is decided, with a line for the operator.

A start is seen under four aspects, which do not depend on one another: where the mark stands, whether the views are
of this release, how the last run ended, and whether the clock can be believed. Each aspect has its own small table.
Its `see` turns a Situation into one word a column; its cases are matched against the words, ANY matching every word.
For every combination of words exactly one case of the aspect matches, and a test walks them all.

Three cases are less plain than they look. A log that `letterbook restore` has put in place says so itself, so the
mark beside it, old or lost, does not matter; the saying goes after LogRestored, as harmlessly as in the next case. A
mark of another log beside a log with facts is judged as a restored backup: a backup from before an earlier
restoration has the earlier id, and a crash after LogRestored and before the next mark leaves the same picture, where
judging so a second time does no harm. And a log that goes on past its mark is nothing unusual: the mark is written
once a second, after the commits.
"""

from collections.abc import Callable

from msgspec import Struct

from events.fact import Fact
from events.schedule import DispatchSuspended
from events.service import LogRestored

from .files import Mark
from .views.clock import LARGE_US

REFOLDED_MAX = 1_000_000
"""Facts that a start refolds by itself: a minute's work. With more, whoever starts it should choose the moment."""

CLOCK_AHEAD_US = 86_400 * 1_000_000
"""No service that matters stands still for a day, and a wrong clock must not expire what may wait for five. One that
did stand still loses nothing by it but an hour, in which its mail is sent rather than expired."""


class Situation(Struct, frozen=True, kw_only=True):
    """What was found at the start. `last_at_us` is the last fact's stamp, `stopped` whether it is ServiceStopped;
    `put_back` is how far the log had come that `letterbook restore` has replaced by this one, None where it has not;
    `stale_views` are those that were folded by another version of their code; `stepped_to_us` is what the clock
    showed after its last step that the mark does not know of, and `stepped_at_us` that fact's stamp, 0 where there was
    none."""

    log: str
    last_seq: int
    last_at_us: int
    put_back: int | None = None
    stopped: bool
    mark: Mark | None
    stale_views: tuple[str, ...]
    open_attempts: int
    now_us: int
    stepped_to_us: int = 0
    stepped_at_us: int = 0

    @property
    def moved_us(self) -> int:
        """By how much the clock has moved since the log was last written to. Without a mark stamps must say what it
        showed then; they never decrease, so after a step backwards they stand still until it has come to them again."""
        if mark := own_mark(self.mark, self.log, self.last_seq, self.put_back):
            return self.now_us - (self.stepped_to_us or mark.now_us)
        if self.last_at_us > self.stepped_at_us:
            return self.now_us - self.last_at_us
        return self.now_us - min(max(self.now_us, self.stepped_to_us), self.last_at_us)


def own_mark(mark: Mark | None, log: str, last_seq: int, put_back: int | None) -> Mark | None:
    """The mark, where it says what the clock showed in this log, and not in the one that a backup has replaced."""
    if mark is None or mark.log != log or mark.seq > last_seq or put_back is not None or not mark.now_us:
        return None
    return mark


class Decision(Struct, frozen=True, kw_only=True):
    """What the opener does, in this order: refuse to start; refold the views; record that the clock has moved by
    `stepped_us`; go on under a new log id with these facts.

    `label` is for the fact ServiceStarted. `lines` are for the operator; an uneventful start has none.
    """

    label: str = ""
    refuse: bool = False
    refold: bool = False
    facts: tuple[Fact, ...] = ()
    stepped_us: int = 0
    lines: tuple[str, ...] = ()

    @property
    def restored(self) -> bool:
        return bool(self.facts)


class Case(Struct, frozen=True):
    """A row of a table. `line` may name what was found, in braces; an uneventful case has none."""

    label: str
    words: tuple[str, ...]
    line: str = ""
    refuse: bool = False
    refold: bool = False
    restored: bool = False
    stepped: bool = False

    def matches(self, words: tuple[str, ...]) -> bool:
        return all(mine in (ANY, word) for mine, word in zip(self.words, words, strict=True))


class Aspect(Struct, frozen=True):
    """One way of looking at a start: its columns (name -> the words that `see` can say) and its cases."""

    columns: dict[str, tuple[str, ...]]
    see: Callable[[Situation], tuple[str, ...]]
    cases: tuple[Case, ...]

    def case(self, situation: Situation) -> Case:
        words = self.see(situation)
        return next(case for case in self.cases if case.matches(words))


ANY = "any"
LOG = ("empty", "facts")


def _log(situation: Situation) -> str:
    return "facts" if situation.last_seq else "empty"


def _mark(situation: Situation) -> str:
    mark = situation.mark
    if mark is None:
        return "none"
    if mark.log != situation.log:
        return "other"
    if mark.seq == situation.last_seq:
        return "equal"
    return "beyond" if mark.seq > situation.last_seq else "behind"


def _clock(situation: Situation) -> str:
    if situation.moved_us < -LARGE_US:
        return "behind"
    return "ahead" if situation.moved_us > CLOCK_AHEAD_US else "close"


ACTIVATE = (
    "Dispatch is suspended: `letterbook activate --restored hold` or `send` (POST /commands/activate) must say what"
    " becomes of the mail that waits"
)

MARK = Aspect(
    {"log": LOG, "put": ("made", "put back"), "mark": ("none", "behind", "equal", "beyond", "other")},
    lambda situation: (
        _log(situation),
        "made" if situation.put_back is None else "put back",
        _mark(situation),
    ),
    (
        Case("new log", ("empty", "made", "none")),
        Case("at the mark", (ANY, "made", "equal")),
        Case("past the mark", (ANY, "made", "behind")),
        Case(
            "no mark",
            ("facts", "made", "none"),
            "the mark file is missing and is made anew: if this is a restored backup, that could not be noticed",
        ),
        Case(
            "restored",
            (ANY, "made", "beyond"),
            "the log ends at {last_seq}, but it had come to {marked_seq}: this is a restored backup. " + ACTIVATE,
            restored=True,
        ),
        Case(
            "put back",
            (ANY, "put back", ANY),
            "the log ends at {last_seq}, and was put back by `letterbook restore`. " + ACTIVATE,
            restored=True,
        ),
        Case(
            "of another log",
            ("facts", "made", "other"),
            "the mark file is of another log ({marked_log}): this is taken for a restored backup. " + ACTIVATE,
            restored=True,
        ),
        Case(
            "begun anew",
            ("empty", "made", "other"),
            "the mark file is of another log ({marked_log}) of {marked_seq} facts, and this one is empty: if it was"
            " not meant to begin anew, stop the service and restore the database",
        ),
    ),
)

VIEWS = Aspect(
    {"views": ("fit", "stale"), "log": ("short", "long")},
    lambda situation: (
        "stale" if situation.stale_views else "fit",
        "long" if situation.last_seq > REFOLDED_MAX else "short",
    ),
    (
        Case("views fit", ("fit", ANY)),
        Case("views refolded", ("stale", "short"), "views of another version are refolded: {views}", refold=True),
        Case(
            "rebuild first",
            ("stale", "long"),
            "views of another version must be refolded from {last_seq} facts: run `letterbook rebuild`, then start"
            " again ({views})",
            refuse=True,
        ),
    ),
)

END = Aspect(
    {"log": LOG, "end": ("stopped", "broken off"), "attempts": ("none", "open")},
    lambda situation: (
        _log(situation),
        "stopped" if situation.stopped else "broken off",
        "open" if situation.open_attempts else "none",
    ),
    (
        Case("first start", ("empty", ANY, ANY)),
        Case("clean stop", ("facts", "stopped", "none")),
        Case("unclean stop", ("facts", "broken off", "none"), "the last run broke off; nothing was being sent"),
        Case(
            "attempts open",
            ("facts", ANY, "open"),
            "attempts under way when the last run ended: {open_attempts}; whether they arrived is in doubt",
        ),
    ),
)

CLOCK = Aspect(
    {"log": LOG, "clock": ("close", "behind", "ahead")},
    lambda situation: (_log(situation), _clock(situation)),
    (
        Case("clock untested", ("empty", ANY)),
        Case("clock right", ("facts", "close")),
        Case(
            "clock behind",
            ("facts", "behind"),
            "the clock is {behind_s} s before the last fact: nothing expires for an hour; set the clock if it is wrong",
            stepped=True,
        ),
        Case(
            "clock ahead",
            ("facts", "ahead"),
            "the clock is {ahead_days} days after the last fact: nothing expires for an hour, and nothing that was"
            " asked for later goes early; set the clock if it is wrong",
            stepped=True,
        ),
    ),
)

ASPECTS = (END, MARK, VIEWS, CLOCK)


def decide(situation: Situation) -> Decision:
    """What this start is to do: the four cases that it is, put together."""
    cases = [aspect.case(situation) for aspect in ASPECTS]
    restored = any(case.restored for case in cases)
    return Decision(
        label=", ".join(case.label for case in cases if case.line or case in END.cases),
        refuse=any(case.refuse for case in cases),
        refold=any(case.refold for case in cases),
        facts=_restored(situation) if restored else (),
        stepped_us=situation.moved_us if any(case.stepped for case in cases) else 0,
        lines=tuple(_line(case, situation) for case in cases if case.line),
    )


def _restored(situation: Situation) -> tuple[Fact, ...]:
    marked_seq = situation.mark.seq if situation.mark else 0
    came_to = marked_seq if situation.put_back is None else situation.put_back
    return (
        LogRestored(previous_log=situation.log, marked_seq=came_to),
        DispatchSuspended(by="recovery", restored=True),
    )


def _line(case: Case, situation: Situation) -> str:
    mark = situation.mark or Mark("", 0)
    return case.line.format(
        last_seq=situation.last_seq,
        marked_seq=mark.seq,
        marked_log=mark.log,
        views=", ".join(situation.stale_views),
        open_attempts=situation.open_attempts,
        behind_s=-situation.moved_us // 1_000_000,
        ahead_days=situation.moved_us // (86_400 * 1_000_000),
    )
