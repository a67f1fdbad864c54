"""`letterbook health`: one request, for whoever asks every few seconds, so it imports next to nothing."""

import http.client
import json
from pathlib import Path
from urllib.parse import urlsplit

import click

from .client_commands import url_option
from .failures import Failure, one_line
from .sources import address, config_option, configured

ANSWER_S = 5.0
ANSWER_BYTES_MAX = 10_000


@click.command()
@click.option("--ready", is_flag=True, help="Ask whether it takes and sends mail, not only whether it answers.")
@click.option("--json", "as_json", is_flag=True, help="The service's answer as JSON.")
@url_option
@config_option
def health(ready: bool, as_json: bool, url: str | None, config_path: Path | None) -> None:
    """Say whether the service answers: exit code 0, or 1 with the reason."""
    with one_line():
        url = (url or address(configured(config_path))).rstrip("/")
        status, answer = _ask(url, "/ready" if ready else "/health")
    if as_json:
        click.echo(json.dumps(answer))
    if status != 200:
        reasons = answer.get("reasons") if isinstance(answer, dict) else None
        raise Failure(f"{url} is not ready: {', '.join(reasons)}" if reasons else f"{url} answers {status}")
    if not as_json:
        click.echo("ready" if ready else "ok")


def _ask(url: str, path: str) -> tuple[int, object]:
    """(status, answer). Raises Failure where there is none."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_S)
        try:
            connection.request("GET", f"{parts.path}{path}")
            response = connection.getresponse()
            return response.status, json.loads(response.read(ANSWER_BYTES_MAX) or b"null")
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"{url} does not answer ({error}): is the service running?") from error
    except ValueError as error:
        raise Failure(f"{url} answers, but it is no Letterbook") from error
