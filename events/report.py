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


class ReportRefused(Fact):
    """The upstream refused the result with this seq by name, though it took what stood around it: it is offered again
    from `again_us` on."""

    result: int
    again_us: int


class ReportSettled(Fact):
    """A result that was refused before was acknowledged after all, or is given up: refused for too long."""

    result: int
    given_up: bool = False


class TokensForgotten(Fact):
    """These batches were stored so long ago that nobody offers them any more: a token that comes now is a new one."""

    tokens: tuple[str, ...]
    by: str = "retention"
