"""The lines that a service can say, read from the code: those of its loggers, and those that end it."""

import ast
import re
from collections.abc import Iterator

from letterbook.failures import operating_errors
from store.faults import ROWS

from .source import modules

LOUD = {"info", "warning", "error", "exception"}
LOGGERS = {"logger", "log"}

SAYS_FOR_ITSELF = {"BackupError", "ConfigError", "NotRecorded", "OutsideLogError", "UnknownKind"}
"""Errors that name a key of the configuration, answer a command's argument, or never end a service."""


def template(node: ast.expr) -> str | None:
    """A string with what is filled in as `..`; None where it is no string, or nothing but what is filled in."""
    match node:
        case ast.Constant(value=str() as text):
            text = re.sub(r"%(\.\d)?[sdf]", "..", text)
        case ast.JoinedStr(values=parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else ".." for part in parts)
        case _:
            return None
    return text if re.search(r"\w", text) else None


def logged() -> Iterator[str]:
    """What loggers say at level info and above."""
    for module in modules().values():
        for node in ast.walk(module.tree):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=level), args=[first, *_]):
                    if name in LOGGERS and level in LOUD and (text := template(first)):
                        yield text


def ending() -> Iterator[str]:
    """What errors say that end a start or a service: said by whoever raises them, or by their class."""
    yield from (f".. {row.sentence} (..)" for row in ROWS.values())
    names = _with_heirs({error.__name__ for error in operating_errors()}) - SAYS_FOR_ITSELF
    for module in modules().values():
        for node in ast.walk(module.tree):
            match node:
                case ast.Raise(exc=ast.Call(func=ast.Name(id=name), args=[first, *_])) if name in names:
                    if text := template(first):
                        yield text
                case ast.ClassDef(name=name) if name in names:
                    yield from _said_by(node)


def _with_heirs(names: set[str]) -> set[str]:
    """These classes, and whatever is derived from them."""
    heirs = {
        node.name
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and names & {base.id for base in node.bases if isinstance(base, ast.Name)}
    }
    return names if heirs <= names else _with_heirs(names | heirs)


def _said_by(error: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(error):
        match node:
            case ast.Call(func=ast.Attribute(attr="__init__"), args=[first, *_]):
                if text := template(first):
                    yield text
