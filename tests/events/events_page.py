"""The two pages that are made from the code: docs/events.md from the facts, docs/lifecycle.md from the table.

`python -m tests.events.events_page` writes both; a test holds them equal to what stands here.
"""

import inspect
import types
import typing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo, fields

from events.fact import Fact
from events.lifecycle import FINAL, LIFECYCLE, STATES, STEPS, Refusal
from events.values import Outcome
from events.wire import KINDS, MODULES

ROOT = Path(__file__).parents[2]
EVENTS_PAGE = ROOT / "docs" / "events.md"
LIFECYCLE_PAGE = ROOT / "docs" / "lifecycle.md"

EVENTS_HEAD = """\
# Events

Every fact that the log can hold, as `GET /events`, the live stream and `letterbook log` give it. Beside its own fields
each has `seq` (from 1, without gaps), `at_us` (a stamp that never decreases; moments end in `_us` and are microseconds
since 1970, UTC), `kind`, and where it is about one, its message's and its account's id and number.

A field that has its default is left out of the stored form, so a default is part of a fact's shape: it changes only
together with the version. A fact holds no address, no subject, no words of a relay and no secret: those stand beside
the log and can be erased. `by` says who asked for it. This page is made from `events/`; a test holds it.
"""

LIFECYCLE_HEAD = """\
# The life of a message

Drawn from the table in `events/lifecycle.py`, by which admission refuses what cannot happen and the view of messages
is folded. A step is a kind of fact, with the word in it that decides where it leads. An AttemptInterrupted, recorded
at a start for an attempt that was found open, takes the steps of AttemptEnded.
"""


def name_of(hint: typing.Any) -> str:
    """A type as a reader of JSON sees it."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f"`{word}`" for word in inner)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(name_of(each) for each in inner if each is not type(None))
    if origin is tuple and inner[-1] is Ellipsis:
        return f"list of {name_of(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(map(name_of, inner))}]"
    return {int: "integer", str: "text", bool: "true or false"}.get(
        hint
    ) or f"[{hint.__name__}](#{hint.__name__.lower()})"


def default_of(field: FieldInfo) -> str:
    if field.default is NODEFAULT:
        return "always there"
    return "" if field.default in (None, "") else f"`{str(field.default).lower()}`"


def paragraphs(struct: type[Struct]) -> str:
    """A Struct's own docstring; most of our facts need none beside their name."""
    own = struct.__dict__.get("__doc__") or ""
    return inspect.cleandoc(own)


def section(struct: type[Struct]) -> Iterator[str]:
    version = f" (version {struct.VERSION})" if issubclass(struct, Fact) and struct.VERSION > 1 else ""
    yield f"### {struct.__name__}{version}"
    yield ""
    if text := paragraphs(struct):
        yield from (text, "")
    if fields(struct):
        hints = typing.get_type_hints(struct)
        yield from ("| field | type | default |", "|---|---|---|")
        yield from (f"| `{each.name}` | {name_of(hints[each.name])} | {default_of(each)} |" for each in fields(struct))
        yield ""


def events_page() -> str:
    lines = [EVENTS_HEAD]
    for module in MODULES:
        lines += [f"## {(module.__doc__ or '').splitlines()[0].rstrip('.')}", ""]
        for kind in KINDS.values():
            if kind.__module__ == module.__name__:
                lines += section(kind)
    lines += ["## What facts are made of", "", *section(Outcome)]
    return "\n".join(lines)


def diagram() -> Iterator[str]:
    yield from ("```mermaid", "stateDiagram-v2")
    edges: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (state, step), after in LIFECYCLE.items():
        if not isinstance(after, Refusal):
            edges[state or "[*]", after].append(step)
    for (state, after), steps in edges.items():
        yield f"    {state} --> {after}: {'<br>'.join(steps)}"
    yield from (f"    {state} --> [*]" for state in STATES if state in FINAL)
    yield "```"


def refusals() -> Iterator[str]:
    states = (None, *STATES)
    yield f"| step | {' | '.join(state or 'not there' for state in states)} |"
    yield "|---" * (len(states) + 1) + "|"
    for step in STEPS:
        cells = [LIFECYCLE[state, step] for state in states]
        shown = [str(cell) if isinstance(cell, Refusal) else f"**{cell}**" for cell in cells]
        yield f"| {step} | {' | '.join(shown)} |"


def lifecycle_page() -> str:
    lines = [LIFECYCLE_HEAD, *diagram(), "", "Each state and step: the state after it in bold, else why it is refused."]
    return "\n".join([*lines, "", *refusals(), ""])


if __name__ == "__main__":
    EVENTS_PAGE.write_text(events_page(), encoding="utf-8")
    LIFECYCLE_PAGE.write_text(lifecycle_page(), encoding="utf-8")
