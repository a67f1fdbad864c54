"""The capture relay as a process of its own: `python -m bench.sink PORT`."""

import sys

import trio

from letterbook.capture import CaptureRelay

BYTES_KEPT = 100_000

if __name__ == "__main__":
    relay = CaptureRelay(port=int(sys.argv[1]), memory_bytes_max=BYTES_KEPT)
    trio.run(relay.serve)
