"""What we depend on is pinned, from nowhere in particular, and does not take our names."""

import importlib.metadata
import re
import tomllib

from .source import PACKAGES, ROOT

PIN = re.compile(r"([A-Za-z0-9._-]+)==[A-Za-z0-9.!+_-]+\Z")


def plain(name: str) -> str:
    """Names of distributions are the same in any case and with any of these signs (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pinned() -> set[str]:
    return {plain(line.partition("==")[0]) for line in pins()}


def asked_for() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    return {plain(re.split(r"[<>=!~;\[ ]", requirement)[0]) for requirement in asked}


def top_level_names(distribution: importlib.metadata.Distribution) -> set[str]:
    return {file.parts[0].removesuffix(".py") for file in distribution.files or () if file.suffix in (".py", ".so")}


def test_every_pin_is_a_name_and_an_exact_version():
    assert not [line for line in pins() if not PIN.match(line)]


def test_everything_we_ask_for_is_pinned_and_we_are_not():
    assert asked_for() <= pinned()
    assert "letterbook" not in pinned()


def test_no_pinned_dependency_ships_one_of_our_top_level_names():
    others = [one for one in importlib.metadata.distributions() if plain(one.name) in pinned()]
    ours = {*PACKAGES, "tests", "bench"}
    assert len(others) > 20
    assert not [(other.name, taken) for other in others if (taken := top_level_names(other) & ours)]
