"""Commands that keep the log from being lost: backup, restore."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .failures import Failure, one_line
from .printing import moment_text, print_json, progress
from .sources import config_option, configured, find_source, source_options

if TYPE_CHECKING:
    from store.backups import Backup, Holding
    from store.restoring import Found, Restored

KEY_IS_APART = (
    "The key {key_file} is not in it. Keep a copy of the key elsewhere: without it this backup's passwords and digests"
    " are lost, and the service will not start on it."
)

WITHOUT_SUM = "{file}.sha256 is not there: facts and structure were checked, but not that every letter is as it was"

ACTIVATE = (
    "Start the service. It sends nothing until `letterbook activate --restored hold` or `send` says what becomes of the"
    " mail that waits."
)

a_file = click.Path(path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="JSON: ok, and what the backup holds.")


@click.command()
@click.argument("file", type=a_file)
@click.option("--force", is_flag=True, help="Replace a backup that is there under this name.")
@json_option
@source_options
def backup(file: Path, force: bool, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """Write a backup of the log, of all its mail and its views, to FILE, while the service runs or stands still.

    It is checked before it gets its name, and its SHA-256 is written beside it, as FILE.sha256. The key file is not in
    it.
    """
    with one_line():
        from store.backups import back_up

        source = find_source(config_path, db)
        made = back_up(source.db_path, file, force=force, watch=progress)
    key_file = source.key_file.absolute() if source.key_file else None
    if as_json:
        print_json({"ok": True, "file": str(file), **_backup_json(made), "key_file": key_file and str(key_file)})
        return
    click.echo(f"{file}: {_words(made.holding)}; {made.bytes:,} bytes, SHA-256 {made.sha256}")
    click.echo(KEY_IS_APART.format(key_file=key_file or f"file with the key {made.holding.key}"))


@click.command()
@click.argument("file", type=a_file)
@click.option("--yes", is_flag=True, help="Do not ask before the database is replaced.")
@json_option
@config_option
def restore(file: Path, yes: bool, as_json: bool, config_path: Path | None) -> None:
    """Put the backup FILE in the database's place. The service must not be running.

    The backup is verified before anything is touched, and the replaced database is kept beside the new one. What
    happened after the backup was made is not known any more, so the service sends nothing until `activate` says what
    becomes of the mail that waits.
    """
    with one_line():
        from store.restoring import restore as put_back

        storage = configured(config_path).storage
        agree = _agreed(yes, storage.db_path)
        done = put_back(
            storage.db_path, file, storage.key_file, now_us=time.time_ns() // 1000, agree=agree, watch=progress
        )
    if done is None:
        raise Failure("nothing was changed")
    if not done.found.summed:
        click.echo(f"letterbook: {WITHOUT_SUM.format(file=file)}", err=True)
    if as_json:
        print_json({"ok": True, "db_path": str(storage.db_path), **_restored_json(done)})
        return
    click.echo(f"{storage.db_path}: {_words(done.found.backup.holding)}")
    if done.kept:
        click.echo(f"The database that it replaces is kept as {done.kept}; delete it when nothing in it is wanted.")
    click.echo(ACTIVATE)


def _agreed(yes: bool, db_path: Path) -> "Callable[[Found], bool]":
    """Whether to go on: asked on a terminal, and only where something is replaced."""

    def agree(found: "Found") -> bool:
        if yes or not db_path.exists():
            return True
        if not somebody_is_there():
            raise click.UsageError("it replaces a database: say --yes where nobody can be asked")
        replaced = _words(found.replaced) if found.replaced else "what cannot be read"
        click.echo(f"The backup holds {_words(found.backup.holding)}\n{db_path} holds {replaced}", err=True)
        return click.confirm("Replace it by the backup?", err=True)

    return agree


def somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _words(holding: "Holding") -> str:
    end = f", the last of {moment_text(holding.at_us)}" if holding.seq else ""
    return f"log {holding.log}, {holding.seq:,} facts{end}"


def _backup_json(backup: "Backup") -> dict[str, Any]:
    holding = backup.holding
    return {
        "log": holding.log,
        "seq": holding.seq,
        "at_us": holding.at_us,
        "hash": holding.hash.hex(),
        "bytes": backup.bytes,
        "sha256": backup.sha256,
        "key_id": holding.key,
    }


def _restored_json(done: "Restored") -> dict[str, Any]:
    return {
        **_backup_json(done.found.backup),
        "summed": done.found.summed,
        "came_to": done.found.came_to,
        "kept": done.kept and str(done.kept),
    }
