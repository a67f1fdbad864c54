"""Who may import whom, and that nothing lies in the house that nobody uses."""

import ast

from .source import PACKAGES, ROOT, Module, imports, modules, within

# The most exact package wins: what stands in actors/smtp is bound by its own row.
MAY_IMPORT = {
    "events": {"events"},
    "store": {"store", "events"},
    "actors.smtp": {"actors.smtp", "events"},
    "actors": {"actors", "store", "events"},
    "gateway": {"gateway", "store", "events"},
    "letterbook": set(PACKAGES),
}

# The gateway reads and follows; whoever could record from there would go round the deciding actors.
NEVER = {("gateway", "store.recorder")}

# A relay that takes everything must not be reachable from the service.
CAPTURE_USERS = {"letterbook.demo"}

# These decide and fold: what they need of the world is given to them.
PURE = ("actors.smtp", "store.views")
WORLD = ("anyio", "asyncio", "socket", "sqlite3", "subprocess", "threading", "trio")

ROOTS = ("letterbook.cli", "letterbook.__main__")


def own_row(name: str) -> str:
    return max((package for package in MAY_IMPORT if within(name, package)), key=len)


def test_imports_are_seen_however_they_are_written():
    code = "import store.clock\ndef late():\n    from ...store import clock, recorder\n    from . import nothing\n"
    module = Module("actors.smtp.engine", ROOT / "actors" / "smtp" / "engine.py", ast.parse(code))
    assert list(imports(module)) == [(1, "store.clock"), (3, "store.clock"), (3, "store.recorder"), (4, "actors.smtp")]


def test_imports_follow_the_direction_of_the_house():
    wrong = [
        f"{module.place}:{line} imports {name}"
        for module in modules().values()
        for line, name in imports(module)
        if name.split(".")[0] in PACKAGES
        and not any(within(name, allowed) for allowed in MAY_IMPORT[own_row(module.name)])
    ]
    assert not wrong


def test_some_doors_are_closed_to_some():
    wrong = [
        f"{module.place}:{line} imports {name}"
        for module in modules().values()
        for line, name in imports(module)
        if any(within(module.name, who) and within(name, what) for who, what in NEVER)
    ]
    assert not wrong


def test_the_capture_relay_is_used_by_the_demo_alone():
    pairs = [(module.name, name) for module in modules().values() for _, name in imports(module)]
    users = {user for user, name in pairs if name == "letterbook.capture"}
    assert users <= CAPTURE_USERS


def test_what_decides_and_folds_does_not_touch_the_world():
    wrong = [
        f"{module.place}:{line} imports {name}"
        for module in modules().values()
        if any(within(module.name, package) for package in PURE)
        for line, name in imports(module)
        if name.split(".")[0] in WORLD
    ]
    assert not wrong


def reachable() -> set[str]:
    """Every module that the command line leads to; importing a module imports the packages above it."""
    seen: set[str] = set()
    waiting = [root for root in (*ROOTS, "letterbook") if root in modules()]
    while waiting:
        name = waiting.pop()
        if name in modules() and name not in seen:
            seen.add(name)
            waiting += [target for _, target in imports(modules()[name])]
            waiting += [name.rpartition(".")[0]]
    return seen


def test_every_file_of_the_house_is_reached_from_the_command_line():
    assert "letterbook.cli" in modules()
    assert not [modules()[name].place for name in sorted(set(modules()) - reachable())]
