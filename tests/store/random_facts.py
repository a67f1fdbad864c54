"""Hypothesis strategies for facts of every kind, from their types alone: a new kind or field is tried by itself.

Numbers, names and addresses come from small sets, so that facts meet: they name the same messages, attempts,
accounts, relays and tokens, rightly and wrongly.
"""

import types
import typing

from hypothesis import strategies as st
from msgspec import Struct

from events.account import AccountSaved
from events.fact import OWN, Draft, Entry, Fact
from events.message import FirstFact
from events.wire import KINDS

from .building import T0_US

NUMBERS = st.integers(0, 12)
NAMES = st.sampled_from(("", "a", "b", "relay.example", "RELAY.example"))


def of_type(hint) -> st.SearchStrategy:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(inner)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(of_type, inner))
    if origin is tuple and inner[-1] is Ellipsis:
        return st.lists(of_type(inner[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(of_type, inner))
    if isinstance(hint, type) and issubclass(hint, Struct):
        return of_struct(hint)
    return {int: NUMBERS, str: NAMES, bool: st.booleans(), type(None): st.none()}[hint]


def of_struct(kind: type[Struct]) -> st.SearchStrategy:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: of_type(hints[name]) for name in kind.__struct_fields__})


FACTS: st.SearchStrategy[Fact] = st.one_of([of_struct(kind) for kind in KINDS.values()])


def entries_of(drawn: list[tuple[Fact, int | None, int | None, int]]) -> list[Entry]:
    """A log of these facts: a message's first fact has its number, whatever else was drawn."""
    entries, at_us = [], T0_US
    for seq, (fact, message, account, step_us) in enumerate(drawn, 1):
        at_us += step_us
        first = isinstance(fact, FirstFact)
        entries.append(Entry(seq, at_us, seq if first else message, account, fact))
    return entries


STEPS_US = st.sampled_from((0, 1, 999_999, 60_000_000, 86_400_000_000))

LOGS = st.lists(st.tuples(FACTS, st.none() | NUMBERS, st.none() | NUMBERS, STEPS_US), max_size=40).map(entries_of)
"""Logs that no admission has looked at."""


def draft_of(drawn: tuple[Fact, int, int]) -> Draft:
    fact, message, account = drawn
    own = isinstance(fact, FirstFact)
    return Draft(fact, OWN if own else message, OWN if isinstance(fact, AccountSaved) and account > 6 else account)


DRAFTS = st.tuples(FACTS, st.integers(1, 12), st.integers(1, 12)).map(draft_of)
"""Drafts of which admission will take some."""
