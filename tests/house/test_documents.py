"""What the documents point at exists."""

import re
from collections.abc import Iterator
from pathlib import Path

from .source import ROOT

NAMED_FILE = re.compile(r"`([\w./-]+\.py)(?::\w+)?`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def documents() -> list[Path]:
    return sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])


def missing_files(page: Path) -> Iterator[str]:
    """A path is meant from the root; a bare name must be some file's of the house."""
    for name in NAMED_FILE.findall(page.read_text(encoding="utf-8")):
        exists = (ROOT / name).is_file() if "/" in name else any(files_named(name))
        if not exists:
            yield f"{page.relative_to(ROOT)}: {name}"


def files_named(name: str) -> Iterator[Path]:
    return (path for path in ROOT.rglob(name) if ".venv" not in path.parts)


def missing_links(page: Path) -> Iterator[str]:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("mailto:") and not (page.parent / target).exists():
            yield f"{page.relative_to(ROOT)}: {target}"


def test_every_file_that_a_document_names_exists():
    assert not [fault for page in documents() for fault in missing_files(page)]


def test_every_link_between_documents_leads_somewhere():
    assert not [fault for page in documents() for fault in missing_links(page)]
