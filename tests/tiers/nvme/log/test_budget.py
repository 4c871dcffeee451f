from __future__ import annotations

import pytest

from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.log.budget import SEGMENT_BYTES_MAX, SEGMENTS_MAX, segment_bytes_for


@pytest.mark.parametrize(
    ("capacity_bytes", "chunk_bytes"),
    [(1 << 20, 4096), (8 << 20, 2 << 20), (1 << 30, 65536), (1 << 40, 1 << 20)],
)
def test_segments_hold_two_chunks_and_are_not_larger_than_they_need_be(
    capacity_bytes: int, chunk_bytes: int
) -> None:
    size_bytes = segment_bytes_for(capacity_bytes, chunk_bytes)
    assert size_bytes % BLOCK_BYTES == 0
    assert size_bytes > 2 * chunk_bytes
    assert size_bytes <= max(SEGMENT_BYTES_MAX, 3 * chunk_bytes)


@pytest.mark.parametrize("capacity_bytes", [1 << 41, 30 << 40, 1 << 50])
def test_segments_of_a_large_store_grow_with_its_cap(capacity_bytes: int) -> None:
    size_bytes = segment_bytes_for(capacity_bytes, 1 << 20)
    assert SEGMENTS_MAX - 1 <= capacity_bytes // size_bytes <= SEGMENTS_MAX
