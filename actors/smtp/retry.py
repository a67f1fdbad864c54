"""How long to wait before trying again: a message by its list of delays, a relay by doubling.

Chance is an argument: `draw` is a number in [0, 1) that the caller took from its own source. Without jitter all
that failed together would come back together.
"""

JITTER = 0.1
"""A tenth: enough to spread what failed in one moment, small enough for the configured delay to stay true."""

BACKOFF_SECONDS_MAX = 300.0
"""A relay that comes back is found within five minutes, and one that is gone costs 12 connects an hour."""

_DOUBLINGS_MAX = 9
"""2**9 is the first power of two beyond BACKOFF_SECONDS_MAX; more would only make the number larger."""


def delay_seconds(retry_number: int, delays: tuple[float, ...], jitter: float) -> float:
    """The delay before retry 1, 2, ..; the last one repeats. Never sooner than configured, a tenth later at most."""
    if retry_number < 1 or not delays:
        raise ValueError(f"retry {retry_number} of {len(delays)} delays: both count from 1")
    return delays[min(retry_number, len(delays)) - 1] * (1.0 + JITTER * jitter)


def backoff_seconds(failures: int, draw: float) -> float:
    """The pause after so many failures in a row: 1 s, then twice as long each time, jitter taken off the top."""
    doublings = min(max(failures, 1) - 1, _DOUBLINGS_MAX)
    return min(2.0**doublings, BACKOFF_SECONDS_MAX) * (1.0 - JITTER * draw)
