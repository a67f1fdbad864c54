"""Coming over: what the old service's database holds, and what of it the log knows afterwards."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from letterbook.cli import main
from store.files import hold_lock, read_or_make_key
from store.secrets import Secrets

from .old import TABLES, old_service

CONFIG = """\
[storage]
db_path = {folder}/log.db
key_file = {folder}/log.key
min_free_mb = 1
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "config.ini").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


@pytest.fixture
def old(folder):
    with old_service(folder / "old.db") as old:
        yield old


def run(folder: Path, *words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*map(str, words), "--config", str(folder / "config.ini")])
    assert result.exit_code == code, result.output
    return result


def taken(folder: Path, old: Any, *words: object) -> dict[str, Any]:
    """What an import of the old database says, as JSON without what is zero."""
    old.connection.commit()
    answer = json.loads(run(folder, "import", folder / "old.db", "--json", *words).stdout)
    return {name: value for name, value in answer.items() if value}


def facts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(folder, "log", "--json").stdout.splitlines()]


def data(fact: dict[str, Any]) -> dict[str, Any]:
    return json.loads(fact["data"])


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    found = [fact for fact in facts(folder) if fact["kind"].startswith("Message")]
    return {fact["message_id"]: {"kind": fact["kind"], **data(fact)} for fact in found}


def views_are_what_the_log_gives(folder: Path) -> None:
    run(folder, "rebuild", "--check")
    run(folder, "verify")


def says_no(folder: Path, path: Path, *words: object) -> str:
    """The one line; and that no log was made."""
    result = run(folder, "import", path, *words, code=1)
    (line,) = result.stderr.splitlines()
    assert result.stdout == "" and line.startswith("letterbook: ")
    assert not (folder / "log.db").exists() and not (folder / "log.key").exists()
    return line


# What comes over


def test_everything_comes_over_in_one_transaction_and_a_second_time_nothing(folder, old):
    now = old.now_s
    old.account("a", user="u", password="secret", limit_per_hour=9, use_tls=0)
    old.message("waits", created_at="2026-11-01 10:00:00", priority=1)
    old.message("later", deferred_ts=now + 5000)
    old.message("told", sent_ts=now - 100, reported_ts=now - 50)
    old.message("sent", sent_ts=now - 90)
    old.message("failed", error_ts=now - 80, error="550 no such user\n(SMTP 550)")
    old.message("broken", payload="{")
    old.sends("a", 5, 5, 100, 90_000)
    found = taken(folder, old)
    assert found.pop("not_taken") == [{"what": "message", "id": "broken", "reason": "not JSON", "recorded": True}]
    counts = {"accounts": 1, "waiting": 2, "sent": 2, "failed": 1, "unreported": 2, "rejected": 1, "sends": 3}
    assert found == {"ok": True, "overdue": 1, "not_taken_count": 1, **counts}
    log = facts(folder)
    assert [fact["seq"] for fact in log if "commit" in fact][-1] == len(log)
    assert len({fact["at_us"] for fact in log}) == 1 and log[-1]["kind"] == "ImportFinished"
    assert all(data(fact)["by"] == "import" for fact in log)
    views_are_what_the_log_gives(folder)
    again = taken(folder, old)
    assert (again["known"], again["not_taken"][0]["what"], facts(folder)) == (6, "account", log)


def test_a_trial_says_the_same_and_changes_nothing(folder, old):
    old.account("a")
    old.account("b", host="two words")
    old.message("waits")
    old.message("nobody", payload=json.dumps(old.payload("nobody", to=["no address"])))
    old.message("gone", account="removed")
    old.sends("a", 5)
    trial = taken(folder, old, "--dry-run")
    assert trial.pop("dry_run") and sorted(path.name for path in folder.iterdir()) == ["config.ini", "old.db"]
    assert trial == taken(folder, old)
    assert {(each["id"], each["reason"]) for each in trial["not_taken"]} == {
        ("b", "host is no host name or address: give one without white space, 255 characters at most"),
        ("nobody", "invalid address: to[0]"),
        ("gone", "account not found"),
    }
    after = taken(folder, old, "--dry-run")
    assert (after["known"], "waiting" in after, len(facts(folder))) == (3, False, 6)


def test_it_says_in_words_what_comes_over_and_what_does_not(folder, old):
    old.account("a")
    old.message("waits")
    old.insert("volumes", name="files", backend="floppy", config="{}")
    old.connection.commit()
    first, *lines = run(folder, "import", folder / "old.db", "--dry-run").stdout.splitlines()
    assert first.endswith("old.db would be taken over:")
    assert [line.split(maxsplit=1) for line in lines[:2]] == [
        ["1", "accounts"],
        ["1", "messages that wait, and will be sent"],
    ]
    assert lines[-1].startswith("volume\tfiles\t")


def test_what_waits_keeps_its_age_its_moment_and_its_priority(folder, old):
    created_us = 1_790_000_000_000_000
    old.account("a")
    old.message("old", created_at=1_790_000_000, priority=0)
    old.message("asked", created_at=1_790_000_000.0, deferred_ts=str(old.now_s + 3600), priority=3)
    old.message("passed", created_at="2026-09-21T14:13:20+02:00", deferred_ts=1_790_000_100)
    taken(folder, old)
    found = by_id(folder)
    assert (found["old"]["priority"], found["asked"]["priority"], found["passed"]["priority"]) == (0, 3, 2)
    assert found["old"]["created_us"] == found["old"]["due_us"] == created_us
    assert found["old"]["expires_us"] == created_us + 432_000_000_000
    asked_us = (old.now_s + 3600) * 1_000_000
    assert found["asked"]["due_us"] == found["asked"]["asked_us"] == asked_us
    assert found["asked"]["expires_us"] == asked_us + 432_000_000_000
    assert "asked_us" not in found["passed"] and found["passed"]["due_us"] == created_us + 100_000_000
    assert found["passed"]["created_us"] == created_us - 7_200_000_000
    (waits,) = json.loads(run(folder, "deferred", "--json").stdout)["deferred"]
    assert (waits["id"], waits["created_ts"]) == ("asked", 1_790_000_000)


def test_results_keep_their_moments_and_words_and_only_unreported_ones_are_told(folder, old):
    now = old.now_s
    old.account("a")
    old.message("told", sent_ts=now - 50, reported_ts=now - 20)
    old.message("late", sent_ts=str(now - 40))
    old.message("failed", error_ts=float(now - 60), error="550 5.1.1 nobody\r\nof that name", priority=99)
    old.message("silent", error_ts="no moment", error=None, updated_at="2026-11-24 10:00:00")
    taken(folder, old)
    found = {result["id"]: result for result in json.loads(run(folder, "results", "--json").stdout)["results"]}
    assert set(found) == {"late", "failed", "silent"}
    assert (found["late"]["status"], found["late"]["sent_ts"]) == ("sent", now - 40)
    assert (found["failed"]["error_ts"], found["failed"]["error"]) == (now - 60, "550 5.1.1 nobody of that name")
    assert found["silent"]["error"] == "failed in the service before this one"
    assert "nobody" not in "".join(fact["data"] for fact in facts(folder))
    shown = json.loads(run(folder, "show", "told", "--json").stdout)
    assert (shown["status"], shown["sent_ts"]) == ("sent", now - 50)


def test_a_password_is_sealed_and_stands_nowhere_else(folder, old):
    old.account("a", user="ann", password="open sesame", port="587")
    old.account("b", password="without a user")
    taken(folder, old)
    assert b"open sesame" not in (folder / "log.db").read_bytes()
    secrets = Secrets(read_or_make_key(folder / "log.key", True, bytes), bytes)
    with closing(sqlite3.connect(folder / "log.db")) as log:
        sealed = [secrets.unseal(each) for (each,) in log.execute("select sealed from secrets")]
    opened = {(found := json.loads(each))["user"]: found["password"] for each in sealed}
    assert opened == {"ann": "open sesame", None: None}
    first, second = (data(fact) for fact in facts(folder)[:2])
    assert (first["port"], first["has_password"], second.get("has_password")) == (587, True, None)


def test_volumes_come_over_with_their_secrets_sealed(folder, old):
    config = {"bucket": "letters", "region": "eu-south-1", "access_key": "AKIA", "secret_key": "hidden away"}
    old.insert("volumes", name="files", backend="s3", config=json.dumps(config), account_id="a")
    old.insert("volumes", name="torn", backend="local", config="{")
    old.insert("volumes", name="bare", backend="local", config="{}")
    found = taken(folder, old)
    assert found["volumes"] == 1
    assert {each["id"]: each["reason"].split(":")[0] for each in found["not_taken"]} == {
        "torn": "its config is no JSON object",
        "bare": "config.path is missing",
    }
    assert b"hidden away" not in (folder / "log.db").read_bytes()
    views_are_what_the_log_gives(folder)
    assert taken(folder, old)["not_taken_count"] == 3


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_mail_that_waits_for_an_attachment_from_elsewhere_comes_over_with_its_volume(folder, old, options):
    with (folder / "config.ini").open("a") as config:
        config.write('[volumes]\nvolume.ours.backend = local\nvolume.ours.config = {"path": "/srv/ours"}\n')
    old.account("a")
    old.account("b")
    old.insert("volumes", name="files", backend="local", config='{"path": "/srv/files"}', account_id="a")
    old.insert("volumes", name="ours", backend="memory", config="{}")

    def waits(name: str, account: str = "a", **source: object) -> None:
        attachments = [{"filename": "x.pdf", **source}]
        old.message(name, account, payload=json.dumps(old.payload(name, account, attachments=attachments)))

    waits("from a url", url="https://files.example/x.pdf")
    waits("from a bucket", s3={"bucket": "letters", "key": "x.pdf"})
    waits("from an old volume", storage_path="files:2026/x.pdf")
    waits("from the configuration's", storage_path="ours:x.pdf")
    waits("within itself", storage_path="base64:aGVsbG8=")
    waits("from another's volume", "b", storage_path="files:2026/x.pdf")
    waits("from nowhere", storage_path="gone:x.pdf")
    found = taken(folder, old, *options)
    assert (found["waiting"], found["volumes"]) == (5, 1)
    assert {each["id"]: each["reason"] for each in found["not_taken"]} == {
        "ours": "one of this name stands in the log already, and stays as it is",
        "from another's volume": "Invalid/unauthorized storage volumes: attachments[0].storage_path",
        "from nowhere": "Invalid/unauthorized storage volumes: attachments[0].storage_path",
    }
    if not options:
        saved = {data(fact)["name"]: data(fact) for fact in facts(folder) if fact["kind"] == "VolumeSaved"}
        assert {name: fact["by"] for name, fact in saved.items()} == {"ours": "config", "files": "import"}
        views_are_what_the_log_gives(folder)


def test_the_account_of_the_configuration_stands_before_those_of_the_old_service(folder, old):
    with (folder / "config.ini").open("a") as config:
        config.write("[smtp]\nhost = relay.example\n")
    old.account("default", host="other.example")
    old.message("mine", account=None)
    old.sends(None, 7)
    found = taken(folder, old)
    assert (found["waiting"], found["sends"], found["not_taken"][0]["id"]) == (1, 1, "default")
    first = data(facts(folder)[0])
    assert (first["host"], first["by"]) == ("relay.example", "config")


def test_mail_without_an_account_is_rejected_where_there_is_no_default(folder, old):
    old.message("mine", account=None)
    assert taken(folder, old)["not_taken"][0]["reason"] == "missing account configuration"
    (result,) = json.loads(run(folder, "results", "--json").stdout)["results"]
    assert (result["id"], result["error"]) == ("mine", "missing account configuration")


def test_what_was_sent_since_the_last_import_is_counted_once(folder, old):
    old.account("a")
    old.sends("a", 300, 200)
    assert taken(folder, old)["sends"] == 2
    old.sends("a", 100)
    old.sends("nobody", 1)
    found = taken(folder, old)
    assert (found["sends"], [each["what"] for each in found["not_taken"]]) == (1, ["account", "sends"])
    counted = [data(fact)["seconds"] for fact in facts(folder) if fact["kind"] == "AccountSendsImported"]
    assert [[old.now_s - second for second, _ in seconds] for seconds in counted] == [[300, 200], [100]]
    views_are_what_the_log_gives(folder)


# Odd rows


def test_odd_rows_are_read_or_named(folder, old):
    old.account("a", limit_per_day="12", limit_behavior="whatever", use_tls="yes", ttl=-5, batch_size="x")
    old.message("blob", payload=json.dumps(old.payload("blob")).encode())
    old.message("list", payload="[1]")
    old.message("torn", payload=b'{"from": "a@x.example", "to": "b@x.example", "subject": "\xff", "body": ""}')
    old.message("half", payload='{"from": "a@x.example", "to": "b@x.example", "subject": "\\ud800", "body": ""}')
    old.message("mixed", payload=json.dumps(old.payload("mixed", to="Ann <a@x.example>, b@x.example", cc=None)))
    old.message("other id", payload=json.dumps(old.payload("not mine", priority="immediate")), priority=2)
    old.message("deep", payload="[" * 100_000)
    old.message("file", payload=json.dumps(old.payload("file", attachments=[{"filename": "f", "s3": 1}])))
    old.message("", sent_ts=1)
    old.message("bell\a", sent_ts=1)
    old.message("x" * 1001, sent_ts=1)
    old.message(b"\xff\xfe", sent_ts=1)
    old.message(77, sent_ts="2026-11-24T10:00:00Z", created_at=None)
    found = taken(folder, old)
    ids = by_id(folder)
    assert {name for name, fact in ids.items() if fact["kind"] == "MessageAccepted"} == {"blob", "mixed", "other id"}
    reasons = {each["id"]: each["reason"] for each in found["not_taken"] if each["recorded"]}
    assert {name: reasons[name] for name in ("list", "torn", "half", "deep")} == {
        "list": "not JSON",
        "torn": "invalid field: subject",
        "half": "invalid field: subject",
        "deep": "not JSON",
    }
    assert "file" in reasons and ids["other id"]["priority"] == 2
    left = [each["reason"] for each in found["not_taken"] if not each["recorded"]]
    assert sorted(left) == ["control character in id", "invalid field: id", "its id is no UTF-8 text", "missing id"]
    assert ids["77"]["ended_us"] == 1_795_514_400_000_000
    account = data(facts(folder)[0])
    assert (account["limit_per_day"], account.get("limit_behavior"), account["tls"]) == (12, None, "starttls-required")
    views_are_what_the_log_gives(folder)


def test_columns_and_tables_may_be_missing(folder):
    tables = "create table messages (id, payload, sent_ts, error_ts); create table accounts (id, host)"
    with old_service(folder / "old.db", tables) as old:
        old.insert("accounts", id="a", host="relay.example")
        old.insert("messages", id="w", payload=json.dumps(old.payload("w")))
        old.insert("messages", id="s", payload="", sent_ts=5)
        found = taken(folder, old)
    assert (found["accounts"], found["waiting"], found["sent"], found["unreported"]) == (1, 1, 1, 1)
    assert data(facts(folder)[0])["port"] == 25


def test_more_than_a_turn_holds_comes_over_whole(folder, old):
    old.account("a")
    for number in range(4_500):
        old.message(f"m{number}", payload="", sent_ts=number)
    assert taken(folder, old)["sent"] == 4_500
    log = facts(folder)
    assert [fact["seq"] for fact in log if "commit" in fact] == [1, 2_001, 4_001, 4_501, 4_502]
    views_are_what_the_log_gives(folder)


# What is refused


def test_a_file_that_is_no_old_database_is_one_line_and_makes_nothing(folder):
    (folder / "text").write_text("a letter to nobody, long enough to be taken for a header\n" * 10)
    assert "cannot be read as a database of the old service" in says_no(folder, folder / "text")
    assert "is no file: name the database" in says_no(folder, folder / "absent.db")
    assert "is no file: name the database" in says_no(folder, folder)
    with closing(sqlite3.connect(folder / "other.db")) as other:
        other.execute("create table things (id)")
    assert "it has neither the table messages nor accounts" in says_no(folder, folder / "other.db")
    with closing(sqlite3.connect(folder / "later.db")) as later:
        later.execute("create table messages (id, payload, smtp_ts)")
    assert "its table messages is without the column sent_ts" in says_no(folder, folder / "later.db")


def test_a_damaged_database_is_one_line_and_makes_nothing(folder):
    with old_service(folder / "old.db") as old:
        for number in range(500):
            old.message(f"m{number}", sent_ts=number)
    content = bytearray((folder / "old.db").read_bytes())
    content[20_000:60_000] = bytes(40_000)
    (folder / "old.db").write_bytes(content)
    assert "old.db" in says_no(folder, folder / "old.db")
    assert "old.db" in says_no(folder, folder / "old.db", "--dry-run")


def test_a_database_that_does_not_stand_still_is_refused(folder):
    path = folder / "old.db"
    with old_service(path):
        pass
    with closing(sqlite3.connect(path, isolation_level=None)) as writing:
        writing.execute("begin exclusive")
        assert "is locked by another program: stop the old service first" in says_no(folder, path)
        writing.execute("rollback")
        writing.execute("pragma journal_mode = wal")
        writing.execute("insert into send_log values ('a', 1)")
        line = says_no(folder, path)
        assert "old.db-wal holds a part of" in line and "stop the old service" in line
    assert json.loads(run(folder, "import", path, "--json").stdout)["ok"]


def test_the_log_itself_is_no_old_database(folder):
    with old_service(folder / "log.db"):
        pass
    result = run(folder, "import", folder / "log.db", code=1)
    assert "is also [storage] db_path: write another one" in result.stderr
    (folder / "log.db").rename(folder / "old.db")
    run(folder, "import", folder / "old.db")
    with old_service(folder / "old.db", "") as old:
        old.account("a")
    run(folder, "import", folder / "old.db")
    run(folder, "backup", folder / "backup.db")
    assert "is a log of ours: `letterbook restore`" in run(folder, "import", folder / "backup.db", code=1).stderr


def test_it_is_refused_while_a_service_runs_and_the_trial_is_not(folder, old):
    old.account("a")
    taken(folder, old)
    before = (folder / "log.db").read_bytes()
    old.message("waits")
    old.connection.commit()
    with hold_lock(folder / "log.db"):
        line = run(folder, "import", folder / "old.db", code=1).stderr
        assert "is in use by the process " in line and "stop it first" in line
        assert taken(folder, old, "--dry-run")["waiting"] == 1
    assert (folder / "log.db").read_bytes() == before
    assert taken(folder, old)["waiting"] == 1


def test_the_old_database_is_not_changed(folder):
    with old_service(folder / "old.db", TABLES) as old:
        old.account("a")
        old.message("waits")
    before = (folder / "old.db").read_bytes()
    run(folder, "import", folder / "old.db")
    assert (folder / "old.db").read_bytes() == before
