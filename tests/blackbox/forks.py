"""Many commands, each in a process of its own, for the price of one: a process imports everything and then forks.

They run one after the other, without the right of root to read and write whatever it likes, so that the modes of files
mean here what they mean to a service.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from .service import Said, run

ALL_S_MAX = 300.0
"""A few seconds alone."""

END_S = 60
"""A command that takes longer is ended by a signal, and has failed."""

SERVED_ENOUGH = "listening on"
"""A service that gets so far is told to stop."""


class Command(Struct, frozen=True):
    """What to run, and the variables that are its own."""

    words: Sequence[str]
    environment: Mapping[str, str]


async def run_each(commands: Sequence[Command], folder: Path, environment: Mapping[str, str]) -> list[Said]:
    """What each of them said, and its exit code (negative: the signal that ended it)."""
    asked = json.dumps([[list(each.words), dict(each.environment)] for each in commands])
    said = await run([sys.executable, "-c", PROGRAM, asked, str(END_S), SERVED_ENOUGH], folder, environment, ALL_S_MAX)
    assert said.code == 0, said.err
    return [Said(*each) for each in json.loads(said.out)]


PROGRAM = """
import ctypes, gc, json, os, signal, sys, tempfile, time

import gateway.asking, letterbook.log_command, letterbook.serving, letterbook.system, store.examining
from letterbook.cli import main

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2
VERSION = 0x20080522

def forget_root():
    libc = ctypes.CDLL(None)
    header, rights = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, rights)
    for at in range(3):
        rights[at] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH) & 0xFFFFFFFF
    libc.capset(header, rights)

def child(words, environment, out, err):
    signal.alarm(int(sys.argv[2]))
    forget_root()
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.environ.update(environment)
    try:
        main(words)
    except SystemExit as end:
        sys.stdout.flush()
        # At once: taking a whole interpreter down costs more than the command.
        os._exit(end.code)

def text(file):
    return os.pread(file.fileno(), 1_000_000, 0).decode()

def carry_out(words, environment):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if (pid := os.fork()) == 0:
            child(words, environment, out, err)
        told = False
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if not told and sys.argv[3] in text(err):
                os.kill(pid, signal.SIGTERM)
                told = True
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(ended[1]), text(out), text(err)

gc.freeze()
print(json.dumps([carry_out(*each) for each in json.loads(sys.argv[1])]))
"""
