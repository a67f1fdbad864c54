"""The two texts that are made from the table of keys: config.ini and docs/configuration.md.

`python -m tests.house.configuration_pages` writes both; a test holds them equal to what stands here.
"""

from pathlib import Path

from letterbook.config_keys import KEYS, SECTIONS, VOLUME_KEYS, VOLUMES_SENTENCE, Entry
from letterbook.old_names import OLD_NAMES

ROOT = Path(__file__).parents[2]
CONFIG_INI = ROOT / "config.ini"
CONFIGURATION_PAGE = ROOT / "docs" / "configuration.md"
CHANGED_PAGE = ROOT / "docs" / "what-changed.md"

INI_HEAD = """\
# Letterbook's configuration: every key, with its default. All of them may be left out.
# Each can be given as a variable LETTERBOOK_<SECTION>_<KEY>, which wins over this file.
# A secret may stand in a file of its own: api_token_file, password_file. An empty value counts as not set.
# Comments stand on lines of their own. `letterbook check-config` says what is wrong without starting.
"""

PAGE_HEAD = """\
# Configuration

`config.ini` at the root lists every key with its default; all of them may be left out. For each key the environment
variable `LETTERBOOK_<SECTION>_<KEY>` wins over the file, and the file over the default. An empty value counts as not
set. Paths start at the folder that the service is started in.

A secret may stand in a file of its own, as container platforms hand them over: `<key>_file` names it
(`LETTERBOOK_SERVER_API_TOKEN_FILE=/run/secrets/token`). White space around its text is dropped.

An unknown key, a value that cannot be read or a file that cannot be opened stops the start with one line that names
file, section and key and says what to write. `letterbook check-config` says the same without starting.
"""

VOLUME_EXAMPLE = {
    "backend": "volume.invoices.backend = s3",
    "config": 'volume.invoices.config = {"bucket": "invoices", "access_key": "..", "secret_key": ".."}',
    "account_id": "volume.invoices.account_id = shop",
}

VOLUMES_TEXT = """\
What `config` may say of each backend is in [api.md](api.md#volumes). At a start these volumes are recorded where they
differ from what is stored. One that was set over HTTP is never overwritten. One that was deleted over HTTP is there
again after the next start, as long as it stands here; one that is taken out of here stays until it is deleted."""


def shown(default: object) -> str:
    """A default as an operator would write it."""
    match default:
        case None:
            return ""
        case bool():
            return str(default).lower()
        case float():
            return f"{default:.10g}"
        case tuple():
            return ", ".join(shown(part) for part in default)
    return str(default)


def keys_of(section: str) -> list[Entry]:
    return [entry for entry in KEYS if entry.section == section]


def config_ini() -> str:
    lines = [INI_HEAD]
    for section, struct in SECTIONS.items():
        lines.append(f"# {struct.__doc__}\n[{section}]")
        lines += [f"# {entry.sentence}\n{entry.name} = {shown(entry.default)}".rstrip() for entry in keys_of(section)]
        lines.append("")
    lines.append(f"# {VOLUMES_SENTENCE}\n[volumes]")
    lines += [f"# {sentence}\n# {VOLUME_EXAMPLE[key]}" for key, sentence in VOLUME_KEYS.items()]
    lines.append("")
    return "\n".join(lines)


def configuration_page() -> str:
    lines = [PAGE_HEAD]
    for section, struct in SECTIONS.items():
        lines += [f"## [{section}]", "", struct.__doc__ or "", ""]
        lines += ["| key | default | what it is | write |", "|---|---|---|---|"]
        lines += [page_row(entry) for entry in keys_of(section)]
        lines.append("")
    lines += ["## [volumes]", "", VOLUMES_SENTENCE, "", VOLUMES_TEXT, "", "| key | what it is |", "|---|---|"]
    lines += [f"| `volume.NAME.{key}` | {sentence} |" for key, sentence in VOLUME_KEYS.items()]
    lines += ["", "```ini", *VOLUME_EXAMPLE.values(), "```", ""]
    return "\n".join(lines)


def page_row(entry: Entry) -> str:
    default = f"`{shown(entry.default)}`" if shown(entry.default) else ""
    elsewhere = f", or name a file by `{entry.name}_file`" if entry.kind.secret else ""
    return f"| `{entry.name}` | {default} | {entry.sentence} | {entry.kind.write}{elsewhere} |"


TABLE_BEGINS = "<!-- made from letterbook/old_names.py by python -m tests.house.configuration_pages -->\n"
TABLE_ENDS = "<!-- end -->"


def with_old_names(page: str) -> str:
    """The page for who comes over, with the table of the old names."""
    before, _, rest = page.partition(TABLE_BEGINS)
    _, _, after = rest.partition(TABLE_ENDS)
    rows = [f"| `{variable}` | `[{section}] {key}` |\n" for variable, section, key in OLD_NAMES]
    return "".join((before, TABLE_BEGINS, *rows, TABLE_ENDS, after))


if __name__ == "__main__":
    CHANGED_PAGE.write_text(with_old_names(CHANGED_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    CONFIG_INI.write_text(config_ini(), encoding="utf-8")
    CONFIGURATION_PAGE.write_text(configuration_page(), encoding="utf-8")
