"""The view `volumes`, by name: which there are, and whom they serve. Where they are stands with the secrets."""

from msgspec import Struct

from events.fact import Entry
from events.volume import VolumeRemoved, VolumeSaved

from .rows import View


class VolumeRow(Struct, frozen=True):
    """A volume as of some seq; one that was removed has no row. `by` is who saved it last."""

    name: str
    backend: str
    config: str
    account_id: str | None
    by: str
    created_us: int

    def serves(self, account_id: str) -> bool:
        return self.account_id is None or self.account_id == account_id


def keys(entry: Entry) -> tuple[str, ...]:
    match entry.fact:
        case VolumeSaved() | VolumeRemoved() as fact:
            return (fact.name,)
    return ()


def evolve(row: VolumeRow | None, entry: Entry) -> VolumeRow | None:
    match entry.fact:
        case VolumeSaved() as fact:
            created_us = row.created_us if row else entry.at_us
            return VolumeRow(fact.name, fact.backend, fact.config, fact.account_id, fact.by, created_us)
        case VolumeRemoved():
            return None
    return row


VOLUMES = View("volumes", 1, VolumeRow, (VolumeSaved, VolumeRemoved), keys, evolve)
