"""What the configuration of a volume may say, backend by backend, and what of it may be shown.

One table; the door, config.ini and whoever fetches read it. The values are texts; a URL may hold a user and a password,
which are as secret as the keys that the table calls so.
"""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct

from .values import CONTROL

BASE64 = "base64"
"""What stands before the colon where a storage path carries its content in itself, so no volume can be called so."""

VALUE_CHARACTERS_MAX = 4_000
"""Tokens of clouds have some two thousand."""


class Place(Struct, frozen=True):
    """The keys of one backend's config."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return self.required + self.optional


PLACES: dict[str, Place] = {
    "s3": Place(("bucket",), ("region", "access_key", "secret_key", "endpoint_url")),
    "gcs": Place(("bucket",), ("token",)),
    "azure": Place(("container", "account_name"), ("account_key",)),
    "local": Place(("path",)),
    "http": Place(("base_url",)),
    "webdav": Place(("base_url",), ("username", "password")),
    "memory": Place(),
}

SECRET = frozenset({"password", "secret_key", "token", "account_key"})
URLS = frozenset({"base_url", "endpoint_url"})

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_ACCOUNT_NAME = re.compile(r"[a-z0-9]{3,24}\Z")
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{0,221}\Z")


def bare_url(url: str) -> str:
    """The URL without its user and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def shown(config: Mapping[str, str]) -> dict[str, str]:
    """A volume's config without its secrets."""
    return {key: bare_url(value) if key in URLS else value for key, value in config.items() if key not in SECRET}


def url_fault(url: str, *, query: bool = False) -> bool:
    """Whether this is no http or https URL that can be asked for."""
    try:
        parts = urlsplit(url)
        # Reading `port` is what makes urlsplit check it.
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return True
    return not good or any(sign.isspace() for sign in url) or "\\" in url or bool(parts.query and not query)


def volume_fault(name: str, backend: str, config: Mapping[str, str]) -> str | None:
    """The sentence about the first thing that cannot stand; it repeats no value, for that may be a secret."""
    if not _NAME.match(name):
        return "name must be letters, digits, dots, dashes and underscores, 100 at most, a letter or digit first"
    if name.lower() == BASE64:
        return f"name is {BASE64}, which is no name for a volume: storage paths that carry their content begin so"
    place = PLACES[backend]
    for key in config:
        if key not in place.keys:
            known = f"write one of {', '.join(place.keys)}" if place.keys else "it has none"
            return f"config.{key} is no key of the backend {backend}: {known}"
    for key in place.required:
        if not config.get(key):
            return f"config.{key} is missing: the backend {backend} needs it"
    return next((fault for key, value in config.items() if (fault := _value_fault(key, value))), None)


def _value_fault(key: str, value: str) -> str | None:
    if CONTROL.search(value) or len(value) > VALUE_CHARACTERS_MAX:
        return f"config.{key} holds a control character, or is longer than {VALUE_CHARACTERS_MAX} characters"
    if key in URLS and (url_fault(value) or urlsplit(value).fragment):
        return f"config.{key} must be an http:// or https:// address without query"
    if key == "path" and not value.startswith("/"):
        return "config.path must be a whole path, from / on"
    if key in ("bucket", "container") and not _BUCKET.match(value):
        return f"config.{key} is no name of a {key}"
    if key == "account_name" and not _ACCOUNT_NAME.match(value):
        return "config.account_name must be 3 to 24 small letters and digits"
    return None


def path_fault(path: str) -> bool:
    """Whether a path within a volume could lead out of it, or names nothing."""
    return CONTROL.search(path) is not None or "\\" in path or any(part in ("", ".", "..") for part in path.split("/"))
