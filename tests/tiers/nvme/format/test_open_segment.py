from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from segment_rig import FILES, KEYS, NAME, NAMESPACE, SEGMENT_BYTES, segment_file

from kvtier.tiers.nvme.format.codec import FIRST_BLOCK, Batch, Entry, SegmentName
from kvtier.tiers.nvme.format.open_segment import OpenSegment
from kvtier.tiers.nvme.format.segment_file import SegmentFile
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SegmentFile]:
    with segment_file(tmp_path) as file:
        yield file


def test_batches_are_placed_side_by_side(file: SegmentFile) -> None:
    segment = OpenSegment(file, FIRST_BLOCK)
    first = segment.place(KEYS, [BLOCK_BYTES, 1, 2 * BLOCK_BYTES])
    second = segment.place(KEYS[:1], [BLOCK_BYTES])
    assert first is not None
    assert second is not None
    assert (first.block, first.chunks, first.table_blocks, first.data_blocks) == (1, 3, 1, 4)
    assert second.block == 6
    assert segment.next_block == 8


def test_as_many_chunks_are_placed_as_fit(file: SegmentFile) -> None:
    segment = OpenSegment(file, FIRST_BLOCK)
    keys = [b"%04d" % i for i in range(100)]
    placement = segment.place(keys, [BLOCK_BYTES] * 100)
    assert placement is not None
    # 64 blocks: a header, a table of one block, its copy, a footer.
    assert placement.chunks == 60
    assert segment.place(keys, [BLOCK_BYTES] * 100) is None
    assert segment.writers == 1


def test_a_segment_filled_to_the_last_block_can_be_sealed(file: SegmentFile) -> None:
    segment = OpenSegment(file, FIRST_BLOCK)
    batches, number = [], 0
    while True:
        keys = [b"%0200d" % (number + i) for i in range(3)]
        placement = segment.place(keys, [100] * 3)
        if placement is None:
            break
        entries = tuple(Entry(key, 0, 100, 0, 0) for key in keys[: placement.chunks])
        batches.append(
            Batch(NAME, placement.block, placement.data_blocks, number, 1, NAMESPACE, False, entries)
        )
        segment.complete(batches[-1].encode())
        number += placement.chunks
    assert segment.writers == 0
    file.write_header(1)
    file.write_trailer(segment.batches)
    assert file.read_trailer() == batches
    assert FILES.size(file.fd) == SEGMENT_BYTES


def test_a_batch_given_up_leaves_a_hole_and_no_line(file: SegmentFile) -> None:
    segment = OpenSegment(file, FIRST_BLOCK)
    segment.place(KEYS, [1, 1, 1])
    segment.complete(None)
    assert segment.batches == []
    assert not segment.unsynced
    segment.place(KEYS, [1, 1, 1])
    segment.complete(b"table")
    assert segment.unsynced


def test_a_segment_is_in_vain_until_a_batch_is_written_and_rewinds_once_all_have_ended() -> None:
    name = SegmentName(b"s" * 16, 1, 1)
    segment = OpenSegment(SegmentFile(Files(), -1, name, 1 << 20), 7)
    first, second = (segment.place([b"key"], [16384]) for _ in range(2))
    assert first is not None
    assert second is not None
    assert not segment.is_in_vain, "both may yet be written"
    segment.refused = True
    segment.complete(None)
    assert segment.is_in_vain
    assert not segment.rewind()
    segment.complete(None)
    assert segment.rewind()
    assert segment.place([b"key"], [16384]) == first
    segment.complete(b"table")
    assert not segment.is_in_vain
