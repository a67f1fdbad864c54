"""Commands that run or judge a service: serve, check-config, demo."""

from pathlib import Path

import click

from .failures import Failure, last_words, one_line
from .printing import print_json
from .sources import config_option, configured


@click.command()
@config_option
def serve(config_path: Path | None) -> None:
    """Run the service: mail in over HTTP, out over SMTP.

    SIGTERM or Ctrl-C lets what is under way end (drain_seconds); a second one stops at once.
    """
    with one_line():
        import logging

        remarks: list[str] = []
        config = configured(config_path, remarks.append)

        import trio

        from .logs import heard
        from .serving import serve_until_signalled

        logger = logging.getLogger("letterbook")
        with heard(config.logging.level, config.logging.format) as lines, last_words(lines.say):
            for remark in remarks:
                logger.warning("%s", remark)
            if not config.server.api_token:
                logger.warning("without [server] api_token everyone on this machine may call the API")
            trio.run(serve_until_signalled, config, lambda serving: logger.info("listening on %s", serving.url), lines)
            logger.info("stopped")


@click.command("check-config")
@click.option("--json", "as_json", is_flag=True, help="JSON: ok, and the error.")
@config_option
def check_config(as_json: bool, config_path: Path | None) -> None:
    """Say what is wrong with the configuration, the database and the key file, as a start would, without starting."""
    try:
        with one_line():
            from store.examining import examine

            remarks: list[str] = []
            config = configured(config_path, remarks.append)
            warnings = examine(config.storage.db_path, config.storage.key_file)
    except Failure as failure:
        if as_json:
            print_json({"ok": False, "error": failure.message})
        raise
    for line in (*remarks, *warnings):
        click.echo(f"letterbook: {line}", err=True)
    if as_json:
        print_json({"ok": True})
    else:
        click.echo("The configuration is good.")


@click.command()
@click.option("--exit", "exit_after", is_flag=True, help="End by itself; exit code 0 if all that should happen did.")
def demo(exit_after: bool) -> None:
    """A service and a relay that keeps what it gets, on this machine: mail in, delivered, shown live.

    Nothing leaves the machine, and nothing stays: the log is in a temporary folder.
    """
    with one_line():
        import trio

        from .demo import run
        from .logs import heard

        with heard("warning", "text"):
            missing = trio.run(run, exit_after)
    if missing:
        raise Failure(f"the demo did not go as it should: {'; '.join(missing)}")
