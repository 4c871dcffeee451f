"""What tests of benchmarks share."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def revision() -> str:
    """A revision of this checkout; without a repository there is none."""
    known = subprocess.run(["git", "-C", ROOT, "rev-parse", "--verify", "-q", "HEAD"], capture_output=True)
    if known.returncode or not (ROOT / ".git").exists():
        pytest.skip("this is no git repository")
    return "HEAD"


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: a benchmark does not wait for a drive that others write to."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="benchmark-") as path:
        yield Path(path)
