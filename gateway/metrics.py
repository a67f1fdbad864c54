"""Numbers for Prometheus. Counters and histograms are folded from the batches that the gateway's follower brings;
gauges are read when somebody asks. One registry an application, so that two in one process share nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from events.account import AccountThrottled
from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import Entry
from events.message import DoubtResolved, MessageAccepted, MessageFailed, MessageRejected, MessageRevised
from store.following import Batch
from store.reading import Counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ATTEMPT_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
COMMIT_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)

GAUGES: dict[str, str] = {
    "queue_age_seconds": "How long the mail that has been due longest has waited",
    "in_flight": "Attempts that are under way",
    "connections": "Connections to relays",
    "follower_lag_facts": "Facts that the slowest follower is behind",
    "wal_bytes": "Size of the write-ahead file",
    "log_bytes": "Size of the file that holds the log",
    "log_bytes_per_day": "Growth of the log",
    "disk_days_left": "Days until the disk is full, at this growth",
    "body_bytes": "Bodies of requests in memory",
    "streams": "Live streams",
}
"""Gauges that others give: name without prefix, and what it says."""

LABELLED: dict[str, tuple[str, str]] = {
    "not_ready": ("reason", "1 while this keeps /ready from saying yes"),
    "relay_unreachable": ("account_id", "1 while the account's relay cannot be reached, else absent"),
    "account_paused": ("account_id", "1 while the account is paused, else absent"),
    "account_throttled": ("account_id", "1 while a limit of the account is used up, else absent"),
    "upstream_trouble": ("call", "1 while this call to the upstream fails, else absent"),
    "reports_given_up_total": ("", "Reports that the upstream has refused for so long that they are given up"),
    "log_lines_total": ("level", "Lines that the service has written on standard error"),
    "log_lines_dropped_total": ("", "Lines that nobody took from standard error"),
    "info": ("version", "1, and the release that runs"),
}
"""What others give by label: (the label, what it says); a name that ends in _total is a counter."""


class Metrics:
    """Folds batches, and renders the text. `legacy_prefix` is that of the five metrics that older dashboards read."""

    def __init__(self, legacy_prefix: Literal["asyncmail", "gmp"] = "asyncmail") -> None:
        self.registry = registry = CollectorRegistry()

        def legacy(name: str, words: str) -> Counter:
            return Counter(f"{legacy_prefix}_{name}", words, ["account_id"], registry=registry)

        self._sent = legacy("sent", "Messages that every recipient's relay took")
        self._errors = legacy("errors", "Messages that ended as an error")
        self._deferred = legacy("deferred", "Attempts after which a message waits for another")
        self._limited = legacy("rate_limited", "Times that an account's limit was used up")
        self._pending = Gauge(f"{legacy_prefix}_pending_messages", "Messages that are due and wait", registry=registry)
        self._accepted = Counter("letterbook_accepted", "Messages taken since the start", registry=registry)
        self._states = Gauge("letterbook_messages", "Messages by state, ever", ["state"], registry=registry)
        self._attempts = Histogram(
            "letterbook_attempt_seconds", "An SMTP transaction", registry=registry, buckets=ATTEMPT_BUCKETS
        )
        self._commits = Histogram(
            "letterbook_commit_seconds", "From a fact's stamp until followers have it", registry=registry,
            buckets=COMMIT_BUCKETS,
        )  # fmt: skip
        # A gauge is made when its number is first known: one that is not known is left out, and never says 0.
        self._gauges: dict[str, Gauge] = {}
        self._labelled = _Labelled()
        registry.register(self._labelled)
        ProcessCollector(registry=registry)

    def fold(self, batch: Batch, account_ids: Mapping[int, str], now_us: int) -> None:
        """Count what a batch says."""
        self._commits.observe(max(0, now_us - batch.entries[-1].at_us) / 1e6)
        for entry in batch.entries:
            self._count(entry, account_ids.get(entry.account or 0, ""))

    def _count(self, entry: Entry, account_id: str) -> None:
        match entry.fact:
            case AttemptEnded() | AttemptInterrupted() as fact:
                if isinstance(fact, AttemptEnded):
                    self._attempts.observe(fact.took_us / 1e6)
                self._count_end(fact.next, account_id)
            case MessageFailed() | MessageRejected():
                self._errors.labels(account_id).inc()
            case DoubtResolved(resolution="error"):
                self._errors.labels(account_id).inc()
            case AccountThrottled():
                self._limited.labels(account_id).inc()
            case MessageAccepted() | MessageRevised():
                self._accepted.inc()

    def called_sent(self, status: str, account_id: str) -> None:
        """Count a message that a person has called sent: by what it came to, for some may have been refused before."""
        (self._sent if status == "sent" else self._errors).labels(account_id).inc()

    def _count_end(self, next_step: str, account_id: str) -> None:
        match next_step:
            case "done":
                self._sent.labels(account_id).inc()
            case "failed":
                self._errors.labels(account_id).inc()
            case "due":
                self._deferred.labels(account_id).inc()

    def render(self, counts: Counts, gauges: Mapping[str, float], labelled: Mapping[str, Mapping[str, float]]) -> bytes:
        """The text; `gauges` are named as in GAUGES, `labelled` as in LABELLED. What nobody has given is left out."""
        self._pending.set(counts.pending)
        states = {**_ALL_STATES, **counts.states}
        accepted = sum(n for state, n in states.items() if state != "rejected")
        for state, n in {**states, "accepted": accepted}.items():
            self._states.labels(state).set(n)
        for name, value in gauges.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"letterbook_{name}", GAUGES[name], registry=self.registry)
            self._gauges[name].set(value)
        self._labelled.given = labelled
        return prometheus_client.generate_latest(self.registry)


class _Labelled(Collector):
    """What was last given by label."""

    def __init__(self) -> None:
        self.given: Mapping[str, Mapping[str, float]] = {}

    def collect(self) -> Iterator[Metric]:
        for name, values in self.given.items():
            label, words = LABELLED[name]
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            metric = family(f"letterbook_{name}", words, labels=[label] if label else [])
            for value, number in values.items():
                metric.add_metric([value] if label else [], number)
            yield metric


_ALL_STATES = dict.fromkeys(("sent", "failed", "withdrawn", "waiting", "in_flight", "held", "rejected"), 0)
