"""Control carries out what operators and clients ask for, one command at a time, and answers each once.

It promises that an answer follows what is on disk: after the answer to suspend, to a pause or to an account's
removal no attempt starts, since admission sees the fact. Commands about many messages go in steps of STEP, and
attempts go between two steps. What it reads may be out of date when it is recorded; a message that moved meanwhile
is handed back with its row and decided again, ROUNDS_MAX times at most.

Letting go of what was reported may take a minute. It runs beside the other commands, CLEANUPS_MAX at most, so that
`suspend` never waits for it, and a stop ends it between two steps.

It cannot stop an attempt that is under way: a message in flight is marked, and the mark counts when the attempt ends.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
import trio
from cryptography.exceptions import InvalidTag
from msgspec import Struct

from events import commands, payloads
from events.account import IMPLICIT_TLS_PORT, AccountPaused, AccountRemoved, AccountResumed, AccountSaved, TlsMode
from events.commands import Control, Refused, Unavailable
from events.fact import OWN, Draft, Entry
from events.lifecycle import FINAL
from events.message import ContentErased, MessageHeld, MessageWithdrawn, Resolution
from events.schedule import DispatchActivated, DispatchSuspended
from events.service import ClockTrusted
from events.values import CONTROL
from events.volume import VolumeRemoved
from store import choosing, reading
from store.beside import Credentials, Sealed
from store.dispatching import sealed_credentials
from store.opening import Store
from store.recorder import NotRecorded
from store.secrets import Secrets
from store.views.accounts import AccountRow
from store.views.messages import MessageRow
from store.views.volumes import VolumeRow
from store.worklists import STEP, asked_messages, clock_row, dispatch_row, waiting_numbers
from store.writer import Declined

from . import rule_commands
from .bulk import STATES, Moment, decide, resolved
from .network import ca_file_fault
from .proxy_sync import Reports
from .volumes import opened_config, save_volume, volume_differs

logger = logging.getLogger("letterbook.control")

ROUNDS_MAX = 3
CLEANUPS_MAX = 4
"""Only one lets go at a time; a few may wait for it, and whoever asks again because the answer is late must not make a
long line of them."""

ACCOUNT_ID_CHARACTERS_MAX = 200
"""It is a label of metrics and a part of paths, so it stays short."""

DEFAULT_TTL_S = 300

Answer = dict[str, Any]

CLEANING = "messages are being let go of already: ask again when that has been answered"

_RESTORED = '"restored", which is "hold" or "send" (`letterbook activate --restored hold`)'
"""What has to be said about a log that was restored from a backup."""


class Saving(Struct, frozen=True):
    """An account to be recorded, with what is to be sealed beside it."""

    fact: AccountSaved
    credentials: Credentials

    def sealed(self, secrets: Secrets) -> Sealed:
        return Sealed(secrets.seal(msgspec.json.encode(self.credentials)))


# Accounts: pure.


def save_account(
    account: payloads.Account, row: AccountRow | None, stored: Credentials, secrets: Secrets, by: str
) -> Saving | Refused:
    """The account as it will stand. `row` and `stored` are those of the living account with this id, if there is one.

    A missing password keeps the stored one while host, port and user stay the same; otherwise it is gone, for it
    must not be shown to another relay.
    """
    if sentence := _invalid(account):
        return Refused(sentence)
    user = account.user or None
    password = account.password
    if password is None and row is not None and (row.host, row.port, stored.user) == (account.host, account.port, user):
        password = stored.password
    credentials = Credentials(user, password or None)
    if credentials.password and not credentials.user:
        return Refused("user is missing: a password alone cannot log in")
    fact = AccountSaved(
        id=account.id,
        host=account.host,
        port=account.port,
        credentials=secrets.credentials_digest(credentials.user, credentials.password),
        has_password=credentials.password is not None,
        tls=tls_mode(account),
        tls_verify=account.tls_verify is not False,
        tls_ca_file=account.tls_ca_file or None,
        auth=account.auth or "auto",
        limit_per_minute=account.limit_per_minute or None,
        limit_per_hour=account.limit_per_hour or None,
        limit_per_day=account.limit_per_day or None,
        limit_behavior=account.limit_behavior or "defer",
        ttl=DEFAULT_TTL_S if account.ttl is None else account.ttl,
        batch_size=account.batch_size or None,
        max_connections=account.max_connections or None,
        max_messages_per_connection=account.max_messages_per_connection or None,
        use_tls=account.use_tls,
        by=by,
    )
    return Saving(fact, credentials)


def tls_mode(account: payloads.Account) -> TlsMode:
    """`tls` wins over `use_tls`; true alone is implicit on 465, else STARTTLS required; false is auto."""
    if account.tls is not None:
        return account.tls
    if account.use_tls:
        return "implicit" if account.port == IMPLICIT_TLS_PORT else "starttls-required"
    return "auto"


def differs(fact: AccountSaved, row: AccountRow) -> bool:
    """Whether saving this would change the account, whoever asks."""
    return any(getattr(fact, name) != getattr(row, name) for name in AccountSaved.__struct_fields__ if name != "by")


_NOT_NEGATIVE = (
    "ttl",
    "limit_per_minute",
    "limit_per_hour",
    "limit_per_day",
    "batch_size",
    "max_connections",
    "max_messages_per_connection",
)
_TEXTS = ("id", "host", "user", "password", "tls_ca_file")


def _invalid(account: payloads.Account) -> str | None:
    """The sentence about the first field that cannot stand."""
    for name in ("id", "host"):
        if not getattr(account, name).strip():
            return f"{name} is empty: give one"
    for name in _TEXTS:
        if CONTROL.search(getattr(account, name) or ""):
            return f"{name} holds a control character: leave it out"
    if len(account.id) > ACCOUNT_ID_CHARACTERS_MAX:
        return f"id is longer than {ACCOUNT_ID_CHARACTERS_MAX} characters: give a shorter one"
    if any(character.isspace() for character in account.host) or len(account.host) > 255:
        return "host is no host name or address: give one without white space, 255 characters at most"
    if not 1 <= account.port <= 65535:
        return "port must be from 1 to 65535"
    for name in _NOT_NEGATIVE:
        value = getattr(account, name)
        if value is not None and not 0 <= value < 2**31:
            return f"{name} must not be negative nor over {2**31 - 1}; 0 means none"
    if account.auth not in (None, "auto") and not account.user:
        return f"user is missing: auth {account.auth} needs one"
    return None


# Deleting: pure.


class Deletion(Struct, frozen=True):
    """What deleting some messages asks for: facts about each, and (number, revision) of contents to be erased."""

    drafts: tuple[Draft, ...]
    letters: tuple[tuple[int, int], ...] = ()


def delete(rows: Iterable[MessageRow], with_content: frozenset[int], by: str) -> Deletion:
    """Open messages are withdrawn (in flight: marked), of final ones the content is erased."""
    drafts, letters = [], []
    for row in rows:
        if row.state not in FINAL:
            if not row.withdrawing:
                drafts.append(Draft(MessageWithdrawn(by=by), message=row.number, account=row.account))
        elif row.number in with_content:
            letters.append((row.number, row.revision))
    return Deletion(tuple(drafts), tuple(letters))


def steps(values: Sequence[Any], size: int = STEP) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


# The actor.


LetGo = Callable[[float | None, str], Awaitable[int]]
"""Lets go of what was reported so many seconds ago (None: as configured), for whom; gives how many messages."""


async def run_control(
    controls: trio.MemoryReceiveChannel[Control],
    store: Store,
    run_now: Sequence[Callable[[], None]],
    let_go: LetGo,
    reports: Reports,
    *,
    max_age_us: int,
) -> None:
    """Take commands until their channel is closed. `run_now` are the bells that it rings; `max_age_us` is how long
    mail waits at most."""
    actor = ControlActor(store, run_now, let_go, reports, max_age_us)
    async with trio.open_nursery() as beside:
        async for control in controls:
            if not isinstance(control.command, commands.CleanupMessages):
                await _answer(actor, control)
            elif len(beside.child_tasks) < CLEANUPS_MAX:
                beside.start_soon(_answer, actor, control)
            else:
                control.reply.put(Unavailable(CLEANING))
        beside.cancel_scope.cancel()


async def _answer(actor: "ControlActor", control: Control) -> None:
    try:
        control.reply.put(await actor.answer(control))
    finally:
        control.reply.drop()


class ControlActor:
    """One method a command; none of them keeps anything between two commands."""

    def __init__(
        self, store: Store, run_now: Sequence[Callable[[], None]], let_go: LetGo, reports: Reports, max_age_us: int
    ) -> None:
        self._store = store
        self._reports = reports
        self._run_now = run_now
        self._let_go = let_go
        self._max_age_us = max_age_us

    async def answer(self, control: Control) -> Answer | Refused | Unavailable:
        """The contract's answer, a refusal, or that nothing can be recorded now."""
        try:
            return await self._carry_out(control.command, control.by)
        except (Refused, Unavailable) as answer:
            return answer
        except NotRecorded as error:
            return Unavailable(str(error))

    async def _carry_out(self, command: commands.Command, by: str) -> Answer:
        match command:
            case commands.RunNow():
                return self._ring()
            case commands.Suspend():
                return await self._suspend(by)
            case commands.Activate(restored, trust_clock):
                if trust_clock:
                    await self._trust_clock(by)
                return await self._activate(restored, by)
            case commands.SaveAccount(account):
                return await self._save(account, by)
            case commands.RemoveAccount(account_id):
                return await self._about_account(account_id, AccountRemoved(by=by))
            case commands.PauseAccount(account_id):
                return await self._about_account(account_id, AccountPaused(by=by))
            case commands.ResumeAccount(account_id):
                return await self._about_account(account_id, AccountResumed(by=by))
            case commands.SaveVolume(volume, yields):
                return await self._save_volume(volume, yields, by)
            case commands.RemoveVolume(name):
                return await self._remove_volume(name, by)
            case commands.DeleteMessages(ids):
                return await self._delete(ids, by)
            case commands.CleanupMessages(older_than_s):
                return {"ok": True, "removed": await self._let_go(older_than_s, by)}
            case commands.ResolveMessage(message_id, resolution):
                return await self._resolve(message_id, resolution, by)
            case commands.SaveRule() | commands.ChangeRule() | commands.RemoveRule():
                return await rule_commands.carry_out(self._store, command, by)
            case commands.Schedule(rules, active):
                return await self._schedule(rules, active, by)
            case commands.Exchange(heard):
                return await self._reports.exchange(heard)
            case commands.Bulk():
                return await self._bulk(command, by)

    def _ring(self) -> Answer:
        for ring in self._run_now:
            ring()
        return {"ok": True}

    async def _suspend(self, by: str) -> Answer:
        dispatch = await self._store.read(dispatch_row)
        if dispatch.active:
            await self._store.record([Draft(DispatchSuspended(by=by))], urgent=True)
        return {"ok": True, "active": False}

    async def _activate(self, restored: Literal["hold", "send"] | None, by: str) -> Answer:
        """After a restored backup somebody must say what becomes of mail that may have been sent since."""
        dispatch = await self._store.read(dispatch_row)
        if dispatch.active:
            return {"ok": True, "active": True}
        chosen = restored if dispatch.restored else None
        if dispatch.restored and chosen is None:
            raise Refused(f"the log was restored from a backup: give {_RESTORED}")
        if chosen == "hold":
            await self._hold_all(by)
        await self._store.record([Draft(DispatchActivated(by=by, restored=chosen))], urgent=True)
        return {"ok": True, "active": True}

    async def _schedule(self, rules: Sequence[payloads.Rule] | None, active: bool | None, by: str) -> Answer:
        """In an order in which no mail goes by rules that are to be replaced."""
        if active and (await self._store.read(dispatch_row)).restored:
            raise Refused(f"the log was restored from a backup: activate with {_RESTORED}")
        if active is False:
            await self._suspend(by)
        if rules is not None:
            await rule_commands.replace_all(self._store, rules, by)
        if active:
            await self._activate(None, by)
        dispatch = await self._store.read(dispatch_row)
        return {**await rule_commands.listed(self._store), "active": bool(dispatch.active)}

    async def _trust_clock(self, by: str) -> None:
        if (await self._store.read(clock_row)).doubted(self._store.clock.now_us()):
            await self._store.record([Draft(ClockTrusted(by=by))], urgent=True)

    async def _hold_all(self, by: str) -> None:
        """Put aside whatever waits now. Dispatch is suspended, so nothing of it can start meanwhile."""
        last, up_to = 0, self._store.last_seq
        while numbers := await self._store.read(waiting_numbers, last, up_to):
            drafts = [Draft(MessageHeld(cause="restored", by=by), message=number) for number in numbers]
            await self._store.record(drafts, urgent=True)
            last = numbers[-1]

    async def _save(self, account: payloads.Account, by: str) -> Answer:
        """What stands already as it is asked for needs no fact: so a start records `[smtp]` only where it differs."""
        if account.tls_ca_file and (fault := ca_file_fault(account.tls_ca_file)):
            raise Refused(f"tls_ca_file cannot be used: {fault}: name a file with the authority's certificate")
        for _ in range(ROUNDS_MAX):
            row = await self._store.read(reading.account, account.id)
            stored = await self._credentials(row)
            saving = save_account(account, row, stored, self._store.secrets, by)
            if isinstance(saving, Refused):
                raise saving
            if row is not None and not differs(saving.fact, row):
                return {"ok": True}
            draft = Draft(saving.fact, account=row.number if row else OWN)
            sealed = saving.sealed(self._store.secrets)
            if (await self._store.record([draft], beside={0: sealed}, urgent=True)).complete:
                return {"ok": True}
        raise Unavailable("the account kept changing: ask again")

    async def _credentials(self, row: AccountRow | None) -> Credentials:
        sealed = await self._store.read(sealed_credentials, row.number) if row else None
        if sealed is None:
            return Credentials()
        try:
            return msgspec.json.decode(self._store.secrets.unseal(sealed), type=Credentials)
        except InvalidTag:
            # It was sealed under a key that is not here any more: nobody can use it, so it is as good as gone.
            return Credentials()

    async def _about_account(self, account_id: str, fact: AccountRemoved | AccountPaused | AccountResumed) -> Answer:
        """Pausing what is paused changes nothing and is no error."""
        row = await self._store.read(reading.account, account_id)
        if row is None:
            raise Refused(f"there is no account {account_id!r}: GET /accounts lists them", 404)
        await self._store.record([Draft(fact, account=row.number)], urgent=True)
        return {"ok": True}

    async def _save_volume(self, volume: payloads.Volume, yields: bool, by: str) -> Answer:
        """What stands already as it is asked for needs no fact."""
        row = await self._store.read(reading.volume, volume.name)
        if row is not None and yields and row.by != by:
            return {"ok": True}
        stored = await self._volume_config(row)
        saving = save_volume(volume, row, stored, self._store.secrets, by)
        if isinstance(saving, Refused):
            raise saving
        if row is None or volume_differs(saving.fact, row):
            await self._store.record([Draft(saving.fact)], beside={0: saving.sealed(self._store.secrets)}, urgent=True)
        return {"ok": True}

    async def _volume_config(self, row: VolumeRow | None) -> dict[str, str]:
        sealed = (await self._store.read(reading.sealed_volumes, (row.name,))).get(row.name) if row else None
        return opened_config(sealed, self._store.secrets) or {}

    async def _remove_volume(self, name: str, by: str) -> Answer:
        (answer,) = (await self._store.record([Draft(VolumeRemoved(name=name, by=by))], urgent=True)).answers
        if isinstance(answer, Declined):
            raise Refused(f"there is no volume {name!r}: GET /volumes lists them", 404)
        return {"ok": True}

    async def _resolve(self, message_id: str, resolution: Resolution, by: str) -> Answer:
        """Only what is held can be resolved, as of the transaction that says so."""
        row = await self._store.read(reading.message_by_id, message_id)
        if row is None:
            raise Refused("No message with this id is known", 404)
        if row.state == "held":
            draft = Draft(resolved(row, resolution, self._moment(by)), message=row.number, account=row.account)
            (answer,) = (await self._store.record([draft], urgent=True)).answers
            if isinstance(answer, Entry):
                return {"ok": True}
            row = answer.row or row
        raise Refused(f"the message is not held, it is {row.state.replace('_', ' ')}: GET /held lists held mail", 409)

    def _moment(self, by: str) -> Moment:
        return Moment(self._store.clock.now_us(), self._max_age_us, by)

    async def _bulk(self, step: commands.Bulk, by: str) -> Answer:
        """One step, behind whatever is urgent: other commands and all mail go between it and the next."""
        chosen = await self._store.read(
            choosing.chosen, step.where, STATES[step.action], self._store.clock.now_us(), step.after, step.up_to
        )
        # The clock may have stepped meanwhile: what is recorded at once stands on this side of the step in the log.
        decided = decide(step.action, chosen, self._moment(by))
        changed = 0
        if decided.drafts and not step.dry_run:
            recorded = await self._store.record(decided.drafts)
            changed = sum(isinstance(answer, Entry) for answer in recorded.answers)
        return {
            "ok": True,
            "matched": decided.matched,
            "changed": changed,
            "without_content": decided.without_content,
            "in_doubt": decided.in_doubt,
            "next": chosen.next,
        }

    async def _delete(self, ids: Sequence[str], by: str) -> Answer:
        removed, not_found = 0, []
        for step in steps(list(dict.fromkeys(ids))):
            rows, with_content = await self._store.read(asked_messages, step)
            await self._delete_step(rows, with_content, by)
            removed += len(rows)
            not_found += [each for each in step if each not in rows]
        return {"ok": True, "removed": removed, "not_found": not_found}

    async def _delete_step(self, rows: Mapping[str, MessageRow], with_content: frozenset[int], by: str) -> None:
        """Those that ended meanwhile are handed back, and their contents are erased instead."""
        left = list(rows.values())
        for _ in range(ROUNDS_MAX):
            deletion = delete(left, with_content, by)
            drafts = list(deletion.drafts)
            if deletion.letters:
                drafts.append(Draft(ContentErased(letters=deletion.letters, by=by)))
            if not drafts:
                return
            recorded = await self._store.record(drafts, urgent=True)
            left = [answer.row for answer in recorded.answers if isinstance(answer, Declined) and answer.row]
        if left:
            logger.warning("%d messages could not be deleted: they kept changing", len(left))
