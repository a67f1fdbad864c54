"""The container, Compose and the systemd unit, as far as they can be tried without running them as root.

What the image is built by is tried in test_wheel.py.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from letterbook.cli import COMMANDS
from letterbook.config import load
from letterbook.system import END_RECORDING_S
from tests.house.source import PACKAGES, ROOT

from .dockerfile import DOCKERFILE, environment, stages

UNIT = ROOT / "packaging" / "letterbook.service"
COMMAND_NAMES = {command.name for commands in COMMANDS.values() for command in commands}

STOP_S = load(None, {}).server.drain_seconds + END_RECORDING_S + 2
"""What the service may take to stop, and two seconds for its process to end."""


def image():
    return stages()[-1]


# The image


def test_the_image_runs_as_a_fixed_user_and_hears_the_signal():
    (user,) = image().all("USER")
    uid, gid = user.split(":")
    (made,) = [text for text in image().all("RUN") if "useradd" in text]
    assert int(uid) > 0 and f"--uid {uid} " in made and f"--gid {gid} " in made
    assert image().all("STOPSIGNAL") == ["SIGTERM"]
    # In exec form: a shell in between would keep the signal.
    assert json.loads(*image().all("ENTRYPOINT")) == ["letterbook"]
    assert json.loads(*image().all("CMD")) == ["serve"]


def test_both_stages_have_the_same_interpreter():
    assert stages()[0].base.split()[0] == image().base


def test_the_image_asks_for_its_health_by_a_command_of_ours():
    (check,) = image().all("HEALTHCHECK")
    name, command = json.loads(check.partition("CMD ")[2])
    assert name == "letterbook" and command in COMMAND_NAMES


def test_what_the_image_keeps_is_in_its_volume():
    assert image().all("VOLUME") == ["/data"]
    config = load(None, {**environment(image()), "LETTERBOOK_SERVER_API_TOKEN": "t"})
    assert config.storage.db_path.parent == config.storage.key_file.parent == Path("/data")
    assert config.server.host == "0.0.0.0"


def test_the_shell_takes_every_command_of_the_image():
    for stage in stages():
        for command in stage.all("RUN"):
            said = subprocess.run(["sh", "-n", "-c", command], capture_output=True, text=True, check=False)
            assert said.returncode == 0, said.stderr


def test_nothing_but_what_is_copied_is_sent_to_the_builder():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for text in stages()[0].all("COPY") for name in text.split()[:-1]}
    assert allowed == copied and set(PACKAGES) < copied
    assert "\n*\n" in (ROOT / ".dockerignore").read_text()


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
def test_hadolint_finds_nothing():
    said = subprocess.run(["hadolint", "--failure-threshold", "warning", DOCKERFILE], capture_output=True, check=False)
    assert said.returncode == 0, said.stdout


# Compose

SERVICE_KEYS = {
    "build", "cap_drop", "environment", "healthcheck", "image", "logging", "ports", "profiles", "read_only", "restart",
    "secrets", "security_opt", "stop_grace_period", "tmpfs", "ulimits", "volumes",
}  # fmt: skip
"""Of the Compose specification, those in use."""


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def test_compose_has_keys_that_exist_and_names_what_it_declares(compose):
    assert set(compose) == {"services", "secrets", "volumes"}
    for service in compose["services"].values():
        assert set(service) <= SERVICE_KEYS
        assert set(service.get("secrets", ())) <= set(compose["secrets"])
        assert {volume.split(":")[0] for volume in service.get("volumes", ())} <= set(compose["volumes"])


def test_compose_gives_the_service_time_to_stop_and_little_else(compose):
    service = compose["services"]["letterbook"]
    assert int(service["stop_grace_period"].removesuffix("s")) > STOP_S
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for each in compose["services"].values() for port in each["ports"])
    assert service["healthcheck"]["test"] == ["CMD", *json.loads(image().all("HEALTHCHECK")[0].partition("CMD ")[2])]


def test_the_environment_of_compose_is_a_configuration(compose, tmp_path):
    (tmp_path / "api_token").write_text("t\n")
    given = {name: defaulted(str(value)) for name, value in compose["services"]["letterbook"]["environment"].items()}
    given["LETTERBOOK_SERVER_API_TOKEN_FILE"] = given["LETTERBOOK_SERVER_API_TOKEN_FILE"].replace(
        "/run/secrets", str(tmp_path)
    )
    config = load(None, {**environment(image()), **given})
    assert config.server.api_token == "t" and config.smtp.host in compose["services"]


def defaulted(value: str) -> str:
    """`${NAME:-default}`, as it is without a NAME."""
    return value.partition(":-")[2].rstrip("}") if value.startswith("${") else value


# systemd


def directives(name: str) -> list[str]:
    lines = UNIT.read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.partition("=")[0] == name]


def test_the_unit_gives_the_service_time_to_stop_and_enough_files():
    (stop,), (files,) = directives("TimeoutStopSec"), directives("LimitNOFILE")
    assert int(stop) > STOP_S and int(files) >= 1400


def test_the_variables_of_the_unit_are_a_configuration(tmp_path):
    (tmp_path / "api_token").write_text("t\n")
    variables = dict(pair.replace("%d", str(tmp_path)).split("=", 1) for pair in directives("Environment"))
    config = load(None, variables)
    (state,) = directives("StateDirectory")
    assert config.storage.db_path.parent == Path("/var/lib") / state and config.server.api_token == "t"


@pytest.fixture
def unit(tmp_path):
    """The unit, with a command that exists here."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/letterbook/bin/letterbook", sys.executable))
    return path


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize("question", [("verify",), ("security", "--offline=true", "--threshold=20", "--no-pager")])
def test_systemd_takes_the_unit_and_finds_it_closed(unit, question):
    said = subprocess.run(("systemd-analyze", *question, unit), capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "Unknown" not in said.stderr, said.stderr


def test_what_it_is_made_of_lives_without_memory_that_can_be_written_and_executed():
    """MemoryDenyWriteExecute=, as the kernel itself enforces it: cryptography, SQLite and TLS in one process."""
    command = [sys.executable, "-c", DENIED]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if "not known" in said.stdout:
        pytest.skip("this kernel does not know PR_SET_MDWE")
    assert said.stdout == "lives\n", said.stderr


DENIED = """
import ctypes, os, ssl, sqlite3, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit(print("not known"))
import letterbook.system
from store.secrets import Secrets
secrets = Secrets(os.urandom(32), os.urandom)
assert secrets.unseal(secrets.seal(b"x")) == b"x"
ssl.create_default_context(), sqlite3.connect(":memory:").execute("select 1")
print("lives")
"""
