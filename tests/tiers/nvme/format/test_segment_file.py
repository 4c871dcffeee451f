from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.nvme.format.segment_file import (
    FIRST_BLOCK,
    SEGMENT_BYTES_MAX,
    Batch,
    Entry,
    Header,
    OpenSegment,
    SegmentFile,
    SegmentName,
    blocks_of,
    decode_table,
    segment_bytes_for,
    table_bytes,
)
from kvtier.tiers.nvme.io.files import BLOCK_BYTES, Files, scratch, write_all

FILES = Files()
NAME = SegmentName(b"s" * 16, 7, 3)
SEGMENT_BYTES = 64 * BLOCK_BYTES
NAMESPACE = b"n" * 32
KEYS = [b"a", b"bb" * 20, b"c" * 256]


def batch_at(block: int, keys: Sequence[ChunkKey] = KEYS, *, order: int = 1, removals: bool = False) -> Batch:
    first = block + blocks_of(table_bytes(keys))
    entries = tuple(
        Entry(key, first + 2 * i, 2 * BLOCK_BYTES - 5, 17 + i, 1000 + i) for i, key in enumerate(keys)
    )
    return Batch(NAME, block, 2 * len(keys), order, 9, NAMESPACE, removals, entries)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SegmentFile]:
    fd = FILES.open_data(tmp_path / "7.seg", create=True, write=True)
    FILES.allocate(fd, SEGMENT_BYTES)
    yield SegmentFile(FILES, fd, NAME, SEGMENT_BYTES)
    FILES.close(fd)


def overwrite(file: SegmentFile, block: int, data: bytes) -> None:
    memory = scratch(len(data))
    memory[: len(data)] = data
    write_all(FILES, file.fd, [memory], block * BLOCK_BYTES)


def life(file: SegmentFile, generation: int) -> SegmentFile:
    return SegmentFile(FILES, file.fd, NAME._replace(generation=generation), SEGMENT_BYTES)


# The table.


@pytest.mark.parametrize("removals", [False, True])
def test_a_table_reads_back(removals: bool) -> None:
    batch = batch_at(5, removals=removals)
    data = batch.encode()
    assert len(data) == table_bytes(KEYS)
    assert decode_table(data, NAME.store, NAME.segment, NAME.generation) == batch
    assert decode_table(data + b"more", NAME.store, NAME.segment, None) == batch


def test_a_table_of_another_store_segment_or_life_is_none() -> None:
    data = batch_at(5).encode()
    assert decode_table(data, b"t" * 16, 7, 3) is None
    assert decode_table(data, NAME.store, 8, 3) is None
    assert decode_table(data, NAME.store, 7, 4) is None


def test_a_table_with_any_flipped_byte_or_cut_short_is_none() -> None:
    data = batch_at(5).encode()
    for place in range(len(data)):
        bad = bytearray(data)
        bad[place] ^= 0x10
        assert decode_table(bytes(bad), NAME.store, NAME.segment, None) is None
        assert decode_table(data[:place], NAME.store, NAME.segment, None) is None


def test_a_batch_ends_behind_its_table_and_data() -> None:
    batch = batch_at(5)
    assert batch.table_blocks == 1
    assert batch.end_block == 5 + 1 + 6
    assert [entry.blocks for entry in batch.entries] == [2, 2, 2]


def test_a_header_reads_back_and_with_any_flipped_byte_is_none() -> None:
    data = Header(NAME, 12).encode()
    assert Header.decode(data) == Header(NAME, 12)
    assert Header.decode(b"") is None
    for place in range(40):
        bad = bytearray(data)
        bad[place] ^= 1
        assert Header.decode(bytes(bad)) is None


# The file.


def test_a_sealed_segment_lists_all_its_batches(file: SegmentFile) -> None:
    batches = [batch_at(1), batch_at(8, KEYS[:1], order=2), batch_at(11, order=3, removals=True)]
    file.write_header(4)
    assert file.read_header() == Header(NAME, 4)
    file.write_trailer([batch.encode() for batch in batches])
    assert file.read_trailer() == batches


def test_a_segment_sealed_empty_lists_nothing(file: SegmentFile) -> None:
    file.write_trailer([])
    assert file.read_trailer() == []


def test_a_trailer_with_a_flipped_byte_or_of_an_earlier_life_is_none(file: SegmentFile) -> None:
    data = batch_at(1).encode()
    file.write_trailer([data])
    assert life(file, 4).read_trailer() is None
    bad = bytearray(data)
    bad[-1] ^= 1
    overwrite(file, file.size_blocks - 1 - blocks_of(len(data)), bytes(bad))
    assert file.read_trailer() is None
    file.write_trailer([data])
    overwrite(file, file.size_blocks - 1, b"KVTEND")
    assert file.read_trailer() is None


def test_a_sweep_finds_every_batch_across_holes(file: SegmentFile) -> None:
    batches = [batch_at(1), batch_at(20, KEYS[:1]), batch_at(23, KEYS[1:])]
    for batch in batches:
        file.write_table(batch)
    assert list(file.sweep()) == batches
    assert list(file.sweep(end_block=20)) == batches[:1]


def test_a_sweep_does_not_take_stored_bytes_for_a_table(file: SegmentFile) -> None:
    # A chunk's payload may be anything, even a valid table: of another place, or inside a batch.
    outer = batch_at(1)
    file.write_table(outer)
    overwrite(file, 3, batch_at(3).encode())  # inside the outer batch: hopped over
    overwrite(file, 30, batch_at(40).encode())  # says that it lies elsewhere
    assert list(file.sweep()) == [outer]


def test_a_sweep_skips_a_torn_table_and_an_earlier_life(file: SegmentFile) -> None:
    torn = bytearray(batch_at(1).encode())
    torn[-1] ^= 1
    overwrite(file, 1, bytes(torn))
    file.write_table(batch_at(12))
    assert list(file.sweep()) == [batch_at(12)]
    assert list(life(file, 4).sweep()) == []
    assert list(life(file, 4).sweep(any_life=True)) == [batch_at(12)]


def test_a_sweep_survives_a_table_that_claims_to_be_huge(file: SegmentFile) -> None:
    data = bytearray(batch_at(1).encode())
    data[40:44] = b"\xff" * 4  # where the number of its blocks is
    overwrite(file, 1, bytes(data))
    file.write_table(batch_at(12))
    assert list(file.sweep()) == [batch_at(12)]


def test_a_file_cut_short_reads_as_zeroes(file: SegmentFile) -> None:
    file.write_table(batch_at(1))
    FILES.truncate(file.fd, 3 * BLOCK_BYTES)
    assert file.read_trailer() is None
    assert list(file.sweep()) == [batch_at(1)]
    FILES.truncate(file.fd, 0)
    assert file.read_header() is None


# The open segment.


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
        segment.settle(batches[-1].encode())
        number += placement.chunks
    assert segment.writers == 0
    file.write_header(1)
    file.write_trailer(segment.batches)
    assert file.read_trailer() == batches
    assert FILES.size(file.fd) == SEGMENT_BYTES


def test_a_batch_given_up_leaves_a_hole_and_no_line(file: SegmentFile) -> None:
    segment = OpenSegment(file, FIRST_BLOCK)
    segment.place(KEYS, [1, 1, 1])
    segment.settle(None)
    assert segment.batches == []
    assert not segment.unsynced
    segment.hold()
    segment.settle(b"table")
    assert segment.unsynced


@pytest.mark.parametrize(
    ("capacity_bytes", "chunk_bytes"),
    [(1 << 20, 4096), (8 << 20, 2 << 20), (1 << 30, 65536), (1 << 42, 1 << 20)],
)
def test_segments_hold_two_chunks_and_are_not_larger_than_they_need_be(
    capacity_bytes: int, chunk_bytes: int
) -> None:
    size_bytes = segment_bytes_for(capacity_bytes, chunk_bytes)
    assert size_bytes % BLOCK_BYTES == 0
    assert size_bytes > 2 * chunk_bytes
    assert size_bytes <= max(SEGMENT_BYTES_MAX, 3 * chunk_bytes)
