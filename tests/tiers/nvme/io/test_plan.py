from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from piece_rig import CHECKSUM, OneFile, chunks_of, extent_of, ran, wanted, written

from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES, PIECE_BYTES, blocks_of
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.io.parts import WritePart
from kvtier.tiers.nvme.io.pieces import Wanted, Written
from kvtier.tiers.nvme.io.plan import PIECE_CHUNKS_MAX, plan_reads, plan_writes


@given(
    st.lists(st.sampled_from([1, 4096, 65536, PIECE_BYTES // 2, PIECE_BYTES, 3 * PIECE_BYTES]), max_size=10)
)
def test_write_pieces_cover_every_chunk_once_in_order(lengths: list[int]) -> None:
    chunks = [(b"%d" % i, memoryview(bytes(length))) for i, length in enumerate(lengths)]
    pieces = plan_writes(Files(), -1, CHECKSUM, 1, chunks)
    assert [chunk for piece in pieces for chunk in piece.chunks] == chunks
    large = [length for length in lengths if length > PIECE_BYTES]
    assert sum(isinstance(piece, WritePart) for piece in pieces) == 3 * len(large)
    for piece in pieces:
        if not isinstance(piece, WritePart):
            assert sum(len(buffer) for _, buffer in piece.chunks) <= PIECE_BYTES


def test_many_tiny_chunks_stay_within_one_call(source: OneFile) -> None:
    pieces = plan_writes(Files(), -1, CHECKSUM, 1, [(b"%d" % i, memoryview(b"x")) for i in range(1000)])
    assert max(len(piece.chunks) for piece in pieces) <= PIECE_CHUNKS_MAX
    entries = written(source, chunks_of([10] * 1000))
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted(entries))) == {}


def test_neighbours_are_read_together_whatever_their_order(source: OneFile) -> None:
    entries = written(source, chunks_of([8192] * 10))
    wants = wanted([entries[i] for i in (3, 1, 2, 0, 9, 7)])
    pieces = plan_reads(Files(), source, CHECKSUM, wants)
    # 0 to 3 side by side; 7 and 9 over a gap of two blocks; 3 and 7 too far apart.
    assert [[chunk.key for chunk in piece.chunks] for piece in pieces] == [
        [b"0", b"1", b"2", b"3"],
        [b"7", b"9"],
    ]
    assert ran(pieces) == {}


def test_lives_and_segments_are_not_read_together() -> None:
    entry = Written(b"k", 1, 4096, 0, 0)
    near = [
        Wanted(b"a", extent_of(entry), memoryview(bytearray(4096))),
        Wanted(b"b", extent_of(entry._replace(block=2), generation=2), memoryview(bytearray(4096))),
        Wanted(b"c", extent_of(entry._replace(block=3))._replace(segment=6), memoryview(bytearray(4096))),
    ]
    assert len(plan_reads(Files(), OneFile(None), CHECKSUM, near)) == 3


def test_every_chunk_is_planned_exactly_once() -> None:
    entries = [Written(b"%d" % i, 1 + 3 * i, 2 * BLOCK_BYTES, 0, 0) for i in range(50)]
    wants = wanted(entries)
    pieces = plan_reads(Files(), OneFile(None), CHECKSUM, wants)
    assert sorted(chunk.key for piece in pieces for chunk in piece.chunks) == sorted(e.key for e in entries)
    for piece in pieces:
        first, last = piece.chunks[0].place, piece.chunks[-1].place
        assert (last.block + blocks_of(last.length_bytes) - first.block) * BLOCK_BYTES <= 2 * PIECE_BYTES
