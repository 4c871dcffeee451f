from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from segment_rig import FILES, KEYS, NAME, SEGMENT_BYTES, batch_at, segment_file

from kvtier.tiers.nvme.format.codec import Header
from kvtier.tiers.nvme.format.segment_file import SegmentFile
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES, blocks_of, scratch, write_all


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SegmentFile]:
    with segment_file(tmp_path) as file:
        yield file


def overwrite(file: SegmentFile, block: int, data: bytes) -> None:
    memory = scratch(len(data))
    memory[: len(data)] = data
    write_all(FILES, file.fd, [memory], block * BLOCK_BYTES)


def life(file: SegmentFile, generation: int) -> SegmentFile:
    return SegmentFile(FILES, file.fd, NAME._replace(generation=generation), SEGMENT_BYTES)


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


def test_a_segment_that_is_unsealed_has_no_trailer_until_it_is_sealed_again(file: SegmentFile) -> None:
    data = batch_at(1).encode()
    file.write_trailer([data])
    life(file, 4).unseal()
    assert file.read_trailer() is not None, "another life's is left alone"
    file.unseal()
    assert file.read_footer() is None
    file.write_trailer([data])
    assert file.read_trailer() == [batch_at(1)]


def test_a_footer_tells_removals_and_high_marks_without_the_other_tables(file: SegmentFile) -> None:
    batches = [batch_at(1, order=7), batch_at(8, KEYS[:1], order=2, removals=True), batch_at(11, order=3)]
    file.write_trailer([batch.encode() for batch in batches])
    footer = file.read_footer()
    assert footer is not None
    assert (footer.order, footer.scope) == (7, 9)
    assert file.read_removals(footer) == batches[1:2]
    assert file.read_trailer() == batches


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
