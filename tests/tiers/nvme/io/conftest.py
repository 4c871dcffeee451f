"""One file that pieces and parts are written to and read from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from piece_rig import OneFile

from kvtier.tiers.nvme.io.files import Files


@pytest.fixture
def source(tmp_path: Path) -> Iterator[OneFile]:
    fd = Files().open_data(tmp_path / "data", create=True, write=True)
    source = OneFile(fd)
    yield source
    assert source.users == 0, "what is acquired is released"
    Files().close(fd)
