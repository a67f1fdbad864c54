"""Commands that read the views: show, pending, deferred, held, results, accounts, volumes, rules.

JSON is that of the HTTP answers.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from .fact_words import days_text, line
from .failures import Failure
from .printing import moment_text, print_json, print_pairs, print_table, second_text
from .sources import look_at, source_options

Command = TypeVar("Command", bound=Callable[..., Any])

LIST_LIMIT = 1_000
LIST_LIMIT_MAX = 10_000
"""As over HTTP (gateway/settings.py)."""

json_option = click.option("--json", "as_json", is_flag=True, help="JSON, as the HTTP API gives it.")


def page_options(command: Command) -> Command:
    """--after and --limit, as over HTTP."""
    after = click.option(
        "--after", type=click.IntRange(min=0), default=0, metavar="N", help="Go on after this number (`next`)."
    )
    limit = click.option(
        "--limit",
        type=click.IntRange(1, LIST_LIMIT_MAX),
        default=LIST_LIMIT,
        show_default=True,
        metavar="N",
        help="Rows at most.",
    )
    return after(limit(command))


Printer = Callable[[Any, int], None]


def print_answer(answer: Any, as_json: bool, put: Printer, limit: int = LIST_LIMIT) -> None:
    """An answer for programs, or for people."""
    if as_json:
        print_json(answer)
    else:
        put(answer, limit)


def say_more(answer: Any, rows: Sequence[object], limit: int) -> None:
    """On a terminal, where a list was cut."""
    if getattr(answer, "next", None) is not None and len(rows) == limit:
        click.echo(f"There is more: --after {answer.next}", err=True)


# The columns of each list, here and as of a past moment.


def print_pending(answer: Any, limit: int = LIST_LIMIT) -> None:
    titles = "id", "queued", "account", "priority", "to", "subject", "waits for", "until"
    rows = [
        (row.id, second_text(row.started_ts), row.account_id, row.priority, row.to_addr, row.subject, *_waits(row))
        for row in answer.pending
    ]
    print_table(titles, rows, "Nothing is pending.")
    say_more(answer, rows, limit)


def _waits(row: Any) -> tuple[str, str]:
    waiting = row.waiting_for
    return (waiting.reason.replace("_", " "), second_text(waiting.until)) if waiting else ("", "")


def print_deferred(answer: Any, limit: int = LIST_LIMIT) -> None:
    titles = "id", "until", "because of", "account", "attempts", "queued", "last error"
    rows = [
        (
            *(row.id, second_text(row.deferred_until), row.cause.replace("_", " "), row.account_id),
            *(row.attempts, second_text(row.created_ts), row.last_error),
        )
        for row in answer.deferred
    ]
    print_table(titles, rows, "Nothing is deferred.")
    say_more(answer, rows, limit)


def print_held(answer: Any, limit: int = LIST_LIMIT) -> None:
    titles = "id", "since", "because of", "account", "attempts", "in doubt", "last error"
    rows = [
        (
            *(row.id, second_text(row.held_ts), row.cause.replace("_", " "), row.account_id),
            *(row.attempts, _in_doubt(row.recipients), row.last_error),
        )
        for row in answer.held
    ]
    print_table(titles, rows, "Nothing is held.")
    say_more(answer, rows, limit)


def _in_doubt(recipients: Sequence[Any]) -> str:
    """Whom the message may have reached."""
    return ", ".join(each.address or "(erased)" for each in recipients if each.status == "in_doubt")


def print_results(answer: Any, limit: int = LIST_LIMIT) -> None:
    titles = "seq", "id", "status", "at", "account", "attempts", "code", "error"
    rows = [
        (
            *(row.seq, row.id, row.status, second_text(row.sent_ts or row.error_ts), row.account_id),
            *(row.attempts, row.smtp_code, row.error),
        )
        for row in answer.results
    ]
    print_table(titles, rows, "There are no results yet.")
    say_more(answer, rows, limit)


def print_accounts(answer: Any, limit: int = LIST_LIMIT) -> None:
    titles = "id", "relay", "user", "tls", "a minute", "an hour", "a day", "over the limit", "state"
    rows = [
        (
            *(row.id, f"{row.host}:{row.port}", row.user, row.tls),
            *(row.limit_per_minute, row.limit_per_hour, row.limit_per_day, row.limit_behavior),
            _account_state(row),
        )
        for row in answer.accounts
    ]
    print_table(titles, rows, "There are no accounts.")


def _account_state(row: Any) -> str:
    if row.paused:
        return "paused"
    return f"throttled until {second_text(row.throttled_until)}" if row.throttled_until else "active"


def print_volumes(answer: Any, limit: int = LIST_LIMIT) -> None:
    rows = [
        (row.name, row.backend, row.account_id or "(all)", " ".join(f"{k}={v}" for k, v in (row.config or {}).items()))
        for row in answer.volumes
    ]
    print_table(("name", "backend", "account", "config"), rows, "There are no volumes.")


def print_rules(answer: Any, limit: int = LIST_LIMIT) -> None:
    titles = "id", "name", "priority", "days", "from", "to", "every", "state"
    rows = [
        (
            *(row.id, row.name, row.priority, days_text(row.days), f"{row.start_hour:02}:00"),
            f"{row.end_hour:02}:00" + (" next day" if row.cross_midnight else ""),
            *(f"{row.interval_minutes} min", "enabled" if row.enabled else "disabled"),
        )
        for row in answer.rules
    ]
    print_table(titles, rows, "There are no rules: mail goes as it becomes due.")


def print_message(answer: Any, limit: int = LIST_LIMIT) -> None:
    """One message: its record, its recipients, and every fact about it."""
    import msgspec

    print_pairs(_record(answer))
    if answer.recipients:
        click.echo()
        print_table(
            ("recipient", "status", "code", "reply or queue id"),
            [
                (row.address or "(erased)", row.status, _codes(row), row.reply or row.queue_id)
                for row in answer.recipients
            ],
        )
    click.echo()
    lines = [line(msgspec.json.decode(event)) for event in answer.timeline]
    print_table(
        ("seq", "time", "fact", "what"), [(fact.seq, moment_text(fact.at_us), fact.kind, fact.words) for fact in lines]
    )


def _record(answer: Any) -> list[tuple[str, object]]:
    import msgspec

    letter = msgspec.json.decode(answer.message) if answer.message else {}
    reason, until = _waits(answer)
    return [
        ("id", answer.id),
        ("status", answer.status),
        ("account", answer.account_id),
        ("from", letter.get("from")),
        ("subject", letter.get("subject")),
        ("priority", answer.priority),
        ("queued", second_text(answer.created_ts)),
        ("sent", second_text(answer.sent_ts)),
        ("failed", second_text(answer.error_ts)),
        ("error", answer.error),
        ("deferred until", second_text(answer.deferred_ts)),
        ("waits for", reason),
        ("until", until),
        ("reported", second_text(answer.reported_ts)),
    ]


def _codes(recipient: Any) -> str:
    return " ".join(str(code) for code in (recipient.code, recipient.enhanced) if code is not None)


# The commands.


@click.command()
@click.argument("message_id", metavar="ID")
@json_option
@source_options
def show(message_id: str, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """Everything about one message: its state, its recipients, and every fact."""
    with look_at(config_path, db) as (connection, look, _):
        from gateway import lists

        answer = lists.message(connection, look, message_id)
    if answer is None:
        raise Failure(f"no message with the id {message_id!r} is known")
    print_answer(answer, as_json, print_message)


@click.command()
@page_options
@json_option
@source_options
def pending(after: int, limit: int, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """Mail that is due and waits to be sent, and what it waits for."""
    with look_at(config_path, db) as (connection, look, _):
        from gateway import lists

        answer = lists.pending(connection, look, after, limit)
    print_answer(answer, as_json, print_pending, limit)


@click.command()
@page_options
@json_option
@source_options
def deferred(after: int, limit: int, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """Mail that is due later: asked for, to be tried again, or over a limit."""
    with look_at(config_path, db) as (connection, look, _):
        from gateway import lists

        answer = lists.deferred(connection, look, after, limit)
    print_answer(answer, as_json, print_deferred, limit)


@click.command()
@page_options
@json_option
@source_options
def held(after: int, limit: int, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """Mail that is held until a person says what becomes of it (`resolve`, `bulk release`)."""
    with look_at(config_path, db) as (connection, look, _):
        from gateway import lists

        answer = lists.held(connection, look, after, limit)
    print_answer(answer, as_json, print_held, limit)


@click.command()
@page_options
@json_option
@source_options
def results(after: int, limit: int, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """Final results in the order of the log: what was sent, what failed and why."""
    with look_at(config_path, db) as (connection, look, _):
        from gateway import lists

        answer = lists.results(connection, look, after, limit)
    print_answer(answer, as_json, print_results, limit)


@click.command()
@json_option
@source_options
def accounts(as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """The accounts that mail is sent through, with their limits."""
    with look_at(config_path, db) as (connection, look, source):
        from gateway import lists
        from store.file_access import secrets_of

        secrets = secrets_of(connection, source.key_file) if source.key_file else None
        answer = lists.accounts(connection, look, secrets)
    print_answer(answer, as_json, print_accounts)


@click.command()
@click.option("--account", metavar="ID", help="Only those that this account may use: its own and the shared ones.")
@json_option
@source_options
def volumes(account: str | None, as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """The volumes that attachments are taken from, without their secrets."""
    with look_at(config_path, db) as (connection, _, source):
        from gateway import lists
        from store.file_access import secrets_of

        secrets = secrets_of(connection, source.key_file) if source.key_file else None
        answer = lists.volumes(connection, secrets, account)
    print_answer(answer, as_json, print_volumes)


@click.command()
@json_option
@source_options
def rules(as_json: bool, config_path: Path | None, db: Path | None) -> None:
    """The rules: in which hours mail may go, and how often; hours are those of `[scheduler] timezone`."""
    with look_at(config_path, db) as (connection, _, _):
        from gateway import lists

        answer = lists.rules(connection)
    print_answer(answer, as_json, print_rules)
