"""Admission: whether a fact fits what is true in the very transaction that would write it.

Actors decide from state that may be stale; so they can be refused, but never wrong. `fits` looks at the rows that
the fact names, as of the last fact of this transaction, and answers None or the reason. Nothing is asked twice:
the lifecycle answers for messages, the rest is a rule a kind below.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence

import msgspec

from events.account import (
    AccountPaused,
    AccountRemoved,
    AccountResumed,
    AccountSaved,
    AccountSendsImported,
    AccountThrottled,
)
from events.attempt import AttemptEnded, AttemptInterrupted, AttemptStarted
from events.fact import OWN, Draft, Fact
from events.lifecycle import NO_ATTEMPT, NOT_WAITING, OPEN, UNKNOWN, Refusal, follow, step_of
from events.message import (
    ContentErased,
    FirstFact,
    MessageAccepted,
    MessageExpedited,
    MessageFailed,
    MessageImported,
    MessageRejected,
    MessageRequeued,
    MessageRevised,
    RetentionPassed,
)
from events.report import BatchFetched, ReportRefused, ReportSettled, ResultsReported
from events.rules import RULES_MAX
from events.schedule import RuleRemoved, RuleSaved
from events.volume import VolumeRemoved

from .erasing import kept
from .folding import Folding
from .views.accounts import AccountRow
from .views.dispatch import ACTIVE, ONLY
from .views.messages import PUT_OFF, REACHED, RETRIABLE, MessageRow
from .views.reports import REPORTED
from .views.rules import NO_RULES

NO_ACCOUNT = Refusal("no such account")
NO_VOLUME = Refusal("no such volume")
ACCOUNT_PAUSED = Refusal("account paused")
SUSPENDED = Refusal("suspended")
OTHER_REVISION = Refusal("other revision")
OTHER_ACCOUNT = Refusal("other account")
OTHER_LIMIT = Refusal("other limit")
NOT_EXPIRED = Refusal("not expired")
NOT_REMOVED = Refusal("account not removed")
TOKEN_SEEN = Refusal("token seen")
UNREPORTED = Refusal("unreported")
ALREADY_SO = Refusal("already so")
REACHED_MEANWHILE = Refusal("reached meanwhile")
BEYOND_THE_LOG = Refusal("beyond the log")
BEYOND_THE_CURSOR = Refusal("beyond the cursor")
ACCOUNT_EXISTS = Refusal("account exists")
NOT_PUT_OFF = Refusal("not put off")
CONTENT_ERASED = Refusal("content erased")
CONTENT_NEEDED = Refusal("content needed")
NO_RULE = Refusal("no such rule")
TOO_MANY_RULES = Refusal("too many rules")

_KNOWN_IDS = "select id, number from ids where id in (select value from json_each(?))"
"""The numbers of these ids, of those that the log knows."""

_KNOWN_ID = "select id, number from ids where id = ?"
"""The same for one: SQLite ends a JSON string at a NUL, so an id that holds one is asked for by itself."""

_LIVING = "select number from accounts where id = ? and removed = 0"
"""The living accounts with an id."""

_REFUSED_OPEN = "select seq from refused where settled_us is null and seq < ? order by seq"
"""Results that the upstream has refused and that are still offered to it: a range of the index refused_open."""


class Judge:
    """Judges drafts against the rows of one Folding; lives as long as the writer's connection."""

    def __init__(self, connection: sqlite3.Connection, folding: Folding, last_seq: Callable[[], int]) -> None:
        self._connection = connection
        self._folding = folding
        self._last_seq = last_seq
        self._numbers: dict[str, int] = {}
        self._at_us = 0
        # Letters of messages that are to be tried again, as far as they are there.
        self._kept: set[int] = set()

    def load(self, drafts: Iterable[Draft], at_us: int) -> None:
        """Read in a few statements what judging and folding these drafts will look at; `at_us` is their stamp."""
        self._at_us = at_us
        ids, messages, accounts, attempts, tokens, again, refused = [], [], set(), [], [], [], []
        for draft in drafts:
            fact = draft.fact
            kind = type(fact)
            if kind is AttemptEnded or kind is AttemptInterrupted:
                attempts.append(fact.attempt)  # type: ignore[attr-defined]  # one of the two
            elif isinstance(fact, FirstFact):
                ids.append(fact.id)
            elif isinstance(fact, BatchFetched):
                tokens.append(fact.token)
            elif isinstance(fact, ReportRefused | ReportSettled):
                refused.append(fact.result)
            elif isinstance(fact, MessageRequeued):
                again.append(draft.message or 0)
            elif isinstance(fact, ContentErased):
                messages += [number for number, _ in fact.letters]
            if draft.message:
                messages.append(draft.message)
            if draft.account:
                accounts.add(draft.account)
        self._load_ids(ids)
        self._folding.load("messages", messages + list(self._numbers.values()))
        self._folding.load("accounts", accounts)
        self._folding.load("attempts", attempts)
        self._folding.load("tokens", tokens)
        self._folding.load("refused", refused)
        self._load_letters(again)

    def _load_ids(self, ids: Sequence[str]) -> None:
        self._numbers.clear()
        if not ids:
            return
        execute = self._connection.execute
        self._numbers.update(execute(_KNOWN_IDS, (msgspec.json.encode(ids).decode(),)))
        for message_id in ids:
            if "\0" in message_id:
                self._numbers.update(execute(_KNOWN_ID, (message_id,)))

    def _load_letters(self, numbers: Sequence[int]) -> None:
        self._kept.clear()
        if numbers:
            rows = [row for number in numbers if (row := self._folding.row("messages", number))]
            self._kept.update(kept(self._connection, [row.revision for row in rows]))

    def known(self, message_id: str) -> MessageRow | None:
        """The row of the message that has this id already, within this transaction too."""
        number = self._numbers.get(message_id)
        return None if number is None else self._folding.message(number)

    def learn(self, message_id: str, number: int) -> None:
        """From here on the id is known."""
        self._numbers[message_id] = number

    def unlearn(self, message_id: str) -> None:
        self._numbers.pop(message_id, None)

    def row(self, draft: Draft) -> MessageRow | None:
        """The message's row that a refusal shows to the asker."""
        if isinstance(draft.fact, FirstFact):
            return self.known(draft.fact.id)
        return self._folding.message(draft.message) if draft.message else None

    def fits(self, draft: Draft) -> Refusal | None:
        """None where the fact may be written now, else the reason why not."""
        rule = _RULES.get(type(draft.fact))
        refusal = rule(self, draft) if rule else None
        return self._fits_lifecycle(draft) if refusal is None else refusal

    def _fits_lifecycle(self, draft: Draft) -> Refusal | None:
        step = step_of(draft.fact)
        if step is None:
            return None
        if draft.message is None:
            return UNKNOWN
        row = None if draft.message == OWN else self._folding.message(draft.message)
        state = follow(row.state if row else None, step)
        return state if isinstance(state, Refusal) else None

    def account(self, draft: Draft) -> AccountRow | None:
        """The living account that a draft names, or None."""
        row: AccountRow | None = self._folding.row("accounts", draft.account) if draft.account else None
        return None if row is None or row.removed else row

    def _first_fact(self, draft: Draft) -> Refusal | None:
        fact = draft.fact
        assert isinstance(fact, FirstFact)
        known = self.known(fact.id)
        if known is None:
            return None
        refusal = follow(known.state, step_of(fact) or "")
        return refusal if isinstance(refusal, Refusal) else NOT_WAITING

    def _accepted(self, draft: Draft) -> Refusal | None:
        return self._first_fact(draft) or self._alive(draft)

    def _alive(self, draft: Draft) -> Refusal | None:
        return None if self.account(draft) else NO_ACCOUNT

    def _revised(self, draft: Draft) -> Refusal | None:
        """Nobody who has the message by now, or may have it, is to get it again."""
        fact = draft.fact
        assert isinstance(fact, MessageRevised)
        if refusal := self._alive(draft) or self._fits_lifecycle(draft):
            return refusal
        row = self._folding.message(draft.message or 0)
        reached = row.reached_digests() if row else {}
        recipients = fact.recipients
        if reached and any(at < len(recipients) and recipients[at] in reached for at in fact.reach):
            return REACHED_MEANWHILE
        return None

    def _requeued(self, draft: Draft) -> Refusal | None:
        """There must be somebody left to reach, and something to send."""
        row = self._folding.message(draft.message or 0)
        if refusal := self._alive(draft) or self._fits_lifecycle(draft):
            return refusal
        if row is None or row.account != draft.account:
            return OTHER_ACCOUNT
        if all(state.status in REACHED for state in row.states()):
            return REACHED_MEANWHILE
        return None if row.revision in self._kept else CONTENT_ERASED

    def _expedited(self, draft: Draft) -> Refusal | None:
        """Never later than it would be due anyway, and never against the wish of who sent it."""
        assert isinstance(draft.fact, MessageExpedited)
        row = self._folding.message(draft.message or 0)
        if row is None or row.state != "waiting":
            return NOT_WAITING
        return None if row.due_cause in PUT_OFF and row.due_us > draft.fact.due_us else NOT_PUT_OFF

    def _erased(self, draft: Draft) -> Refusal | None:
        """What waits to be sent keeps its content: it may have been queued again since somebody saw it ended."""
        assert isinstance(draft.fact, ContentErased)
        gone = set()
        for number, up_to in draft.fact.letters:
            row: MessageRow | None = self._folding.row("messages", number)
            if row is not None and row.revision <= up_to:
                if row.state in OPEN:
                    return CONTENT_NEEDED
                gone.add(row.revision)
        self._kept -= gone
        return None

    def _started(self, draft: Draft) -> Refusal | None:
        assert isinstance(draft.fact, AttemptStarted)
        row = self._folding.message(draft.message or 0)
        if row is None or row.state != "waiting":
            return NOT_WAITING
        if row.revision != draft.fact.revision or row.account != draft.account:
            return OTHER_REVISION
        if row.recipients and not _all_retriable(row, draft.fact.recipients):
            return REACHED_MEANWHILE
        account = self.account(draft)
        if account is None:
            return NO_ACCOUNT
        if account.paused:
            return ACCOUNT_PAUSED
        dispatch = self._folding.row("dispatch", ONLY) or ACTIVE
        return None if dispatch.active else SUSPENDED

    def _failed(self, draft: Draft) -> Refusal | None:
        """Each cause must be true of the message as it is now, not as somebody has read it."""
        fact = draft.fact
        assert isinstance(fact, MessageFailed)
        row = self._folding.message(draft.message or 0)
        if refusal := self._fits_lifecycle(draft):
            return refusal
        if row is None or row.account != draft.account:
            return OTHER_ACCOUNT
        if fact.cause == "account_removed":
            account: AccountRow | None = self._folding.row("accounts", draft.account) if draft.account else None
            return None if account and account.removed else NOT_REMOVED
        if fact.cause in ("expired", "quota") and row.state != "waiting":
            return NOT_WAITING
        if fact.cause == "expired":
            return None if row.expires_us <= self._at_us else NOT_EXPIRED
        return OTHER_REVISION if fact.cause == "quota" and row.revision != fact.revision else None

    def _ended(self, draft: Draft) -> Refusal | None:
        assert isinstance(draft.fact, AttemptEnded | AttemptInterrupted)
        attempt = self._folding.row("attempts", draft.fact.attempt)
        return None if attempt and attempt.message == draft.message else NO_ATTEMPT

    def _saved(self, draft: Draft) -> Refusal | None:
        if draft.account != OWN:
            return self._alive(draft)
        assert isinstance(draft.fact, AccountSaved)
        return ACCOUNT_EXISTS if self._lives(draft.fact.id) else None

    def _lives(self, account_id: str) -> bool:
        """Whether an account with this id lives, as of the last fact of this transaction."""
        folding = self._folding
        folding.load("accounts", [number for (number,) in self._connection.execute(_LIVING, (account_id,))])
        return any(row.id == account_id and not row.removed for row in folding.in_memory("accounts"))

    def _paused(self, draft: Draft) -> Refusal | None:
        account = self.account(draft)
        if account is None:
            return NO_ACCOUNT
        return ALREADY_SO if account.paused == isinstance(draft.fact, AccountPaused) else None

    def _throttled(self, draft: Draft) -> Refusal | None:
        """A limit that was lifted or changed meanwhile closes nothing."""
        assert isinstance(draft.fact, AccountThrottled)
        account = self.account(draft)
        if account is None:
            return NO_ACCOUNT
        limits = {60: account.limit_per_minute, 3_600: account.limit_per_hour, 86_400: account.limit_per_day}
        limit = limits.get(draft.fact.window_s)
        return None if limit and limit == draft.fact.limit else OTHER_LIMIT

    def _fetched(self, draft: Draft) -> Refusal | None:
        assert isinstance(draft.fact, BatchFetched)
        return TOKEN_SEEN if draft.fact.token and self._folding.row("tokens", draft.fact.token) else None

    def _volume_removed(self, draft: Draft) -> Refusal | None:
        assert isinstance(draft.fact, VolumeRemoved)
        return None if self._folding.row("volumes", draft.fact.name) else NO_VOLUME

    def _reported_up_to(self) -> int:
        cursor = self._folding.row("cursors", REPORTED)
        return cursor.seq if cursor else 0

    def _reported(self, draft: Draft) -> Refusal | None:
        assert isinstance(draft.fact, ResultsReported)
        if draft.fact.up_to > self._last_seq():
            return BEYOND_THE_LOG
        return None if draft.fact.up_to > self._reported_up_to() else ALREADY_SO

    def _retention(self, draft: Draft) -> Refusal | None:
        assert isinstance(draft.fact, RetentionPassed)
        before = draft.fact.before
        return UNREPORTED if before > self._reported_up_to() + 1 or self._refused_before(before) else None

    def _refused_before(self, seq: int) -> bool:
        """Whether a result before this seq is still offered to the upstream, as of this very transaction."""
        rows = self._folding.in_memory("refused")
        if any(row.settled_us is None and row.seq < seq for row in rows):
            return True
        settled = {row.seq for row in rows}
        return any(found not in settled for (found,) in self._connection.execute(_REFUSED_OPEN, (seq,)))

    def _refused(self, draft: Draft) -> Refusal | None:
        """A result that the cursor has passed. What is settled stays so."""
        assert isinstance(draft.fact, ReportRefused)
        if draft.fact.result > self._reported_up_to():
            return BEYOND_THE_CURSOR
        row = self._folding.row("refused", draft.fact.result)
        return None if row is None or row.settled_us is None else ALREADY_SO

    def _settled(self, draft: Draft) -> Refusal | None:
        assert isinstance(draft.fact, ReportSettled)
        row = self._folding.row("refused", draft.fact.result)
        return None if row is not None and row.settled_us is None else ALREADY_SO

    def _rule(self, draft: Draft) -> Refusal | None:
        """A new rule needs room; of any other, it must be there."""
        fact = draft.fact
        assert isinstance(fact, RuleSaved | RuleRemoved)
        known = (self._folding.row("rules", ONLY) or NO_RULES).all()
        if isinstance(fact, RuleSaved) and fact.rule == OWN:
            return TOO_MANY_RULES if len(known) >= RULES_MAX else None
        return None if any(rule.id == fact.rule for rule in known) else NO_RULE


def _all_retriable(row: MessageRow, recipients: Sequence[int]) -> bool:
    states = row.states()
    return all(0 <= at < len(states) and states[at].status in RETRIABLE for at in recipients)


Rule = Callable[[Judge, Draft], Refusal | None]

_RULES: dict[type[Fact], Rule] = {
    MessageAccepted: Judge._accepted,
    MessageRejected: Judge._first_fact,
    MessageImported: Judge._first_fact,
    MessageRevised: Judge._revised,
    MessageRequeued: Judge._requeued,
    MessageExpedited: Judge._expedited,
    MessageFailed: Judge._failed,
    ContentErased: Judge._erased,
    AttemptStarted: Judge._started,
    AttemptEnded: Judge._ended,
    AttemptInterrupted: Judge._ended,
    AccountSaved: Judge._saved,
    AccountRemoved: Judge._alive,
    AccountPaused: Judge._paused,
    AccountResumed: Judge._paused,
    AccountThrottled: Judge._throttled,
    AccountSendsImported: Judge._alive,
    RuleSaved: Judge._rule,
    RuleRemoved: Judge._rule,
    BatchFetched: Judge._fetched,
    ResultsReported: Judge._reported,
    ReportRefused: Judge._refused,
    ReportSettled: Judge._settled,
    RetentionPassed: Judge._retention,
    VolumeRemoved: Judge._volume_removed,
}
"""What a kind of fact needs beyond what the lifecycle says."""
