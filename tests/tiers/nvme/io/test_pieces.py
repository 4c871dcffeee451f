from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from piece_rig import CHECKSUM, Failing, OneFile, chunks_of, extent_of, ran, wanted, written

from kvtier.tiers.base import Buffer, Failure
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.io.pieces import Wanted, WritePiece
from kvtier.tiers.nvme.io.plan import plan_reads
from kvtier.tiers.testing import aligned_buffers


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
