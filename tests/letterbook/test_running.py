"""The commands that run a service and speak to one, as processes of their own: what a person at a terminal has."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import httpx
import pytest
import trio
from click.testing import CliRunner

from gateway.metrics import GAUGES, LABELLED
from letterbook.capture import CaptureRelay
from letterbook.cli import main
from store.files import mark_path
from tests.house.source import ROOT

END_S = 45


class Process:
    """A `letterbook` command that goes on; its lines are read one by one. It is killed when it takes too long."""

    def __init__(self, *arguments: object, cwd: Path, err: bool = False, **environ: str) -> None:
        self.running = subprocess.Popen(
            command(*arguments), cwd=cwd, env=environment(environ), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self._stream = self.running.stderr if err else self.running.stdout
        self.opened = ""
        self._watchdog = threading.Timer(END_S, self.running.kill)
        self._watchdog.start()

    def line(self, containing: str) -> str:
        """The next line that contains a text."""
        for line in self._stream:
            if containing in line:
                return line
        raise AssertionError(f"no line with {containing!r}; the process ended with {self.running.wait(END_S)}")

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """(exit code, what it still said on standard error)."""
        self.running.send_signal(number)
        _, err = self.running.communicate(timeout=END_S)
        return self.running.returncode, err

    def close(self) -> None:
        self._watchdog.cancel()
        if self.running.poll() is None:
            self.running.kill()
        self.running.communicate(timeout=END_S)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "letterbook", *map(str, arguments)]


def environment(more: dict[str, str]) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LETTERBOOK_")}
    return clean | {"PYTHONPATH": str(ROOT)} | more


def run(*arguments: object, cwd: Path, code: int = 0, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(environ), capture_output=True, text=True, timeout=END_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


RELAY_PROGRAM = """
import trio
from letterbook.capture import CaptureRelay
async def main():
    async with CaptureRelay().listening() as relay:
        print(relay.port, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.fixture(scope="module")
def relay() -> Iterator[int]:
    """The port of a relay in a process of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", RELAY_PROGRAM], env=environment({}), stdout=subprocess.PIPE, text=True
    ) as process:
        yield int(process.stdout.readline())
        process.kill()


def configure(folder: Path, relay_port: int) -> None:
    (folder / "config.ini").write_text(
        "[server]\nport = 0\napi_token = s3cret\n"
        f"[smtp]\nhost = 127.0.0.1\nport = {relay_port}\nehlo_name = localhost\n"
        f"[storage]\nmin_free_mb = 1\ndb_path = {folder}/letterbook.db\nkey_file = {folder}/letterbook.key\n"
        "[delivery]\nretry_delays = 1\n[logging]\nformat = json\n"
    )


def start(folder: Path) -> tuple[Process, str]:
    """(the service, its address)."""
    process = Process("serve", cwd=folder, err=True)
    process.opened = process.line("the log is open")
    address = re.search(r"http://\S+?(?=\")", process.line("listening on"))
    assert address
    return process, address[0]


@pytest.fixture
def service(tmp_path, relay) -> Iterator[tuple[Process, str]]:
    configure(tmp_path, relay)
    process, url = start(tmp_path)
    yield process, url
    process.close()


def test_send_says_what_came_of_a_mail(service, tmp_path):
    _, url = service
    file = tmp_path / "mail.eml"
    file.write_bytes(b"From: a@example.com\nTo: anna@example.org\nSubject: Hi\n\nHello\n")
    sent = json.loads(run("send", file, "--id", "one", "--json", "--url", url, cwd=tmp_path).stdout)
    assert sent["ok"] and sent["result"]["status"] == "sent" and sent["result"]["id"] == "one"
    letter = "--from", "a@example.com", "--subject", "s", "--url", url
    refused = run("send", "--to", "550@example.org", "--body", "b", *letter, cwd=tmp_path, code=1)
    assert refused.stderr.endswith(": 550 5.1.1 as the address asks\n") and refused.stdout == ""
    deferred = run("send", "--to", "451-then-250@example.org", "--body", "b", *letter, cwd=tmp_path)
    assert "status\tdeferred" in deferred.stdout and "451 4.3.0 as the address asks" in deferred.stdout
    assert "missing body" in run("send", "--to", "x@example.org", *letter, cwd=tmp_path, code=1).stderr
    queued = run("send", "--to", "x@example.org", "--body", "b", "--queue", "--id", "q", *letter, cwd=tmp_path)
    assert "status\tqueued" in queued.stdout


def test_send_says_no_where_nobody_listens_and_where_the_token_is_wrong(service, tmp_path):
    _, url = service
    letter = "--from", "a@example.com", "--to", "b@example.org", "--body", "b"
    assert "is the service running?" in run("send", *letter, "--url", "http://127.0.0.1:1", cwd=tmp_path, code=1).stderr
    wrong = {"LETTERBOOK_SERVER_API_TOKEN": "wrong"}
    assert "API token" in run("send", *letter, "--url", url, cwd=tmp_path, code=1, **wrong).stderr
    assert "API token" in run("tail", "--url", url, cwd=tmp_path, code=1, **wrong).stderr
    assert "port = 0" in run("tail", cwd=tmp_path, code=1).stderr
    assert "give --from and --to" in run("send", cwd=tmp_path, code=2).stderr


def run_here(*arguments: object) -> str:
    """In this process, which is faster where nothing is at stake but the answer."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


ONLY_AT_TIMES = {"log_bytes_per_day", "disk_days_left"}
"""Metrics that a service gives only once it has grown for a while."""


def test_the_lists_are_those_of_the_http_api_while_the_service_runs(service, tmp_path):
    _, url = service
    with httpx.Client(base_url=url, headers={"X-API-Token": "s3cret"}, trust_env=False) as client:
        for to in ("anna@example.org", "550@example.org"):
            letter = {"from": "a@example.com", "to": to, "subject": "s", "body": "b"}
            client.post("/commands/send-message", json=letter, timeout=END_S)
        source = "--config", tmp_path / "config.ini"
        for name in ("results", "pending", "deferred", "accounts"):
            assert json.loads(run_here(name, "--json", *source)) == client.get(f"/{name}").json()
        at = {"seq": 6, "view": "results"}
        assert json.loads(run_here("at", 6, "results", "--json", *source)) == client.get("/audit/at", params=at).json()
        message = client.get("/results").json()["results"][0]["id"]
        found = client.get(f"/messages/{message}").json()
        shown = client.get("/metrics").text
    assert json.loads(run_here("show", message, "--json", *source)) == found
    assert not [name for name in {*GAUGES, *LABELLED} - ONLY_AT_TIMES if f"\n# TYPE letterbook_{name} " not in shown]
    assert "in use by the process" in run("rebuild", cwd=tmp_path, code=1).stderr
    assert "are as they were written" in run_here("verify", *source)
    assert run_here("rebuild", "--check", *source) == "The views are what the log gives.\n"


def test_tail_shows_every_fact_once_across_a_restart_and_ends_cleanly(tmp_path, relay):
    configure(tmp_path, relay)
    process, url = start(tmp_path)
    tail = Process("tail", "--after", 0, "--json", "--url", url, cwd=tmp_path)
    try:
        seqs = [json.loads(tail.line("ServiceStarted"))["seq"], json.loads(tail.line("AccountSaved"))["seq"]]
        code, err = process.end()
        assert code == 0 and '"message":"stopped"' in err
        port = url.rpartition(":")[2]
        process = Process("serve", cwd=tmp_path, err=True, LETTERBOOK_SERVER_PORT=port)
        process.line("listening on")
        seqs += [json.loads(tail.line('"kind"'))["seq"] for _ in range(2)]
        assert seqs == [1, 2, 3, 4]
        assert tail.end(signal.SIGINT) == (0, "")
    finally:
        tail.close()
        process.close()


def test_a_service_manager_is_told_when_it_listens_and_when_it_stops(tmp_path, relay):
    configure(tmp_path, relay)
    # In the kernel's own space: a path in a deep folder would be longer than an address may be.
    name = f"letterbook-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(END_S)
        process = Process("serve", cwd=tmp_path, err=True, NOTIFY_SOCKET=f"@{name}")
        try:
            assert manager.recv(100) == b"READY=1"
            address = re.search(r"http://[^\"]+", process.line("listening on"))
            assert run("health", "--ready", "--url", address[0], cwd=tmp_path).stdout == "ready\n"
            code, _ = process.end()
            assert (code, manager.recv(100)) == (0, b"STOPPING=1")
        finally:
            process.close()
    assert "is the service running?" in run("health", "--url", address[0], cwd=tmp_path, code=1).stderr


def test_a_second_service_on_the_same_log_names_the_first(service, tmp_path):
    process, _ = service
    said = run("serve", cwd=tmp_path, code=1).stderr.splitlines()
    assert f"in use by the process {process.running.pid}" in said[-1]


def test_a_port_in_use_is_said_in_one_line(service, tmp_path):
    _, url = service
    other = tmp_path / "other"
    other.mkdir()
    said = run("serve", cwd=other, code=1, LETTERBOOK_SERVER_PORT=url.rpartition(":")[2]).stderr
    assert "another process listens there" in said.splitlines()[-1]


def test_a_service_that_cannot_go_on_ends_although_nobody_reads_its_lines(tmp_path, relay):
    configure(tmp_path, relay)
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    nowhere = environment({"LETTERBOOK_STORAGE_DB_PATH": f"{tmp_path}/no folder/l.db"})
    with subprocess.Popen(command("serve"), cwd=tmp_path, env=nowhere, stderr=write) as process:
        try:
            assert process.wait(END_S) == 1
        finally:
            process.kill()
    os.close(read)
    os.close(write)


def dropped_lines(client: httpx.Client) -> int:
    found = re.search(r"^letterbook_log_lines_dropped_total (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return int(float(found[1]))


def test_a_standard_error_that_nobody_reads_costs_lines_and_holds_nothing(service):
    process, url = service
    # Each is rejected, and so makes a line: more of them than the pipe and the buffer hold.
    rounds, long = 0, "\U0001f4d6" * 200
    with httpx.Client(base_url=url, headers={"X-API-Token": "s3cret"}, timeout=END_S, trust_env=False) as client:
        while not dropped_lines(client):
            rounds += 1
            rejected = [{"id": f"{rounds}-{number}-{long}"} for number in range(1000)]
            assert client.post("/commands/add-messages", json={"messages": rejected}).status_code == 200
        letter = {"id": "last", "from": "a@example.com", "to": "b@example.org", "subject": "s", "body": "b"}
        assert client.post("/commands/send-message", json=letter).json()["ok"]
        sent = client.get("/metrics").text
    assert 'letterbook_messages{state="sent"} 1.0' in sent
    code, err = process.end()
    lines = [json.loads(line) for line in err.splitlines()]
    missing = [line["message"] for line in lines if "lines are missing here" in line["message"]]
    assert code == 0 and missing and sum(int(words.split()[0]) for words in missing) > 0
    assert lines[-1]["message"] == "stopped"


def test_a_start_says_what_it_found_and_each_end_has_a_line(service, tmp_path):
    process, url = service
    for to in ("anna@example.org", "550@example.org"):
        letter = "--from", "a@example.com", "--subject", "geheim", "--body", "geheim"
        subprocess.run(
            command("send", "--to", to, "--id", to[:3], *letter, "--url", url),
            cwd=tmp_path, env=environment({}), capture_output=True, check=False, timeout=END_S,
        )  # fmt: skip
    code, err = process.end()
    ends = [json.loads(line) for line in err.splitlines() if "letterbook.outcomes" in line]
    assert code == 0 and [(end["id"], end["status"], end["code"]) for end in ends] == [
        ("ann", "sent", 250), ("550", "error", 550)
    ]  # fmt: skip
    assert "geheim" not in err and "@" not in err
    again, _ = start(tmp_path)
    code, err = again.end()
    found = json.loads(again.opened)
    assert (found["start"], found["waiting"], found["held"], found["accounts"]) == ("clean stop", 0, 0, 1)
    again.close()


def test_a_second_signal_does_not_wait_for_the_drain(tmp_path, relay):
    configure(tmp_path, relay)
    process, url = start(tmp_path)
    slow = Process("send", "--from", "a@example.com", "--to", "slow-30@example.org", "--subject", "s", "--body", "b",
                   "--url", url, cwd=tmp_path)  # fmt: skip
    tail = Process("tail", "--after", 0, "--json", "--url", url, cwd=tmp_path)
    try:
        tail.line("AttemptStarted")
        process.running.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.running.wait(1)
        assert process.end()[0] == 0
    finally:
        for one in (slow, tail, process):
            one.close()
    kinds = [json.loads(line)["kind"] for line in run("log", "--json", cwd=tmp_path).stdout.splitlines()]
    assert kinds[-2:] == ["AttemptEnded", "ServiceStopped"] and mark_path(tmp_path / "letterbook.db").exists()


def test_check_config_names_a_key_that_is_not_this_logs(service, tmp_path):
    assert run("check-config", cwd=tmp_path).stdout == "The configuration is good.\n"
    (tmp_path / "letterbook.key").write_text("nonsense\n")
    said = run("check-config", "--json", cwd=tmp_path, code=1)
    assert "is malformed" in said.stderr and json.loads(said.stdout)["ok"] is False


def test_the_demo_ends_by_itself_when_everything_has_happened(tmp_path):
    done = run("demo", "--exit", cwd=tmp_path, LETTERBOOK_SERVER_PORT="nonsense", TMPDIR=str(tmp_path))
    assert "reminder-3\tsent\t2" in done.stdout and "1 of 3 refused: 550 5.1.1" in done.stdout
    assert done.stderr == "" and list(tmp_path.iterdir()) == []


def test_the_demo_stays_up_until_ctrl_c(tmp_path):
    process = Process("demo", cwd=tmp_path, TMPDIR=str(tmp_path), PYTHONUNBUFFERED="1")
    try:
        process.line("It stays up")
        assert process.end(signal.SIGINT) == (0, "")
    finally:
        process.close()
    assert list(tmp_path.iterdir()) == []


async def test_the_service_runs_within_a_program_of_ones_own(tmp_path):
    from letterbook import open_service
    from letterbook.config import load

    async with CaptureRelay().listening() as relay:
        configure(tmp_path, relay.port)
        async with open_service(load(tmp_path / "config.ini", {})) as service:
            message = {"id": "m", "from": "a@example.com", "to": "b@example.org", "subject": "s", "body": "b"}
            assert (await service.handle_command("addMessages", {"messages": [message]}))["queued"] == 1
            with trio.fail_after(END_S):
                async with aclosing(service.results()) as results:
                    result = await anext(results)
            assert (result.id, result.status) == ("m", "sent")
