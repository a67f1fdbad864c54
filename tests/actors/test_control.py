"""Control: what is asked for is on disk before it is answered, and stops what it says it stops."""

import os
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio
import trustme

from actors.control import CLEANUPS_MAX, STEP, Credentials, run_control, save_account, tls_mode
from actors.network import ca_file_fault
from actors.proxy_sync import Reports
from actors.retention import Retention
from events.attempt import AttemptStarted
from events.commands import (
    Activate,
    CleanupMessages,
    Control,
    DeleteMessages,
    Dropped,
    PauseAccount,
    Refused,
    RemoveAccount,
    Reply,
    ResolveMessage,
    ResumeAccount,
    RunNow,
    SaveAccount,
    Suspend,
    Unavailable,
)
from events.fact import OWN, Draft
from events.message import MessageAccepted, MessageRejected
from events.payloads import Account
from events.schedule import DispatchSuspended
from store import reading
from store.beside import LetterRow
from store.dispatching import sealed_credentials
from store.secrets import Secrets
from store.worklists import expired
from store.writer import Declined

from .opened import T0_US, end, facts, kinds, opened, rows, start, states
from .opened import save_account as saved

HOUR_US = 3_600_000_000

SECRETS = Secrets(b"k" * 32, lambda n: b"s" * n)


@asynccontextmanager
async def controlling(folder, *run_now, let_go=None):
    """A store and a control actor: (store, ask)."""
    send, receive = trio.open_memory_channel(8)

    async def ask(command):
        reply = Reply()
        await send.send(Control(command, "tester", reply))
        return await reply.get()

    async with opened(folder) as store, trio.open_nursery() as nursery:
        let_go = let_go or Retention(store, 100).let_go
        nursery.start_soon(
            partial(run_control, receive, store, run_now, let_go, Reports(store, 10), max_age_us=HOUR_US)
        )
        async with send:
            yield store, ask


async def accept(store, *ids: str, account: int = 1, expires_us: int = 2 * T0_US, **fields) -> list[int]:
    drafts = [
        Draft(
            MessageAccepted(
                id=each,
                priority=2,
                expires_us=expires_us,
                size=1,
                recipients=("d",),
                letter="d",
                by="test",
                **{"due_us": 0, **fields},
            ),
            message=OWN,
            account=account,
        )
        for each in ids
    ]
    beside = {index: LetterRow(b"{}", b"{}", b"salt") for index in range(len(ids))}
    return [entry.message for entry in (await store.record(drafts, beside=beside)).answers]


def account(**fields) -> Account:
    return Account(**{"id": "main", "host": "relay.example", "port": 587, **fields})


# Accounts, pure: given what stands, when one is saved, then.


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "auto"),
        ({"use_tls": False}, "auto"),
        ({"use_tls": True}, "starttls-required"),
        ({"use_tls": True, "port": 465}, "implicit"),
        ({"use_tls": True, "tls": "none"}, "none"),
        ({"use_tls": False, "tls": "implicit"}, "implicit"),
    ],
)
def test_tls_wins_over_use_tls(fields, mode):
    assert tls_mode(account(**fields)) == mode


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"id": ""}, "id"),
        ({"id": "a\nb"}, "control character"),
        ({"id": "a" * 201}, "id"),
        ({"host": " "}, "host"),
        ({"host": "two words"}, "host"),
        ({"port": 0}, "port"),
        ({"port": 65536}, "port"),
        ({"limit_per_minute": -1}, "limit_per_minute"),
        ({"limit_per_day": 10**30}, "limit_per_day"),
        ({"max_connections": -1}, "max_connections"),
        ({"ttl": -1}, "ttl"),
        ({"auth": "plain"}, "user"),
        ({"auth": "cram-md5"}, "user"),
        ({"password": "p"}, "user"),
        ({"user": "u\r\n", "password": "p"}, "control character"),
    ],
)
def test_what_cannot_stand_is_refused_with_the_field_named(fields, word):
    refused = save_account(account(**fields), None, Credentials(), SECRETS, "")
    assert isinstance(refused, Refused) and refused.status == 400 and word in refused.sentence


def test_nought_means_no_limit():
    saving = save_account(
        account(limit_per_minute=0, limit_per_hour=None, batch_size=0), None, Credentials(), SECRETS, ""
    )
    fact = saving.fact
    assert (fact.limit_per_minute, fact.limit_per_hour, fact.batch_size, fact.ttl) == (None, None, None, 300)


async def test_the_password_stays_only_with_the_same_relay_and_user(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        assert await ask(SaveAccount(account(user="u", password="secret"))) == {"ok": True}

        async def after(**fields):
            await ask(SaveAccount(account(**fields)))
            row = await store.read(reading.account, "main")
            sealed = await store.read(sealed_credentials, row.number)
            opened = msgspec.json.decode(store.secrets.unseal(sealed), type=Credentials)
            assert row.has_password == (opened.password is not None)
            return opened.password

        assert await after(user="u", limit_per_minute=5) == "secret"
        assert await after(user="other") is None
        assert await after(user="u", password="secret") == "secret"
        assert await after(user="u", port=25) is None
        assert await after(user="u", password="secret") == "secret"
        assert await after(user="u", host="elsewhere.example") is None
        assert await after(user="u", password="") is None
        assert [each[0] for each in await rows(store, "select number from accounts")] == [1]
        log = str(await facts(store))
        assert "secret" not in log and "'u'" not in log and "by='tester'" in log


async def test_an_account_saved_again_as_it_is_needs_no_fact(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        for fields in ({"password": "p"}, {"password": "p"}, {}):
            assert await ask(SaveAccount(account(user="u", limit_per_hour=9, use_tls=True, **fields))) == {"ok": True}
        assert await kinds(store) == ["AccountSaved"]
        for fields in ({"limit_per_hour": 8}, {"password": "q"}, {"tls_verify": False}):
            await ask(SaveAccount(account(user="u", use_tls=True, **fields)))
        assert await kinds(store) == ["AccountSaved"] * 4


async def test_no_attempt_starts_after_the_answer_to_suspend_pause_or_removal(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await saved(store, "main")
        [number] = await accept(store, "a")

        async def refusal():
            draft = Draft(AttemptStarted(revision=number, recipients=(0,)), message=number, account=1)
            answer = (await store.record([draft])).answers[0]
            return answer.reason if isinstance(answer, Declined) else None

        assert await ask(Suspend()) == await ask(Suspend()) == {"ok": True, "active": False}
        assert await refusal() == "suspended"
        assert await ask(Activate()) == await ask(Activate()) == {"ok": True, "active": True}
        assert await ask(PauseAccount("main")) == await ask(PauseAccount("main")) == {"ok": True}
        assert await refusal() == "account paused"
        assert await ask(ResumeAccount("main")) == await ask(ResumeAccount("main")) == {"ok": True}
        assert await ask(RemoveAccount("main")) == {"ok": True}
        assert await refusal() == "no such account"
        assert (await kinds(store))[2:] == [
            "DispatchSuspended",
            "DispatchActivated",
            "AccountPaused",
            "AccountResumed",
            "AccountRemoved",
        ]


@pytest.mark.parametrize("command", [PauseAccount("x"), ResumeAccount("x"), RemoveAccount("x")])
async def test_an_unknown_account_is_404(tmp_path, autojump_clock, command):
    async with controlling(tmp_path) as (_, ask):
        refused = await ask(command)
        assert isinstance(refused, Refused) and refused.status == 404


@pytest.mark.parametrize(("chosen", "state"), [("hold", "held"), ("send", "waiting")])
async def test_after_a_restored_backup_somebody_must_choose(tmp_path, autojump_clock, chosen, state):
    async with controlling(tmp_path) as (store, ask):
        await saved(store, "main")
        await accept(store, *[f"id {index}" for index in range(STEP + 5)])
        await store.record([Draft(DispatchSuspended(by="recovery", restored=True))])
        refused = await ask(Activate())
        assert isinstance(refused, Refused) and refused.status == 400
        assert await ask(Activate(chosen)) == {"ok": True, "active": True}
        assert set((await states(store)).values()) == {state}
        assert (await facts(store))[-1].fact.restored == chosen


async def in_doubt(store, message_id: str, **fields) -> int:
    """A message held because nobody knows whether it arrived; its number."""
    [number] = await accept(store, message_id, **fields)
    await end(store, number, 1, await start(store, number, 1), "held", "in_doubt", cause="in_doubt")
    return number


@pytest.mark.parametrize(
    ("resolution", "state", "status"),
    [("resend", "waiting", "open"), ("sent", "sent", "delivered"), ("error", "failed", "refused")],
)
async def test_held_mail_becomes_what_a_person_says(tmp_path, autojump_clock, resolution, state, status):
    async with controlling(tmp_path) as (store, ask):
        await saved(store, "main")
        number = await in_doubt(store, "m")
        assert await ask(ResolveMessage("m", resolution)) == {"ok": True}
        fact = (await facts(store))[-1].fact
        assert (fact.resolution, fact.by, fact.expires_us) == (resolution, "tester", None)
        row = await store.read(reading.message, number)
        assert (row.state, [each.status for each in row.states()]) == (state, [status])
        refused = await ask(ResolveMessage("m", resolution))
        assert isinstance(refused, Refused) and refused.status == 409 and state in refused.sentence
        results = await rows(store, "select status from results")
        assert results == {"waiting": [], "sent": [("sent",)], "failed": [("error",)]}[state]


async def test_only_what_is_held_can_be_resolved(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await saved(store, "main")
        await accept(store, "waiting")
        seq = store.last_seq
        for message_id, status in (("nobody", 404), ("waiting", 409)):
            refused = await ask(ResolveMessage(message_id, "sent"))
            assert isinstance(refused, Refused) and refused.status == status
        assert store.last_seq == seq


async def test_what_is_resolved_to_be_sent_again_lives_on_though_its_time_was_over(tmp_path, autojump_clock):
    """Held mail does not expire; whoever asks for it to be sent wants it sent, and retention would end it at once."""
    async with controlling(tmp_path) as (store, ask):
        await saved(store, "main")
        number = await in_doubt(store, "m", expires_us=T0_US + 60_000_000)
        await trio.sleep(120)
        now_us = store.clock.now_us()
        assert await ask(ResolveMessage("m", "resend")) == {"ok": True}
        assert await store.read(expired, store.clock.now_us()) == []
        row = await store.read(reading.message, number)
        assert (row.expires_us, row.due_us <= now_us) == (now_us + HOUR_US, True)
        assert (await facts(store))[-1].fact.expires_us == row.expires_us


async def test_mail_of_a_restored_backup_that_is_held_can_be_resolved(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await saved(store, "main")
        await accept(store, "a", "b", "c")
        await store.record([Draft(DispatchSuspended(by="recovery", restored=True))])
        await ask(Activate("hold"))
        for message_id, resolution in (("a", "resend"), ("b", "sent"), ("c", "error")):
            assert await ask(ResolveMessage(message_id, resolution)) == {"ok": True}
        assert await states(store) == {"a": "waiting", "b": "sent", "c": "failed"}


async def test_deleting_goes_by_state(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await saved(store, "main")
        numbers = dict(zip("wfsd", await accept(store, *"wfsd"), strict=True))
        await store.record([Draft(MessageRejected(id="r", reason="missing to"), message=OWN)])
        flying = await start(store, numbers["f"], 1)
        attempt = await start(store, numbers["s"], 1)
        await end(store, numbers["s"], 1, attempt, "done", "delivered")
        seq = store.last_seq
        answer = await ask(DeleteMessages(("w", "f", "s", "w", "nobody", "r")))
        assert answer == {"ok": True, "removed": 4, "not_found": ["nobody"]}
        assert await kinds(store, seq) == ["MessageWithdrawn", "MessageWithdrawn", "ContentErased"]
        assert (await facts(store))[-1].fact.letters == ((numbers["s"], numbers["s"]),)
        assert await states(store) == {"w": "withdrawn", "f": "in_flight", "s": "sent", "d": "waiting", "r": "rejected"}
        seq = store.last_seq
        await ask(DeleteMessages(("f",)))
        assert store.last_seq == seq, "a mark is set once"
        await end(store, numbers["f"], 1, flying, "due", "deferred", due_us=2 * T0_US)
        assert (await states(store))["f"] == "withdrawn"


async def test_deleting_thousands_goes_in_steps(tmp_path, autojump_clock):
    async with controlling(tmp_path) as (store, ask):
        await saved(store, "main")
        ids = [f"id {index}" for index in range(2 * STEP + 1)]
        await accept(store, *ids)
        commits = len(await rows(store, "select 1 from commits"))
        assert (await ask(DeleteMessages(tuple(ids))))["removed"] == len(ids)
        assert len(await rows(store, "select 1 from commits")) == commits + 3


async def test_letting_go_is_asked_for_with_an_age_and_keeps_nobody_waiting(tmp_path, autojump_clock):
    asked, may_end = [], trio.Event()

    async def let_go(older_than_s, by):
        asked.append((older_than_s, by))
        await may_end.wait()
        return 7

    answers = []
    async with controlling(tmp_path, let_go=let_go) as (_, ask), trio.open_nursery() as nursery:

        async def clean_up(age_s):
            answers.append(await ask(CleanupMessages(age_s)))

        nursery.start_soon(clean_up, 5.0)
        nursery.start_soon(clean_up, None)
        assert await ask(Suspend()) == {"ok": True, "active": False}
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(asked, key=str) == [(5.0, "tester"), (None, "tester")] and not answers
        may_end.set()
    assert answers == [{"ok": True, "removed": 7}] * 2


async def test_whoever_asks_again_and_again_to_let_go_makes_no_line(tmp_path, autojump_clock):
    async def never(older_than_s, by):
        await trio.sleep_forever()

    async with controlling(tmp_path, let_go=never) as (_, ask), trio.open_nursery() as nursery:
        for _ in range(CLEANUPS_MAX):
            nursery.start_soon(ask, CleanupMessages())
        await trio.testing.wait_all_tasks_blocked()
        refused = await ask(CleanupMessages())
        assert isinstance(refused, Unavailable) and "ask again" in str(refused)
        assert await ask(Suspend()) == {"ok": True, "active": False}
        nursery.cancel_scope.cancel()


async def test_a_stop_ends_what_runs_beside_the_others_and_says_so(tmp_path, autojump_clock):
    async def never(older_than_s, by):
        await trio.sleep_forever()

    send, receive = trio.open_memory_channel(1)
    async with opened(tmp_path) as store:
        reply = Reply()
        send.send_nowait(Control(CleanupMessages(), "t", reply))
        send.close()
        await run_control(receive, store, [], never, Reports(store, 10), max_age_us=HOUR_US)
        with pytest.raises(Dropped):
            await reply.get()


async def test_run_now_rings_every_bell(tmp_path, autojump_clock):
    rung = []
    async with controlling(tmp_path, lambda: rung.append("a"), lambda: rung.append("b")) as (_, ask):
        assert await ask(RunNow()) == {"ok": True} and rung == ["a", "b"]


async def test_a_store_that_stops_is_unavailable_and_a_crash_drops_its_command(tmp_path, autojump_clock):
    def broken():
        raise ZeroDivisionError

    async def nothing(older_than_s, by):
        return 0

    send, receive = trio.open_memory_channel(2)
    async with opened(tmp_path) as store:
        reply, crashed = Reply(), Reply()
        send.send_nowait(Control(RunNow(), "t", crashed))
        with pytest.RaisesGroup(ZeroDivisionError):
            await run_control(receive, store, [broken], nothing, Reports(store, 10), max_age_us=HOUR_US)
        with pytest.raises(Dropped):
            await crashed.get()
        store.recorder.shut()
        send.send_nowait(Control(Suspend(), "t", reply))
        send.close()
        await run_control(receive, store, [], nothing, Reports(store, 10), max_age_us=HOUR_US)
        assert isinstance(await reply.get(), Unavailable)


# Files of authorities


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing.pem", None, "No such file or directory"),
        ("empty.pem", "", "it holds no certificate in PEM"),
        ("words.pem", "-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n", "it holds no certificate in PEM"),
        (".", None, "it is no file"),
        ("a\0b", None, "embedded null"),
    ],
)
async def test_a_file_of_authorities_that_cannot_be_used_is_refused_when_it_is_named(
    name, content, words, folder, tmp_path, autojump_clock
):
    if content is not None:
        (tmp_path / name).write_text(content)
    async with controlling(folder) as (store, ask):
        refused = await ask(SaveAccount(account(tls_ca_file=f"{tmp_path}/{name}")))
        assert isinstance(refused, Refused) and refused.status == 400
        assert refused.sentence.startswith("tls_ca_file cannot be used: ") and words in refused.sentence
        assert not await kinds(store)


@pytest.mark.parametrize("name", ["/dev/zero", "pipe"])
def test_a_file_of_authorities_without_an_end_is_not_read(name, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "it is no file" in (ca_file_fault(str(tmp_path / name)) or "")


async def test_a_file_of_authorities_that_can_be_used_is_taken(folder, tmp_path, autojump_clock):
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with controlling(folder) as (store, ask):
        assert await ask(SaveAccount(account(tls_ca_file=str(tmp_path / "ca.pem")))) == {"ok": True}
        assert await kinds(store) == ["AccountSaved"]
