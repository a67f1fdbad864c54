"""The processes of a bench: a sink that takes mail, and the service; each has a free port and is stopped by its pid."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from msgspec import Struct

START_SECONDS = 20.0
POSTFIX_SBIN = "/usr/sbin"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def process(command: list[str], environment: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is gone when the block ends."""
    child = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


class Sink(Struct, frozen=True):
    """A relay that takes everything, and what it is."""

    name: str
    port: int


@contextmanager
def sink() -> Iterator[Sink]:
    """Postfix's smtp-sink where it is installed, else the capture relay of ours."""
    port = free_port()
    smtp_sink = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:{POSTFIX_SBIN}")
    name = "smtp-sink" if smtp_sink else "our capture relay"
    command = [sys.executable, "-m", "bench.sink", str(port)]
    if smtp_sink:
        # It will not run as root.
        command = [smtp_sink, *(("-u", "nobody") if os.geteuid() == 0 else ()), f"127.0.0.1:{port}", "1024"]
    with process(command) as child:
        _wait_for_port(port, child)
        yield Sink(name, port)


def _wait_for_port(port: int, child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if child.poll() is not None:
            raise SystemExit(f"{child.args!r} ended with {child.returncode} before it listened")
        time.sleep(0.02)
    raise SystemExit(f"nothing listens on port {port} after {START_SECONDS:g} s")


class Cpu(Struct, frozen=True):
    """CPU seconds of a process: the event loop's thread, and all others (writer and readers)."""

    loop: float
    others: float

    @property
    def total(self) -> float:
        return self.loop + self.others

    def __sub__(self, before: "Cpu") -> "Cpu":
        return Cpu(self.loop - before.loop, self.others - before.others)


def cpu_of(pid: int) -> Cpu:
    seconds = {int(task.name): _seconds(task / "stat") for task in Path(f"/proc/{pid}/task").iterdir()}
    return Cpu(seconds[pid], sum(seconds.values()) - seconds[pid])


def _seconds(stat: Path) -> float:
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


class Service(Struct, frozen=True):
    url: str
    pid: int
    folder: Path

    def cpu(self) -> Cpu:
        return cpu_of(self.pid)


@contextmanager
def service(folder: Path, **settings: str) -> Iterator[Service]:
    """`letterbook serve` on a new log in this folder; a setting is a key's environment name without its prefix."""
    port = free_port()
    environment = {
        "LETTERBOOK_SERVER_PORT": str(port),
        "LETTERBOOK_STORAGE_DB_PATH": str(folder / "letterbook.db"),
        "LETTERBOOK_STORAGE_KEY_FILE": str(folder / "letterbook.key"),
        "LETTERBOOK_LOGGING_LEVEL": "warning",
        **{f"LETTERBOOK_{name}": value for name, value in settings.items()},
    }
    (folder / "config.ini").write_text("")
    command = [sys.executable, "-m", "letterbook", "serve", "--config", str(folder / "config.ini")]
    with process(command, environment) as child:
        _wait_for_port(port, child)
        url = f"http://127.0.0.1:{port}"
        httpx.get(f"{url}/ready").raise_for_status()
        yield Service(url, child.pid, folder)
