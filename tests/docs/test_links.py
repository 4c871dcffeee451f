"""Links and paths in the documentation lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_files import ROOT, anchors, documents, inline_code, links

ELSEWHERE = ("http://", "https://", "mailto:")

PATH = re.compile(r"(?:tiers|engine|factory|tests|docs|benchmarks|examples|tools)/[\w./-]*\.\w+")
EXAMPLES = {"tests/factory/cli/store/test_count.py"}  # what a reader of CONTRIBUTING.md would write


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", documents(), ids=named)
def test_every_relative_link_leads_to_a_file_and_an_anchor(document: Path) -> None:
    broken = []
    for link in links(document):
        if link.startswith(ELSEWHERE):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", documents(), ids=named)
def test_every_path_of_the_repository_that_is_named_exists(document: Path) -> None:
    paths = {code for code in inline_code(document) if PATH.fullmatch(code)} - EXAMPLES
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    assert missing == []
