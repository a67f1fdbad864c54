"""The Dockerfile, read: its stages and their instructions; and the first stage, carried out in a folder."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.house.source import ROOT

DOCKERFILE = ROOT / "Dockerfile"


class Instruction(NamedTuple):
    word: str
    text: str


class Stage(NamedTuple):
    """What stands behind FROM, and what follows it."""

    base: str
    instructions: tuple[Instruction, ...]

    def all(self, word: str) -> list[str]:
        return [each.text for each in self.instructions if each.word == word]


def stages() -> list[Stage]:
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)).splitlines()
    found: list[Stage] = []
    for line in filter(None, map(str.strip, lines)):
        word, _, text = line.partition(" ")
        if word == "FROM":
            found.append(Stage(text, ()))
        else:
            found[-1] = found[-1]._replace(instructions=(*found[-1].instructions, Instruction(word, text.strip())))
    return found


def environment(stage: Stage) -> dict[str, str]:
    return dict(pair.split("=", 1) for text in stage.all("ENV") for pair in text.split())


def build(root: Path, environ: Mapping[str, str], after_run: Callable[[str], None]) -> None:
    """Carry out the first stage with `root` in the place of /: COPY from the checkout, RUN in a shell.

    `python` and `pip` are this environment's, and no index is asked. `after_run` is called after each command.
    """
    folder = root
    path = f"{Path(sys.executable).parent}:{environ['PATH']}"
    for word, text in stages()[0].instructions:
        match word:
            case "WORKDIR":
                folder = _under(root, text)
                folder.mkdir(parents=True)
            case "COPY":
                *sources, target = text.split()
                for source in sources:
                    _copy(ROOT / source, folder / target)
            case "RUN":
                # What follows a space or = and begins with / is a path of the image.
                command = re.sub(r"(?<=[ =])/(?=\w)", f"{root}/", text)
                said = subprocess.run(
                    command, shell=True, cwd=folder, env={**environ, "PATH": path, "PIP_NO_INDEX": "1"},
                    capture_output=True, text=True, timeout=120, check=False,
                )  # fmt: skip
                assert said.returncode == 0, f"{command}\n{said.stdout}{said.stderr}"
                after_run(text)


def _under(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
