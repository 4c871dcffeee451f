"""The command line in this process, and a store for it to work on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import store_cli

from kvtier.factory.cli import app as cli

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _remembers_no_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `kvtier bench` measures in a test is kept for that test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: `run("check", file)` gives exit status, output and errors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["kvtier", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of 40 chunks, of which 10 were read back."""
    path = tmp_path / "store"
    store_cli.fill(path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A document that fits this machine, with a pinned tier and a drive."""
    tiers = [
        {"type": "gpu"},
        {"type": "pinned", "capacity": "64MiB"},
        {"type": "nvme", "path": str(tmp_path / "store"), "capacity": "2TiB", "reserve": "1GiB"},
    ]
    file = tmp_path / "tiers.json"
    file.write_text(json.dumps({"version": 1, "tiers": tiers}))
    return file
