"""The messages that docs/troubleshooting.md explains are messages that there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest
from markdown_files import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
ANY = re.compile(r"…|\bN\b|\(mode \d+\)")  # what differs from one message to the next


def explained() -> list[str]:
    """What the table of refusals, and quotes in the text, say that a message says."""
    table = PAGE.split("## A directory is refused")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|[^|]+\|$", table, re.MULTILINE)[2:]
    quoted = re.findall(r'(?:log (?:then )?says|warns:|warning says|is refused:) "([^"]+)"', PAGE)
    quoted += re.findall(r'^- "([^"]+)":', PAGE, re.MULTILINE)
    return [*rows, *quoted]


def texts() -> Iterator[str]:
    for folder in ("tiers", "engine", "factory"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


@pytest.fixture(scope="module")
def code() -> str:
    return "\n".join(texts())


def test_there_are_messages_to_find() -> None:
    assert len(explained()) >= 12


@pytest.mark.parametrize("message", explained())
def test_a_message_that_is_explained_is_in_the_code(code: str, message: str) -> None:
    parts = [part.strip(' ;,"') for part in ANY.split(message)]
    assert any(parts)
    assert not [part for part in parts if part not in code]
