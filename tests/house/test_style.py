"""House rules that no linter knows: SQL stays in the store, functions stay short, nothing is left undone."""

import ast
import re
from collections.abc import Iterator

import pytest

from .source import ROOT, Module, functions, imports, modules, within

LONG_LINES = 60
LONG: dict[str, str] = {}
"""path:function -> why it is longer than LONG_LINES and better so."""

OVER_40_SHARE_MAX = 0.03
"""Of all functions, as measured in the code bases this one is held against."""

CATCHES_EVERYTHING: dict[str, str] = {
    "actors/ingest.py": "A bug in one item is that item's rejection, with an incident id, and nobody else's.",
    "actors/sender_pool.py": "A bug while composing or sending costs one attempt, not the other senders'.",
    "actors/supervision.py": "A crash is what it is for.",
    "store/recorder.py": "The writer's thread hands what ended a turn to the task that waits for it, which raises it.",
    "letterbook/failures.py": "A bug that ends the service is told as all its lines are: they wait for no reader.",
}
"""path -> why `except Exception` stands there; everywhere else an unexpected error is a bug for supervision.

What only cleans up and raises again needs no row.
"""

SQL = re.compile(
    r"\s*(SELECT\s[\s\S]+\sFROM\s|INSERT\s+(OR\s+\w+\s+)?INTO\s|REPLACE\s+INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s"
    r"|(CREATE|DROP|ALTER)\s+(TEMP\s+)?(TABLE|UNIQUE\s+INDEX|INDEX|TRIGGER|VIEW)\s|PRAGMA\s+\w|BEGIN\s+IMMEDIATE\b|VACUUM\b)",
    re.IGNORECASE,
)
UNDONE = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError)\b")


def docstrings(tree: ast.AST) -> set[ast.AST]:
    """The nodes of strings that stand alone: prose, whatever word it begins with."""
    statements = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return {value for value in statements if isinstance(value, ast.Constant)}


def strings(module: Module) -> Iterator[tuple[int, str]]:
    prose = docstrings(module.tree)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.lineno, node.value


def outside_store() -> list[Module]:
    return [module for module in modules().values() if not within(module.name, "store")]


@pytest.mark.parametrize(
    ("text", "is_sql"),
    [
        ("select number from messages where due < ?", True),
        ("\n  INSERT OR IGNORE INTO ids VALUES (?, ?)", True),
        ("pragma synchronous = full", True),
        ("Select one of these", False),
        ("update the account", False),
        ("Begin immediately", False),
    ],
)
def test_sql_is_told_from_prose(text, is_sql):
    assert bool(SQL.match(text)) == is_sql


def test_nothing_outside_the_store_writes_sql():
    assert not [
        f"{module.place}:{line} {text[:60]!r}"
        for module in outside_store()
        for line, text in strings(module)
        if SQL.match(text)
    ]


def test_nothing_outside_the_store_opens_a_database():
    assert not [
        f"{module.place}:{line} imports {name}"
        for module in outside_store()
        for line, name in imports(module)
        if name.split(".")[0] in ("sqlite3", "sqlite_utils")
    ]


def lengths() -> dict[str, int]:
    return {
        f"{module.place}:{name}": (function.end_lineno or 0) - function.lineno + 1
        for module in modules().values()
        for name, function in functions(module.tree)
    }


def test_a_long_function_has_its_reason_in_the_table():
    long = {name for name, lines in lengths().items() if lines > LONG_LINES}
    assert long == set(LONG)
    assert all(reason.endswith(".") for reason in LONG.values())


def test_few_functions_are_over_forty_lines():
    over = sorted(name for name, lines in lengths().items() if lines > 40)
    assert len(over) <= OVER_40_SHARE_MAX * len(lengths()), over


def catches_everything(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = [name.id if isinstance(name, ast.Name) else name for name in caught]
    raises_again = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
    return not raises_again and not {None, "Exception", "BaseException"}.isdisjoint(names)


def test_only_the_places_in_the_table_catch_everything():
    places = {
        module.place
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler) and catches_everything(node)
    }
    assert places == set(CATCHES_EVERYTHING)


def test_nothing_is_left_undone():
    assert not [
        f"{module.place}:{number} {line.strip()}"
        for module in modules().values()
        for number, line in enumerate(module.path.read_text(encoding="utf-8").splitlines(), 1)
        if UNDONE.search(line)
    ]


def test_every_file_says_what_it_is_for():
    """An `__init__.py` without code may be empty: the folder's name says it."""
    silent = [module for module in modules().values() if module.tree.body and not ast.get_docstring(module.tree)]
    assert not [module.place for module in silent]


def test_the_house_is_where_the_tests_look():
    assert (ROOT / "pyproject.toml").is_file() and len(modules()) > 20
