"""Coming over: what the old service has becomes facts of ours, decided item by item, and without touching anything.

An id that the log knows is passed over, so importing twice, or a first time for trial and later in earnest, does no
harm. What was sent is known from here on, so that a client's repeat is `already sent`; what had failed too, and may
come again. Both are results of ours where the old service had not reported them. What waits is judged like a message
that comes in at the door, as of the moment at which the old service took it: so its age counts from then, and what
cannot be taken is a rejection with its reason, and is reported as one.

It cannot know how many retries were made, so they begin anew, and to whom a failed message went, so the same id goes to
everybody, as it did.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import get_args

from msgspec import Struct
from msgspec.structs import replace

from events import payloads
from events.account import AccountSendsImported
from events.commands import Decision, Refused, Reply, Submission
from events.fact import OWN, Draft
from events.message import MessageAccepted, MessageImported, MessageRejected
from events.volume import Backend
from store.beside import Beside, Credentials, Replies
from store.old_service import DAY_S, OldAccount, OldMessage, OldVolume
from store.recorder import BYTES_A_TURN_MAX, FACTS_A_TURN_MAX
from store.secrets import Secrets
from store.writer import Request

from .control import ACCOUNT_ID_CHARACTERS_MAX, save_account
from .ingest import Known, judge
from .parse import ID_CHARACTERS_MAX, NOT_JSON, fault_of_id
from .smtp.reply import TEXT_CHARACTERS_MAX
from .volumes import save_volume

BY = "import"

NO_WORDS = "failed in the service before this one"

LIMIT_BEHAVIORS = ("defer", "reject")

BACKENDS: tuple[str, ...] = get_args(Backend)

PORT = 25
"""Where mail is handed over, if nothing else is said."""


class NotTaken(Struct, frozen=True):
    """Something that does not come over as it was, and why. `recorded`: it is a rejection, and will be reported."""

    what: str
    id: str | None
    reason: str
    recorded: bool = False


class Taken(Struct):
    """What was decided, counted."""

    accounts: int = 0
    volumes: int = 0
    sent: int = 0
    failed: int = 0
    unreported: int = 0
    waiting: int = 0
    overdue: int = 0
    rejected: int = 0
    known: int = 0
    sends: int = 0


class Proposed(Struct, frozen=True):
    """A fact for one item, and what stands beside it."""

    draft: Draft
    beside: Beside | None = None


# Accounts


def account(old: OldAccount, secrets: Secrets) -> Proposed | NotTaken:
    """An account as it will stand. A password alone cannot log in, and never could."""
    behavior = old.limit_behavior if old.limit_behavior in LIMIT_BEHAVIORS else "defer"
    payload = payloads.Account(
        id=old.id,
        host=old.host,
        port=PORT if old.port is None else old.port,
        user=old.user,
        password=old.password if old.user else None,
        ttl=_not_negative(old.ttl),
        limit_per_minute=_not_negative(old.limit_per_minute),
        limit_per_hour=_not_negative(old.limit_per_hour),
        limit_per_day=_not_negative(old.limit_per_day),
        limit_behavior=behavior,  # type: ignore[arg-type]  # one of LIMIT_BEHAVIORS
        use_tls=old.use_tls,
        batch_size=_not_negative(old.batch_size),
    )
    return saved(payload, secrets, BY)


def saved(payload: payloads.Account, secrets: Secrets, by: str) -> Proposed | NotTaken:
    if not _encodable(payload.id, payload.host, payload.user, payload.password):
        return NotTaken("account", payload.id, "it is no UTF-8 text")
    saving = save_account(payload, None, Credentials(), secrets, by)
    if isinstance(saving, Refused):
        return NotTaken("account", payload.id[:ACCOUNT_ID_CHARACTERS_MAX], str(saving))
    return Proposed(Draft(saving.fact, account=OWN), saving.sealed(secrets))


def _not_negative(number: int | None) -> int | None:
    return None if number is None or number < 0 else number


# Volumes


def volume(old: OldVolume, secrets: Secrets) -> Proposed | NotTaken:
    """A volume as it will stand; what its config says beside text is written as text."""
    name = old.name or ""
    if old.backend not in BACKENDS:
        return NotTaken("volume", name, f"there is no backend {old.backend!r}: it is one of {', '.join(BACKENDS)}")
    try:
        config = json.loads(old.config or "{}")
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        return NotTaken("volume", name, "its config is no JSON object")
    texts = {key: None if value is None else str(value) for key, value in config.items()}
    if not _encodable(name, old.account_id, *texts, *texts.values()):
        return NotTaken("volume", None, "it is no UTF-8 text")
    payload = payloads.Volume(name, old.backend, texts, old.account_id)  # type: ignore[arg-type]  # one of BACKENDS
    return saved_volume(payload, secrets, BY)


def saved_volume(payload: payloads.Volume, secrets: Secrets, by: str) -> Proposed | NotTaken:
    saving = save_volume(payload, None, {}, secrets, by)
    if isinstance(saving, Refused):
        return NotTaken("volume", payload.name, str(saving))
    return Proposed(Draft(saving.fact), saving.sealed(secrets))


# Messages


def message(old: OldMessage, known: Known) -> Proposed | NotTaken:
    """The fact that a message becomes; `known` is as of now."""
    if (fault := fault_of_id(old.id)) is not None:
        return NotTaken("message", old.id and old.id[:ID_CHARACTERS_MAX], fault.answer)
    if not _encodable(old.id):
        return NotTaken("message", None, "its id is no UTF-8 text")
    created_us = min(known.now_us, known.now_us if old.created_us is None else old.created_us)
    return _waiting(old, known, created_us) if old.ended_us is None else _ended(old, known, created_us)


def _ended(old: OldMessage, known: Known, created_us: int) -> Proposed:
    fact = MessageImported(
        id=old.id or "",
        ended="sent" if old.sent else "failed",
        ended_us=min(known.now_us, old.ended_us or 0),
        created_us=min(created_us, old.ended_us or 0),
        priority=_priority(old, known),
        reported=old.reported,
        by=BY,
    )
    words = None if old.sent else Replies(((0, _cleaned(old.error) or NO_WORDS),))
    return Proposed(Draft(fact, message=OWN, account=known.accounts.get(old.account_id or "")), words)


def _waiting(old: OldMessage, known: Known, created_us: int) -> Proposed | NotTaken:
    """Judged as of when it was taken; so what was asked for may have passed, and then it is due."""
    if (raw := _raw(old, known)) is None:
        return Proposed(Draft(MessageRejected(id=old.id or "", reason=NOT_JSON, by=BY), message=OWN))
    decided = judge(raw, Submission((), BY, Reply()), None, replace(known, now_us=created_us))
    if isinstance(decided, Decision):
        return NotTaken("message", old.id, decided.reason or "")
    fact = decided.draft.fact
    if isinstance(fact, MessageAccepted):
        asked_us = fact.asked_us if fact.due_us > known.now_us else None
        fact = replace(fact, created_us=created_us, asked_us=asked_us)
        return Proposed(replace(decided.draft, fact=fact), decided.letter)
    assert isinstance(fact, MessageRejected)
    return Proposed(decided.draft)


def _raw(old: OldMessage, known: Known) -> bytes | None:
    """The message as a client would send it: what the old service kept in columns of its own counts before its
    payload. None where that cannot be read."""
    try:
        payload = json.loads(old.payload or "")
    except (ValueError, RecursionError):
        return None
    if not isinstance(payload, dict):
        return None
    payload |= {"id": old.id, "priority": _priority(old, known)}
    payload["account_id"] = payload.get("account_id") or old.account_id
    payload["deferred_ts"] = None if old.deferred_us is None else old.deferred_us / 1_000_000
    return json.dumps(payload).encode()


def _priority(old: OldMessage, known: Known) -> int:
    default = known.policy.default_priority
    return max(0, min(3, default if old.priority is None else old.priority))


def _cleaned(text: str | None) -> str:
    """An error's words on one line, as a relay's are kept."""
    words = "".join(sign if sign.isprintable() else " " for sign in text or "")
    return " ".join(words.split())[:TEXT_CHARACTERS_MAX].encode("utf-8", "replace").decode()


def _encodable(*texts: str | None) -> bool:
    try:
        "".join(filter(None, texts)).encode()
    except UnicodeEncodeError:
        return False
    return True


# What counts against limits


def sends(of_account: Mapping[int, int], imported_up_to_s: int, account_number: int) -> Proposed | None:
    """What an account has sent since what was imported of it before."""
    seconds = tuple(sorted((second, n) for second, n in of_account.items() if second > imported_up_to_s))
    if not seconds:
        return None
    return Proposed(Draft(AccountSendsImported(seconds=seconds[-DAY_S:], by=BY), account=account_number))


# Parts of one transaction


def requests(proposed: Iterable[Proposed]) -> Iterator[Request]:
    """The facts in parts that memory can hold: as much as a turn of the service."""
    part: list[Proposed] = []
    size = 0
    for each in proposed:
        part.append(each)
        size += each.beside.size if each.beside else 0
        if len(part) >= FACTS_A_TURN_MAX or size >= BYTES_A_TURN_MAX:
            yield _request(part)
            part, size = [], 0
    if part:
        yield _request(part)


def _request(part: list[Proposed]) -> Request:
    beside = {at: each.beside for at, each in enumerate(part) if each.beside is not None}
    return Request([each.draft for each in part], beside, whole=True)
