"""A disk of a few megabytes for one service: a tmpfs in a mount namespace that goes with the process that holds it."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from msgspec import Struct

KINDS = (("--map-root-user", "--user"), ("", ""))
"""What to tell unshare and nsenter beside --mount: without root, and for a root who may have no user namespaces."""

PROGRAM = 'mount -t tmpfs -o size="$1"k,mode=755 none "$2" && echo mounted && exec cat'
BLOCK = bytes(4096)


class SmallDisk(Struct, frozen=True):
    """`within` runs a command where the disk is mounted on `folder`; `seen` is that folder as seen from outside."""

    folder: Path
    within: Sequence[str]
    seen: Path

    @property
    def _filler(self) -> Path:
        return self.seen / "filler"

    def fill(self, leave_blocks: int = 0) -> None:
        """Somebody else's file takes what is left."""
        size = 0
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    size += file.write(BLOCK)
            except OSError:
                file.truncate(file.tell() - leave_blocks * len(BLOCK))

    def free(self) -> None:
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """Skips the test where nothing can be mounted."""
    folder.mkdir()
    for unshared, entered in KINDS:
        program = ["sh", "-c", PROGRAM, "sh", str(kilobytes), str(folder)]
        command = ["unshare", *filter(None, [unshared]), "--mount", *program]
        try:
            holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except FileNotFoundError:
            break
        assert holder.stdin and holder.stdout
        try:
            if holder.stdout.readline() == b"mounted\n":
                within = ["nsenter", "--target", str(holder.pid), *filter(None, [entered]), "--mount"]
                within += ["--preserve-credentials"] if entered else []
                yield SmallDisk(folder, [*within, "--"], Path(f"/proc/{holder.pid}/root{os.path.realpath(folder)}"))
                return
        finally:
            holder.stdin.close()
            holder.stdout.close()
            holder.wait()
    pytest.skip("nothing can be mounted here")
