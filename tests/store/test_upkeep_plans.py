"""Recovery, verifying, replaying and erasing walk the log by its key and letters by theirs: nothing is scanned."""

import re

import pytest

from store import erasing, replay, surveying, verifying

from .building import accepted, account_saved, database, letter, record, started, writer

STATEMENTS = {
    f"{module.__name__}.{name}": text
    for module in (erasing, replay, surveying, verifying)
    for name, text in vars(module).items()
    if isinstance(text, str) and re.match(r"(select|insert|update|delete) ", text)
}

MAY_SCAN = {
    "store.erasing._WORK": {"erasures"},
    "store.erasing._KEPT": {"json_each"},
    "store.replay._META": {"meta"},
    "store.surveying._META": {"meta"},
    "store.surveying._OPEN_ATTEMPTS": {"attempts"},
}
"""A work list, a dozen names, and as many rows as there are connections."""


@pytest.fixture(scope="module")
def filled():
    with database() as connection:
        to = writer(connection)
        record(to, [account_saved()])
        for index in range(200):
            (answer,) = record(to, [accepted(f"m{index}")], {0: letter("x")}).answers
            record(to, [started(answer.seq)])
        connection.execute("analyze")
        yield connection


def test_there_are_statements_to_look_at():
    assert len(STATEMENTS) > 15


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_a_statement_scans_and_sorts_only_what_is_declared(filled, name):
    statement = STATEMENTS[name]
    values = (1,) * (2 if "?1" in statement else statement.count("?"))
    steps = [row[3] for row in filled.execute(f"explain query plan {statement}", values)]
    scanned = {match[1] for step in steps if (match := re.match(r"SCAN (?!CONSTANT)(\S+)", step))}
    # The last fact is one step from the log's end.
    whole_log = {"log"} if statement.endswith("limit 1") else set()
    assert scanned <= MAY_SCAN.get(name, set()) | whole_log, steps
    assert not any("TEMP B-TREE" in step for step in steps), steps
