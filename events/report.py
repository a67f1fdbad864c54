"""Facts about the hand-off with the application's side."""

from .fact import Fact


class BatchFetched(Fact):
    """A batch from upstream was stored, in one commit with its messages. `token` is a digest of the upstream's."""

    token: str
    messages: int


class ResultsReported(Fact):
    """Every result up to and including seq `up_to` was acknowledged upstream, or counts as such."""

    up_to: int
    results: int = 0
    by: str = "reporter"
