"""Reading a file of a local volume, without ever leaving its folder.

Each part of the path is opened below the one before it, by descriptor and without following a link, so there is no
moment between looking and opening in which somebody could put a link in its place. What is no regular file (a pipe, a
device, a socket) is refused before a byte is read: opening one would wait for the other end, so it is opened without
waiting. (obstore's local store was tried and follows symbolic links out of its folder.)
"""

import errno
import os
import stat
from contextlib import ExitStack

_WAY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_LEADS_OUT = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV})
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR})


class LeadsOut(Exception):
    """The path holds a link, or names something else than a file."""


class NotThere(Exception):
    """There is no such file in the folder."""


class TooLarge(Exception):
    """The file has more bytes than may be read."""


def read_within(folder: str, path: str, bytes_max: int) -> bytes:
    """A file below `folder`. Raises LeadsOut, NotThere, TooLarge, and OSError where the folder cannot be read."""
    *way, name = path.split("/")
    with ExitStack() as opened:
        # The folder itself is the operator's word: it may be a link.
        at = _open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, None, opened)
        try:
            for part in way:
                at = _open(_part(part), _WAY, at, opened)
            at = _open(_part(name), _FILE, at, opened)
        except OSError as error:
            if error.errno in _LEADS_OUT:
                raise LeadsOut from error
            if error.errno in _NOT_THERE:
                raise NotThere from error
            raise
        except ValueError as error:
            raise LeadsOut from error
        return _read(at, bytes_max)


def _part(part: str) -> str:
    if part in ("", ".", ".."):
        raise LeadsOut
    return part


def _open(name: str, flags: int, at: int | None, opened: ExitStack) -> int:
    descriptor = os.open(name, flags, dir_fd=at)
    opened.callback(os.close, descriptor)
    return descriptor


def _read(descriptor: int, bytes_max: int) -> bytes:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise LeadsOut
    if found.st_size > bytes_max:
        raise TooLarge
    parts, left = [], bytes_max
    # It may grow while it is read, so its size is only a first answer.
    while part := os.read(descriptor, 1_000_000):
        left -= len(part)
        if left < 0:
            raise TooLarge
        parts.append(part)
    return b"".join(parts)
