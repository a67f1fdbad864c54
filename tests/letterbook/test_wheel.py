"""The built wheel, from an empty folder: what is missing in it is found here and not by whoever installs it.

It is built without isolation and its dependencies are lent by this environment, so no network is needed.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.house.source import PACKAGES, ROOT

FILES_BESIDE = ("pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    # PYTHONPATH would let the checkout answer for the wheel.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LETTERBOOK_"))}
    return subprocess.run(
        command, cwd=cwd, env=environment | environ, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves a folder `build` behind, and what lies there would get into the next."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES_BESIDE:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    (source / "tests").mkdir()
    (source / "tests" / "__init__.py").touch()
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=out)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("letterbook-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of the commands in an environment that holds the wheel alone.

    The path file adds this environment's packages behind; as the last folder of a path it reads no path files of
    its own, so the editable install of the checkout stays out.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "lent.pth").write_text("".join(f"{folder}\n" for folder in sorted(lent)))
    python = home / "bin" / "python"
    done = run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet"),
        *("--ignore-installed", wheel),
        cwd=home,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "bin"


def test_it_holds_every_file_of_the_five_packages_and_nothing_else(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    ours = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert held == ours


def test_its_modules_come_from_the_wheel(installed, tmp_path):
    said = run(installed / "python", "-c", "import letterbook.config as it; print(it.__file__)", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert Path(said.stdout.strip()).is_relative_to(installed.parent)


def test_the_command_says_what_it_can_do(installed, tmp_path):
    said = run(installed / "letterbook", "--help", cwd=tmp_path)
    assert said.returncode == 0, said.stderr
    assert "serve" in said.stdout and "check-config" in said.stdout


def test_check_config_takes_the_defaults_and_names_what_is_wrong(installed, tmp_path):
    config = tmp_path / "config.ini"
    config.write_text("[server]\nport = 8000\n")
    good = run(installed / "letterbook", "check-config", "--config", config, cwd=tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    config.write_text("[server]\nprot = 8000\n")
    bad = run(installed / "letterbook", "check-config", "--config", config, cwd=tmp_path)
    assert bad.returncode == 1
    assert "[server] prot is no key" in bad.stderr and "Traceback" not in bad.stderr


def test_serve_refuses_a_bad_configuration_with_one_line(installed, tmp_path):
    config = tmp_path / "config.ini"
    config.write_text("[server]\nhost = 0.0.0.0\n")
    said = run(installed / "letterbook", "serve", "--config", config, cwd=tmp_path)
    assert said.returncode == 1
    assert "write an api_token" in said.stderr and "Traceback" not in said.stderr


def test_serve_from_an_empty_folder_answers_and_stops(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LETTERBOOK_"))}
    command = [installed / "letterbook", "serve"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment | {"LETTERBOOK_SERVER_PORT": "0"}, stderr=subprocess.PIPE, text=True
    )
    try:
        # Reading waits for the line, and ends with the process if it never comes.
        line = next((line for line in process.stderr if "listening on " in line), "")
        assert line, "it ended before it listened"
        assert httpx.get(line.split("listening on ")[1].strip() + "/health", trust_env=False).json() == {"status": "ok"}
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert {"letterbook.db", "letterbook.key"} <= {path.name for path in tmp_path.iterdir()}
