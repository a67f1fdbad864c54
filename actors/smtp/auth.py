"""How a client proves who it is: one row a mechanism, each a list of answers to the relay's challenges.

A row gives the initial response (RFC 4954 section 4), or None where the mechanism has none, and then one answer a
challenge. An answer is made from the challenge, so that only CRAM-MD5 looks at it.
"""

import binascii
import hmac
import re
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

Answer = Callable[[bytes], bytes]


class Proof(NamedTuple):
    """What to say, in order; everything here is as secret as the password it was made from."""

    initial: bytes | None
    answers: tuple[Answer, ...]


def _plain(user: str, password: str) -> Proof:
    """RFC 4616 section 2: no authorization identity. Relays that ignore the initial response ask for it once more."""
    response = f"\0{user}\0{password}".encode()
    return Proof(response, (lambda _: response,))


def _login(user: str, password: str) -> Proof:
    """Never standardised; the two prompts are answered by position, since their words differ from relay to relay."""
    return Proof(None, (lambda _: user.encode(), lambda _: password.encode()))


def _cram_md5(user: str, password: str) -> Proof:
    """RFC 2195 section 2: the password itself stays here."""
    return Proof(None, (lambda challenge: _digest(user, password, challenge),))


def _digest(user: str, password: str, challenge: bytes) -> bytes:
    return f"{user} {hmac.new(password.encode(), challenge, 'md5').hexdigest()}".encode()


MECHANISMS: Mapping[str, Callable[[str, str], Proof]] = MappingProxyType(
    {"PLAIN": _plain, "LOGIN": _login, "CRAM-MD5": _cram_md5}
)

ENCRYPTED_PREFERENCE = ("PLAIN", "LOGIN", "CRAM-MD5")
"""Under TLS the one that most servers do best comes first."""

CLEAR_PREFERENCE = ("CRAM-MD5", "PLAIN", "LOGIN")
"""Without TLS the one that does not show the password comes first."""


def encode(response: bytes) -> bytes:
    """An empty response is written as `=` (RFC 4954 section 4)."""
    return b64encode(response) or b"="


def decode(challenge: bytes) -> bytes | None:
    try:
        return b64decode(challenge.strip(), validate=True)
    except binascii.Error:
        return None


HIDDEN = "***"
_BASE64 = re.compile(r"[A-Za-z0-9+/]{2,}={0,2}")


def redacted(text: str, user: str, password: str) -> str:
    """A relay may quote what we sent it: the login goes out of its words, in clear and in base64.

    The name is hidden where it is a word: one that is called "in" must not make a sentence unreadable.
    """
    secrets = user.encode(), password.encode()
    text = _BASE64.sub(lambda found: HIDDEN if _tells(found[0], *secrets) else found[0], text)
    if password:
        text = text.replace(password, HIDDEN)
    return re.sub(rf"(?<!\w){re.escape(user)}(?!\w)", HIDDEN, text, flags=re.IGNORECASE) if user else text


def _tells(word: str, user: bytes, password: bytes) -> bool:
    """Whether a word is an answer of ours to a challenge, or the beginning of one that was cut."""
    raw = b64decode(word[: len(word) // 4 * 4])
    named = bool(user) and (raw == user or raw.startswith((user + b" ", b"\0" + user + b"\0")))
    return named or (bool(password) and password in raw)
