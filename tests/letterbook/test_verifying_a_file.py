"""An exported log is verified by its lines alone: what is done to them is named, and what they cannot show is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from letterbook.cli import main
from store.writer import Request
from tests.store.building import accepted, account_saved, database, writer

from .book import write_log

ROOT = Path(__file__).parents[2]


def run(*words: object, code: int = 0, given: bytes | None = None) -> Result:
    result = CliRunner().invoke(main, [*map(str, words)], input=given)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def whole(log) -> list[bytes]:
    return run("log", "--json", "--db", log).stdout_bytes.splitlines(keepends=True)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory) -> list[bytes]:
    """Commits of several facts: 1, 2-4, 5-7, 8-10."""
    folder = tmp_path_factory.mktemp("grouped")
    with database(folder / "log.db") as connection:
        connection.executemany("insert into meta values (?, ?)", [("log", "l"), ("key", "k")])
        write = writer(connection)
        write.turn([Request([account_saved()], {})])
        for group in range(3):
            write.turn([Request([accepted(f"{group}-{each}") for each in range(3)], {})])
    return run("log", "--json", "--db", folder / "log.db").stdout_bytes.splitlines(keepends=True)


def verified(lines: list[bytes], folder: Path, code: int = 0) -> Result:
    (folder / "x.jsonl").write_bytes(b"".join(lines))
    return run("verify", folder / "x.jsonl", code=code)


def changed(line: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(line), **fields}).encode() + b"\n"


def test_a_whole_export_gives_the_hash_that_the_log_gives(log, whole, tmp_path):
    first, last = verified(whole, tmp_path).stdout.splitlines()
    assert first in run("verify", "--db", log).stdout
    assert last == f"That the log did not go on after {len(whole)}, only a hash that was kept elsewhere can show."
    answer = json.loads(run("verify", "-", "--json", given=b"".join(whole)).stdout)
    assert (answer["ok"], answer["facts"], answer["begins"], answer["last"]) == (True, len(whole), 1, len(whole))
    assert answer["hash"] in first


def test_signs_of_any_script_and_lines_of_another_writer_are_the_same_facts(whole, tmp_path):
    rewritten = [json.dumps(json.loads(line), ensure_ascii=True, indent=None).encode() + b"\n" for line in whole]
    assert verified(rewritten, tmp_path).stdout == verified(whole, tmp_path).stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [("at_us", 5), ("kind", "Other"), ("version", 2), ("message", 1), ("account", None), ("data", "{}")],
)
def test_a_changed_field_is_named_by_its_fact_where_it_is_alone_in_its_commit(whole, tmp_path, name, value):
    lines = list(whole)
    lines[6] = changed(lines[6], **{name: value})
    said = verified(lines, tmp_path, code=1)
    assert said.stderr == "letterbook: 7 (line 7): what stands here is not what was written\n" and said.stdout == ""


@pytest.mark.parametrize(
    ("lines_of", "line"),
    [
        (lambda lines: [*lines[:5], changed(lines[5], data="{}"), *lines[6:]], "5-7 (line 7): what stands here"),
        (lambda lines: [*lines[:5], *lines[6:]], "6 (line 6): missing, or not in its place"),
        (lambda lines: [*lines[:4], *lines[7:]], "5-7 (line 5): missing, or not in its place"),
        (lambda lines: [*lines[:6], lines[5], *lines[6:]], "6 (line 7): this fact stands here again"),
        (lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], "6 (line 6): missing, or not in its place"),
        (lambda lines: [*lines[:7], changed(lines[5], seq=8), *lines[7:]], "8 (line 9): this fact stands here again"),
        (lambda lines: lines[:9], "8-9 (line 9): these facts are in no commit"),
        (lambda lines: [*lines[:6], changed(lines[6], commit=None), *lines[7:]], "7 (line 10): the hash of the commit"),
        (lambda lines: [*lines[:6], changed(lines[6], commit={"format": 1, "hash": "0" * 64}), *lines[7:]],
         "5-7 (line 7): the commit's hash was changed"),
        (lambda lines: [*lines[:6], changed(lines[6], commit={"format": 1, "hash": "x"}), *lines[7:]],
         "5-7 (line 7): the commit's hash was changed"),
        (lambda lines: [*lines[:6], changed(lines[6], commit={"format": 9, "hash": "00"}), *lines[7:]],
         "5-7 (line 7): this commit's hash is of a format"),
        (lambda lines: [*lines[:9], changed(lines[9], commit={"format": 1, "hash": "0" * 64})],
         "8-10 (line 10): what stands here"),
        (lambda lines: [*lines[:9], lines[9][:40]], "10 (line 10): this line is not as an export has it"),
        (lambda lines: [*lines[:2], b"\xff\n", *lines[3:]], "3 (line 3): this line is not as an export has it"),
        (lambda lines: [b"\n", *lines], "line 1: this line is not as an export has it"),
        (lambda lines: [], "line 0: it holds no facts"),
    ],
)  # fmt: skip
def test_what_is_done_to_the_lines_is_named(grouped, tmp_path, lines_of, line):
    assert verified(grouped, tmp_path).exit_code == 0
    said = verified(lines_of(grouped), tmp_path, code=1)
    assert said.stderr.startswith(f"letterbook: {line}") and said.stdout == "" and len(said.stderr.splitlines()) == 1


def test_an_end_that_was_cut_off_between_commits_looks_whole_and_that_is_said(grouped, tmp_path):
    assert "did not go on after 7, only a hash" in verified(grouped[:7], tmp_path).stdout


def test_an_export_that_begins_later_is_held_against_the_first_hash_in_it(grouped, tmp_path):
    first, second, _ = verified(grouped[4:], tmp_path).stdout.splitlines()
    assert first.startswith("3 facts in 1 commit are as they were written")
    assert second.startswith("The file begins at 5: 5-7 prove nothing")
    lines = [*grouped[4:8], changed(grouped[8], data="{}"), *grouped[9:]]
    assert verified(lines, tmp_path, code=1).stderr.startswith("letterbook: 8-10 (line 6): what stands here")
    assert "with its only commit" in verified(grouped[7:], tmp_path, code=1).stderr


def test_of_a_filtered_export_nothing_can_be_verified_and_that_is_said(log, tmp_path):
    exported = run("log", "--json", "--kind", "MessageAccepted", "--db", log).stdout_bytes
    said = run("verify", "-", given=exported, code=1)
    assert "nothing can be verified of an export that a filter has left facts out of" in said.stderr


def test_a_log_and_a_file_together_are_wrong_usage_and_a_missing_file_is_one_line(log, tmp_path):
    assert "give --db or a FILE" in run("verify", "x", "--db", log, code=2).stderr
    assert run("verify", tmp_path / "none", code=1).stderr.endswith("none: No such file or directory\n")


def test_the_script_of_the_documents_needs_nothing_of_ours(grouped, whole):
    script = ROOT / "docs" / "examples" / "verify_export.py"
    for lines in (grouped, whole):
        said = subprocess.run([sys.executable, "-I", script], input=b"".join(lines), capture_output=True, check=True)
        assert said.stdout.decode().strip() == json.loads(lines[-1])["commit"]["hash"]
    lines = [*grouped[:5], changed(grouped[5], data="{}"), *grouped[6:]]
    said = subprocess.run([sys.executable, "-I", script], input=b"".join(lines), capture_output=True, check=False)
    assert said.returncode == 1 and said.stderr.decode().strip() == "5-7: not what was written"
    damaged = ((b"", "there is nothing"), (whole[0] + b"{}\n", "line 2 is no fact"), (b"x", "line 1 is no fact"))
    for content, words in damaged:
        said = subprocess.run([sys.executable, "-I", script], input=content, capture_output=True, check=False)
        assert said.returncode == 1 and said.stderr.decode().startswith(words)
