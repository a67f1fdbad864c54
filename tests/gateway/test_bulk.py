"""Operations in bulk at the door: what is meant is never everything by mistake, and each step is answered before the
next is asked for, so a stop, a full disk or a client that leaves ends it between two."""

import httpx
import pytest
import trio

from events.commands import Bulk, Unavailable, Where

from .service import AUTH, running

SOME = {"account_id": "a"}


def counted(next=None, matched=2, changed=2, **fields):
    return {
        "ok": True,
        "matched": matched,
        "changed": changed,
        "without_content": 0,
        "in_doubt": 0,
        "next": next,
    } | fields


def in_steps(*numbers):
    """Answers of steps that go on after these numbers."""
    answers = [counted(number) for number in (*numbers, None)]

    async def bulk(step):
        return answers.pop(0)

    return bulk


async def post(client, **body):
    return await client.post("/commands/bulk", json={"action": "hold", "where": SOME, **body})


@pytest.mark.parametrize(
    ("where", "word"),
    [
        ({}, "where is empty"),
        ({"account_id": None, "status": None}, "where is empty"),
        ({"subject_contains": ""}, "subject_contains"),
        ({"subject_contains": " "}, "subject_contains"),
        ({"to_domain": ""}, "to_domain"),
        ({"priority": 4}, "priority"),
        ({"priority": "soon"}, "priority"),
        ({"priority": True}, "priority"),
        ({"before_ts": -1}, "before_ts"),
        ({"before_ts": 1e300}, "before_ts"),
        ({"status": "waiting"}, "status"),
        ({"account": "a"}, "account"),
        ([], "where"),
    ],
)
async def test_what_is_meant_must_be_said(tmp_path, where, word):
    async with running(tmp_path) as service, service.client() as client:
        answer = await post(client, where=where)
        assert answer.status_code == 400 and word in answer.json()["error"] and service.steps == []
        assert (await post(client, action="erase")).status_code == 400


async def test_what_is_meant_is_handed_over_in_the_words_of_the_house(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        where = {
            "account_id": "a",
            "status": "deferred",
            "priority": "HIGH",
            "before_ts": 1.5,
            "to_domain": "@Example.org",
            "subject_contains": "Invoice",
        }
        await post(client, action="withdraw", where=where, dry_run=True)
        (step,) = service.steps
        meant = Where("a", "deferred", 1, 1_500_000, "Example.org", "Invoice")
        assert step == Bulk("withdraw", meant, 0, service.store.last_seq, dry_run=True)


async def test_one_request_does_all_steps_and_sums_them(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        await service.accept("a")
        service.bulk = in_steps(10, 20)
        assert (await post(client)).json() == {"ok": True, "matched": 6, "changed": 6}
        assert [(step.after, step.up_to) for step in service.steps] == [(after, 2) for after in (0, 10, 20)]
        service.bulk = in_steps()
        assert (await post(client, dry_run=None)).json() == {"ok": True, "matched": 2, "changed": 2}


async def test_counts_that_are_not_of_every_action_are_there_where_they_say_something(tmp_path):
    async with running(tmp_path) as service, service.client() as client:

        async def bulk(step):
            return counted(None, matched=5, changed=2, without_content=3)

        service.bulk = bulk
        assert (await post(client)).json() == {"ok": True, "matched": 5, "changed": 2, "without_content": 3}


async def test_who_asks_for_steps_gets_one_with_where_to_go_on(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        service.bulk = in_steps(10)
        first = (await post(client, after=0)).json()
        assert first == {"ok": True, "matched": 2, "changed": 2, "next": 10, "up_to": service.store.last_seq}
        await service.accept("came in later")
        last = (await post(client, after=10, up_to=first["up_to"])).json()
        assert last == {"ok": True, "matched": 2, "changed": 2, "up_to": first["up_to"]}
        assert [step.after for step in service.steps] == [0, 10]


async def test_what_breaks_off_says_what_was_done(tmp_path):
    async with running(tmp_path) as service, service.client() as client:
        answers = [counted(10), Unavailable("the disk is full")]

        async def bulk(step):
            return answers.pop(0)

        service.bulk = bulk
        answer = await post(client)
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        assert answer.json() == {
            "ok": False,
            "error": "the disk is full",
            "detail": "the disk is full",
            "matched": 2,
            "changed": 2,
        }


async def test_the_stop_ends_it_between_two_steps(tmp_path):
    async with running(tmp_path) as service, service.client() as client:

        async def bulk(step):
            service.door.stopping.set()
            return counted(10)

        service.bulk = bulk
        answer = await post(client)
        assert answer.status_code == 503 and answer.json()["changed"] == 2 and len(service.steps) == 1


async def test_a_client_that_leaves_ends_it_between_two_steps(tmp_path):
    """The scripted side always has another step: only who is gone asks for no more."""
    begun = trio.Event()

    async def bulk(step):
        begun.set()
        return counted(step.after + 10)

    async with running(tmp_path) as service:
        service.bulk = bulk
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_impatient, service.url)
            await begun.wait()
            nursery.cancel_scope.cancel()
        async with service.client() as client:
            same, seen = 0, 0
            while same < 5:
                # Control answers in turn: a living request has had another step done by then.
                assert (await client.post("/commands/run-now")).json() == {"ok": True}
                same, seen = (same + 1 if len(service.steps) == seen else 0), len(service.steps)
        assert seen >= 1


async def _impatient(url):
    async with httpx.AsyncClient(base_url=url, headers=AUTH, timeout=60) as client:
        await post(client)
