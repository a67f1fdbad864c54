"""What was true at a recorded moment is told again later, by the API and by the command line; the views are what the
log gives, under whatever configuration; and a log that was tampered with is found out."""

import json
import shutil
import sqlite3

import pytest
import trio

from letterbook.capture import CaptureRelay

from .service import mail

MOMENTS = 20
LISTS = ("pending", "deferred", "results", "accounts")
ONE = "m0-a-3"
"""A message whose own record is compared too: the relay hangs up on it, and it is held."""


async def views_of(it):
    """What the API shows, once nothing happened between the first look and the last: (seq, view -> answer)."""
    while True:
        seq = (await it.status())["seq"]
        found = {view: await it.get(f"/{view}", limit=10_000) for view in LISTS}
        found["held"] = {"held": (await it.get("/messages", status="held", limit=10_000))["messages"]}
        found["message"] = await it.message(ONE)
        if (await it.status())["seq"] == seq:
            return seq, found


def comparable(view, answer):
    """Why mail waited is not told of the past, nor users, which stand among the secrets."""
    rows = [answer] if view == "message" else answer[view]
    if view == "held":
        return [row["id"] for row in rows]
    return [{name: value for name, value in row.items() if name not in ("waiting_for", "user")} for row in rows]


async def something_happens(it, step):
    """One step of a life with everything in it: each leaves the views different."""
    accounts = "abc"[: 1 + step % 3]
    match step % 5:
        case 0:
            addresses = ["ann@example.org", "550@example.org", "451@example.org", "drop-after-dot@example.org"]
            await it.add(
                [
                    mail(f"m{step}-{account}-{number}", address, account_id=account, priority=number % 4)
                    for account in accounts
                    for number, address in enumerate(addresses)
                ]
            )
        case 1:
            due = 2_000_000_000 + step
            await it.add([mail(f"later{step}-{number}", account_id="a", deferred_ts=due) for number in range(3)])
        case 2:
            await it.post("/commands/suspend")
            await it.add([mail(f"wait{step}-{number}", account_id="b") for number in range(3)])
        case 3:
            await it.post("/commands/delete-messages", {"ids": [f"wait{step - 1}-0", f"later{step - 2}-0"]})
            await it.post("/account/c/pause" if step % 2 else "/account/c/resume")
        case 4:
            await it.post("/commands/activate")


async def test_twenty_recorded_moments_are_told_again(service, tmp_path):
    it = await service(delivery_retry_delays="3000", delivery_in_doubt="hold")
    recorded = {}
    async with CaptureRelay().listening() as relay:
        for account in "abc":
            await it.account(account, relay.port, user="clerk", limit_per_minute=1000)
        for step in range(MOMENTS):
            await something_happens(it, step)
            seq, found = await views_of(it)
            recorded[seq] = found
        await it.until("/status", lambda status: status["pending"] + status["in_flight"] == 0)
    assert len(recorded) == MOMENTS
    for seq, found in recorded.items():
        for view, answer in found.items():
            then = await it.get("/audit/at", seq=seq, view=view, limit=10_000, id=ONE)
            assert comparable(view, then) == comparable(view, answer), (seq, view)
    asked = [(seq, list(found)[number % len(found)]) for number, (seq, found) in enumerate(recorded.items())]
    one = {"message": [ONE]}
    said = await it.run_all(("at", seq, view, *one.get(view, ()), "--json", "--limit", 10_000) for seq, view in asked)
    for (seq, view), then in zip(asked, said, strict=True):
        assert comparable(view, json.loads(then)) == comparable(view, recorded[seq][view]), (seq, view)
    await check_the_refold_under_another_configuration(it, tmp_path)


async def check_the_refold_under_another_configuration(it, tmp_path):
    assert await it.stop() == 0
    other = {
        "delivery_max_retries": 0, "delivery_retry_delays": "1", "delivery_in_doubt": "resend",
        "delivery_max_age_seconds": 60, "delivery_default_priority": 0, "scheduler_timezone": "Asia/Tokyo",
    }  # fmt: skip
    checked = await it.run("rebuild", "--check", "--json", **other)
    assert (checked.code, json.loads(checked.out)) == (0, {"ok": True, "differences": []}), checked.err
    rebuilt = await it.run("rebuild", **other)
    assert rebuilt.code == 0, rebuilt.err
    assert (await it.run("rebuild", "--check")).code == 0


# Damage


@pytest.fixture
async def stopped(service):
    """A service that has delivered ten messages, each fact in a commit of its own, and has been stopped."""
    it = await service()
    async with CaptureRelay().listening() as relay:
        await it.account("a", relay.port, max_connections=1)
        for number in range(10):
            await it.add([mail(f"m{number}", account_id="a")])
            await it.until_results(number + 1)
        assert await it.stop() == 0
    return it


def seqs(connection, kind):
    return [seq for (seq,) in connection.execute("select seq from log where kind = ? order by seq", (kind,))]


def alone(connection, seq):
    """Whether a fact has a commit of its own, so that it can be named by its seq."""
    ends = {end for (end,) in connection.execute("select last_seq from commits")}
    return {seq - 1, seq} <= ends


def flip(connection):
    """One bit of one fact."""
    seq = next(seq for seq in seqs(connection, "MessageAccepted")[3:] if alone(connection, seq))
    (data,) = connection.execute("select data from log where seq = ?", (seq,)).fetchone()
    raw = bytearray(data if isinstance(data, bytes) else data.encode())
    raw[len(raw) // 2] ^= 1
    flipped = bytes(raw) if isinstance(data, bytes) else raw.decode()
    connection.execute("update log set data = ? where seq = ?", (flipped, seq))
    return str(seq)


def delete(connection):
    seq = seqs(connection, "AttemptStarted")[4]
    connection.execute("delete from log where seq = ?", (seq,))
    return str(seq)


def insert(connection):
    """A fact behind all others, copied from one that is good."""
    (last,) = connection.execute("select max(seq) from log").fetchone()
    connection.execute(
        "insert into log select ?, at_us, kind, version, message, account, data from log where seq = ?",
        (last + 1, seqs(connection, "AttemptEnded")[0]),
    )
    return str(last + 1)


def swap(connection):
    """Two facts of different messages change places."""
    first, second = [seq for seq in seqs(connection, "MessageAccepted")[2:] if alone(connection, seq)][:2]
    for old, new in ((first, -1), (second, first), (-1, second)):
        connection.execute("update log set seq = ? where seq = ?", (new, old))
    return str(first)


async def test_damage_is_named_by_its_seq(stopped, tmp_path):
    good = await stopped.run("verify")
    assert good.code == 0, good.err
    places, said = {}, {}

    async def verify(damage):
        copy = damaged_copy(stopped, tmp_path / f"{damage.__name__}.db", damage, places)
        said[damage] = await stopped.run("verify", "--db", copy)

    async with trio.open_nursery() as nursery:
        for damage in (flip, delete, insert, swap):
            nursery.start_soon(verify, damage)
    for damage, place in places.items():
        assert said[damage].code == 1, damage
        assert said[damage].err.splitlines()[-1].startswith(f"letterbook: {place}: "), (damage, said[damage].err)


def damaged_copy(it, copy, damage, places):
    """A copy of the log, changed behind the back of its triggers."""
    for ending in ("", ".mark"):
        shutil.copyfile(f"{it.db}{ending}", f"{copy}{ending}")
    connection = sqlite3.connect(copy)
    for (trigger,) in connection.execute("select name from sqlite_master where type = 'trigger'").fetchall():
        connection.execute(f"drop trigger {trigger}")
    places[damage] = damage(connection)
    connection.commit()
    connection.close()
    return copy
