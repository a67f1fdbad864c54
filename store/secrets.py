"""What only the key file's owner may read or link: sealing (AES-GCM) and digests (keyed BLAKE2b, RFC 7693), each under
a key of its own derived from the file's (HKDF, RFC 5869).

A digest is cut to 96 bits, which is 16 characters: enough that no two recipients of a log ever meet.
"""

from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from hashlib import blake2b

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

DIGEST_BYTES = 12
NONCE_BYTES = 12
SALT_BYTES = 16


class Secrets:
    """Sealing and digests under one key. `entropy(n)` gives n random bytes."""

    def __init__(self, key: bytes, entropy: Callable[[int], bytes]) -> None:
        self._entropy = entropy
        self._sealing = AESGCM(_derive(key, b"seal"))
        self._recipients = _derive(key, b"recipients")
        self._credentials = _derive(key, b"credentials")
        self._tokens = _derive(key, b"tokens")
        self._volumes = _derive(key, b"volumes")
        self.key_id = _derive(key, b"key id")[:4].hex()

    def recipient_digest(self, message_id: str, canonical: str) -> str:
        """A recipient within one message id: the same mailbox under another id has another digest."""
        return _digest(self._recipients, f"{message_id}\0{canonical}".encode())

    def letter_digest(self, salt: bytes, content: bytes) -> str:
        """A letter under a salt that is erased with it; afterwards the digest says nothing to anybody."""
        return _digest(salt, content)

    def credentials_digest(self, user: str | None, password: str | None) -> str:
        return _digest(self._credentials, msgspec.json.encode((user, password)))

    def token_digest(self, token: str) -> str:
        return _digest(self._tokens, token.encode())

    def volume_digest(self, config: Mapping[str, str]) -> str:
        return _digest(self._volumes, msgspec.json.encode(sorted(config.items())))

    def salt(self) -> bytes:
        return self._entropy(SALT_BYTES)

    def seal(self, plain: bytes) -> bytes:
        nonce = self._entropy(NONCE_BYTES)
        return nonce + self._sealing.encrypt(nonce, plain, None)

    def unseal(self, sealed: bytes) -> bytes:
        """Raises cryptography.exceptions.InvalidTag where it was sealed under another key, or damaged."""
        return self._sealing.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], None)


def _derive(key: bytes, purpose: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=b"letterbook " + purpose).derive(key)


def _digest(key: bytes, data: bytes) -> str:
    return urlsafe_b64encode(blake2b(data, key=key, digest_size=DIGEST_BYTES).digest()).decode()
