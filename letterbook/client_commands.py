"""Commands that speak to a running service: send, tail, cleanup."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import click

from .failures import Failure, one_line
from .printing import print_json, print_pairs, print_table, second_text
from .sources import config_option

Command = TypeVar("Command", bound=Callable[..., Any])

ID_CHANCE_BYTES = 4

TAKEN = frozenset({"sent", "deferred", "pending", "queued"})
"""The mail is with the service, or past it: exit code 0."""


def url_option(command: Command) -> Command:
    return click.option(
        "--url", metavar="URL", help="The service's address.  [default: [server] host and port of the configuration]"
    )(command)


def letter_options(command: Command) -> Command:
    """The letter, for who has no file."""
    for option in reversed(
        (
            click.option("--from", "sender", metavar="ADDRESS", help="Sender."),
            click.option("--to", multiple=True, metavar="ADDRESS", help="Recipient; may be given several times."),
            click.option("--subject", metavar="TEXT", help="Subject."),
            click.option("--body", metavar="TEXT", help="The text; - reads it from standard input."),
            click.option("--html", is_flag=True, help="The body is HTML."),
        )
    ):
        command = option(command)
    return command


@click.command()
@click.argument("file", type=click.File("rb"), metavar="[FILE.eml]", required=False)
@letter_options
@click.option("--id", "message_id", metavar="ID", help="The message's id; the same id again is the same message.")
@click.option("--account", metavar="ID", help="The account to send it through.")
@click.option("--queue", is_flag=True, help="Queue it and do not wait for its outcome.")
@click.option("--json", "as_json", is_flag=True, help="The service's answer as JSON.")
@url_option
@config_option
def send(
    file: IO[bytes] | None,
    sender: str | None,
    to: tuple[str, ...],
    subject: str | None,
    body: str | None,
    html: bool,
    message_id: str | None,
    account: str | None,
    queue: bool,
    as_json: bool,
    url: str | None,
    config_path: Path | None,
) -> None:
    """Hand a mail to the running service and say what came of it.

    The mail is FILE.eml, with what the options say in place of what the file says, or it is made of the options
    alone. Exit code 1 where it was refused or has failed; a mail that is tried again later is none of both.
    """
    with one_line():
        message = _of_file(file) if file else {}
    if body is not None:
        # The file's HTML says what the file's text said.
        message.pop("body_html", None)
    message |= _of_options(sender, to, subject, body, html)
    if not file and not (to and sender):
        raise click.UsageError("name a FILE.eml, or give --from and --to")
    message |= {"id": message_id or _new_id()} | ({"account_id": account} if account else {})
    with one_line():
        result = _hand_over(message, queue, as_json, url, config_path)
    if result.get("status") not in TAKEN:
        raise Failure(f"{result['id']}: {result.get('error') or 'refused'}")


def _of_file(file: IO[bytes]) -> dict[str, Any]:
    from .eml import NoMailError, message_of

    try:
        return message_of(file.read())
    except NoMailError as error:
        raise Failure(f"{file.name}: {error}") from error


def _of_options(
    sender: str | None, to: tuple[str, ...], subject: str | None, body: str | None, html: bool
) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if sender is not None:
        given["from"] = sender
    if to:
        given["to"] = list(to)
    if subject is not None:
        given["subject"] = subject
    if body is not None:
        given["body"] = sys.stdin.read() if body == "-" else body
        given["content_type"] = "html" if html else "plain"
    return given


def _new_id() -> str:
    """Ids in the order of time are kinder to an index than random ones."""
    import secrets

    return f"cli-{time.time_ns() // 1000:x}-{secrets.token_hex(ID_CHANCE_BYTES)}"


def _hand_over(
    message: dict[str, Any], queue: bool, as_json: bool, url: str | None, config_path: Path | None
) -> dict[str, Any]:
    """Post it, print the answer, and give its result. Raises Failure."""
    from .client import find_target, post

    target = find_target(config_path, url)
    body = {"messages": [message]} if queue else message
    status, answer = post(target, f"/commands/{'add-messages' if queue else 'send-message'}", body)
    if as_json:
        print_json(answer)
    if status >= 300:
        raise Failure(str(answer.get("error", f"the service answers {status}")))
    result = _queued(message, answer) if queue else answer.get("result") or {**answer, "status": "error"}
    if not as_json and result["status"] in TAKEN:
        _print_result(result)
    return result


def _queued(message: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    rejected = answer.get("rejected", ())
    return {
        "id": message["id"],
        "status": "error" if rejected else "queued",
        "error": rejected[0]["reason"] if rejected else None,
    }


def _print_result(result: dict[str, Any]) -> None:
    print_pairs(
        (
            ("id", result["id"]),
            ("status", result["status"]),
            ("until", second_text(result.get("deferred_until"))),
            ("error", result.get("error")),
            ("account", result.get("account")),
        )
    )
    if recipients := result.get("recipients"):
        print_table(
            ("recipient", "status", "reply or queue id"),
            [(row.get("address"), row["status"], row.get("reply") or row.get("queue_id")) for row in recipients],
        )


# Letting go


@click.command()
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="What was reported longer ago.  [default: delivery_report_retention_seconds of the service]",
)
@click.option("--json", "as_json", is_flag=True, help="The service's answer as JSON.")
@url_option
@config_option
def cleanup(older_than: float | None, as_json: bool, url: str | None, config_path: Path | None) -> None:
    """Let the running service erase letters and results that were reported long ago; the facts stay in the log."""
    with one_line():
        from .client import find_target, post

        body = {} if older_than is None else {"older_than_seconds": older_than}
        status, answer = post(find_target(config_path, url), "/commands/cleanup-messages", body)
        if as_json:
            print_json(answer)
        if status >= 300:
            raise Failure(str(answer.get("error", f"the service answers {status}")))
    if not as_json:
        click.echo(f"{answer['removed']:,} messages were let go of.")


# The live stream


@click.command()
@click.option("--after", type=click.IntRange(min=0), metavar="N", help="From the fact after this seq; else from now.")
@click.option("--message", "message_id", metavar="ID", help="Facts about this message.")
@click.option("--kind", metavar="K", help="Facts of this kind, such as AttemptEnded.")
@click.option("--account", "account_id", metavar="A", help="Facts about this account and its mail.")
@click.option("--expand", is_flag=True, help="With addresses, subjects and the relays' words, while they are there.")
@click.option("--json", "as_json", is_flag=True, help="JSON Lines, as the stream gives them.")
@url_option
@config_option
def tail(
    after: int | None,
    message_id: str | None,
    kind: str | None,
    account_id: str | None,
    expand: bool,
    as_json: bool,
    url: str | None,
    config_path: Path | None,
) -> None:
    """Show facts as they happen, until Ctrl-C; across restarts of the service none is missed or shown twice."""
    wishes = {"message_id": message_id, "kind": kind, "account_id": account_id, "expand": "1" if expand else None}
    with one_line():
        import trio

        from .client import Stream, find_target
        from .tailing import tail_until_signalled

        filters = {name: value for name, value in wishes.items() if value is not None}
        stream = Stream(find_target(config_path, url), after, filters)
        trio.run(tail_until_signalled, stream, as_json)
