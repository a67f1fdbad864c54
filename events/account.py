"""Facts about accounts (a relay with credentials and limits) and about the relays behind them."""

from typing import Literal

from .fact import Fact

LimitBehavior = Literal["defer", "reject"]
TlsMode = Literal["auto", "none", "starttls-required", "implicit"]
AuthMode = Literal["auto", "plain", "login", "cram-md5"]

IMPLICIT_TLS_PORT = 465
"""Where TLS comes before the greeting (RFC 8314 section 3.3)."""


class AccountSaved(Fact):
    """An account was made or changed. `credentials` is a digest of user and password, which stand with the secrets.

    Limits are SMTP transactions in sliding windows of 60, 3,600 and 86,400 seconds; None is no limit.
    """

    id: str
    host: str
    port: int
    credentials: str
    has_password: bool = False
    tls: TlsMode = "auto"
    tls_verify: bool = True
    tls_ca_file: str | None = None
    auth: AuthMode = "auto"
    limit_per_minute: int | None = None
    limit_per_hour: int | None = None
    limit_per_day: int | None = None
    limit_behavior: LimitBehavior = "defer"
    ttl: int = 300
    batch_size: int | None = None
    max_connections: int | None = None
    max_messages_per_connection: int | None = None
    use_tls: bool | None = None
    by: str = ""


class AccountRemoved(Fact):
    by: str = ""


class AccountPaused(Fact):
    by: str = ""


class AccountResumed(Fact):
    by: str = ""


class AccountThrottled(Fact):
    """The account's limit is used up until `until_us`; the `message` column is the one that had to wait.

    `limit` is that of the window of `window_s` by which it was judged; facts from before it was noted have 0.
    """

    until_us: int
    window_s: int
    limit: int = 0


class AccountSendsImported(Fact):
    """What another service has sent by this account counts against its limits: (second since 1970, how many), in
    order, of the day before."""

    seconds: tuple[tuple[int, int], ...]
    by: str = ""


class RelayUnreachable(Fact):
    """No message can be handed to this relay with these credentials until the next probe at `until_us`."""

    host: str
    port: int
    credentials: str
    reason: str
    until_us: int
    failures: int
    code: int | None = None


class RelayReached(Fact):
    """The relay, known unreachable before, took a connection again."""

    host: str
    port: int
    credentials: str
