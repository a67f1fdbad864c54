"""The names of the service that this one replaces: its environment variables, and what its config.ini could say.

One table. The loader takes a variable where nothing of ours says the same, with a line for each; the page for whoever
comes over is made from it. Sections and keys of the old config.ini are ours, but for those in OLD_KEYS that a release
does not have: they are passed over with a line, where an unknown key of anybody else's stops the start.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

PREFIX = "GMP_"

CONFIG_VARIABLE = "GMP_CONFIG"
"""Names the configuration file; LETTERBOOK_CONFIG does so here."""

Place = tuple[str, str]
"""A section and a key."""


class OldName(NamedTuple):
    """A variable of the old service, and the key that says the same here."""

    variable: str
    section: str
    key: str

    @property
    def place(self) -> Place:
        return self.section, self.key


OLD_NAMES = tuple(
    OldName(f"{PREFIX}{name}", section, key)
    for name, section, key in (
        ("DB_PATH", "storage", "db_path"),
        ("HOST", "server", "host"),
        ("PORT", "server", "port"),
        ("API_TOKEN", "server", "api_token"),
        ("SCHEDULER_ACTIVE", "scheduler", "active"),
        ("START_ACTIVE", "scheduler", "active"),
        ("CLIENT_SYNC_URL", "client", "client_sync_url"),
        ("CLIENT_SYNC_USER", "client", "client_sync_user"),
        ("CLIENT_SYNC_PASSWORD", "client", "client_sync_password"),
        ("CLIENT_SYNC_TOKEN", "client", "client_sync_token"),
        ("FETCH_URL", "fetch", "url"),
        ("SYNC_INTERVAL", "fetch", "interval_seconds"),
        ("SEND_LOOP_INTERVAL", "delivery", "send_interval_seconds"),
        ("SEND_INTERVAL", "delivery", "send_interval_seconds"),
        ("TEST_MODE", "delivery", "test_mode"),
        ("DEFAULT_PRIORITY", "delivery", "default_priority"),
        ("DELIVERY_REPORT_RETENTION_SECONDS", "delivery", "delivery_report_retention_seconds"),
        ("BATCH_SIZE_PER_ACCOUNT", "delivery", "batch_size_per_account"),
        ("MAX_RETRIES", "delivery", "max_retries"),
        ("RETRY_DELAYS", "delivery", "retry_delays"),
        ("MAX_ENQUEUE_BATCH", "delivery", "max_batch"),
        ("LOG_LEVEL", "logging", "level"),
        ("LOG_DELIVERY_ACTIVITY", "logging", "delivery_activity"),
    )
)
"""In the order in which they count, where two say the same."""

OLD_KEYS = frozenset(name.place for name in OLD_NAMES)


class Taken(NamedTuple):
    """What the old variables say: text and variable by the place that it is for, and a line for each variable."""

    values: dict[Place, str]
    variables: dict[Place, str]
    lines: list[str]


def from_old_environment(environ: Mapping[str, str], ours: Collection[Place], is_set: Collection[Place]) -> Taken:
    """Take the old variables for the places of ours that nothing has set."""
    taken = Taken({}, {}, [])
    given = {name: text.strip() for name, text in environ.items() if name.startswith(PREFIX)}
    given.pop(CONFIG_VARIABLE, None)
    for old in OLD_NAMES:
        if old.variable in given:
            taken.lines.append(_take(old, given.pop(old.variable), ours, is_set, taken))
    taken.lines.extend(f"{name} is no variable that is known here, and is ignored" for name in sorted(given))
    return taken


def _take(old: OldName, text: str, ours: Collection[Place], is_set: Collection[Place], taken: Taken) -> str:
    here = f"[{old.section}] {old.key}"
    if old.place not in ours:
        return f"{old.variable} is ignored, for this release has no {here}"
    if not text:
        return f"{old.variable} is empty, and is ignored"
    if old.place in is_set:
        return f"{old.variable} is ignored, for {here} is set"
    if old.place in taken.values:
        return f"{old.variable} is ignored, for {taken.variables[old.place]} says {here}"
    taken.values[old.place], taken.variables[old.place] = text, old.variable
    return f"{old.variable} is taken for {here}: write LETTERBOOK_{old.section.upper()}_{old.key.upper()} instead"


def passed_over(found: Collection[Place], ours: Collection[Place], where: str) -> Iterator[tuple[Place, str]]:
    """What an old config.ini says that this release has no key for, with a line for each."""
    for place in sorted(OLD_KEYS & set(found) - set(ours)):
        section, key = place
        yield place, f"{where}: [{section}] {key} is the old service's, and ignored: this release has no such key"
