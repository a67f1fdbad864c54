"""Nothing is sent without a start on disk: whatever the relay sees belongs to an attempt that the log began before.

That the start stood there before the first byte of MAIL left is looked at in that very moment, in the relay's hook.
"""

from collections.abc import Iterator

from tests.simulation.observed import Observed

from .facts import attempts

MAILS_AN_ATTEMPT_MAX = 2
"""A connection that died while it idled is replaced once within the attempt."""


def check(observed: Observed) -> Iterator[str]:
    known = attempts(observed)
    for transaction in observed.transactions:
        attempt = known.get(transaction.attempt or 0)
        if attempt is None or attempt.started.message != transaction.number:
            yield f"the relay saw MAIL of {transaction.id} at {transaction.mail_at:.3f} for no attempt of the log"
    for seq, attempt in known.items():
        mails = attempt.transactions
        if len(mails) > MAILS_AN_ATTEMPT_MAX or any(each.accepted for each in mails[:-1]):
            yield f"attempt {seq} said MAIL {len(mails)} times, and not only because MAIL had had no answer"
        if len({each.life for each in mails}) > 1:
            yield f"attempt {seq} went on in another life of the service"
