from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.tiers.nvme.index.datafile import AHEAD_PAGES, DataFile

KIB, MIB = 1024, 1024 * 1024


@pytest.mark.parametrize("page", [4 * KIB, 16 * KIB, 32 * KIB])
def test_a_change_finds_the_same_number_of_pages_taken_whatever_their_size(tmp_path: Path, page: int) -> None:
    path, map_bytes = tmp_path / "data.mdb", 3 * AHEAD_PAGES * page
    path.touch()
    file = DataFile(path, map_bytes, page)
    try:
        assert path.stat().st_size == map_bytes, "as long as the map from the start"
        for pages in (0, *range(AHEAD_PAGES // 2, 3 * AHEAD_PAGES, AHEAD_PAGES // 2)):
            file.take_room(pages * page)
            wanted_bytes = min(map_bytes, (pages + AHEAD_PAGES // 2) * page)
            assert path.stat().st_blocks * 512 >= wanted_bytes, pages
            assert file.limit_bytes(pages * page) == map_bytes
    finally:
        file.close()
