"""The sizes of an index follow from the cap, the chunks and the system's pages."""

from __future__ import annotations

import pytest

from kvtier.tiers.nvme.index.records import MAP_PAGES_MIN, map_bytes_for, page_bytes, shared_bytes_for

KIB, MIB, TIB = 1024, 1024 * 1024, 1 << 40


@pytest.mark.parametrize("page", [4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB])
def test_a_map_is_whole_pages_and_has_enough_of_them_whatever_their_size(page: int) -> None:
    for capacity_bytes in (0, MIB, 2 * TIB):
        map_bytes = map_bytes_for(capacity_bytes, 256 * KIB, page)
        assert map_bytes % page == 0
        assert map_bytes >= MAP_PAGES_MIN * page_bytes(page)
        shared_bytes = shared_bytes_for(capacity_bytes, 256 * KIB, page)
        assert shared_bytes % page == 0
        assert shared_bytes > MAP_PAGES_MIN * page_bytes(page) + 3 * page - 1, "each small file takes a page"


def test_an_index_takes_a_thousandth_of_the_cap_of_ordinary_chunks() -> None:
    assert shared_bytes_for(2 * TIB, 256 * KIB, 4 * KIB) <= 2 * TIB / 1000
    assert map_bytes_for(2 * TIB, 256 * KIB, 4 * KIB) > shared_bytes_for(2 * TIB, 256 * KIB, 4 * KIB)
