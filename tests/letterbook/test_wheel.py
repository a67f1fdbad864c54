"""The built wheel, from an empty folder: what is missing in it is found here and not by whoever installs it.

It is built and installed by the steps of the Dockerfile. Its dependencies are lent by this environment.
"""

import os
import subprocess
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.house.source import PACKAGES, ROOT

from . import dockerfile


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=clean_environment() | environ, capture_output=True, text=True, timeout=120, check=False
    )


def clean_environment() -> dict[str, str]:
    """PYTHONPATH would let the checkout answer for the wheel."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LETTERBOOK_"))}


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """What stands for / after the first stage of the Dockerfile.

    A path file adds this environment's packages behind the image's own, all but the checkout's: so pip finds what the
    wheel needs, and no network is asked.
    """
    root, lent = tmp_path_factory.mktemp("image"), tmp_path_factory.mktemp("lent")
    for folder in sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}):
        for path in Path(folder).iterdir():
            if "letterbook" not in path.name:
                (lent / path.name).symlink_to(path)

    def lend(command: str) -> None:
        if " -m venv " in command:
            home = root / "opt" / "letterbook"
            packages = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
            (Path(packages) / "lent.pth").write_text(f"{lent}\n")

    dockerfile.build(root, clean_environment(), lend)
    return root


@pytest.fixture(scope="module")
def wheel(image) -> Path:
    (path,) = (image / "wheel").glob("letterbook-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(image) -> Path:
    """The folder of the commands in the environment that the image has."""
    return image / "opt" / "letterbook" / "bin"


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
    command, environ = [installed / "letterbook", "serve"], {"LETTERBOOK_SERVER_PORT": "0"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=clean_environment() | environ, stderr=subprocess.PIPE, text=True
    )
    try:
        # Reading waits for the line, and ends with the process if it never comes.
        line = next((line for line in process.stderr if "listening on " in line), "")
        assert line, "it ended before it listened"
        url = line.split("listening on ")[1].strip()
        for asked, answer in (((), "ok\n"), (("--ready",), "ready\n")):
            said = run(installed / "letterbook", "health", *asked, "--url", url, cwd=tmp_path)
            assert (said.returncode, said.stdout) == (0, answer), said.stderr
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert {"letterbook.db", "letterbook.key"} <= {path.name for path in tmp_path.iterdir()}
