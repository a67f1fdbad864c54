"""Lines to a pipe that nobody reads: nobody waits, and what is missing is counted and said."""

import errno
import os
import threading

import pytest

from letterbook.line_writer import LineWriter

WAIT_S = 30


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        try:
            os.close(descriptor)
        except OSError as error:
            assert error.errno == errno.EBADF


def missing(count: int) -> bytes:
    return b"%d missing\n" % count


def read_all(descriptor: int) -> list[bytes]:
    with os.fdopen(descriptor, "rb") as file:
        return file.read().splitlines()


def test_lines_arrive_in_their_order_and_the_end_waits_for_them(pipe):
    read, write = pipe
    writer = LineWriter(write, missing)
    for number in range(100):
        writer.put(b"line %d\n" % number)
    writer.close(WAIT_S)
    os.close(write)
    assert read_all(read) == [b"line %d" % number for number in range(100)]
    assert writer.dropped == 0


def test_a_full_pipe_costs_lines_and_nobody_waits_for_it(pipe):
    read, write = pipe
    line = b"x" * 999 + b"\n"
    writer = LineWriter(write, missing, buffer_bytes_max=100_000)
    # More than the pipe (64 KB) and the buffer hold: without the drop this would never end, for nobody reads.
    for _ in range(1_000):
        writer.put(line)
    assert 800 < writer.dropped < 1_000
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(read)))
    reader.start()
    writer.close(WAIT_S)
    os.close(write)
    reader.join(WAIT_S)
    said = [int(line.split()[0]) for line in found if line.endswith(b" missing")]
    assert sum(said) == writer.dropped
    assert len(found) - len(said) == 1_000 - writer.dropped


def test_a_reader_that_never_reads_does_not_keep_the_end(pipe):
    _, write = pipe
    writer = LineWriter(write, missing)
    writer.put(b"x" * 500_000 + b"\n")
    writer.close(0.01)


def test_a_reader_that_has_gone_costs_lines_alone(pipe):
    read, write = pipe
    os.close(read)
    writer = LineWriter(write, missing)
    writer.put(b"one\ntwo\n", 2)
    writer.close(WAIT_S)
    assert writer.dropped == 2


def test_a_pipe_that_somebody_made_non_blocking_is_waited_for(pipe):
    read, write = pipe
    os.set_blocking(write, False)
    writer = LineWriter(write, missing)
    writer.put((b"x" * 999 + b"\n") * 300)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(read)))
    reader.start()
    writer.close(WAIT_S)
    os.close(write)
    reader.join(WAIT_S)
    assert len(found) == 300
