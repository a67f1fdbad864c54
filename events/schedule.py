"""Facts about when anything may go."""

from typing import Literal

from .fact import OWN, Fact


class DispatchSuspended(Fact):
    """No attempt may start from here on; `restored` where a restored backup was the reason."""

    by: str = ""
    restored: bool = False


class DispatchActivated(Fact):
    """Attempts may start again; after a restored backup, what was chosen for the mail that waited."""

    by: str = ""
    restored: Literal["hold", "send"] | None = None


class RuleSaved(Fact):
    """A time window in which mail may go, and how often. `rule` is the seq of the first fact about it, OWN there;
    all fields are said anew each time."""

    name: str
    enabled: bool
    priority: int
    days: tuple[int, ...]
    start_hour: int
    end_hour: int
    cross_midnight: bool
    interval_minutes: int
    rule: int = OWN
    by: str = ""


class RuleRemoved(Fact):
    rule: int
    by: str = ""
