"""A Postfix of one's own: its configuration, queue and log in a folder, its smtpd on a free port, and nothing delivered
anywhere, since every message it takes stays on hold."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .relays import LOOK_S, free_port

START_S_MAX = 10.0
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin"

MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/log/mail.log
maillog_file_prefixes = {folder}/log
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = postfix.example.org
mydestination = example.org
mynetworks = 127.0.0.0/8
alias_maps =
local_recipient_maps = inline:{{ ann=ok, bob=ok }}
smtpd_recipient_restrictions = permit_mynetworks
smtpd_end_of_data_restrictions = check_client_access static:HOLD
smtpd_reject_unlisted_recipient = yes
smtpd_peername_lookup = no
message_size_limit = 100000
"""

MASTER = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
discard unix - - n - - discard
local unix - n n - - discard
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


QUEUES = (
    "active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "maildrop", "private", "public",
    "saved", "trace",
)  # fmt: skip


class Unavailable(Exception):
    """No Postfix can be run here: the reason."""


class Postfix:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port

    def held(self, queue_id: str) -> bytes:
        """The message with this queue id, as Postfix has it on hold; its lines end with a line feed."""
        command = [program("postcat"), "-c", str(self.folder / "etc"), "-bhq", queue_id]
        return subprocess.run(command, check=True, capture_output=True, timeout=20).stdout


def program(name: str) -> str:
    found = shutil.which(name, path=SBIN)
    if found is None:
        raise Unavailable(f"{name} is not installed")
    return found


@contextmanager
def postfix(more: str = "") -> Iterator[Postfix]:
    """A running Postfix, with `more` settings. Raises Unavailable where it cannot be run."""
    command = [program("postconf"), "-d", "-h", "daemon_directory"]
    if os.geteuid() != 0:
        raise Unavailable("only root can run a Postfix")
    daemons = subprocess.run(command, check=True, capture_output=True, text=True, timeout=START_S_MAX).stdout.strip()
    # Its daemons are another user, who must be able to get there: pytest's own folders are for root alone.
    folder = Path(tempfile.mkdtemp(prefix="postfix-"))
    try:
        made = Postfix(folder, free_port())
        lay_out(made, more)
        with started(Path(daemons) / "master", made):
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def lay_out(made: Postfix, more: str) -> None:
    """The folders and files that `postfix start` would make or check, which takes it some seconds."""
    made.folder.chmod(0o755)
    for name in ("etc", "log", "queue", "queue/pid", "data", *(f"queue/{name}" for name in QUEUES)):
        (made.folder / name).mkdir(mode=0o755)
    for name in ("data", *(f"queue/{name}" for name in QUEUES)):
        (made.folder / name).chmod(0o700)
        shutil.chown(made.folder / name, "postfix")
    (made.folder / "etc" / "main.cf").write_text(MAIN.format(folder=made.folder) + more)
    (made.folder / "etc" / "master.cf").write_text(MASTER.format(port=made.port))


@contextmanager
def started(master: Path, made: Postfix) -> Iterator[None]:
    """The master process, which ends all others when it is ended."""
    command = [str(master), "-c", str(made.folder / "etc")]
    with (made.folder / "log" / "errors").open("wb") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors)
    try:
        until_listening(process, made)
        yield
    finally:
        process.terminate()
        try:
            process.wait(START_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until_listening(process: subprocess.Popen[bytes], made: Postfix) -> None:
    until = time.monotonic() + START_S_MAX
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as client:
            client.settimeout(START_S_MAX)
            if client.connect_ex(("127.0.0.1", made.port)) == 0 and client.recv(3) == b"220":
                return
        time.sleep(LOOK_S)
    said = "".join(path.read_text(errors="replace") for path in sorted((made.folder / "log").iterdir()))
    raise Unavailable(f"postfix did not answer within {START_S_MAX:g} s: {said.strip()[-300:]}")
