"""What the documents point at exists, and what they list is the whole list."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from actors.connection import TroubleReason
from events.waiting import SENTENCES
from events.wire import KINDS
from gateway.app import STREAM
from gateway.commands import COMMANDS
from gateway.door import NOT_READY
from gateway.metrics import GAUGES, LABELLED, Metrics
from gateway.pages import PAGES
from letterbook.logs import KEYS as LOG_KEYS
from letterbook.outcomes import KEYS as OUTCOME_KEYS
from letterbook.outcomes import SENTENCES as OUTCOME_SENTENCES
from store.recovery import ASPECTS

from . import lines
from .source import PACKAGES, ROOT, functions, modules

DOCS = ROOT / "docs"
API, OPERATIONS, WORDS = DOCS / "api.md", DOCS / "operations.md", DOCS / "words.md"
README = ROOT / "README.md"

NAMED_FILE = re.compile(r"`([\w./-]+\.py)(?::\w+)?`")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
ROUTE = re.compile(r"\b(GET|POST|PATCH|DELETE) (/[\w/{}.-]+)")
TARGET = re.compile(r"\bmake ([a-z.]+)")
METRIC = re.compile(r"\b(?:asyncmail|letterbook)_[a-z_]+")
FACT = re.compile(
    r"\b(?:Message|Attempt|Account|Relay|Dispatch|Service|Content|Retention|Results|Log|Clock)[A-Z][a-z]+\b"
)
TERM = re.compile(r"^\| ([^|]+) \|", re.MULTILINE)

NO_FACTS = {"MessagePack"}
"""Names that look like facts and are none."""


def documents() -> list[Path]:
    return sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# What is pointed at


def missing_files(page: Path) -> Iterator[str]:
    """A path is meant from the root; a bare name must be some file's of the house."""
    for name in NAMED_FILE.findall(text(page)):
        exists = (ROOT / name).is_file() if "/" in name else any(files_named(name))
        if not exists:
            yield f"{page.relative_to(ROOT)}: {name}"


def files_named(name: str) -> Iterator[Path]:
    return (path for path in ROOT.rglob(name) if ".venv" not in path.parts)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_links(page: Path) -> Iterator[str]:
    for target, anchor in LINK.findall(text(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        linked = page.parent / target if target else page
        if not linked.exists():
            yield f"{page.relative_to(ROOT)}: {target}"
        elif anchor and anchor not in anchors(linked):
            yield f"{page.relative_to(ROOT)}: {target}#{anchor}"


def test_every_file_that_a_document_names_exists():
    assert not [fault for page in documents() for fault in missing_files(page)]


def test_every_link_between_documents_leads_somewhere():
    assert not [fault for page in documents() for fault in missing_links(page)]


def test_every_page_is_linked_from_the_readme():
    linked = {target for target, _ in LINK.findall(text(README))}
    assert not [page.name for page in DOCS.glob("*.md") if f"docs/{page.name}" not in linked]


def test_every_make_target_that_a_document_names_exists():
    makefile = text(ROOT / "Makefile")
    named = {(page.name, target) for page in documents() for target in TARGET.findall(code(page))}
    assert not [each for each in sorted(named) if not re.search(rf"^{re.escape(each[1])}:", makefile, re.MULTILINE)]


def code(page: Path) -> str:
    """What stands in code: blocks and spans."""
    whole = text(page)
    blocks = re.findall(r"^```.*?^```", whole, re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`[^`\n]+`", whole)])


# What is listed


def routes() -> set[str]:
    of_commands = {f"{each.method} {each.path.replace('<', '{').replace('>', '}')}" for each in COMMANDS}
    return {*of_commands, f"GET {STREAM}", *(f"GET {path}" for path in PAGES)}


def routes_described() -> set[str]:
    headings = re.findall(r"^### (.+)$", text(API), re.MULTILINE)
    return {f"{method} {path}" for heading in headings for method, path in ROUTE.findall(heading)}


def test_the_api_page_describes_every_route_and_no_other():
    assert routes_described() == routes()


def test_every_command_has_its_name_on_the_api_page():
    assert not [each.name for each in COMMANDS if f"`{each.name}`" not in text(API)]


def test_the_api_page_lists_why_mail_waits_in_the_words_of_the_table():
    rows = "".join(f"| `{reason}` | {sentence} |\n" for reason, sentence in SENTENCES.items())
    assert f"| `reason` | |\n|---|---|\n{rows}\n" in text(API)


def metric_names() -> set[str]:
    """As they are scraped, without the parts of histograms and the moments at which counters were made."""
    found = {f"letterbook_{name}" for name in (*GAUGES, *LABELLED)}
    for family in Metrics().registry.collect():
        found.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return {name for name in found if METRIC.match(name)}


def test_the_metrics_are_those_that_are_listed():
    named = {name for name in METRIC.findall(text(OPERATIONS)) if not name.endswith("_")}
    assert named == metric_names()


def test_a_start_says_the_lines_that_are_listed():
    page = text(OPERATIONS)
    cases = [case for aspect in ASPECTS for case in aspect.cases if case.line]
    assert not [case.label for case in cases if f"| {case.label} |" not in page]


def section(heading: str) -> str:
    """Of the operations page, from a heading of the second level to the next."""
    return text(OPERATIONS).split(f"\n## {heading}\n")[1].split("\n## ")[0]


def table(page: str, title: str) -> list[str]:
    """The first cells of a table, by the title of its first column."""
    rows = page.split(f"\n| {title} |")[1].split("\n\n", maxsplit=1)[0]
    return re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)


def test_the_keys_of_log_lines_are_those_that_are_listed():
    assert table(section("Log lines"), "key") == list(LOG_KEYS)


def test_the_fields_of_a_messages_end_are_those_that_are_listed():
    rows = "".join(f"| `{name}` | {words} |\n" for name, words in OUTCOME_KEYS.items())
    assert f"\n| field | |\n|---|---|\n{rows}\n" in section("Log lines")
    assert not [words for words in OUTCOME_SENTENCES.values() if f"`{words}`" not in section("Log lines")]


def test_every_reason_says_what_to_do():
    ready, status = section("Ready").split("`GET /status` names")
    assert table(ready, "reason") == list(NOT_READY)
    assert table(status, "reason") == remarks()


def remarks() -> list[str]:
    """What the service adds to /status, as the wiring has it."""
    (given,) = (node for name, node in functions(modules()["letterbook.system"].tree) if name == "System._remarks")
    words = (node.value for node in ast.walk(given) if isinstance(node, ast.Constant))
    return [word for word in words if isinstance(word, str) and word.isidentifier()]


def listed_lines() -> set[str]:
    rows = re.findall(r"^\| (`.+?`) \| ", section("Log lines").split("### The lines")[1], re.MULTILINE)
    return {line for row in rows for line in re.findall(r"`([^`]+)`", row)}


def test_every_line_that_the_service_can_say_is_listed():
    """A new line of a logger, or a new error that ends it, wants its row: what it means and what to do."""
    said = {line.replace("`", "") for line in (*lines.logged(), *lines.ending())}
    assert len(said) > 30
    assert not sorted(said - listed_lines())
    assert not sorted(listed_lines() - said)


def test_the_reasons_why_a_relay_cannot_be_used_are_those_that_are_listed():
    section = text(OPERATIONS).split("\n## Relays that cannot be used\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(get_args(TroubleReason))


def test_every_fact_that_a_document_names_exists():
    named = {(page.name, kind) for page in documents() for kind in FACT.findall(text(page))}
    assert not [each for each in sorted(named) if each[1] not in KINDS.keys() | NO_FACTS]


# Words


def terms() -> list[str]:
    found = [row.strip() for row in TERM.findall(text(WORDS))]
    return [term for term in found if term != "word" and not term.startswith("-")]


def test_each_word_has_one_meaning():
    assert len(terms()) > 50
    assert not {term for term in terms() if terms().count(term) > 1}


def test_the_house_in_the_documents_is_the_house():
    page = text(DOCS / "design.md")
    assert not [package for package in PACKAGES if f"| `{package}` |" not in page]
