"""Links and paths in the documentation lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from markdown_files import ROOT, anchors, documents, inline_code, links

ELSEWHERE = ("http://", "https://", "mailto:")
REPOSITORY = (
    "https://github.com/kvtier/kvtier/blob/main/"  # what the site, and an index of packages, links to
)
INDEXED = ("pyproject.toml", "packaging/kvtier/pyproject.toml")  # each names the page that an index shows

PATH = re.compile(r"(?:tiers|engine|factory|tests|docs|benchmarks|examples|tools)/[\w./-]*\.\w+")
EXAMPLES = {"tests/factory/cli/store/test_count.py"}  # what a reader of CONTRIBUTING.md would write


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", documents(), ids=named)
def test_every_relative_link_leads_to_a_file_and_an_anchor(document: Path) -> None:
    broken = []
    for link in links(document):
        if link.startswith(ELSEWHERE) and not link.startswith(REPOSITORY):
            continue
        path, _, anchor = link.removeprefix(REPOSITORY).partition("#")
        folder = ROOT if link.startswith(REPOSITORY) else document.parent
        target = (folder / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("project", INDEXED)
def test_what_an_index_of_packages_shows_links_to_nothing_beside_it(project: str) -> None:
    readme = tomllib.loads((ROOT / project).read_text())["project"]["readme"]
    found = links((ROOT / project).parent / readme)
    assert found
    assert all(link.startswith(ELSEWHERE) for link in found)


@pytest.mark.parametrize("document", documents(), ids=named)
def test_every_path_of_the_repository_that_is_named_exists(document: Path) -> None:
    paths = {code for code in inline_code(document) if PATH.fullmatch(code)} - EXAMPLES
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    assert missing == []
