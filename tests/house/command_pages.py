"""docs/command-line.md, made from the commands themselves.

`python -m tests.house.command_pages` writes it; a test holds it equal to what stands here.
"""

import click

from letterbook.cli import COMMANDS, main

from .source import ROOT

COMMAND_PAGE = ROOT / "docs" / "command-line.md"

PAGE_HEAD = """\
# The command line

Every command answers `--help`. Exit codes are 0, 1 (the answer is no: one line on standard error says why) and 2
(wrong usage). On a terminal there are tables, colours and progress bars; elsewhere the same as lines with tabs between
the fields; with `--json` what the HTTP API answers, and for `log` JSON Lines that carry the stored data and the
commits' hashes.

Commands that look (`log`, `show`, `pending`, `deferred`, `held`, `results`, `accounts`, `rules`, `verify`, `at`,
`rebuild --check`) read the file itself, of a running or a stopped service, and change nothing. `--db FILE` names it, or
`--config FILE` the configuration that does; without both, `config.ini` of this folder counts, else the defaults.
`send`, `tail`, `health`, `resolve`, `bulk`, `cleanup`, `status`, `suspend` and `activate` speak to the running service,
at the address of the configuration or at `--url`. `backup` reads the file as well, and writes another. `rebuild`,
`restore` and `import` write it, and are refused while the service runs.

Times are ISO 8601; without a zone they are in UTC, and so is every time that is shown.
"""


def command_page() -> str:
    lines = [PAGE_HEAD]
    for subject, commands in COMMANDS.items():
        lines += [f"## {subject}", ""]
        for command in commands:
            lines += _command(command)
    return "\n".join(lines)


def _command(command: click.Command) -> list[str]:
    context = click.Context(command, info_name=f"{main.name or 'letterbook'} {command.name}", color=False)
    usage = " ".join(command.collect_usage_pieces(context))
    paragraphs = [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]
    lines = [f"### `letterbook {command.name} {usage}`", "", "\n\n".join(paragraphs), ""]
    options = [param for param in command.params if isinstance(param, click.Option)]
    rows = [record for option in options if (record := option.get_help_record(context))]
    if rows:
        lines += ["| option | what it does |", "|---|---|"]
        lines += [f"| `{_cell(name)}` | {_cell(' '.join(text.split()))} |" for name, text in rows]
        lines.append("")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    COMMAND_PAGE.write_text(command_page(), encoding="utf-8")
