"""What tests of the documentation read in a Markdown file: samples, links, headings, inline code.

A sample is a fenced block. How it is tested depends on its language, and on a marker in a comment above it:

    <!-- sample: tier-document -->

The markers are those of `sample_bench`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]

FOLDERS = (
    ".",
    "docs",
    "docs/start",
    "docs/deploy",
    "docs/reference",
    "benchmarks",
    "examples",
    "packaging",
    "packaging/kvtier",
    "tests/data",
)

_FENCE = re.compile(r"```(\w*)\s*$")
_MARKER = re.compile(r"<!-- sample: (.+) -->\s*$")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"#+ (.+)")
_CODE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, slots=True)
class Sample:
    """One fenced block.

    Attributes:
        where: file and line, for messages.
        marker: what the comment above it says, empty where there is none.
    """

    where: str
    language: str
    marker: str
    text: str


def documents() -> list[Path]:
    """Every Markdown file of the repository that has documentation."""
    return sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))


def samples(document: Path) -> Iterator[Sample]:
    """The samples of a document, in order."""
    name, marker, lines = _named(document), "", iter(enumerate(document.read_text().splitlines(), start=1))
    for number, line in lines:
        fence, marked = _FENCE.match(line), _MARKER.match(line)
        if fence is not None:
            block = []
            for _, inner in lines:
                if inner.startswith("```"):
                    break
                block.append(inner)
            yield Sample(f"{name}:{number}", fence[1], marker, "\n".join(block) + "\n")
        elif marker:
            raise ValueError(f"{name}:{number}: the marker above belongs to no sample")
        marker = marked[1] if marked else ""


def indented_blocks(document: Path) -> list[int]:
    """Lines that begin a block by indentation alone; no rule sees such a block."""
    lines = [*_prose(document), (0, "")]
    return [
        number
        for (_, before), (number, line) in pairwise(lines)
        if not before.strip() and line.startswith("    ")
    ]


def links(document: Path) -> list[str]:
    """The targets of links and pictures."""
    text = "\n".join(line for _, line in _prose(document))
    return _LINK.findall(_CODE.sub("", text))


def inline_code(document: Path) -> list[str]:
    """What stands between backticks within a line."""
    return [code for _, line in _prose(document) for code in _CODE.findall(line)]


def anchors(document: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = (_HEADING.match(line) for _, line in _prose(document))
    return {_slug(heading[1]) for heading in headings if heading is not None}


def _prose(document: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines outside fenced blocks."""
    fenced = False
    for number, line in enumerate(document.read_text().splitlines(), start=1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def _named(document: Path) -> str:
    return str(document.relative_to(ROOT))
