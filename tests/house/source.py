"""What the house tests read: the modules of our five packages, their trees and their imports."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("letterbook", "gateway", "actors", "store", "events")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """One file of the house; a package's `__init__.py` bears the package's name."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def place(self) -> str:
        return str(self.path.relative_to(ROOT))


@cache
def modules() -> dict[str, Module]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Every import of a module, those inside functions too, as (line, dotted name).

    `from store import letters` is `store.letters` where that is a module, else `store`.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield node.lineno, whole if whole in modules() else base


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    """The module that `from ...x import y` means (PEP 328)."""
    if node.level == 0:
        return node.module or ""
    package = module.name.split(".")
    up = node.level - (module.path.name == "__init__.py")
    base = package[: len(package) - up]
    return ".".join([*base, node.module] if node.module else base)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def functions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, Function]]:
    """Every function with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        name = owner
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{owner}.{node.name}" if owner else node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield name, node
        yield from functions(node, name)
