from __future__ import annotations

import pytest
from segment_rig import KEYS, NAME, batch_at

from kvtier.tiers.nvme.format.codec import (
    Footer,
    Header,
    decode_body,
    decode_table,
    encode_trailer,
    table_bytes,
)
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES


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


def test_a_trailer_reads_back_and_with_any_flipped_byte_is_none() -> None:
    batches = [batch_at(1), batch_at(8, KEYS[:1], removals=True)]
    block, data = encode_trailer(NAME, [batch.encode() for batch in batches], 64)
    assert (block, len(data)) == (62, 2 * BLOCK_BYTES)
    body, last = memoryview(data)[:BLOCK_BYTES], data[BLOCK_BYTES:]
    footer = Footer.decode(last)
    assert footer is not None
    assert (footer.name, footer.block) == (NAME, 62)
    assert decode_body(body[: footer.body_bytes], footer) == batches
    assert decode_body(body[: footer.body_bytes - 1], footer) is None
    for place in range(48):
        bad = bytearray(last)
        bad[place] ^= 1
        assert Footer.decode(bytes(bad)) is None
