"""fio reads what it has written itself, and writes nothing for that."""

from __future__ import annotations

from pathlib import Path

import pytest

fio = pytest.importorskip("comparison.fio", reason="the benchmark is not part of the package")


@pytest.mark.skipif(not fio.installed(), reason="needs fio")
def test_a_read_finds_the_files_that_a_write_has_left(tmp_path: Path) -> None:
    size = {"chunk_bytes": 1 << 20, "total_bytes": 8 << 20}
    assert fio.fio_bytes_per_second(tmp_path, "write", **size) > 0
    written = {path: path.stat() for path in tmp_path.rglob("limit.*")}
    assert sum(state.st_size for state in written.values()) == len(fio.SETUPS) * size["total_bytes"]
    assert fio.fio_bytes_per_second(tmp_path, "read", **size) > 0
    read = {path: path.stat() for path in tmp_path.rglob("limit.*")}
    assert [(state.st_ino, state.st_mtime_ns) for state in read.values()] == [
        (state.st_ino, state.st_mtime_ns) for state in written.values()
    ]
