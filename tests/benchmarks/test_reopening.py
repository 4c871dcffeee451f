"""The benchmark of opening a store again, with a store of a few chunks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

reopening = pytest.importorskip("reopening", reason="the benchmark is not part of the package")


@pytest.mark.slow
def test_every_way_of_leaving_a_store_is_measured(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    monkeypatch.setattr(reopening, "COUNTS", (0, 50))
    arguments = ["reopening.py", "--runs", "2", "--dir", str(folder), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", arguments)
    reopening.main()
    stores = json.loads(file.read_text())["stores"]
    ways = ["closed", "killed", "open elsewhere"]
    assert [(row["chunks"], row["left"]) for row in stores] == [(n, way) for n in (0, 50) for way in ways]
    for row in stores:
        assert min(row["open_ms"], row["examined_ms"], row["thorough_ms"]) > 0
    assert list(folder.iterdir()) == [], "nothing is left behind"
    assert "made anew" not in capfd.readouterr().err, "every store kept its index"
