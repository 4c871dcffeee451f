from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.tiers.base import Buffer, ChunkKey, Failure
from kvtier.tiers.nvme.format.checksum import ChunkChecksum
from kvtier.tiers.nvme.index.records import Extent
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES, PIECE_BYTES, blocks_of
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.io.pieces import (
    PIECE_CHUNKS_MAX,
    Place,
    ReadPiece,
    Wanted,
    WritePiece,
    Written,
    plan_reads,
    plan_writes,
)
from kvtier.tiers.testing import aligned_buffers

CHECKSUM = ChunkChecksum(b"n" * 32)


class Failing(Files):
    """Fails each call that touches this block."""

    def __init__(self, block: int) -> None:
        self.block = block

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._check(buffers, offset)
        return super().preadv(fd, buffers, offset)

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._check(buffers, offset)
        return super().pwritev(fd, buffers, offset)

    def _check(self, buffers: Sequence[Buffer], offset: int) -> None:
        if offset <= self.block * BLOCK_BYTES < offset + sum(map(len, buffers)):
            raise OSError(errno.EIO, "bad block")


class OneFile:
    """A source of one file."""

    def __init__(self, fd: int | None) -> None:
        self.fd = fd
        self.users = 0
        self.current = True
        self.error: OSError | None = None

    def acquire(self, segment: int, generation: int) -> int | None:
        if self.error is not None:
            raise self.error
        self.users += self.fd is not None
        return self.fd

    def release(self, segment: int) -> None:
        self.users -= 1

    def in_force(self, key: ChunkKey, place: Place) -> bool:
        return self.current


@pytest.fixture
def source(tmp_path: Path) -> Iterator[OneFile]:
    fd = Files().open_data(tmp_path / "data", create=True, write=True)
    source = OneFile(fd)
    yield source
    assert source.users == 0, "what is acquired is released"
    Files().close(fd)


def chunks_of(lengths: Sequence[int]) -> list[tuple[ChunkKey, Buffer]]:
    buffers = [aligned_buffers(1, length)[0] for length in lengths]
    for buffer in buffers:
        buffer[:] = os.urandom(len(buffer))
    return [(b"%d" % i, buffer) for i, buffer in enumerate(buffers)]


def written(source: OneFile, chunks: Sequence[tuple[ChunkKey, Buffer]], block: int = 1) -> list[Written]:
    assert source.fd is not None
    pieces = plan_writes(Files(), source.fd, CHECKSUM, block, chunks)
    for piece in pieces:
        piece()
        assert piece.error is None
    return [entry for piece in pieces for entry in piece.written]


def wanted(entries: Sequence[Written]) -> list[Wanted[Extent]]:
    return [
        Wanted(entry.key, extent_of(entry), aligned_buffers(1, entry.length_bytes)[0]) for entry in entries
    ]


def extent_of(entry: Written, generation: int = 1) -> Extent:
    return Extent(5, generation, entry.block, entry.length_bytes, entry.checksum, entry.stored_s, 0, 0)


def ran(pieces: Sequence[ReadPiece[Extent]]) -> dict[ChunkKey, Failure]:
    for piece in pieces:
        piece()
    return {
        piece.chunks[position].key: failure for piece in pieces for position, failure in piece.failed.items()
    }


@given(st.lists(st.integers(1, 3 * BLOCK_BYTES), min_size=1, max_size=12))
def test_chunks_of_any_lengths_read_back(lengths: list[int]) -> None:
    fd = os.memfd_create("data")
    try:
        source = OneFile(fd)
        chunks = chunks_of(lengths)
        entries = written(source, chunks)
        wants = wanted(entries)
        assert ran(plan_reads(Files(), source, CHECKSUM, wants)) == {}
        for (_, buffer), want in zip(chunks, wants, strict=True):
            assert bytes(want.buffer) == bytes(buffer)
    finally:
        os.close(fd)


def test_what_lies_behind_a_buffer_in_memory_is_left_alone(source: OneFile) -> None:
    chunks = chunks_of([5000])
    entries = written(source, chunks)
    memory = aligned_buffers(1, 2 * BLOCK_BYTES)[0]
    memory[:] = b"\xaa" * len(memory)
    want = Wanted(b"0", extent_of(entries[0]), memory[:5000])
    assert ran(plan_reads(Files(), source, CHECKSUM, [want])) == {}
    assert bytes(memory[:5000]) == bytes(chunks[0][1])
    assert bytes(memory[5000:]) == b"\xaa" * (len(memory) - 5000)


@given(
    st.lists(st.sampled_from([1, 4096, 65536, PIECE_BYTES // 2, PIECE_BYTES, 3 * PIECE_BYTES]), max_size=20)
)
def test_write_pieces_cover_every_chunk_once_in_order(lengths: list[int]) -> None:
    chunks = [(b"%d" % i, memoryview(bytes(length))) for i, length in enumerate(lengths)]
    pieces = plan_writes(Files(), -1, CHECKSUM, 1, chunks)
    assert [chunk for piece in pieces for chunk in piece.chunks] == chunks
    for piece in pieces:
        assert len(piece.chunks) == 1 or sum(len(buffer) for _, buffer in piece.chunks) <= PIECE_BYTES


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


def test_one_bad_block_costs_its_own_chunk_only(source: OneFile) -> None:
    entries = written(source, chunks_of([8192] * 6))
    pieces = plan_reads(Failing(entries[2].block + 1), source, CHECKSUM, wanted(entries))
    assert ran(pieces) == {b"2": Failure.IO_ERROR}
    assert len(pieces[0].errors) == 1


def test_a_write_that_fails_leaves_no_entry(source: OneFile) -> None:
    assert source.fd is not None
    piece = WritePiece(Failing(1), source.fd, CHECKSUM, 1, chunks_of([8192]))
    piece()
    assert piece.written == []
    assert piece.error is not None


def test_wrong_bytes_are_corrupt_if_the_index_still_has_them_else_missing(source: OneFile) -> None:
    entries = written(source, chunks_of([8192] * 3))
    assert source.fd is not None
    Files().pwritev(source.fd, [aligned_buffers(1, BLOCK_BYTES)[0]], entries[1].block * BLOCK_BYTES)
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted(entries))) == {b"1": Failure.CORRUPT}
    source.current = False
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted(entries))) == {b"1": Failure.MISSING}


def test_a_chunk_cut_off_by_the_end_of_the_file_is_corrupt(source: OneFile) -> None:
    entries = written(source, chunks_of([8192] * 3))
    assert source.fd is not None
    os.truncate(source.fd, (entries[2].block + 1) * BLOCK_BYTES)
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted(entries))) == {b"2": Failure.CORRUPT}


def test_a_segment_that_is_gone_is_missing_and_one_whose_file_is_gone_has_lost_it(source: OneFile) -> None:
    entries = written(source, chunks_of([8192]))
    assert ran(plan_reads(Files(), OneFile(None), CHECKSUM, wanted(entries))) == {b"0": Failure.MISSING}
    source.error = FileNotFoundError(errno.ENOENT, "gone")
    assert ran(plan_reads(Files(), source, CHECKSUM, wanted(entries))) == {b"0": Failure.GONE}


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (errno.EMFILE, Failure.NO_RESOURCES),
        (errno.ENFILE, Failure.NO_RESOURCES),
        (errno.ENOMEM, Failure.NO_RESOURCES),
        (errno.EROFS, Failure.NOT_ALLOWED),
        (errno.EACCES, Failure.NOT_ALLOWED),
        (errno.EIO, Failure.IO_ERROR),
    ],
)
def test_an_open_that_is_refused_says_nothing_about_the_place(
    source: OneFile, code: int, failure: Failure
) -> None:
    entries = written(source, chunks_of([8192]))
    source.error = OSError(code, os.strerror(code))
    (piece,) = plan_reads(Files(), source, CHECKSUM, wanted(entries))
    assert ran([piece]) == {b"0": failure}
    assert not piece.unreadable


@pytest.mark.parametrize("code", [errno.EIO, errno.ENODATA, errno.EILSEQ, errno.EREMOTEIO, errno.EBADMSG])
def test_a_read_that_the_drive_refuses_is_a_bad_place(source: OneFile, code: int) -> None:
    class Bad(Files):
        def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
            raise OSError(code, os.strerror(code))

    entries = written(source, chunks_of([8192]))
    (piece,) = plan_reads(Bad(), source, CHECKSUM, wanted(entries))
    assert ran([piece]) == {b"0": Failure.IO_ERROR}
    assert piece.unreadable == {0}


def test_every_chunk_is_planned_exactly_once() -> None:
    entries = [Written(b"%d" % i, 1 + 3 * i, 2 * BLOCK_BYTES, 0, 0) for i in range(50)]
    wants = wanted(entries)
    pieces = plan_reads(Files(), OneFile(None), CHECKSUM, wants)
    assert sorted(chunk.key for piece in pieces for chunk in piece.chunks) == sorted(e.key for e in entries)
    for piece in pieces:
        first, last = piece.chunks[0].place, piece.chunks[-1].place
        assert (last.block + blocks_of(last.length_bytes) - first.block) * BLOCK_BYTES <= 2 * PIECE_BYTES


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory")])
def test_memory_that_is_lacking_costs_the_keys_that_need_it(
    source: OneFile, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    entries = written(source, chunks_of([BLOCK_BYTES, 5000, BLOCK_BYTES]))

    def lacking(size_bytes: int) -> Buffer:
        raise error

    monkeypatch.setattr("kvtier.tiers.nvme.io.pieces.scratch", lacking)
    failed = ran(plan_reads(Files(), source, CHECKSUM, wanted(entries)))
    assert failed.keys() == {b"1"}, "the others need no memory of ours"
    assert source.fd is not None
    piece = WritePiece(Files(), source.fd, CHECKSUM, 1, chunks_of([5000]))
    assert piece() == 0
    assert piece.error is not None
    assert piece.error.errno == errno.ENOMEM
