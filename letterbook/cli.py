"""The command line: the table of commands.

The commands' modules import what is heavy only when a command runs, so that --help answers at once.
"""

import click

from .auditing_commands import at, rebuild, verify
from .backup_commands import backup, restore
from .client_commands import cleanup, send, tail
from .control_commands import activate, status, suspend
from .health import health
from .import_command import import_
from .log_command import log
from .operating_commands import bulk, resolve
from .reading_commands import accounts, deferred, held, pending, results, rules, show, volumes
from .service_commands import check_config, demo, serve

COMMANDS: dict[str, tuple[click.Command, ...]] = {
    "Run": (serve, demo, check_config, health),
    "Steer a running service": (status, suspend, activate),
    "Send and watch": (send, tail),
    "Look, at a running or a stopped service": (log, show, pending, deferred, held, results, accounts, volumes, rules),
    "Decide": (resolve, bulk),
    "Keep": (backup, restore, import_, cleanup),
    "Audit": (verify, at, rebuild),
}
"""Every command, in the order in which help shows them."""


SHORT_HELP_CHARACTERS_MAX = 200
"""The whole first sentence of any command; click would cut it at 45."""


def _sentence(command: click.Command) -> str:
    return command.get_short_help_str(SHORT_HELP_CHARACTERS_MAX)


class _Sections(click.Group):
    """A group whose help shows the commands by subject."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for subject, commands in COMMANDS.items():
            with formatter.section(subject):
                formatter.write_dl([(str(command.name), _sentence(command)) for command in commands])

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Sections,
    commands=[command for commands in COMMANDS.values() for command in commands],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="letterbook", message="%(prog)s %(version)s")
def main() -> None:
    """Letterbook: outbound mail that is never lost and never unexplained.

    Exit codes: 0, 1 (the answer is no), 2 (wrong usage).
    """
