"""The committed table has the rows that stand beside the tests."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "fault_matrix.py"))


def committed() -> list[tuple[str, ...]]:
    """The rows of docs/faults.md, without what the last run made of them."""
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    cells = [
        tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines if line[:2] == "| "
    ]
    return [row[:4] for row in cells if row[0] not in ("fault", "---")]


def test_the_table_has_every_row_and_no_other() -> None:
    assert committed() == [row.cells for row in TOOL["rows"]()], "run make fault-matrix"


def test_every_fault_is_a_row() -> None:
    for path in sorted((ROOT / "tests" / "faults").glob("test_*.py")):
        tests = path.read_text().count("def test_")
        rows = sum(row.file == path.name for row in TOOL["rows"]())
        assert tests == rows, path.name


def test_no_row_is_said_to_fail() -> None:
    assert "**fails**" not in (ROOT / "docs" / "faults.md").read_text()
