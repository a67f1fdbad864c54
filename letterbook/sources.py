"""Where a command looks: the options --config and --db, and the file that they lead to."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import click

from .failures import Failure, one_line

if TYPE_CHECKING:
    from gateway.lists import Look
    from store.reading import Connection

    from .config import Config

Command = TypeVar("Command", bound=Callable[..., Any])

DEFAULT_CONFIG = Path("config.ini")

MEGABYTE = 1_000_000

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What a service listens on, and where it is then found."""


class Source(NamedTuple):
    """The database, and of the configuration what reading it needs; without one, key and disk are not looked at."""

    db_path: Path
    key_file: Path | None = None
    min_free_mb: int = 0
    timezone: str = "UTC"

    @property
    def disk_low(self) -> bool:
        """Whether the service would say that the disk is nearly full."""
        return shutil.disk_usage(self.db_path.absolute().parent).free < self.min_free_mb * MEGABYTE


def config_option(command: Command) -> Command:
    """--config F."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="LETTERBOOK_CONFIG",
        show_envvar=True,
        help=f"Configuration file.  [default: {DEFAULT_CONFIG} in this folder, if there is one]",
    )(command)


def source_options(command: Command) -> Command:
    """--config F or --db F, given to the command as `source`."""
    db_option = click.option(
        "--db",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Database file; no configuration is read then.",
    )
    return config_option(db_option(command))


def configured(config_path: Path | None, warn: Callable[[str], None] = lambda line: None) -> "Config":
    """The configuration; `warn` hears what of it is the old service's. Raises ConfigError."""
    from .config import load
    from .old_names import CONFIG_VARIABLE

    if config_path is None and (old := os.environ.get(CONFIG_VARIABLE)):
        warn(f"{CONFIG_VARIABLE} is taken for the configuration file: write LETTERBOOK_CONFIG instead")
        config_path = Path(old)
    elif config_path is None and DEFAULT_CONFIG.is_file():
        config_path = DEFAULT_CONFIG
    return load(config_path, os.environ, warn)


def address(config: "Config") -> str:
    """Where a running service of this configuration is found. Raises Failure."""
    if not config.server.port:
        raise Failure("[server] port = 0 leaves the port open: say where the service listens by --url")
    host = EVERYWHERE.get(config.server.host, config.server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.server.port}"


def find_source(config_path: Path | None, db: Path | None) -> Source:
    """The file that the options name. Raises ConfigError."""
    if db is not None:
        return Source(db)
    config = configured(config_path)
    storage = config.storage
    return Source(storage.db_path, storage.key_file, storage.min_free_mb, config.scheduler.timezone)


@contextmanager
def open_source(config_path: Path | None, db: Path | None) -> "Iterator[tuple[Connection, Source]]":
    """A connection in autocommit that only reads, of a running or a stopped service. Operating errors are Failures."""
    with one_line():
        from store.file_access import open_to_read

        source = find_source(config_path, db)
        with open_to_read(source.db_path) as connection:
            yield connection, source


@contextmanager
def look_at(config_path: Path | None, db: Path | None) -> "Iterator[tuple[Connection, Look, Source]]":
    """The same, seen as of this moment, and as the service would see it."""
    with open_source(config_path, db) as (connection, source):
        from gateway.lists import Look
        from store.file_access import log_id, moment, see_views

        with moment(connection), one_line():
            see_views(source.db_path, connection)
            zone = ZoneInfo(source.timezone)
            look = Look(time.time_ns() // 1000, log_id(connection), source.disk_low, zone=zone)
            yield connection, look, source
