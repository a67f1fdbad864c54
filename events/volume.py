"""Facts about volumes: places from which attachments are taken when a message is sent."""

from typing import Literal

from .fact import Fact

Backend = Literal["s3", "gcs", "azure", "local", "http", "webdav", "memory"]


class VolumeSaved(Fact):
    """A volume was made or changed. `config` is a digest of where it is and how to get in; these stand with the
    secrets.

    `account_id` is the one account that may use it; without one every account may.
    """

    name: str
    backend: Backend
    config: str
    account_id: str | None = None
    by: str = ""


class VolumeRemoved(Fact):
    name: str
    by: str = ""
