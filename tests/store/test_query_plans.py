"""No named read scans what grows with the mail: SQLite itself is asked, on a filled database."""

import re
import sqlite3
from pathlib import Path

import pytest

from events.fact import Draft
from events.report import ResultsReported
from store import choosing, sql
from store.beside import Replies

from .building import T0_US, accepted, account_saved, database, ended, letter, record, started, writer

STATEMENTS = {
    name: text
    for module in (sql, choosing)
    for name, text in vars(module).items()
    if name.isupper() and not name.startswith("_") and isinstance(text, str)
}

MAY_SCAN = {
    "ACCOUNTS": {"accounts"},
    "ACCOUNT": {"accounts"},
    "ACCOUNT_NUMBERS": {"accounts"},
    "RELAYS": {"relays"},
    "VOLUMES": {"volumes"},
    "DISPATCH": {"dispatch"},
    "RULES": {"rules"},
    "IN_FLIGHT": {"a"},
    "TOTALS": {"totals"},
    "WAITING_BY_ACCOUNT": {"totals"},
    "DUE_ON_LATER_DAYS": {"t"},
    "DUE_IN_LATER_HOURS": {"t"},
    "DUE_IN_LATER_MINUTES": {"t"},
    "DUE_THIS_MINUTE": {"t"},
    "OLDEST_DUE": {"t"},
    "PENDING": {"m", "accounts"},
    "DEFERRED": {"m", "accounts"},
    "WAITING": {"m"},
    "MESSAGES": {"m"},
    "CHOSEN_WAITING": {"m"},
    "CHOSEN_HELD": {"m"},
    "CHOSEN_FAILED": {"m"},
    "CHOSEN_IN_FLIGHT": {"a", "m"},
    "THROTTLED": {"accounts"},
}
"""Tables of some rows an account or a volume, the open attempts, and `m`: the bounded stretch that the statement has
just read."""

FUNCTIONS = {"json_each", "p"}


@pytest.fixture(scope="module")
def filled():
    with database() as connection:
        write = writer(connection)
        record(write, [account_saved("default"), account_saved("other")])
        for index in range(300):
            due_us = T0_US * (index % 3)
            draft = accepted(f"m{index}", 1 + index % 2, due_us=due_us, priority=index % 4)
            number = record(write, [draft], {0: letter("x")}).answers[0].seq
            if index % 3 == 0:
                attempt = record(write, [started(number, account=1 + index % 2)]).answers[0].seq
                if index % 2:
                    record(write, [ended(number, attempt, account=1 + index % 2)], {0: Replies(((0, "no"),))})
        record(write, [Draft(ResultsReported(up_to=write.last_seq))])
        yield connection


def plan(connection: sqlite3.Connection, statement: str) -> list[str]:
    names = set(re.findall(r":([a-z_]+)", statement))
    values = dict.fromkeys(names, 1) if names else (1,) * statement.count("?")
    return [row[3] for row in connection.execute(f"explain query plan {statement}", values)]


def scanned(steps: list[str]) -> set[str]:
    """The tables read from end to end; a scan of an index that is named and bounded by `limit` is checked apart."""
    return {match[1] for step in steps if (match := re.match(r"SCAN (\S+)", step)) and match[1] not in FUNCTIONS}


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_a_statement_scans_only_what_is_declared(filled, name):
    steps = plan(filled, STATEMENTS[name])
    assert scanned(steps) - {"CONSTANT"} <= MAY_SCAN.get(name, set()), steps


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_a_statement_sorts_nothing_that_grows(filled, name):
    steps = plan(filled, STATEMENTS[name])
    sorts = [step for step in steps if "TEMP B-TREE" in step]
    assert not sorts or name in ("TOTALS", "IN_FLIGHT", "OLDEST_DUE", "CHOSEN_IN_FLIGHT"), steps


@pytest.mark.parametrize(
    "name", ["PENDING", "DEFERRED", "WAITING", "MESSAGES", "CHOSEN_WAITING", "CHOSEN_HELD", "CHOSEN_FAILED"]
)
def test_a_stretch_gives_its_rows_one_by_one(filled, name):
    assert plan(filled, STATEMENTS[name])[0] == "CO-ROUTINE m"


@pytest.mark.parametrize("name", ["PENDING", "DEFERRED", "WAITING", "CHOSEN_WAITING"])
def test_a_stretch_of_waiting_messages_is_a_range_of_their_own_index(filled, name):
    assert any("messages_waiting" in step and "number>?" in step for step in plan(filled, STATEMENTS[name]))


def test_every_statement_has_its_sentence():
    text = "\n\n".join(Path(module.__file__).read_text(encoding="utf-8") for module in (sql, choosing))
    for name in STATEMENTS:
        after = text[text.index(f"\n{name} = ") :].lstrip()
        assert re.search(r'\n"""[A-Z].+?\."""\Z', after.split("\n\n")[0].strip(), re.DOTALL), name
