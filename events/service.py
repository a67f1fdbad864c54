"""Facts about the service itself."""

from .fact import Fact


class ServiceStarted(Fact):
    """`recovery` is the label of the row in `store/recovery.py` that this start took."""

    version: str
    recovery: str


class ServiceStopped(Fact):
    """The service drained and stopped in order; its absence before a start is an unclean stop."""


class ImportFinished(Fact):
    """What another service had was taken over, by the facts before this one in the same transaction."""

    accounts: int = 0
    volumes: int = 0
    sent: int = 0
    failed: int = 0
    waiting: int = 0
    rejected: int = 0
    by: str = ""


class ClockStepped(Fact):
    """The wall clock moved against the monotonic one by `by_us` (negative: backwards), to `to_us`.

    `waits_us` is by how much that moves what waits without anybody having named a moment: retries, queues, quotas.
    Until `doubted_until_us` nobody need believe the new clock: by then it shows `ahead_us` more than is believed, and
    mail that was asked for later goes by the more careful of both. 0 where the clock is believed.
    """

    by_us: int
    to_us: int = 0
    waits_us: int = 0
    ahead_us: int = 0
    doubted_until_us: int = 0


class ClockTrusted(Fact):
    """A person said that the clock is right, before its hour was over."""

    by: str = ""


class LogRestored(Fact):
    """This is a restored backup, of a log that had come to `marked_seq`. It goes on under a new log id."""

    previous_log: str
    marked_seq: int
