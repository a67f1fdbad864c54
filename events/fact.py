"""What a fact is: something that happened, past tense, immutable, and on disk before anyone acts on it.

A fact's fields are policy's decisions, not its inputs: until when, final or not, held, why. Whoever folds it
reads no configuration, no clock and no chance, so the same log gives the same views for ever.

A fact holds no address, no subject, no text of a relay and no secret: those stand in tables beside the log
and can be erased. It holds numbers, digests, codes and the client's own message id.
"""

from typing import ClassVar

from msgspec import Struct, field

OWN = 0
"""In a draft's `message` or `account`: the seq that this very fact will get. So a message is known by the
seq of its first fact, and an account by the seq of the fact that made it."""


class Fact(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The base of all facts; the class name is the `kind` in the log, `VERSION` the shape of its data."""

    VERSION: ClassVar[int] = 1


class Draft(Struct, frozen=True):
    """A fact that somebody wants recorded, with whom it is about: numbers, or OWN, or nobody."""

    fact: Fact
    message: int | None = None
    account: int | None = None


class Entry(Struct, frozen=True):
    """A fact in the log: `seq` counts from 1 without gaps, `at_us` is a stamp that never decreases."""

    seq: int
    at_us: int
    message: int | None
    account: int | None
    fact: Fact = field()

    @property
    def kind(self) -> str:
        return type(self.fact).__name__
