"""Reading the configuration from the environment and a file.

Precedence: environment LETTERBOOK_<SECTION>_<KEY>, file, default. An empty value counts as not set. A secret may
stand in a file of its own, named by `<key>_file`. Whatever is wrong becomes a ConfigError of one line that names
the place and says what to write. The keys themselves stand in config_keys.py.

Last, and with a line each, come the variables of the service that this one replaces (old_names.py).
"""

import configparser
import ipaddress
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from events.places import PLACES, volume_fault

from .config_keys import ENVIRONMENT_PREFIX, KEYS, SECTIONS, VOLUME_KEYS, Config, Entry, Volume
from .old_names import OLD_KEYS, from_old_environment, passed_over

__all__ = ["Config", "ConfigError", "is_loopback", "load"]

VOLUMES = "volumes"
CONFIG_FILE = "config_file"

OUR_PLACES = frozenset((entry.section, entry.name) for entry in KEYS)
OLD_SECTIONS = frozenset(section for section, _ in OLD_KEYS)

SHOWN_CHARACTERS_MAX = 60
"""As much of a wrong value as an error repeats: enough to find it, and the line stays a line."""


class ConfigError(Exception):
    """The configuration cannot be used; the text is one line that says where and what to write."""


class _Source(NamedTuple):
    """Texts found in one place, by (section, key), and how an operator calls that place."""

    values: Mapping[tuple[str, str], str]
    where: str
    variables: Mapping[tuple[str, str], str] = {}

    def name(self, section: str, key: str) -> str:
        if variable := self.variables.get((section, key)):
            return f"environment: {variable}"
        if self.where:
            return f"{self.where}: [{section}] {key}"
        return f"environment: {ENVIRONMENT_PREFIX}{section.upper()}_{key.upper()}"


Warn = Callable[[str], None]
"""Hears a line about each thing that was taken, or passed over, because the old service had it."""


def load(path: Path | str | None, environ: Mapping[str, str], warn: Warn = lambda line: None) -> Config:
    """Read the configuration; `path` None means that there is no file. Raises ConfigError."""
    sources = [_from_environment(environ)]
    if path is not None:
        sources.append(_from_file(Path(path), warn))
    for source in sources:
        _refuse_unknown(source)
    sources.append(_from_old_environment(environ, sources, warn))
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for entry in KEYS:
        values[entry.section][entry.name] = _value(entry, sources)
    sections: dict[str, Any] = {section: SECTIONS[section](**values[section]) for section in SECTIONS}
    config = Config(**sections, volumes=_volumes(sources))
    _check_together(config)
    return config


def _from_environment(environ: Mapping[str, str]) -> _Source:
    """Variables that name no section of ours are left alone: containers set some that start like ours."""
    found = {}
    for variable, text in environ.items():
        section, _, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("_")
        if variable.startswith(ENVIRONMENT_PREFIX) and (section in SECTIONS or section == VOLUMES) and key:
            found[section, key] = text.strip()
    return _Source(found, "")


def _from_old_environment(environ: Mapping[str, str], sources: list[_Source], warn: Warn) -> _Source:
    is_set = {
        (entry.section, entry.name)
        for entry in KEYS
        if any(source.values.get((entry.section, name)) for source in sources for name in _names(entry))
    }
    taken = from_old_environment(environ, OUR_PLACES, is_set)
    for line in taken.lines:
        warn(line)
    return _Source(taken.values, "", taken.variables)


def _from_file(path: Path, warn: Warn) -> _Source:
    # No interpolation and no comments behind a value: a password may hold any sign. No [DEFAULT] either.
    parser = configparser.ConfigParser(interpolation=None, empty_lines_in_values=False, default_section="\0")
    text = _read(path, f"{path}: cannot be read")
    try:
        parser.read_string(text, str(path))
    except configparser.Error as error:
        raise ConfigError(_syntax_error(path, error)) from error
    for section in parser.sections():
        if section not in SECTIONS and section != VOLUMES and section not in OLD_SECTIONS:
            known = ", ".join((*SECTIONS, VOLUMES))
            raise ConfigError(f"{path}: [{section}] is no section: write one of {known}")
    found = {(section, key): parser[section][key].strip() for section in parser.sections() for key in parser[section]}
    for place, line in passed_over(found, OUR_PLACES, str(path)):
        warn(line)
        del found[place]
    return _Source(found, str(path))


def _syntax_error(path: Path, error: configparser.Error) -> str:
    match error:
        case configparser.MissingSectionHeaderError():
            return f"{path}: line {error.lineno} stands before any section: write [server] or another section above it"
        case configparser.DuplicateOptionError():
            return f"{path}: [{error.section}] {error.option} stands there twice (line {error.lineno}): remove one"
        case configparser.DuplicateSectionError():
            return f"{path}: [{error.section}] stands there twice (line {error.lineno}): join the two"
        case configparser.ParsingError():
            return f"{path}: line {error.errors[0][0]} cannot be read: write key = value"
    return f"{path}: {error.message.splitlines()[0]}"


def _read(path: Path, complaint: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{complaint}: {error.strerror}; name a file that the service may read") from error
    except ValueError as error:
        raise ConfigError(f"{complaint}: it is no UTF-8 text; save it as UTF-8") from error


def _refuse_unknown(source: _Source) -> None:
    for section, key in source.values:
        if section == VOLUMES:
            continue
        known = [name for entry in KEYS if entry.section == section for name in _names(entry)]
        if key not in known:
            raise ConfigError(f"{source.name(section, key)} is no key: write one of {', '.join(known)}")


def _names(entry: Entry) -> tuple[str, ...]:
    return (entry.name, f"{entry.name}_file") if entry.kind.secret else (entry.name,)


def _value(entry: Entry, sources: list[_Source]) -> Any:
    """The key's value from the first source that sets it."""
    for source in sources:
        given = [name for name in _names(entry) if source.values.get((entry.section, name))]
        if len(given) > 1:
            raise ConfigError(f"{source.name(entry.section, given[0])} is set, and {given[1]} too: write one of them")
        if given:
            return _parse(entry, source.name(entry.section, given[0]), source.values[entry.section, given[0]], given[0])
    return entry.default


def _parse(entry: Entry, name: str, text: str, given: str) -> Any:
    if given != entry.name:
        text = _read(Path(text), f"{name} = {text} cannot be read").strip()
    try:
        if not text:
            raise ValueError
        return entry.kind.read(text)
    except ValueError as error:
        raise ConfigError(f"{name}{_shown(entry, text)} cannot be used: write {entry.kind.write}") from error


def _shown(entry: Entry, text: str) -> str:
    """The wrong value as an error repeats it: on one line, cut, and never where it may be a secret."""
    return "" if entry.kind.secret else f" = {' '.join(text.split())[:SHOWN_CHARACTERS_MAX]}"


# Volumes: their keys hold names, so they stand in no table.


def _volumes(sources: list[_Source]) -> tuple[Volume, ...]:
    """The volumes of all sources; of a key that several set, the first one's value counts."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for source in reversed(sources):
        for (section, key), text in source.values.items():
            if section == VOLUMES and text:
                name, part = _volume_key(source, key)
                found.setdefault(name, {})[part] = (source.name(section, key), text)
    return tuple(_volume(name, keys) for name, keys in found.items())


def _volume_key(source: _Source, key: str) -> tuple[str, str]:
    """`volume.NAME.backend` in two; a name may hold dots. Raises ConfigError."""
    prefix, _, rest = key.partition(".")
    name, _, part = rest.rpartition(".")
    if prefix != "volume" or not name or part not in (*VOLUME_KEYS, CONFIG_FILE):
        known = ", ".join(f"volume.NAME.{each}" for each in VOLUME_KEYS)
        raise ConfigError(f"{source.name(VOLUMES, key)} is no key: write one of {known}")
    return name, part


def _volume(name: str, keys: dict[str, tuple[str, str]]) -> Volume:
    where, backend = keys.get("backend", ("", ""))
    if backend not in PLACES:
        where = where or f"[{VOLUMES}] volume.{name}.backend"
        raise ConfigError(f"{where} cannot be used: write one of {', '.join(PLACES)}")
    where, text = keys.get("config") or keys.get(CONFIG_FILE) or (where, "{}")
    if "config" in keys and CONFIG_FILE in keys:
        raise ConfigError(f"{where} is set, and config_file too: write one of them")
    if CONFIG_FILE in keys:
        text = _read(Path(text), f"{where} = {text} cannot be read")
    try:
        config = {key: value for key, value in _decode_volume_config(text).items() if value}
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ConfigError(f"{where} cannot be used: write a JSON object of texts in one line") from error
    if fault := volume_fault(name, backend, config):
        raise ConfigError(f"{where} cannot be used: {fault}")
    return Volume(name, backend, config, keys.get("account_id", ("", ""))[1] or None)  # type: ignore[arg-type]  # checked


_decode_volume_config = msgspec.json.Decoder(dict[str, str | None]).decode


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than localhost may point anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _check_together(config: Config) -> None:
    """What no key can know alone."""
    server, storage, smtp = config.server, config.storage, config.smtp
    if not server.api_token and not is_loopback(server.host):
        raise ConfigError(
            f"[server] host = {server.host} is open to others and api_token is empty: "
            f"write an api_token, or host = 127.0.0.1"
        )
    if server.body_memory_mb < server.max_body_mb:
        raise ConfigError(
            f"[server] body_memory_mb = {server.body_memory_mb} is less than one body: "
            f"write at least max_body_mb, which is {server.max_body_mb}"
        )
    _check_client(config)
    attachments = config.attachments
    if attachments.memory_mb < attachments.max_total_mb:
        raise ConfigError(
            f"[attachments] memory_mb = {attachments.memory_mb} is less than one message may need: "
            f"write at least max_total_mb, which is {attachments.max_total_mb}"
        )
    if storage.key_file == storage.db_path:
        raise ConfigError(f"[storage] key_file = {storage.key_file} is also db_path: write another path for the key")
    if smtp.user and not smtp.host:
        raise ConfigError("[smtp] user is set and host is empty: write the relay's host, or leave user empty")
    if smtp.auth != "auto" and not smtp.user:
        raise ConfigError(f"[smtp] auth is {smtp.auth} and user is empty: write the name to log in with")
    if smtp.password and not smtp.user:
        raise ConfigError("[smtp] password is set and user is empty: write the name to log in with")


def _check_client(config: Config) -> None:
    client = config.client
    if client.client_sync_url and client.proxy_sync_url:
        raise ConfigError(
            "[client] client_sync_url and proxy_sync_url are both set, and each would report every result: empty one"
        )
    if client.client_sync_password and not client.client_sync_user:
        raise ConfigError("[client] client_sync_password is set and client_sync_user is empty: write the name to show")
    if not client.client_sync_token.isascii():
        raise ConfigError("[client] client_sync_token cannot stand in a header: write one of ASCII characters")
