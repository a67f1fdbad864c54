"""What an operator can set: the one table of keys.

Each key has its type, its kind (how its text is read), the sentence that stands beside it in config.ini and
docs/configuration.md, and its default. The loader walks this table, and a test holds both files against it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import msgspec
from msgspec import Struct

from events import payloads

from .config_kinds import (
    DELAYS,
    ENDPOINT,
    HOST,
    NETWORKS,
    PATH,
    PRIORITY,
    RULES,
    SECONDS,
    SECRET,
    SWITCH,
    TEXT,
    TIMEZONE,
    URL,
    Kind,
    Network,
    Secret,
    choice,
    seconds,
    whole,
)

ENVIRONMENT_PREFIX = "LETTERBOOK_"


class Key(NamedTuple):
    """What the annotation of a key carries beside its type."""

    kind: Kind
    sentence: str


class Server(Struct, frozen=True):
    """The HTTP door."""

    host: Annotated[str, Key(HOST, "Address that the API listens on; without api_token only a loopback one.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, Key(whole(0, 65535), "Port of the API; 0 takes a free one and logs it.")] = 8000
    api_token: Annotated[Secret, Key(SECRET, "Token that clients show; empty: everyone on this machine may call.")] = (
        Secret("")
    )
    sync_token: Annotated[
        Secret, Key(SECRET, "Token that an upstream shows in POST /commands/proxy-sync; empty: none may call it.")
    ] = Secret("")
    max_body_mb: Annotated[int, Key(whole(1), "Largest body of one request, in MB.")] = 64
    body_memory_mb: Annotated[int, Key(whole(1), "All bodies together that are in memory at one time, in MB.")] = 256
    drain_seconds: Annotated[
        float, Key(SECONDS, "How long a stop waits for requests and attempts that are under way.")
    ] = 25.0
    max_backlog: Annotated[
        int, Key(whole(0), "Messages not yet final at which accepting answers 503; 0: no limit.")
    ] = 1_000_000


class Storage(Struct, frozen=True):
    """The log and what stands beside it."""

    db_path: Annotated[Path, Key(PATH, "The SQLite file that holds everything; .lock and .mark stand beside it.")] = (
        Path("letterbook.db")
    )
    key_file: Annotated[
        Path, Key(PATH, "Key that passwords are encrypted with; made with a new log, so keep it with every backup.")
    ] = Path("letterbook.key")
    min_free_mb: Annotated[
        int, Key(whole(0), "Free space on the disk, in MB, below which accepting and dispatch pause.")
    ] = 256
    wal_mb_max: Annotated[
        int, Key(whole(5), "Size of the write-ahead file, in MB, at which the writer itself makes room.")
    ] = 16


class Smtp(Struct, frozen=True):
    """The default account, for messages that name none."""

    host: Annotated[str | None, Key(HOST, "Relay that takes the mail; empty: there is no default account.")] = None
    port: Annotated[int, Key(whole(1, 65535), "Port of the relay.")] = 25
    user: Annotated[str | None, Key(TEXT, "Name to log in with; empty: without login.")] = None
    password: Annotated[Secret, Key(SECRET, "Password to log in with.")] = Secret("")
    use_tls: Annotated[
        bool | None,
        Key(SWITCH, "true: implicit TLS on port 465, elsewhere STARTTLS required; false or empty: as tls = auto."),
    ] = None
    tls: Annotated[
        Literal["auto", "none", "starttls-required", "implicit"] | None,
        Key(choice("auto", "none", "starttls-required", "implicit"), "How the connection is secured, before use_tls."),
    ] = None
    auth: Annotated[
        Literal["auto", "plain", "login", "cram-md5"],
        Key(choice("auto", "plain", "login", "cram-md5"), "How to log in; auto: the best that the relay offers."),
    ] = "auto"
    ehlo_name: Annotated[str | None, Key(HOST, "Name given in EHLO, by every account; empty: this machine's.")] = None
    message_id_domain: Annotated[
        str | None, Key(HOST, "Right side of the Message-IDs made here; empty: the domain of the sender.")
    ] = None


class Fetch(Struct, frozen=True):
    """The upstream that mail is fetched from and results are reported to, one at a time."""

    url: Annotated[str | None, Key(URL, "Address below which /fetch-messages and /delivery-report stand.")] = None
    interval_seconds: Annotated[float, Key(seconds(0.1), "Time between two fetches.")] = 60.0


class Client(Struct, frozen=True):
    """The upstream that results are reported to in batches, or that mail and results are exchanged with."""

    client_sync_url: Annotated[str | None, Key(ENDPOINT, "Address that results are posted to, many at a time.")] = None
    client_sync_user: Annotated[str | None, Key(TEXT, "Name to show there and at proxy_sync_url.")] = None
    client_sync_password: Annotated[Secret, Key(SECRET, "Password to show with it.")] = Secret("")
    client_sync_token: Annotated[Secret, Key(SECRET, "Bearer token to show instead of name and password.")] = Secret("")
    proxy_sync_url: Annotated[
        str | None, Key(ENDPOINT, "Address that mail and results are exchanged with; not beside client_sync_url.")
    ] = None
    batch: Annotated[int, Key(whole(1, 10_000), "Results in one request, at most.")] = 1000


class Scheduler(Struct, frozen=True):
    """When dispatch happens."""

    active: Annotated[
        bool, Key(SWITCH, "Whether a new log starts dispatching; later only suspend and activate count.")
    ] = True
    timezone: Annotated[str, Key(TIMEZONE, "Time zone that hours and days of rules are meant in.")] = "UTC"
    rules: Annotated[
        tuple[payloads.Rule, ...],
        Key(RULES, "Rules that a new log starts with; later only the API's count. Empty: mail goes as it is due."),
    ] = ()


class Delivery(Struct, frozen=True):
    """How mail is accepted, sent, tried again and kept."""

    max_message_mb: Annotated[int, Key(whole(1), "Largest message as sent, attachments encoded, in MB.")] = 50
    send_interval_seconds: Annotated[float, Key(seconds(0.05), "Longest sleep between two looks for due mail.")] = 5.0
    default_priority: Annotated[int, Key(PRIORITY, "Priority of a message that gives none.")] = 2
    max_retries: Annotated[int, Key(whole(0, 1000), "Retries after the first attempt.")] = 5
    retry_delays: Annotated[
        tuple[float, ...], Key(DELAYS, "Seconds before each retry, with 10 % of chance; the last one repeats.")
    ] = (60.0, 300.0, 900.0, 3600.0, 7200.0)
    in_doubt: Annotated[
        Literal["resend", "hold"],
        Key(choice("resend", "hold"), "What becomes of mail that the relay may have taken without saying so."),
    ] = "resend"
    in_doubt_max: Annotated[int, Key(whole(1, 1000), "Attempts in doubt after which a message is held anyway.")] = 2
    max_age_seconds: Annotated[float, Key(seconds(1), "Age at which mail not yet delivered fails.")] = 432_000.0
    max_batch: Annotated[int, Key(whole(1, 100_000), "Messages in one JSON request.")] = 1000
    send_wait_seconds: Annotated[float, Key(SECONDS, "How long send-message waits for the first outcome.")] = 30.0
    max_connections: Annotated[int, Key(whole(1, 10_000), "Connections to relays, all accounts together.")] = 32
    batch_size_per_account: Annotated[int, Key(whole(1, 100), "Messages of one account before the next one's.")] = 1
    test_mode: Annotated[
        bool, Key(SWITCH, "Fetching and reporting wait for run-now, each time; for tests of an application.")
    ] = False
    delivery_report_retention_seconds: Annotated[
        float, Key(SECONDS, "How long letters and results are kept once their results are reported.")
    ] = 604_800.0


class Attachments(Struct, frozen=True):
    """What letters name elsewhere (URLs, buckets, volumes), fetched when they are sent."""

    timeout_seconds: Annotated[float, Key(seconds(0.1), "How long all attachments of a message may take together.")] = (
        30.0
    )
    max_mb: Annotated[int, Key(whole(1), "Largest attachment that is fetched, after any Content-Encoding, in MB.")] = 25
    max_total_mb: Annotated[int, Key(whole(1), "All fetched attachments of one message together, in MB.")] = 50
    memory_mb: Annotated[int, Key(whole(1), "What all messages that are being sent have fetched, in MB.")] = 250
    allow_private_networks: Annotated[
        tuple[Network, ...],
        Key(NETWORKS, "Networks that may be reached although they are not public; empty: none."),
    ] = ()


class Metrics(Struct, frozen=True):
    """What GET /metrics shows."""

    legacy_prefix: Annotated[
        Literal["asyncmail", "gmp"],
        Key(choice("asyncmail", "gmp"), "Prefix of the five metrics that older dashboards read."),
    ] = "asyncmail"


class Logging(Struct, frozen=True):
    """The service's own lines, on standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Key(choice("debug", "info", "warning", "error"), "Least weight of a line that is written."),
    ] = "info"
    format: Annotated[
        Literal["text", "json"], Key(choice("text", "json"), "Lines for people, or one JSON object a line.")
    ] = "text"
    delivery_activity: Annotated[
        bool, Key(SWITCH, "One line of level info for each message that is sent, fails or is withdrawn.")
    ] = True


class Volume(Struct, frozen=True):
    """A place that attachments are taken from, as [volumes] describes it; `config` holds its secrets."""

    name: str
    backend: Literal["s3", "gcs", "azure", "local", "http", "webdav", "memory"]
    config: dict[str, str]
    account_id: str | None = None

    def __repr__(self) -> str:
        return f"Volume({self.name!r}, {self.backend!r})"


VOLUMES_SENTENCE = "Places that attachments are taken from, three keys each; NAME is of your choice, in small letters."

VOLUME_KEYS: dict[str, str] = {
    "backend": "s3, gcs, azure, local, http, webdav or memory.",
    "config": "A JSON object in one line: where the volume is and how to get in; may stand in a file of its own.",
    "account_id": "The one account that may use it; empty: every account may.",
}
"""The keys of a volume, `volume.NAME.backend` and so on, with their sentences."""


class Config(Struct, frozen=True):
    """The whole configuration, every key with a value."""

    server: Server = Server()
    storage: Storage = Storage()
    smtp: Smtp = Smtp()
    fetch: Fetch = Fetch()
    client: Client = Client()
    scheduler: Scheduler = Scheduler()
    delivery: Delivery = Delivery()
    attachments: Attachments = Attachments()
    metrics: Metrics = Metrics()
    logging: Logging = Logging()
    volumes: tuple[Volume, ...] = ()


class Entry(NamedTuple):
    """One row of the table of keys."""

    section: str
    name: str
    kind: Kind
    sentence: str
    default: Any

    @property
    def variable(self) -> str:
        return f"{ENVIRONMENT_PREFIX}{self.section}_{self.name}".upper()


def _sections() -> list[msgspec.structs.FieldInfo]:
    """All but [volumes], whose keys hold names that the operator chooses."""
    return [field for field in msgspec.structs.fields(Config) if isinstance(field.default, Struct)]


def _entries() -> Iterator[Entry]:
    for section in _sections():
        for key in msgspec.structs.fields(section.type):
            _, annotation = get_args(key.type)
            yield Entry(section.name, key.name, annotation.kind, annotation.sentence, key.default)


KEYS: tuple[Entry, ...] = tuple(_entries())
"""Every key, in the order of the file."""

SECTIONS: dict[str, type[Struct]] = {field.name: field.type for field in _sections()}
