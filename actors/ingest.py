"""Ingest decides what is taken: every submission that waits is judged, recorded and answered here, item by item.

It promises that an id is accepted once, however often and from however many sides it comes; that an answer follows
what is on disk; that a bug in one item is that item's rejection and nobody else's. It cannot know beforehand what
the log knows of an id, and does not ask: how it works is optimistic.

The first judgement takes every id for a new one. Admission, inside the transaction, hands back what is known already
with the row it was judged by, and such an item is judged once more from that row: sent already, in flight, or new
content for the same number. That answer may be out of date again when it is recorded, so there are ROUNDS_MAX
rounds; whoever is still undecided is dropped and the door says 503. Where two items of one record call have the same
id, the second is handed back with the row that the first made, so the later content stands.

Accounts are kept as of the last look. An account that is not among them is looked for again before its message is
refused; one that is gone meanwhile makes admission hand the message back, and then they are looked up too.

Within one batch the last item of an id counts, and the earlier ones are passed over, unless the batch is a cut of a
stream (`apart`): then each is judged, the later one from the row that the earlier made. A batch with a token is one
record, all or nothing: its token is in the same commit, and a token seen before stores nothing.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec
import trio
from msgspec import Struct
from msgspec.structs import replace

from events.commands import Decision, Submission
from events.fact import OWN, Draft, Entry
from events.lifecycle import ALREADY_SENT, Refusal, follow
from events.message import MessageAccepted, MessageRejected, MessageRevised
from events.report import BatchFetched
from store import reading
from store.admission import NO_ACCOUNT, TOKEN_SEEN
from store.beside import LetterRow
from store.opening import Store
from store.recorder import BYTES_A_TURN_MAX, FACTS_A_TURN_MAX, NotRecorded
from store.secrets import Secrets
from store.views.clock import BELIEVED, ClockRow
from store.views.messages import MessageRow
from store.worklists import living_accounts
from store.writer import Declined

from .parse import (
    ACCOUNT_NOT_FOUND,
    INVALID_VOLUMES,
    NO_DEFAULT_ACCOUNT,
    Fault,
    Parsed,
    Policy,
    Volumes,
    message_id,
    parse,
)

logger = logging.getLogger("letterbook.ingest")

ROUNDS_MAX = 3
"""Each round but the first needs somebody else to have changed the same message in between."""

SLICE = 100
"""So many items take some 5 ms to judge; then whoever else waits in this thread has a turn."""

INTERNAL_ERROR = "internal error"

_encode = msgspec.json.encode


class Proposal(Struct, frozen=True):
    """A fact that is to be recorded for an item, with the letter that stands beside it; `words` are what the client
    is told where the fact must not hold them; `volumes` whether the letter names any."""

    draft: Draft
    letter: LetterRow | None = None
    words: str | None = None
    volumes: bool = False

    @property
    def size(self) -> int:
        return self.letter.size if self.letter else 0


class Known(Struct, frozen=True):
    """What a judgement rests on: the policy, the living accounts (id to number), the digests' keys, the moment, on
    which side of the clock's steps it is, whether the clock is believed, and whom each volume serves."""

    policy: Policy
    accounts: Mapping[str, int]
    secrets: Secrets
    now_us: int
    ahead_us: int = 0
    clock: ClockRow = BELIEVED
    volumes: Volumes = {}


def judge(
    raw: bytes | msgspec.Raw, submission: Submission, row: MessageRow | None, known: Known
) -> Proposal | Decision:
    """What becomes of an item, given the row of the message that has its id (None: the id is taken for a new one)."""
    parsed = parse(
        raw,
        policy=known.policy,
        accounts=known.accounts,
        now_us=known.now_us,
        default_priority=submission.default_priority,
        clock=known.clock,
        volumes=known.volumes,
    )
    if isinstance(parsed, Fault):
        return reject(parsed, row, submission.by)
    return _accept(parsed, submission.by, known) if row is None else _revise(parsed, row, submission.by, known)


def reject(fault: Fault, row: MessageRow | None, by: str) -> Proposal | Decision:
    """A rejection is recorded only where the log does not know the id; a known message stands untouched."""
    if fault.id is None:
        return Decision(None, reason=fault.answer, recorded=False)
    if row is not None:
        return Decision(fault.id, reason=_closed(row) or fault.answer, recorded=False)
    fact = MessageRejected(id=fault.id, reason=fault.reason, field=fault.field, by=by)
    return Proposal(Draft(fact, message=OWN), words=fault.answer)


def _closed(row: MessageRow) -> str | None:
    """Why the same id cannot be taken again in this state, whatever it brings."""
    refusal = follow(row.state, "MessageRevised")
    return str(refusal) if isinstance(refusal, Refusal) else None


def _accept(parsed: Parsed, by: str, known: Known) -> Proposal:
    letter, digest = _letter(parsed, known.secrets)
    fact = MessageAccepted(
        id=parsed.id,
        priority=parsed.priority,
        due_us=parsed.due_us,
        expires_us=parsed.expires_us,
        size=parsed.size,
        recipients=_digests(parsed, known.secrets),
        letter=digest,
        by=by,
        asked_us=parsed.asked_us,
    )
    return Proposal(
        Draft(fact, message=OWN, account=known.accounts[parsed.account_id]), letter, volumes=_names_volumes(parsed)
    )


def _revise(parsed: Parsed, row: MessageRow, by: str, known: Known) -> Proposal | Decision:
    if closed := _closed(row):
        return Decision(parsed.id, reason=closed, recorded=False)
    recipients = _digests(parsed, known.secrets)
    reached = row.reached_digests()
    reach = tuple(index for index, digest in enumerate(recipients) if digest not in reached)
    if not reach:
        return Decision(parsed.id, reason=str(ALREADY_SENT), recorded=False)
    letter, digest = _letter(parsed, known.secrets)
    fact = MessageRevised(
        id=parsed.id,
        priority=parsed.priority,
        due_us=parsed.due_us,
        expires_us=parsed.expires_us,
        size=parsed.size,
        recipients=recipients,
        reach=reach,
        letter=digest,
        by=by,
        asked_us=parsed.asked_us,
    )
    return Proposal(
        Draft(fact, message=row.number, account=known.accounts[parsed.account_id]),
        letter,
        volumes=_names_volumes(parsed),
    )


def _names_volumes(parsed: Parsed) -> bool:
    return any(each.storage_path for each in parsed.letter.attachments)


def _digests(parsed: Parsed, secrets: Secrets) -> tuple[str, ...]:
    return tuple([secrets.recipient_digest(parsed.id, canonical) for canonical in parsed.canonical])


def _letter(parsed: Parsed, secrets: Secrets) -> tuple[LetterRow, str]:
    """The letter as it is stored, and its digest for the log."""
    salt, content = secrets.salt(), _encode(parsed.letter)
    return LetterRow(_encode(parsed.envelope), content, salt), secrets.letter_digest(salt, content)


def superseded(ids: Sequence[str | None]) -> frozenset[int]:
    """The positions of items whose id comes again later in the batch."""
    last = {identity: position for position, identity in enumerate(ids) if identity}
    return frozenset(position for position, identity in enumerate(ids) if identity and last[identity] != position)


class _Work:
    """A submission in the making: its ids and the decisions so far. The last one, after `release`, is the answer."""

    def __init__(self, submission: Submission, ids: Sequence[str | None]) -> None:
        self.submission = submission
        self.ids = ids
        self._decisions: list[Decision | None] = [None] * len(ids)
        # One more than there are items: a batch is not answered while its token may still have to be recorded.
        self._open = len(ids) + 1

    def put(self, position: int, decision: Decision) -> None:
        self._decisions[position] = decision
        self.release()

    def release(self) -> None:
        self._open -= 1
        if not self._open:
            self.submission.reply.put(tuple(each for each in self._decisions if each is not None))


class _Case(Struct, eq=False):
    """One item on its way to a decision: what is proposed for it, and the row that this rests on."""

    work: _Work
    position: int
    proposal: Proposal | None = None
    row: MessageRow | None = None

    @property
    def id(self) -> str | None:
        return self.work.ids[self.position]

    def put(self, decision: Decision) -> None:
        self.work.put(self.position, decision)

    def recorded(self, entry: Entry) -> None:
        fact = entry.fact
        if isinstance(fact, MessageRejected):
            words = self.proposal.words if self.proposal else None
            self.put(Decision(self.id, reason=words or fact.reason, seq=entry.seq))
        else:
            self.put(Decision(self.id, number=entry.message, seq=entry.seq))


Judge = Callable[[bytes | msgspec.Raw, Submission, MessageRow | None, Known], Proposal | Decision]


async def run_ingest(
    submissions: trio.MemoryReceiveChannel[Submission],
    store: Store,
    policy: Policy,
    clock_row: Callable[[], ClockRow] = lambda: BELIEVED,
    judge: Judge = judge,
) -> None:
    """Take submissions until their channel is closed. Each is answered once, or its reply is dropped. `clock_row` says
    whether the clock is believed."""
    ingest = Ingest(store, policy, clock_row, judge)
    async for first in submissions:
        taken = [first, *_waiting(submissions)]
        try:
            await ingest.take(taken)
        finally:
            for submission in taken:
                submission.reply.drop()


def _waiting(submissions: trio.MemoryReceiveChannel[Submission]) -> Iterator[Submission]:
    while True:
        try:
            yield submissions.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            return


class Ingest:
    """The actor's one piece of state: the accounts as of the last look."""

    def __init__(
        self,
        store: Store,
        policy: Policy,
        clock_row: Callable[[], ClockRow] = lambda: BELIEVED,
        judge: Judge = judge,
    ) -> None:
        self._store = store
        self._clock_row = clock_row
        self._judge_item = judge
        self._known = Known(policy, {}, store.secrets, 0)
        self._looked = False

    async def take(self, taken: Sequence[Submission]) -> None:
        """Judge, record and answer: the urgent first, each in order. What cannot be recorded is left unanswered."""
        self._looked = False
        self._look_at_clock()
        try:
            for urgent in (True, False):
                plain = [each for each in taken if each.urgent == urgent and each.token is None]
                await self._take_plain(plain, urgent)
            for submission in taken:
                if submission.token is not None:
                    await self._take_whole(submission)
        except NotRecorded as error:
            logger.info("%d submissions were not taken: %s", len(taken), error)

    def _look_at_clock(self) -> None:
        clock = self._store.clock
        self._known = replace(self._known, now_us=clock.now_us(), ahead_us=clock.ahead_us(), clock=self._clock_row())

    async def _in_time(self, cases: Sequence[_Case]) -> Sequence[_Case]:
        """The cases as they are judged by the clock of this moment: again, where it has stepped meanwhile. What is
        recorded right after it stands on the same side of the step in the log."""
        while self._known.ahead_us != self._store.clock.ahead_us():
            self._look_at_clock()
            cases = [case for case in cases if await self._propose(case)]
        return cases

    async def _take_plain(self, submissions: Sequence[Submission], urgent: bool) -> None:
        """Bounded commits: a turn of the recorder may hold so much, and one record is never split."""
        batch: list[_Case] = []
        size = 0
        for submission in submissions:
            work = _Work(submission, self._ids(submission))
            work.release()
            for case in self._cases(work):
                if not await self._propose(case):
                    continue
                batch.append(case)
                size += case.proposal.size if case.proposal else 0
                if len(batch) >= FACTS_A_TURN_MAX or size >= BYTES_A_TURN_MAX:
                    await self._settle(batch, urgent)
                    batch, size = [], 0
        await self._settle(batch, urgent)

    def _cases(self, work: _Work) -> Iterator[_Case]:
        """The items that count; the others are answered at once, with neither number nor reason."""
        passed_over = frozenset[int]() if work.submission.apart else superseded(work.ids)
        for position, identity in enumerate(work.ids):
            if position in passed_over:
                work.put(position, Decision(identity, recorded=False))
            else:
                yield _Case(work, position)

    async def _propose(self, case: _Case) -> bool:
        """Judge a case; whether it now has something to record. Else it has been answered."""
        if case.position % SLICE == SLICE - 1:
            await trio.lowlevel.checkpoint()
        judgement = self._judge(case)
        if not self._looked and (_lacks_account(judgement) or _rests_on_volumes(judgement)):
            await self._look_up()
            judgement = self._judge(case)
        if isinstance(judgement, Decision):
            case.proposal = None
            case.put(judgement)
            return False
        case.proposal = judgement
        return True

    async def _look_up(self) -> None:
        accounts, volumes = await self._store.read(_accounts_and_volumes)
        self._known = replace(self._known, accounts=accounts, volumes=volumes)
        self._looked = True

    def _ids(self, submission: Submission) -> list[str | None]:
        return [self._id(raw) for raw in submission.items]

    def _id(self, raw: bytes | msgspec.Raw) -> str | None:
        try:
            return message_id(raw)
        except Exception:  # the item is judged later, and that judgement is guarded too
            logger.exception("an item's id could not be read, incident %s", self._incident())
            return None

    def _judge(self, case: _Case) -> Proposal | Decision:
        """Under guard: what should not happen in here is this one item's rejection, with a line to find it by."""
        submission = case.work.submission
        try:
            return self._judge_item(submission.items[case.position], submission, case.row, self._known)
        except Exception:  # a bug must not take the rest of the batch with it
            logger.exception("an item could not be judged, incident %s", self._incident())
            return reject(Fault(case.id, INTERNAL_ERROR), case.row, submission.by)

    def _incident(self) -> str:
        return self._store.secrets.salt()[:4].hex()

    async def _settle(self, cases: Sequence[_Case], urgent: bool) -> None:
        """Record the cases; whoever is handed back is judged again from the row that it was judged by."""
        for _ in range(ROUNDS_MAX):
            cases = await self._in_time(cases)
            if not cases:
                return
            recorded = await self._store.record(_drafts(cases), beside=_letters(cases), urgent=urgent)
            again = []
            for case, answer in zip(cases, recorded.answers, strict=True):
                if isinstance(answer, Entry):
                    case.recorded(answer)
                else:
                    self._learn(case, answer)
                    again.append(case)
            cases = [case for case in again if await self._propose(case)]
        for case in cases:
            case.work.submission.reply.drop()

    def _learn(self, case: _Case, declined: Declined) -> None:
        case.row = declined.row
        if declined.reason == NO_ACCOUNT:
            self._known = replace(self._known, accounts={})
            self._looked = False

    async def _take_whole(self, submission: Submission) -> None:
        """All or nothing, with the token in the same commit; answered when it is on disk."""
        work = _Work(submission, self._ids(submission))
        cases = [case for case in self._cases(work) if await self._propose(case)]
        fetched = Draft(BatchFetched(token=submission.token or "", messages=len(work.ids)))
        if await self._record_whole(fetched, cases):
            work.release()
        else:
            submission.reply.drop()

    async def _record_whole(self, fetched: Draft, cases: Sequence[_Case]) -> bool:
        """Whether all of it is stored now, by this commit or by an earlier one with this token."""
        for _ in range(ROUNDS_MAX):
            cases = await self._in_time(cases)
            recorded = await self._store.record([fetched, *_drafts(cases)], beside=_letters(cases, 1), whole=True)
            token, *answers = recorded.answers
            if isinstance(token, Declined) and token.reason == TOKEN_SEEN:
                for case in cases:
                    case.put(Decision(case.id, recorded=False))
                return True
            if recorded.complete:
                for case, answer in zip(cases, answers, strict=True):
                    assert isinstance(answer, Entry)
                    case.recorded(answer)
                return True
            cases = [case for case, answer in zip(cases, answers, strict=True) if await self._still(case, answer)]
        return False

    async def _still(self, case: _Case, answer: Entry | Declined) -> bool:
        """Whether a case of an incomplete batch has something to record in the next round."""
        if isinstance(answer, Declined) and (answer.row is not None or answer.reason == NO_ACCOUNT):
            self._learn(case, answer)
            return await self._propose(case)
        return True


def _lacks_account(judgement: Proposal | Decision) -> bool:
    if isinstance(judgement, Decision):
        return judgement.reason in (ACCOUNT_NOT_FOUND, NO_DEFAULT_ACCOUNT)
    fact = judgement.draft.fact
    return isinstance(fact, MessageRejected) and fact.reason in (ACCOUNT_NOT_FOUND, NO_DEFAULT_ACCOUNT)


def _rests_on_volumes(judgement: Proposal | Decision) -> bool:
    """Volumes are looked up for each taking that names one: nothing else would notice that one is gone, or new."""
    if isinstance(judgement, Decision):
        return (judgement.reason or "").startswith(INVALID_VOLUMES)
    fact = judgement.draft.fact
    return judgement.volumes or isinstance(fact, MessageRejected) and fact.reason.startswith(INVALID_VOLUMES)


def _accounts_and_volumes(connection: reading.Connection) -> tuple[dict[str, int], dict[str, str | None]]:
    return living_accounts(connection), {row.name: row.account_id for row in reading.volumes(connection)}


def _drafts(cases: Sequence[_Case]) -> list[Draft]:
    return [case.proposal.draft for case in cases if case.proposal]


def _letters(cases: Sequence[_Case], first: int = 0) -> dict[int, LetterRow]:
    """The letters by the position of their drafts, the first case's draft being at `first`."""
    return {
        index: case.proposal.letter
        for index, case in enumerate(cases, first)
        if case.proposal and case.proposal.letter is not None
    }
