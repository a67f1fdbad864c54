"""Commands by which a person decides, at a running service: resolve."""

from pathlib import Path
from urllib.parse import quote

import click

from .client_commands import url_option
from .failures import one_line
from .printing import clean, print_json
from .reading_commands import json_option
from .sources import config_option

RESOLVED = {
    "resend": "waits again",
    "sent": "is called sent",
    "error": "is called an error",
}
"""What a person can say of a held message, and what is then said."""


@click.command()
@click.argument("message_id", metavar="ID")
@click.option(
    "--as",
    "resolution",
    type=click.Choice(list(RESOLVED)),
    required=True,
    help="Send it again, or call it sent, or call it an error.",
)
@json_option
@url_option
@config_option
def resolve(message_id: str, resolution: str, as_json: bool, url: str | None, config_path: Path | None) -> None:
    """Say what becomes of a message that is held.

    `resend` sends it now to whoever does not surely have it: who was in doubt may get it twice. `sent` and `error` end
    it, and are reported.
    """
    with one_line():
        from .client import command, find_target

        path = f"/messages/{quote(message_id, safe='')}/resolve"
        answer = command(find_target(config_path, url), path, {"as": resolution})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{clean(message_id)} {RESOLVED[resolution]}.")
