"""backup and restore as somebody types them: what they say, and with which exit code."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from letterbook.cli import main
from store.files import hold_lock

from .book import write_log

FACTS = 13
"""In the book."""


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    write_log(folder)
    (folder / "config.ini").write_text(f"[storage]\ndb_path = {folder}/log.db\nkey_file = {folder}/log.key\n")
    return folder


@pytest.fixture
def folder(book, tmp_path) -> Path:
    copied = shutil.copytree(book, tmp_path / "f")
    (copied / "config.ini").write_text(f"[storage]\ndb_path = {copied}/log.db\nkey_file = {copied}/log.key\n")
    return copied


def run(folder: Path, *words: object, code: int = 0, **options: object) -> Result:
    result = CliRunner().invoke(main, [*map(str, words), "--config", str(folder / "config.ini")], **options)
    assert result.exit_code == code, result.output
    return result


def says_no(folder: Path, *words: object, code: int = 1) -> str:
    """The one line."""
    result = run(folder, *words, code=code)
    assert result.stdout == "" and result.stderr.startswith("letterbook: ")
    (line,) = result.stderr.splitlines()
    return line


def test_a_backup_says_what_it_holds_and_that_the_key_is_apart(folder):
    file = folder / "b.db"
    first, second = run(folder, "backup", file).stdout.splitlines()
    assert first.startswith(f"{file}: log ") and f"{FACTS} facts, the last of 2023-11-14 22:13:20" in first
    assert f"{file.stat().st_size:,} bytes, SHA-256 " in first
    assert f"The key {folder}/log.key is not in it" in second and "are lost" in second
    again = json.loads(run(folder, "backup", file, "--force", "--json").stdout)
    assert first.endswith(again["sha256"])
    assert (again["ok"], again["seq"], again["key_file"]) == (True, FACTS, f"{folder}/log.key")
    assert f"log {again['log']}," in first and f"SHA-256 {again['sha256']}" in first


def test_without_a_configuration_the_key_is_named_by_its_id(folder):
    result = CliRunner().invoke(main, ["backup", str(folder / "b.db"), "--db", str(folder / "log.db")])
    assert result.exit_code == 0 and "The key file with the key " in result.stdout


def test_a_backup_can_be_looked_at_like_the_log(folder):
    run(folder, "backup", folder / "b.db")
    seen = CliRunner().invoke(main, ["verify", "--db", str(folder / "b.db")])
    assert seen.exit_code == 0 and f"{FACTS} facts" in seen.stdout
    assert CliRunner().invoke(main, ["show", "sent/1", "--db", str(folder / "b.db")]).exit_code == 0


def test_what_keeps_a_backup_from_being_made_is_one_line(folder):
    file = folder / "b.db"
    run(folder, "backup", file)
    assert "there already" in says_no(folder, "backup", file)
    assert "belongs to the database" in says_no(folder, "backup", folder / "log.db", "--force")
    assert "is no backup" in says_no(folder, "backup", folder / "log.key", "--force")
    assert "is a directory" in says_no(folder, "backup", folder)
    assert "is no directory" in says_no(folder, "backup", folder / "none" / "b.db")
    assert "Missing argument" in run(folder, "backup", code=2).stderr


def test_a_backup_is_put_back_and_the_way_on_is_named(folder):
    run(folder, "backup", folder / "b.db")
    said = run(folder, "restore", folder / "b.db", "--yes")
    first, second, third = said.stdout.splitlines()
    assert first.startswith(f"{folder}/log.db: log ") and f"{FACTS} facts" in first
    (kept,) = folder.glob("log.db.replaced-*")
    assert str(kept) in second and "activate --restored hold" in third and said.stderr == ""


def test_without_its_sum_that_much_is_said(folder):
    run(folder, "backup", folder / "b.db")
    (folder / "b.db.sha256").unlink()
    said = run(folder, "restore", folder / "b.db", "--yes", "--json")
    assert "b.db.sha256 is not there" in said.stderr
    answer = json.loads(said.stdout)
    assert (answer["ok"], answer["summed"], answer["seq"], answer["came_to"]) == (True, False, FACTS, FACTS)
    assert Path(answer["kept"]).is_file()


def test_nobody_is_asked_where_there_is_nobody(folder):
    run(folder, "backup", folder / "b.db")
    before = (folder / "log.db").read_bytes()
    assert "say --yes" in run(folder, "restore", folder / "b.db", code=2).stderr
    assert (folder / "log.db").read_bytes() == before and not list(folder.glob("log.db.re*"))


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_on_a_terminal_it_asks_with_both_in_view(folder, monkeypatch, answer, code):
    run(folder, "backup", folder / "b.db")
    monkeypatch.setattr("letterbook.backup_commands.somebody_is_there", lambda: True)
    said = run(folder, "restore", folder / "b.db", code=code, input=answer)
    assert "The backup holds log " in said.stderr and f"{folder}/log.db holds log " in said.stderr
    assert bool(list(folder.glob("log.db.replaced-*"))) == (code == 0)


def test_what_keeps_a_backup_from_being_restored_is_one_line(folder):
    file = folder / "b.db"
    run(folder, "backup", file)
    with hold_lock(folder / "log.db"):
        assert "in use by the process" in says_no(folder, "restore", file, "--yes")
    assert "is not there" in says_no(folder, "restore", folder / "none.db", "--yes")
    assert "not a database" in says_no(folder, "restore", folder / "config.ini", "--yes")
    assert "is the database itself" in says_no(folder, "restore", folder / "log.db", "--yes")
    (folder / "log.key").unlink()
    assert "log.key is missing" in says_no(folder, "restore", file, "--yes")
