"""One attempt, from its grant to its end: what the relay did, and what is in the log then."""

import logging
import random
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import trio
import trio.testing

from actors.connection import RelayTrouble
from actors.delivery import Delivery
from actors.sender_pool import DeliveryPolicy
from events.account import AccountSaved, RelayUnreachable
from events.attempt import AttemptEnded
from events.fact import Draft
from events.values import MICROSECONDS
from letterbook.capture import CaptureRelay
from store.beside import Credentials, LetterRow, Sealed
from store.views.accounts import AccountRow

from .delivering import accept, delivering, done, ends, letter, of_kind, opened, retrying, running, save, until
from .opened import rows, states
from .world import Relay, World, falls_silent_after, hangs_up_after

Clock = trio.testing.MockClock


def statuses(fact: Any) -> list[str]:
    return [outcome.status for outcome in fact.outcomes]


# Recipients


async def test_of_three_recipients_one_is_refused(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    to = ("anna@example.org", "550@example.org", "bert@example.org")
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a"), to=to)
        (fact,) = await ends(store)
        assert (statuses(fact), fact.next, fact.cause) == (["delivered", "refused", "delivered"], "failed", "refused")
        ((recipient, text),) = await rows(store, "select recipient, text from replies")
        assert (recipient, bytes(text)) == (1, b"550 5.1.1 as the address asks")
    assert relay.messages[0].recipients == (to[0], to[2])


async def test_the_deferred_recipient_alone_is_tried_again(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}, retry=retrying(60)) as (store, _, _):
        await accept(store, await save(store, "a"), to=("anna@example.org", "451-then-250@example.org"))
        first, second = await ends(store, 2)
    assert (statuses(first), first.next, first.charged) == (["delivered", "deferred"], "due", True)
    assert (statuses(second), second.next) == (["delivered"], "done")
    assert [each.recipients for each in relay.messages] == [("anna@example.org",), ("451-then-250@example.org",)]
    assert 60 <= trio.current_time() <= 66


async def test_250_recipients_are_three_transactions_and_no_retry(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    to = [f"r{number}@example.org" for number in range(250)]
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a"), to=to)
        facts = await ends(store, 3)
    assert [(fact.next, fact.due_cause, fact.charged) for fact in facts] == [
        ("due", "more", False),
        ("due", "more", False),
        ("done", None, False),
    ]
    assert [recipient for each in relay.messages for recipient in each.recipients] == to
    assert trio.current_time() < 1


async def test_recipients_deferred_among_250_are_one_retry(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    to = [f"451-then-250+{n}@example.org" if n % 100 == 0 else f"r{n}@example.org" for n in range(250)]
    async with delivering(folder, {"a": relay}, retry=retrying(60)) as (store, _, _):
        await accept(store, await save(store, "a"), to=to)
        facts = await ends(store, 4)
    assert [(fact.due_cause, fact.charged) for fact in facts[:3]] == [("more", False), ("more", False), ("retry", True)]
    assert (facts[3].next, len(facts[3].outcomes)) == ("done", 3)


# Retries


async def test_retries_are_exhausted(folder: Path, autojump_clock: Clock) -> None:
    async with delivering(folder, {"a": CaptureRelay()}, retry=retrying(60, 300, retries=3)) as (store, _, _):
        await accept(store, await save(store, "a"), to=("451@example.org",))
        facts = await ends(store, 4)
        assert list((await states(store)).values()) == ["failed"]
    assert [fact.next for fact in facts] == ["due", "due", "due", "failed"]
    assert (facts[-1].cause, facts[-1].retries) == ("retries", 3)
    assert 660 <= trio.current_time() <= 726


async def test_mail_refused_for_now_is_no_permanent_failure_whatever_follows(
    folder: Path, autojump_clock: Clock
) -> None:
    """MAIL 451, and RCPT and DATA behind it 503: the first failure decides."""
    relay = CaptureRelay(mail_reply="451 4.3.0 later")
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a"), to=("anna@example.org", "bert@example.org"))
        (fact,) = await ends(store)
        assert not await of_kind(store, "RelayUnreachable")
    assert (statuses(fact), fact.due_cause, fact.charged, fact.stage) == (["deferred"] * 2, "retry", True, "mail")
    assert {outcome.code for outcome in fact.outcomes} == {451}


# Doubt


async def test_in_doubt_is_sent_again_and_then_held(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}, retry=retrying(60, in_doubt_max=2)) as (store, _, _):
        await accept(store, await save(store, "a"), to=("drop-after-dot@example.org",))
        facts = await ends(store, 2)
        assert list((await states(store)).values()) == ["held"]
    assert [(statuses(fact), fact.next) for fact in facts] == [
        (["in_doubt"], "due"),
        (["in_doubt"], "held"),
    ]
    ids = {line for each in relay.messages for line in each.content.split(b"\r\n") if line.startswith(b"Message-ID:")}
    assert (len(relay.messages), len(ids)) == (2, 1)
    assert 60 <= trio.current_time() <= 67


async def test_in_doubt_is_held_at_once_where_the_policy_says_so(folder: Path, autojump_clock: Clock) -> None:
    async with delivering(folder, {"a": CaptureRelay()}, retry=retrying(hold_in_doubt=True)) as (store, _, _):
        await accept(store, await save(store, "a"), to=("drop-after-dot@example.org",))
        (fact,) = await ends(store)
    assert (fact.next, fact.cause, fact.stage) == ("held", "in_doubt", "final")


# The relay's trouble


async def test_421_at_mail_is_the_relays_trouble_and_charged_the_third_time(
    folder: Path, autojump_clock: Clock
) -> None:
    async with delivering(folder, {"a": CaptureRelay(mail_reply="421 4.3.2 shutting down")}) as (store, _, world):
        await accept(store, await save(store, "a"))
        facts = await ends(store, 3)
        unreachable = [entry.fact for entry in await of_kind(store, "RelayUnreachable")]
    assert [(fact.due_cause, fact.charged) for fact in facts] == [("relay", False), ("relay", False), ("retry", True)]
    assert facts[0].due_us == unreachable[0].until_us
    assert {(each.reason, each.code) for each in unreachable} == {("mail", 421)}
    # Each attempt replaced its connection once.
    assert len(world.connects) == 6


async def test_421_at_the_dot_is_charged_and_marks_the_relay(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay(dot_reply="421 4.3.2 shutting down")
    async with delivering(folder, {"a": relay}) as (store, _, world):
        await accept(store, await save(store, "a"))
        (fact,) = await ends(store)
        assert len(await of_kind(store, "RelayUnreachable")) == 1
    assert (statuses(fact), fact.due_cause, fact.charged) == (["deferred"], "retry", True)
    assert len(world.connects) == 1


async def test_a_message_due_after_the_relay_is_back_finds_it(folder: Path, autojump_clock: Clock) -> None:
    """The relay is due for a probe after a second, its only message after a minute."""
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}, retry=retrying(60)) as (store, _, _):
        await accept(store, await save(store, "a"), to=("drop-after-dot-then-250@example.org",))
        await done(store, 1)
        assert len(await of_kind(store, "RelayReached")) == 1
    assert 60 <= trio.current_time() <= 66


async def test_login_refused_costs_no_message_anything(folder: Path, autojump_clock: Clock) -> None:
    async with delivering(folder, {"a": CaptureRelay(greeting="554 5.7.1 go away")}) as (store, _, _):
        await accept(store, await save(store, "a"), 3)
        await trio.sleep(10)
        assert not await of_kind(store, "AttemptStarted")
        first = (await of_kind(store, "RelayUnreachable"))[0].fact
        assert (first.reason, first.code, first.failures) == ("greeting", 554, 1)


async def test_a_connection_that_died_while_it_idled_is_replaced_within_the_attempt(
    folder: Path, autojump_clock: Clock
) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": hangs_up_after(10, relay)}) as (store, _, world):
        account = await save(store, "a")
        await accept(store, account)
        await done(store, 1)
        await trio.sleep(20)
        await accept(store, account)
        await done(store, 2)
        assert len(world.connects) == 2
        assert len(await of_kind(store, "AttemptStarted")) == 2
        assert not await of_kind(store, "RelayUnreachable")
    assert trio.current_time() < 21


async def test_a_relay_that_falls_silent_at_mail_is_not_tried_twice_in_one_attempt(
    folder: Path, autojump_clock: Clock
) -> None:
    silent = falls_silent_after("220 hi", "250-a\r\n250 PIPELINING")
    async with delivering(folder, {"a": silent}) as (store, _, world):
        await accept(store, await save(store, "a"))
        (fact,) = await ends(store)
        assert (statuses(fact), fact.due_cause, fact.charged) == (["deferred"], "relay", False)
        assert len(world.connects) == 1
    assert 300 <= trio.current_time() <= 301


async def test_a_connection_has_carried_enough_after_so_many_messages(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a", max_connections=1, max_messages_per_connection=4), 10)
        await done(store, 10)
    assert (relay.connections_total, relay.connections_max) == (3, 1)


async def test_an_idle_connection_ends_after_the_accounts_ttl(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a", ttl=30))
        await done(store, 1)
        await trio.sleep(29)
        assert relay.connections == 1
        await trio.sleep(2)
        assert relay.connections == 0


# Senders that are cancelled


@pytest.mark.parametrize(
    ("said", "status", "cause"),
    [
        (("220 hi", "250 a"), "deferred", "relay"),
        (("220 hi", "250 a", "250 ok", "250 ok"), "deferred", "relay"),
        (("220 hi", "250 a", "250 ok", "250 ok", "354 go"), "in_doubt", "retry"),
    ],
)
async def test_a_cancelled_sender_records_its_end_by_how_far_it_had_come(
    folder: Path, autojump_clock: Clock, said: tuple[str, ...], status: str, cause: str
) -> None:
    relays: dict[str, Relay] = {"a": falls_silent_after(*said)}
    async with opened(folder) as store:
        async with running(store, relays, drain_s=5):
            await accept(store, await save(store, "a"))
            await until(store, lambda entry: entry.kind == "AttemptStarted")
            await trio.sleep(1)
        (fact,) = await ends(store)
        assert (statuses(fact), fact.due_cause, fact.charged) == ([status], cause, cause == "retry")
        assert not await of_kind(store, "RelayUnreachable")


async def test_a_unit_that_is_cancelled_at_once_records_what_it_can(folder: Path, autojump_clock: Clock) -> None:
    async with opened(folder) as store:
        with trio.CancelScope() as crash:
            async with running(store, {"a": CaptureRelay()}):
                await accept(store, await save(store, "a"), 8, to=("slow-60@example.org",))
                await trio.sleep(5)
                crash.cancel()
                await trio.sleep(1)
        ended = [entry.fact for entry in await of_kind(store, "AttemptEnded")]
        assert [statuses(fact) for fact in ended] == [["in_doubt"]] * 8
        assert not await rows(store, "select * from attempts")


# Letters


async def test_a_poisoned_letter_fails_the_third_time_and_hurts_nobody_else(
    folder: Path, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    relay = CaptureRelay()
    poison = LetterRow(letter(("x@example.org",)).envelope, b"not a letter", bytes(16))
    with caplog.at_level(logging.CRITICAL):
        async with delivering(folder, {"a": relay}, retry=retrying(60)) as (store, _, _):
            account = await save(store, "a")
            (bad,) = await accept(store, account, beside=poison)
            await accept(store, account, 20)
            await done(store, 20)
            assert trio.current_time() < 1
            await done(store, 21)
            ended = [entry.fact for entry in await of_kind(store, "AttemptEnded") if entry.message == bad]
    assert [(statuses(fact), fact.next, fact.cause) for fact in ended] == [
        (["deferred"], "due", "internal"),
        (["deferred"], "due", "internal"),
        (["deferred"], "failed", "internal"),
    ]
    assert relay.received == 20


async def test_content_that_was_erased_ends_its_message(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a"), erased=True)
        (fact,) = await ends(store)
        assert isinstance(fact, AttemptEnded)
        assert (fact.next, fact.cause, statuses(fact)) == ("failed", "content_missing", ["deferred"])
    assert relay.received == 0


class Remembering(World):
    """A world that keeps every stream it made."""

    def __init__(self, nursery: trio.Nursery, relays: dict[str, Any]) -> None:
        super().__init__(nursery, relays)
        self.streams: list[Any] = []

    async def connect(self, host: str, port: int) -> Any:
        stream = await super().connect(host, port)
        self.streams.append(stream)
        return stream


async def test_a_unit_that_is_cancelled_leaves_no_idle_connection_open(folder: Path, autojump_clock: Clock) -> None:
    async with opened(folder) as store, trio.open_nursery() as outside:
        world = Remembering(outside, {"a": CaptureRelay()})
        unit = Delivery(store, world, DeliveryPolicy(), random.Random(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unit.run, trio.Event(), 25)
            await accept(store, await save(store, "a"))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert world.streams
        for stream in world.streams:
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"x")
        outside.cancel_scope.cancel()


async def test_a_password_is_shown_to_no_relay_but_the_one_it_was_saved_for(
    folder: Path, autojump_clock: Clock
) -> None:
    relays = {"old.example": CaptureRelay(), "new.example": CaptureRelay()}
    async with delivering(folder, relays) as (store, unit, world):
        account = await save(store, "old.example")

        async def seal(host: str, password: str) -> AccountRow:
            credentials = Credentials("user", password)
            digest = store.secrets.credentials_digest("user", password)
            saved = AccountSaved(
                id="old.example", host=host, port=25, credentials=digest, has_password=True, tls="none"
            )
            sealed = Sealed(store.secrets.seal(msgspec.json.encode(credentials)))
            await store.record([Draft(saved, account=account)], beside={0: sealed}, urgent=True)
            await trio.testing.wait_all_tasks_blocked()
            return unit.account(account)

        a_moment_ago = await seal("old.example", "first")
        await seal("new.example", "second")
        with pytest.raises(RelayTrouble, match="the account has changed"):
            await unit.pool._connect(a_moment_ago)
        assert world.connects == []


async def test_a_relay_is_not_left_alone_for_as_long_as_a_wrong_clock_said(folder: Path, autojump_clock: Clock) -> None:
    relay = CaptureRelay()
    async with opened(folder) as store:
        account = await save(store, "a")
        await accept(store, account)
        in_a_day_us = store.clock.now_us() + 86_400 * MICROSECONDS
        down = RelayUnreachable(host="a", port=25, credentials="c" * 16, reason="dns", until_us=in_a_day_us, failures=5)
        await store.record([Draft(down, account=account)])
        async with running(store, {"a": relay}):
            await trio.sleep(400)
    assert relay.received == 1


async def test_an_account_whose_own_words_keep_it_from_a_living_relay_is_named(
    folder: Path, autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Others have connections to the relay, so it is not unreachable, and no fact says why this one's mail waits."""
    relay = CaptureRelay()
    async with delivering(folder, {"a": relay}) as (store, _, _):
        await accept(store, await save(store, "a", name="one"))
        await ends(store)
        await accept(store, await save(store, "a", name="two", tls="starttls-required"))
        await trio.sleep(100)
        assert "of account two: " in caplog.text and "(starttls)" in caplog.text
        assert not await of_kind(store, "RelayUnreachable")
