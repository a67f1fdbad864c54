"""A random walk through what can happen: whatever admission takes is history, and what it refuses is no matter.

The walker looks at rows that may be old (it keeps what it has seen), as actors do, and asks for things that fit and
things that do not. So the log it makes is one that the service could have made in its worst hour.
"""

import random
import sqlite3
from collections import defaultdict

from events.account import (
    AccountPaused,
    AccountRemoved,
    AccountResumed,
    AccountSendsImported,
    AccountThrottled,
    RelayReached,
    RelayUnreachable,
)
from events.attempt import AttemptEnded, AttemptInterrupted
from events.fact import OWN, Draft, Entry
from events.message import (
    ContentErased,
    DoubtResolved,
    MessageAccepted,
    MessageExpedited,
    MessageFailed,
    MessageHeld,
    MessageImported,
    MessageRejected,
    MessageRequeued,
    MessageRevised,
    MessageWithdrawn,
    RetentionPassed,
)
from events.report import BatchFetched, ReportRefused, ReportSettled, ResultsReported, TokensForgotten
from events.schedule import DispatchActivated, DispatchSuspended, RuleRemoved
from events.values import Outcome
from store.beside import LetterRow
from store.views.messages import PUT_OFF, RETRIABLE, MessageRow
from store.views.rules import RulesRow
from store.writer import Request, Writer

from .building import T0_US, account_saved, rule_saved
from .telling import revise, start

IDS = tuple(f"m{index}" for index in range(12))
PEOPLE = ("ann", "bob", "cyd", "dan")
MINUTE_US = 60_000_000
LETTER = LetterRow(b"{}", b"{}", b"salt")


class Walker:
    """Walks with one Random; `refused` counts the reasons that admission gave."""

    def __init__(self, connection: sqlite3.Connection, chance: random.Random) -> None:
        self.connection = connection
        self.chance = chance
        self.now_us = T0_US
        self.writer = Writer(connection, self._tick)
        self.refused: dict[str, int] = defaultdict(int)
        self.log: list[Entry] = []
        self._seen: dict[int, MessageRow] = {}
        self._tokens = 0
        # Of its own: what meets what in a walk without rules took some tuning.
        self._rules = random.Random(0)
        self._imports = random.Random(0)

    def _tick(self) -> int:
        # Now and then the clock is set back, and now and then nothing happens for a day.
        self.now_us += self.chance.choice((-5 * MINUTE_US, 1, 1_000_000, MINUTE_US, MINUTE_US, 25 * 60 * MINUTE_US))
        return self.now_us

    def walk(self, turns: int) -> None:
        for _ in range(turns):
            requests = [self._request() for _ in range(self.chance.randint(1, 4))]
            requests += [Request((draft,), {}) for draft in self._imported()]
            result = self.writer.turn(requests)
            self.log += result.entries
            for recorded in result.recorded:
                for answer in recorded.answers:
                    if not isinstance(answer, Entry):
                        self.refused[answer.reason] += 1
            self._look()

    def _look(self) -> None:
        """Some rows are seen as they are, others stay as they were seen last."""
        for columns in self.connection.execute("select * from messages"):
            if self.chance.random() < 0.8:
                self._seen[columns[0]] = MessageRow(*columns)

    def _request(self) -> Request:
        if self.chance.random() < 0.8:
            return _with_letters((self._draft(),))
        drafts = [self._draft() for _ in range(self.chance.randint(1, 4))]
        if self.chance.random() < 0.5:
            self._tokens += self.chance.random() < 0.9
            drafts.append(Draft(BatchFetched(token=f"t{self._tokens}", messages=len(drafts))))
        return _with_letters(tuple(drafts), whole=True)

    def _draft(self) -> Draft:
        about_messages = (
            *(self._accept, self._accept, self._revise, self._revise, self._withdraw, self._hold, self._resolve),
            *(self._requeue, self._expedite, self._erase),
            *(self._fail, self._start, self._start, self._start, self._start, self._end, self._end, self._end),
        )
        others = (self._reject, self._account, self._dispatch, self._relay, self._report, self._report, self._retain)
        return self.chance.choice(about_messages if self.chance.random() < 0.8 else others)()

    # What may be asked for

    def _account_number(self) -> int:
        numbers = [number for (number,) in self.connection.execute("select number from accounts")]
        return self.chance.choice(numbers or [99])

    def _row(self) -> MessageRow | None:
        return self.chance.choice(list(self._seen.values())) if self._seen else None

    def _about(self, fact) -> Draft:
        row = self._row()
        return Draft(fact, message=row.number if row else 99, account=row.account if row else None)

    def _due_us(self) -> int:
        return self.now_us + self.chance.choice((-1, 0, 1, MINUTE_US, 3 * MINUTE_US))

    def _people(self, name: str) -> list[str]:
        return [f"{name}:{who}" for who in self.chance.sample(PEOPLE, self.chance.randint(1, len(PEOPLE)))]

    def _accept(self) -> Draft:
        name = self.chance.choice(IDS)
        fact = MessageAccepted(
            id=name, priority=self.chance.randint(0, 3), due_us=self._due_us(), expires_us=2 * T0_US, size=1,
            recipients=tuple(self._people(name)), letter="l",
        )  # fmt: skip
        return Draft(fact, message=OWN, account=self._account_number())

    def _reject(self) -> Draft:
        return Draft(MessageRejected(id=self.chance.choice(IDS), reason="missing to"), message=OWN)

    def _imported(self) -> list[Draft]:
        """Now and then something comes over: a message of its own id or of another's, and what an account has sent."""
        chance, account = self._imports, self._imports.randint(1, 9)
        if chance.random() > 0.1:
            return []
        name, second = chance.choice((*IDS, "i0", "i1", "i2", "i3", "i4")), self.now_us // 1_000_000
        fact = MessageImported(
            id=name,
            ended=chance.choice(("sent", "failed")),
            ended_us=5,
            created_us=3,
            reported=chance.random() < 0.5,
        )
        seconds = tuple(sorted((second - chance.randint(0, 86_399), 1) for _ in range(3)))
        return [Draft(fact, message=OWN), Draft(AccountSendsImported(seconds=seconds), account=account)]

    def _revise(self) -> Draft:
        row = self._row()
        if row is None:
            return self._accept()
        people, reached = self._people(row.id), row.reached_digests()
        reach = [index for index, digest in enumerate(people) if digest not in reached]
        return revise(row.number, row.id, people, reach, self._account_number(), self._due_us())

    def _requeue(self) -> Draft:
        return self._about(MessageRequeued(due_us=self._due_us(), expires_us=2 * T0_US))

    def _expedite(self) -> Draft:
        later = [row for row in self._seen.values() if row.due_cause in PUT_OFF and row.due_us > self.now_us]
        row = self.chance.choice(later) if later else self._row()
        fact = MessageExpedited(due_us=self.now_us)
        return Draft(fact, message=row.number if row else 99, account=row.account if row else None)

    def _erase(self) -> Draft:
        rows = self.chance.sample(list(self._seen.values()), min(len(self._seen), 2))
        return Draft(ContentErased(letters=tuple((row.number, row.revision) for row in rows)))

    def _withdraw(self) -> Draft:
        return self._about(MessageWithdrawn(by="walker"))

    def _hold(self) -> Draft:
        return self._about(MessageHeld(cause="walker"))

    def _fail(self) -> Draft:
        row, cause = self._row(), self.chance.choice(("expired", "quota", "internal"))
        fact = MessageFailed(cause=cause, after_s=9, revision=row.revision if row else None)
        return Draft(fact, message=row.number if row else 99, account=row.account if row else None)

    def _resolve(self) -> Draft:
        resolution = self.chance.choice(("resend", "sent", "error"))
        due_us, expires_us = (self.chance.choice((None, self._due_us())) for _ in range(2))
        return self._about(DoubtResolved(resolution=resolution, due_us=due_us, expires_us=expires_us))

    def _start(self) -> Draft:
        row = self._row()
        if row is None:
            return self._accept()
        open_ = [index for index, state in enumerate(row.states()) if state.status in RETRIABLE]
        if self.chance.random() < 0.1:
            open_ = list(range(len(row.states())))
        return start(row.number, row.revision, open_[: self.chance.randint(1, 3)], row.account or 0)

    def _end(self) -> Draft:
        attempts = self.connection.execute("select attempt, message, account, recipients from attempts").fetchall()
        if not attempts:
            return self._start()
        attempt, message, account, recipients = self.chance.choice(attempts)
        statuses = ("delivered", "delivered", "deferred", "refused", "in_doubt")
        outcomes = tuple(Outcome(int(index), self.chance.choice(statuses), 250) for index in recipients.split())
        kind = self.chance.choice((AttemptEnded, AttemptEnded, AttemptInterrupted))
        then = self._then(message, outcomes)
        due_us = self.chance.choice((self._due_us(), self.now_us + 9_000 * MINUTE_US)) if then == "due" else None
        due_cause = self.chance.choice(("retry", "relay", "more")) if then == "due" else None
        fact = kind(attempt=attempt, outcomes=outcomes, next=then, due_us=due_us, due_cause=due_cause)
        return Draft(fact, message=message, account=account)

    def _then(self, message: int, outcomes: tuple[Outcome, ...]) -> str:
        (columns,) = self.connection.execute("select * from messages where number = ?", (message,))
        statuses = [state.status for state in MessageRow(*columns).states()]
        for outcome in outcomes:
            statuses[outcome.recipient] = outcome.status
        if not RETRIABLE & set(statuses):
            return "done" if set(statuses) == {"delivered"} else "failed"
        return self.chance.choice(("due", "due", "held", "failed"))

    def _account(self) -> Draft:
        number = self._account_number()
        if self.chance.random() < 0.4:
            return account_saved(self.chance.choice(("a", "b", "c")), limit_per_minute=2)
        changed = account_saved("a", limit_per_minute=self.chance.choice((2, 3))).fact
        throttled = AccountThrottled(until_us=self._due_us(), window_s=60, limit=2)
        plain = (AccountPaused(), AccountResumed(), AccountResumed(), AccountRemoved())
        fact = self.chance.choice((*plain, changed, throttled))
        return Draft(fact, account=number)

    def _dispatch(self) -> Draft:
        fact = self.chance.choice((DispatchSuspended(), DispatchActivated(), DispatchActivated()))
        return self._rule() if self._rules.random() < 0.5 else Draft(fact)

    def _rule(self) -> Draft:
        known = self.connection.execute("select rules from rules").fetchone()
        numbers = [0, *(rule.id for rule in RulesRow(0, *known).all())] if known else [0]
        number = self._rules.choice([*numbers, 99])
        removed = number and self._rules.random() < 0.5
        return Draft(RuleRemoved(rule=number)) if removed else rule_saved(rule=number, name=self._rules.choice("ab"))

    def _relay(self) -> Draft:
        host = {"host": self.chance.choice(("r", "R", "q")), "port": 25, "credentials": "c"}
        down = RelayUnreachable(**host, reason="refused", until_us=self.now_us, failures=1)
        return Draft(self.chance.choice((down, RelayReached(**host))))

    def _report(self) -> Draft:
        result = self.chance.randint(1, max(1, self.writer.last_seq))
        match self.chance.randrange(6):
            case 0:
                return Draft(ReportRefused(result=result, again_us=self.now_us))
            case 1:
                refused = [seq for (seq,) in self.connection.execute("select seq from refused order by seq")]
                return Draft(ReportSettled(result=self.chance.choice([*refused, result])))
            case 2:
                return Draft(TokensForgotten(tokens=(f"t{self.chance.randint(0, self._tokens)}",)))
        return Draft(ResultsReported(up_to=self.chance.randint(1, max(1, self.writer.last_seq))))

    def _retain(self) -> Draft:
        cursor = self.connection.execute("select seq from cursors").fetchone()
        return Draft(RetentionPassed(before=self.chance.randint(1, (cursor[0] if cursor else 0) + 2)))


def _with_letters(drafts: tuple[Draft, ...], whole: bool = False) -> Request:
    """A request in which new content has its letter beside it."""
    beside = {at: LETTER for at, draft in enumerate(drafts) if isinstance(draft.fact, MessageAccepted | MessageRevised)}
    return Request(drafts, beside, whole)
