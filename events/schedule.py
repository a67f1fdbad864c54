"""Facts about when anything may go."""

from typing import Literal

from .fact import Fact


class DispatchSuspended(Fact):
    """No attempt may start from here on; `restored` where a restored backup was the reason."""

    by: str = ""
    restored: bool = False


class DispatchActivated(Fact):
    """Attempts may start again; after a restored backup, what was chosen for the mail that waited."""

    by: str = ""
    restored: Literal["hold", "send"] | None = None
