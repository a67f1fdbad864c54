"""Coming over, as a whole: read the old service's database, decide each item, and record all of it at once.

A trial (`--dry-run`) decides the same things in the same order, against what the log knows at that moment, under a key
that is thrown away; and writes nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path

from msgspec import Struct, structs

from actors import importing as decide
from actors.importing import NotTaken, Proposed, Taken
from actors.ingest import Known
from actors.parse import DEFAULT_ACCOUNT
from events import payloads
from events.account import AccountSaved
from events.fact import Draft
from events.message import MessageAccepted, MessageImported, MessageRejected
from events.service import ImportFinished
from events.volume import VolumeSaved
from store import reading
from store.clock import SystemClock
from store.examining import is_log
from store.faults import faults_of
from store.file_access import open_to_read
from store.files import KEY_BYTES
from store.imported import known_ids, sends_imported_up_to
from store.old_service import DAY_S, OldMessage, OldService, open_old
from store.opening import open_alone
from store.reading import Connection
from store.secrets import Secrets
from store.worklists import living_accounts
from store.writer import Request

from .config import Config
from .printing import Advance
from .system import accepting_policy, default_account

PAGE = 1_000
"""Ids that the log is asked for at once."""

NOT_TAKEN_MAX = 10_000
"""What does not come over is listed up to so many; the rest is counted."""

PLANNED = 1
"""The number of an account that a trial would make."""

MICROSECONDS = 1_000_000

STANDS = "one of this name stands in the log already, and stays as it is"
NO_ACCOUNT = "no account with this id is taken over, so what it sent counts against nobody's limits"


class Outcome(Struct, frozen=True):
    """What was taken over, or would be; what was not, listed as far as it goes and counted."""

    taken: Taken
    not_taken: tuple[NotTaken, ...]
    not_taken_count: int


def take_over(config: Config, path: Path, *, dry_run: bool, advance: Advance | None = None) -> Outcome:
    """Take over the old service's database, all of it or, with an error, nothing. Raises NoOldService,
    FileError, OpeningError, Fault and Incomplete."""
    clock, db_path = SystemClock(), config.storage.db_path
    with open_old(path, db_path) as old:
        if dry_run:
            with _trial(db_path) as connection:
                work = _Import(config, old, Secrets(os.urandom(KEY_BYTES), os.urandom), connection, clock.now_us())
                work.dry_run()
        else:
            with open_alone(db_path, config.storage.key_file, clock) as alone, faults_of(db_path):
                work = _Import(config, old, alone.secrets, alone.writer.connection, clock.now_us(), advance)
                alone.writer.turns_in_one(work.requests())
    return Outcome(work.taken, tuple(work.not_taken), work.not_taken_count)


@contextmanager
def _trial(db_path: Path) -> Iterator[Connection | None]:
    """The log as it is, or None where there is none yet."""
    with open_to_read(db_path) if is_log(db_path) else nullcontext() as connection:
        yield connection


class _Import:
    """One import: what was decided so far. `connection` is that of the transaction, so it shows what is in it."""

    def __init__(
        self,
        config: Config,
        old: OldService,
        secrets: Secrets,
        connection: Connection | None,
        now_us: int,
        advance: Advance | None = None,
    ) -> None:
        self._config = config
        self._old = old
        self._connection = connection
        self._advance = advance
        self._planned: dict[str, int] = {}
        self._serving: dict[str, str | None] = {}
        self._known = Known(accepting_policy(config), {}, secrets, now_us)
        self.taken = Taken()
        self.not_taken: list[NotTaken] = []
        self.not_taken_count = 0

    def requests(self) -> Iterator[Request]:
        """The parts of the transaction. What one names must be recorded when the next one is asked for."""
        yield from decide.requests(self._accounts())
        yield from decide.requests(self._volumes())
        self._known = structs.replace(self._known, accounts=self._living() or self._planned, volumes=self._serving)
        yield from decide.requests(self._messages())
        yield from decide.requests(self._sends())
        if fact := self._finished():
            yield Request([Draft(fact)], {}, whole=True)

    def dry_run(self) -> None:
        """Decide everything, and let go of it."""
        for proposed in self._accounts():
            if isinstance(proposed.draft.fact, AccountSaved):
                self._planned[proposed.draft.fact.id] = PLANNED
        for _ in self._volumes():
            pass
        self._known = structs.replace(self._known, accounts=self._planned | self._living(), volumes=self._serving)
        for _ in chain(self._messages(), self._sends()):
            pass

    def _living(self) -> dict[str, int]:
        return living_accounts(self._connection) if self._connection else {}

    # Accounts

    def _accounts(self) -> Iterator[Proposed]:
        """That of the configuration first: the next start would make it, and mail may be meant for it."""
        living = set(self._living())
        default = default_account(self._config)
        if default is not None and DEFAULT_ACCOUNT not in living:
            living.add(DEFAULT_ACCOUNT)
            yield from self._put(decide.saved(default, self._known.secrets, "config"))
        for old in self._old.accounts():
            if old.id in living:
                self._leave(NotTaken("account", old.id, STANDS))
                continue
            for proposed in self._put(decide.account(old, self._known.secrets)):
                living.add(old.id)
                self.taken.accounts += 1
                yield proposed

    # Volumes

    def _volumes(self) -> Iterator[Proposed]:
        """Those of the configuration first, for the same reason. Whom each serves is kept, for the mail that waits."""
        secrets, serving = self._known.secrets, self._serving
        if self._connection:
            serving.update((row.name, row.account_id) for row in reading.volumes(self._connection))
        for configured in self._config.volumes:
            if configured.name not in serving:
                payload = payloads.Volume(**structs.asdict(configured))
                yield from self._serve(decide.saved_volume(payload, secrets, "config"))
        for old in self._old.volumes():
            if old.name in serving:
                self._leave(NotTaken("volume", old.name, STANDS))
                continue
            for proposed in self._serve(decide.volume(old, secrets)):
                self.taken.volumes += 1
                yield proposed

    def _serve(self, decided: Proposed | NotTaken) -> Iterator[Proposed]:
        for proposed in self._put(decided):
            if isinstance(fact := proposed.draft.fact, VolumeSaved):
                self._serving[fact.name] = fact.account_id
            yield proposed

    # Messages

    def _messages(self) -> Iterator[Proposed]:
        messages, done, of = self._old.messages(), 0, self._old.rows()
        while page := list(islice(messages, PAGE)):
            known = self._known_of(page)
            for old in page:
                if old.id is not None and old.id in known:
                    self.taken.known += 1
                    continue
                for proposed in self._put(decide.message(old, self._known)):
                    known.add(old.id or "")
                    self._count_message(proposed)
                    yield proposed
            done += len(page)
            if self._advance:
                self._advance(done, of)

    def _known_of(self, page: list[OldMessage]) -> set[str]:
        ids = [old.id for old in page if old.id and old.id.isprintable()]
        return known_ids(self._connection, ids) if self._connection else set()

    def _count_message(self, proposed: Proposed) -> None:
        taken = self.taken
        match proposed.draft.fact:
            case MessageImported() as fact:
                taken.sent += fact.ended == "sent"
                taken.failed += fact.ended == "failed"
                taken.unreported += not fact.reported
            case MessageAccepted() as fact:
                taken.waiting += 1
                taken.overdue += fact.expires_us <= self._known.now_us
            case MessageRejected() as fact:
                taken.rejected += 1
                self._leave(NotTaken("message", fact.id, fact.reason, recorded=True))

    # What counts against limits

    def _sends(self) -> Iterator[Proposed]:
        now_s = self._known.now_us // MICROSECONDS
        up_to = sends_imported_up_to(self._connection) if self._connection else {}
        for account, of_account in self._old.sends(now_s - DAY_S, now_s).items():
            name = account or DEFAULT_ACCOUNT
            number = self._known.accounts.get(name)
            if number is None:
                self._leave(NotTaken("sends", name, NO_ACCOUNT))
            elif proposed := decide.sends(of_account, up_to.get(number, 0), number):
                self.taken.sends += sum(n for _, n in proposed.draft.fact.seconds)  # type: ignore[attr-defined]
                yield proposed

    # The end

    def _finished(self) -> ImportFinished | None:
        """The last fact; None where there was nothing to take over."""
        taken = self.taken
        if not any(count for name, count in structs.asdict(taken).items() if name != "known"):
            return None
        return ImportFinished(
            accounts=taken.accounts,
            volumes=taken.volumes,
            sent=taken.sent,
            failed=taken.failed,
            waiting=taken.waiting,
            rejected=taken.rejected,
            by=decide.BY,
        )

    def _put(self, decided: Proposed | NotTaken) -> Iterator[Proposed]:
        if isinstance(decided, Proposed):
            yield decided
        else:
            self._leave(decided)

    def _leave(self, what: NotTaken) -> None:
        self.not_taken_count += 1
        if len(self.not_taken) < NOT_TAKEN_MAX:
            self.not_taken.append(what)
