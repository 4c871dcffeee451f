from __future__ import annotations

from pathlib import Path

import pytest
from host_tree import HostTree


@pytest.fixture
def tree(tmp_path: Path) -> HostTree:
    """A machine that tells nothing yet."""
    return HostTree(tmp_path / "host")
