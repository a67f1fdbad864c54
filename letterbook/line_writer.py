"""Lines to a file that may stand still: a pipe whose reader sleeps, a terminal that is held, a journal on a full disk.

Whoever has a line puts it into a bounded buffer and goes on; one thread writes. So no line ever delays the loop, and a
reader that takes nothing costs lines, never mail. What the buffer cannot hold is dropped and counted, and once the
reader takes lines again one line says how many are missing at that place.

At the end the buffer is written out for CLOSE_S; a reader that takes nothing by then does not keep the process.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable

BUFFER_BYTES_MAX = 8_000_000
"""The ends of one reading (3,000, see `outcomes.py`) at their longest (2.1 KB each): what is told at once has room."""

CLOSE_S = 2.0


class LineWriter:
    """`descriptor` is written to; `missing` makes the line that says how many were dropped."""

    def __init__(
        self, descriptor: int, missing: Callable[[int], bytes], buffer_bytes_max: int = BUFFER_BYTES_MAX
    ) -> None:
        self._descriptor = descriptor
        self._missing = missing
        self._bytes_max = buffer_bytes_max
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._unsaid = 0
        self._closed = False
        self._stirred = threading.Condition(threading.Lock())
        self.dropped = 0
        # A daemon: a write that never returns must not keep the process.
        self._thread = threading.Thread(target=self._run, name="lines", daemon=True)
        self._thread.start()

    def put(self, data: bytes, lines: int = 1) -> None:
        """Take whole lines, or drop them where there is no room. Never waits for the file."""
        with self._stirred:
            if self._bytes + len(data) > self._bytes_max:
                self.dropped += lines
                self._unsaid += lines
            else:
                self._waiting.append(data)
                self._bytes += len(data)
            self._stirred.notify()

    def close(self, within_s: float = CLOSE_S) -> None:
        """Write what waits, for so long at most."""
        with self._stirred:
            self._closed = True
            self._stirred.notify()
        self._thread.join(within_s)

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            data, lines, unsaid = taken
            written = self._write(data + (self._missing(unsaid) if unsaid else b""))
            with self._stirred:
                self._bytes -= len(data)
                self.dropped += 0 if written else lines

    def _take(self) -> tuple[bytes, int, int] | None:
        """Everything that waits, its lines, and how many were dropped behind it; None at the end."""
        with self._stirred:
            while not self._waiting and not self._unsaid:
                if self._closed:
                    return None
                self._stirred.wait()
            data = b"".join(self._waiting)
            self._waiting.clear()
            unsaid, self._unsaid = self._unsaid, 0
            return data, data.count(b"\n"), unsaid

    def _write(self, data: bytes) -> bool:
        """Write all of it; False where nobody will ever read it."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:
                # Whoever shares the file made it non-blocking.
                select.select((), (self._descriptor,), ())
            except OSError:
                return False
        return True
