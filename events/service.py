"""Facts about the service itself."""

from .fact import Fact


class ServiceStarted(Fact):
    """`recovery` is the label of the row in `store/recovery.py` that this start took."""

    version: str
    recovery: str


class ServiceStopped(Fact):
    """The service drained and stopped in order; its absence before a start is an unclean stop."""


class ClockStepped(Fact):
    """The wall clock moved against the monotonic one by `by_us` (negative: backwards)."""

    by_us: int


class LogRestored(Fact):
    """This is a restored backup, of a log that had come to `marked_seq`. It goes on under a new log id."""

    previous_log: str
    marked_seq: int
