"""The commands that read a log: what they print, in which form, and how they say no."""

import csv
import io
import json
import os
import sqlite3
import time
from contextlib import closing

import msgspec
import pytest
from click.testing import CliRunner, Result

from gateway import lists
from letterbook.cli import main
from store.chain import GENESIS, commit_hash
from store.files import hold_lock, mark_path
from store.opening import connect

from .book import write_log

LISTS = ("pending", "deferred", "held", "results")


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture
def own_log(tmp_path):
    """One that may be changed."""
    return write_log(tmp_path)


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def said(*arguments: object, code: int = 0) -> str:
    return run(*arguments, code=code).stdout


def complaint(*arguments: object) -> str:
    result = run(*arguments, code=1)
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("letterbook: ")
    return result.stderr


def rows(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


# Lists


def test_a_log_of_an_earlier_release_is_read_once_its_views_are_of_this_one(own_log):
    with closing(connect(own_log)) as connection:
        connection.execute("alter table messages drop column asked_us")
        connection.execute("update meta set value = '1' where name = 'view:messages'")
    for command in (("pending",), ("show", "m1")):
        line = complaint(*command, "--db", own_log)
        assert "views of another release" in line and "`letterbook rebuild`" in line
    run("log", "--db", own_log)
    run("rebuild", "--db", own_log)
    run("pending", "--db", own_log)


@pytest.mark.parametrize("name", LISTS)
def test_lists_as_json_are_the_answers_of_the_http_api(log, name):
    with closing(connect(log, read_only=True)) as connection:
        connection.execute("begin")
        log_id = connection.execute("select value from meta where name = 'log'").fetchone()[0]
        look = lists.Look(time.time_ns() // 1000, log_id)
        answer = msgspec.json.encode(getattr(lists, name)(connection, look, 0, 1000))
    found = json.loads(said(name, "--json", "--db", log))
    assert found["ok"] is True and len(found[name]) == {"pending": 1, "deferred": 1, "held": 0, "results": 3}[name]
    assert found == json.loads(answer)


def test_lists_are_lines_with_tabs_where_nobody_looks(log):
    heading, line = rows(said("pending", "--db", log))
    assert heading[:2] == ["id", "queued"] and line[0] == "waiting-4" and line[6] == "no free connection"
    _, line = rows(said("deferred", "--db", log))
    assert line[:5] == ["later-3", "2096-10-02 07:06:40Z", "retry", "default", "1"] and line[-1] == "451 4.3.0 no"
    found = [(line[1], line[2], line[-1]) for line in rows(said("results", "--db", log))[1:]]
    assert found == [
        ("sent/1", "sent", ""),
        ("failed-2", "error", "1 of 2 refused: 550 5.1.1 no"),
        ("rejected-5", "error", "missing subject"),
    ]


def test_a_page_goes_on_where_the_last_one_ended(log):
    first = json.loads(said("results", "--json", "--limit", 2, "--db", log))
    rest = json.loads(said("results", "--json", "--after", first["next"], "--db", log))
    assert [result["id"] for result in first["results"] + rest["results"]] == ["sent/1", "failed-2", "rejected-5"]
    assert "There is more: --after" in run("results", "--limit", 2, "--db", log).stderr


def test_what_others_wrote_cannot_move_the_cursor(log):
    text = said("pending", "--db", log)
    assert "bell\\x07 \\x1b[2J\\u202e" in text and not set(text) & set("\a\x1b\u202e")


def test_accounts_show_the_user_to_who_can_read_the_key_and_never_a_password(log, tmp_path):
    config = tmp_path / "config.ini"
    config.write_text(f"[storage]\ndb_path = {log}\nkey_file = {log.with_name('log.key')}\n")
    found = json.loads(said("accounts", "--json", "--config", config))
    assert [(account["id"], account["user"]) for account in found["accounts"]] == [("default", "ann"), ("other", "ann")]
    without = said("accounts", "--json", "--db", log)
    assert "ann" not in without and '"limit_per_minute":30' in without and "pw" not in without + json.dumps(found)


# One message


def test_show_says_everything_about_one_message(log):
    text = said("show", "failed-2", "--db", log)
    assert "error\t1 of 2 refused: 550 5.1.1 no" in text
    assert "carl@example.org\trefused\t550 5.1.1\t550 5.1.1 no" in text
    assert text.splitlines()[-1].endswith("1 recipient refused (550 5.1.1); failed (refused)")
    found = json.loads(said("show", "sent/1", "--json", "--db", log))
    assert found["status"] == "sent" and [fact["kind"] for fact in found["timeline"]] == [
        "MessageAccepted",
        "AttemptStarted",
        "AttemptEnded",
    ]


def test_show_of_an_unknown_message_is_a_no(log):
    assert complaint("show", "nobody", "--db", log) == "letterbook: no message with the id 'nobody' is known\n"


# The log


HASHED = ("seq", "at_us", "kind", "version", "message", "account")


def exported(*arguments: object) -> list[dict]:
    return [json.loads(line) for line in said("log", "--json", *arguments).splitlines()]


def test_the_exported_log_carries_what_its_hashes_are_made_of(log):
    facts, previous = [], GENESIS
    for line in exported("--db", log):
        data = line["data"].encode()
        facts.append((*(line[name] for name in HASHED), data))
        if "commit" in line:
            assert line["commit"]["format"] == 1
            previous = commit_hash(previous, facts)
            assert line["commit"]["hash"] == previous.hex()
            facts = []
    assert facts == [] and previous.hex() in said("verify", "--db", log)


def test_the_log_is_selected_by_seq_message_kind_account_and_time(log):
    everything = exported("--db", log)
    assert [line["seq"] for line in everything] == list(range(1, len(everything) + 1))
    assert exported("--after", 5, "--db", log) == everything[5:]
    about = [line for line in everything if line.get("message_id") == "failed-2"]
    assert len(about) == 3 and exported("--message", "failed-2", "--db", log) == about
    kinds = exported("--kind", "AttemptEnded", "--account", "default", "--db", log)
    assert len(kinds) == 3 and {line["kind"] for line in kinds} == {"AttemptEnded"}
    assert [line["seq"] for line in exported("--account", "other", "--db", log)] == [2]
    assert exported("--message", "nobody", "--db", log) == exported("--since", "2024-01-01", "--db", log) == []
    assert (
        exported("--since", "2023-11-14T22:13:20Z", "--until", "2023-11-14T23:13:21+01:00", "--db", log) == everything
    )
    assert exported("--until", "2023-11-14", "--db", log) == []


MEANS = {
    "--kind": lambda fact, value: fact["kind"] == value,
    "--account": lambda fact, value: fact.get("account_id") == value,
    "--message": lambda fact, value: fact.get("message_id") == value,
    "--after": lambda fact, value: fact["seq"] > value,
}


@pytest.mark.parametrize(
    "filters",
    [
        {"--kind": "AttemptEnded"},
        {"--kind": "AttemptEnded", "--account": "default", "--after": 6},
        {"--message": "failed-2", "--kind": "AttemptStarted"},
        {"--message": "failed-2", "--account": "default", "--after": 7},
        {"--message": "failed-2", "--account": "other"},
        {"--kind": "AttemptEnded", "--account": "default", "--message": "sent/1", "--after": 2},
    ],
    ids=str,
)
def test_filters_together_leave_what_each_of_them_leaves_and_csv_has_the_same_facts(log, filters):
    words = [word for pair in filters.items() for word in pair]
    everything = exported("--db", log)
    wanted = [fact for fact in everything if all(MEANS[name](fact, value) for name, value in filters.items())]
    assert exported(*words, "--db", log) == wanted
    found = csv.reader(io.StringIO(said("log", "--csv", *words, "--db", log)))
    assert next(found) == [
        "seq",
        "time",
        "at_us",
        "kind",
        "version",
        "message",
        "account",
        "message_id",
        "account_id",
        "data",
    ]
    assert [int(row[0]) for row in found] == [fact["seq"] for fact in wanted]


def test_the_log_as_csv_is_read_back_by_any_reader(log):
    found = list(csv.DictReader(io.StringIO(said("log", "--csv", "--db", log))))
    assert [row["kind"] for row in found] == [line["kind"] for line in exported("--db", log)]
    assert json.loads(found[2]["data"])["id"] == "sent/1" == found[2]["message_id"]


def test_the_log_for_people_says_each_fact_in_words(log):
    found = {line[2]: line[4] for line in rows(said("log", "--db", log))[1:]}
    assert found["AccountSaved"] == "relay.example:587" and found["MessageRejected"] == "missing subject"


def test_wrong_usage_of_log_is_exit_code_2(log):
    assert "give one of --json and --csv" in run("log", "--json", "--csv", "--db", log, code=2).stderr
    assert "is none of AccountPaused" in run("log", "--kind", "Nothing", "--db", log, code=2).stderr
    assert "write it in ISO 8601" in run("log", "--since", "yesterday", "--db", log, code=2).stderr


# The file


def test_a_file_that_is_no_log_is_named_in_one_line(tmp_path):
    assert "is no file: name the database by --db" in complaint("log", "--db", tmp_path / "absent.db")
    nonsense = tmp_path / "nonsense.db"
    nonsense.write_bytes(b"nonsense " * 1000)
    assert "is no SQLite database" in complaint("pending", "--db", nonsense)
    sqlite3.connect(tmp_path / "empty.db").close()
    assert "holds no log of ours" in complaint("verify", "--db", tmp_path / "empty.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.db", "nonsense.db"]


def test_reading_needs_no_lock_and_writes_no_byte_of_the_log(own_log):
    before = own_log.read_bytes()
    with hold_lock(own_log):
        said("pending", "--db", own_log)
        said("rebuild", "--check", "--db", own_log)
        said("at", "3", "--db", own_log)
    assert own_log.read_bytes() == before


# Auditing


def test_verify_names_the_damage_and_says_no(own_log):
    good = json.loads(said("verify", "--json", "--db", own_log))
    assert good["ok"] and good["marked"] and good["facts"] == good["commits"] == len(exported("--db", own_log))
    with closing(sqlite3.connect(own_log)) as connection:
        connection.execute("drop trigger log_is_append_only_update")
        connection.execute("update log set data = replace(data, 'failed-2', 'failed-9') where seq = 6")
        connection.commit()
    assert complaint("verify", "--db", own_log) == "letterbook: 6: what is stored is not what was written\n"
    bad = json.loads(run("verify", "--json", "--db", own_log, code=1).stdout)
    assert (bad["ok"], bad["damage"], bad["first"], bad["last"]) == (False, "changed", 6, 6)


def test_verify_says_when_it_could_not_notice_a_cut(own_log):
    mark_path(own_log).unlink()
    assert "no mark of this log" in run("verify", "--db", own_log).stderr


def test_rebuild_finds_and_mends_views_that_differ(own_log):
    assert said("rebuild", "--check", "--db", own_log) == "The views are what the log gives.\n"
    with closing(sqlite3.connect(own_log)) as connection:
        connection.execute("update messages set state = 'sent' where id = 'failed-2'")
        connection.commit()
    differences = json.loads(run("rebuild", "--check", "--json", "--db", own_log, code=1).stdout)["differences"]
    assert [difference["view"] for difference in differences] == ["messages"]
    facts = len(exported("--db", own_log))
    assert said("rebuild", "--db", own_log) == f"The views were folded anew from {facts} facts.\n"
    assert json.loads(said("rebuild", "--check", "--json", "--db", own_log)) == {"ok": True, "differences": []}


def test_rebuild_is_refused_while_somebody_writes(own_log):
    with hold_lock(own_log):
        assert f"in use by the process {os.getpid()}" in complaint("rebuild", "--db", own_log)


def test_at_shows_a_view_as_it_was(log):
    now = json.loads(said("results", "--json", "--db", log))
    then = json.loads(said("at", 7, "results", "--json", "--db", log))
    assert [result["id"] for result in then["results"]] == ["sent/1"]
    everything = json.loads(said("at", len(exported("--db", log)), "results", "--json", "--db", log))
    assert everything == now
    assert json.loads(said("at", "5", "message", "sent/1", "--json", "--db", log))["status"] == "sent"
    assert json.loads(said("at", "3", "message", "sent/1", "--json", "--db", log))["status"] == "pending"
    counts = json.loads(said("at", 4, "--json", "--db", log))
    assert (counts["in_flight"], counts["pending"], counts["sent"]) == (1, 0, 0)
    for view in ("pending", "deferred", "held", "accounts"):
        assert said("at", 9, view, "--db", log)


def test_at_outside_the_log_is_a_no(log):
    assert "it goes from 1 to" in complaint("at", 999, "--db", log)
    assert "before the first fact" in complaint("at", "2001-01-01", "--db", log)
    assert "after the last fact" in complaint("at", "2031-01-01T00:00:00Z", "--db", log)
    assert "was known then" in run("at", 2, "message", "sent/1", "--db", log, code=1).stderr
    assert run("at", "soon", "--db", log, code=2) and run("at", 2, "message", "--db", log, code=2)
