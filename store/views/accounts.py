"""The views `accounts` (by number) and `relays` (by host, port and credentials: accounts may share one)."""

from msgspec import Struct
from msgspec.structs import replace

from events.account import (
    AccountPaused,
    AccountRemoved,
    AccountResumed,
    AccountSaved,
    AccountThrottled,
    RelayReached,
    RelayUnreachable,
)
from events.fact import Entry

from .rows import View


class AccountRow(Struct, frozen=True):
    """An account as of some seq. A removed one keeps its row: its mail and its results still name it."""

    number: int
    id: str
    host: str
    port: int
    credentials: str
    has_password: bool
    tls: str
    tls_verify: bool
    tls_ca_file: str | None
    auth: str
    limit_per_minute: int | None
    limit_per_hour: int | None
    limit_per_day: int | None
    limit_behavior: str
    ttl: int
    batch_size: int | None
    max_connections: int | None
    max_messages_per_connection: int | None
    use_tls: bool | None
    created_us: int
    removed: bool = False
    paused: bool = False
    throttled_until_us: int | None = None

    @property
    def relay(self) -> str:
        return relay_key(self.host, self.port, self.credentials)


def relay_key(host: str, port: int, credentials: str) -> str:
    """One relay as one user sees it: what fails for these credentials may work for others."""
    return f"{host.lower()}:{port} {credentials}"


_ACCOUNT_FACTS = (AccountSaved, AccountRemoved, AccountPaused, AccountResumed, AccountThrottled)
_SAVED = tuple(name for name in AccountSaved.__struct_fields__ if name != "by")


def account_keys(entry: Entry) -> tuple[int, ...]:
    if entry.account is not None and isinstance(entry.fact, _ACCOUNT_FACTS):
        return (entry.account,)
    return ()


def evolve_account(row: AccountRow | None, entry: Entry) -> AccountRow | None:
    match entry.fact:
        case AccountSaved() as fact if entry.account is not None:
            saved = {name: getattr(fact, name) for name in _SAVED}
            if row is None:
                return AccountRow(number=entry.account, created_us=entry.at_us, **saved)
            # New limits are judged anew, so what the old ones had closed is open.
            return replace(row, **saved, throttled_until_us=None)
        case AccountRemoved() if row:
            return replace(row, removed=True, throttled_until_us=None)
        case AccountPaused() if row:
            return replace(row, paused=True)
        case AccountResumed() if row:
            return replace(row, paused=False)
        case AccountThrottled() as fact if row:
            return replace(row, throttled_until_us=fact.until_us)
    return row


ACCOUNTS = View("accounts", 1, AccountRow, _ACCOUNT_FACTS, account_keys, evolve_account)


class RelayRow(Struct, frozen=True):
    """A relay that could not be reached; one that can be has no row."""

    key: str
    until_us: int
    reason: str
    code: int | None
    failures: int
    since_us: int


def relay_keys(entry: Entry) -> tuple[str, ...]:
    match entry.fact:
        case RelayUnreachable() | RelayReached() as fact:
            return (relay_key(fact.host, fact.port, fact.credentials),)
    return ()


def evolve_relay(row: RelayRow | None, entry: Entry) -> RelayRow | None:
    match entry.fact:
        case RelayUnreachable() as fact:
            key = relay_key(fact.host, fact.port, fact.credentials)
            since_us = row.since_us if row else entry.at_us
            return RelayRow(key, fact.until_us, fact.reason, fact.code, fact.failures, since_us)
        case RelayReached():
            return None
    return row


RELAYS = View("relays", 1, RelayRow, (RelayUnreachable, RelayReached), relay_keys, evolve_relay)
