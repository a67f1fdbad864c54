"""Saving a volume, and opening what was sealed of it. Pure.

A volume's config is sealed whole, since a bucket's name or a path may tell as much as a key; the log has its digest.
"""

from collections.abc import Mapping

import msgspec
from cryptography.exceptions import InvalidTag
from msgspec import Struct

from events import payloads
from events.commands import Refused
from events.places import SECRET, URLS, bare_url, shown, volume_fault
from events.values import CONTROL
from events.volume import VolumeSaved
from store.beside import Sealed
from store.secrets import Secrets
from store.views.volumes import VolumeRow


class SavingVolume(Struct, frozen=True):
    """A volume to be recorded, with the config that is to be sealed beside it."""

    fact: VolumeSaved
    config: dict[str, str]

    def sealed(self, secrets: Secrets) -> Sealed:
        return Sealed(secrets.seal(msgspec.json.encode(self.config)))


def save_volume(
    volume: payloads.Volume, row: VolumeRow | None, stored: Mapping[str, str], secrets: Secrets, by: str
) -> SavingVolume | Refused:
    """The volume as it will stand. `row` and `stored` are those of the volume that has this name, if there is one."""
    config = {key: value for key, value in volume.config.items() if value}
    if sentence := volume_fault(volume.name, volume.backend, config) or _account_fault(volume.account_id):
        return Refused(sentence)
    if row is not None and row.backend == volume.backend:
        config = _with_kept_secrets(config, stored)
    fact = VolumeSaved(
        name=volume.name,
        backend=volume.backend,
        config=secrets.volume_digest(config),
        account_id=volume.account_id or None,
        by=by,
    )
    return SavingVolume(fact, config)


def _account_fault(account_id: str | None) -> str | None:
    return "account_id holds a control character: leave it out" if CONTROL.search(account_id or "") else None


def _with_kept_secrets(config: dict[str, str], stored: Mapping[str, str]) -> dict[str, str]:
    """A missing secret keeps the stored one while all else that the config says stays the same: so whoever changes a
    volume need not know its secrets, and they are never shown to another place."""
    if shown(config) != shown(stored):
        return config
    kept = {key: value for key, value in stored.items() if key in SECRET or key in URLS}
    given = {key: value for key, value in config.items() if key not in URLS or value != bare_url(value)}
    return {**config, **kept, **given}


def volume_differs(fact: VolumeSaved, row: VolumeRow) -> bool:
    """Whether saving this would change the volume, or who is the one that has said so."""
    return (fact.backend, fact.config, fact.account_id, fact.by) != (row.backend, row.config, row.account_id, row.by)


def opened_config(sealed: bytes | None, secrets: Secrets) -> dict[str, str] | None:
    """A volume's config; None where there is none, or it was sealed under a key that is not here any more."""
    try:
        return msgspec.json.decode(secrets.unseal(sealed), type=dict[str, str]) if sealed else None
    except InvalidTag:
        return None
