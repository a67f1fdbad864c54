"""A local volume never leaves its folder, and nothing in it can make a reader wait."""

import os
import socket

import pytest

from actors.local_files import LeadsOut, NotThere, TooLarge, read_within

SECRET = b"not for you"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "secret").write_bytes(SECRET)
    inside = tmp_path / "volume"
    (inside / "sub").mkdir(parents=True)
    (inside / "sub" / "a.txt").write_bytes(b"hello")
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "inner").symlink_to(inside / "sub" / "a.txt")
    (inside / "way").symlink_to(tmp_path)
    (inside / "loop").symlink_to("loop")
    os.mkfifo(inside / "pipe")
    return inside


def test_a_file_is_read_whole(folder):
    assert read_within(str(folder), "sub/a.txt", 5) == b"hello"


@pytest.mark.parametrize(
    "path",
    ["link", "inner", "way/secret", "loop", "../secret", "sub/../../secret", "sub/..", ".", "", "/etc/passwd", "a\0b"],
)
def test_no_link_and_no_dots_lead_out(folder, path):
    with pytest.raises((LeadsOut, NotThere)):
        read_within(str(folder), path, 100)


@pytest.mark.parametrize("path", ["pipe", "sub", "socket"])
def test_what_is_no_file_is_refused_without_waiting(folder, path):
    with socket.socket(socket.AF_UNIX) as listening:
        previous = os.getcwd()
        os.chdir(folder)
        try:
            listening.bind("socket")
        finally:
            os.chdir(previous)
        with pytest.raises(LeadsOut):
            read_within(str(folder), path, 100)


def test_a_device_is_refused(folder):
    with pytest.raises(LeadsOut):
        read_within("/dev", "zero", 100)


@pytest.mark.parametrize("path", ["none", "sub/none", "sub/a.txt/more", "x" * 300])
def test_what_is_not_there_is_not_there(folder, path):
    with pytest.raises(NotThere):
        read_within(str(folder), path, 100)


def test_one_byte_too_many_is_too_large(folder):
    with pytest.raises(TooLarge):
        read_within(str(folder), "sub/a.txt", 4)


def test_a_file_that_says_nothing_of_its_size_is_read_no_further_than_allowed():
    with pytest.raises(TooLarge):
        read_within("/proc/self", "maps", 10)


def test_a_folder_that_is_not_there_is_an_error_that_may_pass(tmp_path):
    with pytest.raises(OSError):
        read_within(str(tmp_path / "gone"), "a", 100)


def test_no_descriptor_is_left_open(folder):
    before = len(os.listdir("/proc/self/fd"))
    for path in ("sub/a.txt", "link", "none", "pipe"):
        try:
            read_within(str(folder), path, 100)
        except (LeadsOut, NotThere):
            pass
    assert len(os.listdir("/proc/self/fd")) == before
