from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kvtier.tiers.base import Buffer
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES, IOV_MAX, aligned, blocks_of, read_all, scratch, write_all
from kvtier.tiers.nvme.io.files import Files

FILES = Files()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = FILES.open_data(tmp_path / "data", create=True, write=True)
    yield fd
    FILES.close(fd)


class Short(Files):
    """Moves one block at a time, as a kernel may."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return super().pwritev(fd, [buffers[0][:BLOCK_BYTES]], offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return super().preadv(fd, [buffers[0][:BLOCK_BYTES]], offset)


class Stuck(Files):
    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return 0


class Picky(Files):
    """Refuses memory that is not aligned, as drives may; counts what it takes."""

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        _refuse_unaligned(buffers)
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        _refuse_unaligned(buffers)
        return super().preadv(fd, buffers, offset)


def _refuse_unaligned(buffers: Sequence[Buffer]) -> None:
    for buffer in buffers:
        if ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % 512:
            raise OSError(errno.EINVAL, "not aligned")


def blocks(count: int) -> Buffer:
    memory = scratch(count * BLOCK_BYTES)
    memory[:] = os.urandom(len(memory))
    return memory


def test_sizes_are_rounded_up_to_blocks() -> None:
    assert [aligned(size) for size in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
    assert [blocks_of(size) for size in (0, 1, 4096, 4097)] == [0, 1, 1, 2]
    assert len(scratch(1)) == len(scratch(0)) == BLOCK_BYTES


@pytest.mark.parametrize("files", [Files(), Short(), Picky()])
def test_what_is_written_reads_back(files: Files, fd: int) -> None:
    parts = [blocks(3), blocks(1), blocks(2)]
    write_all(files, fd, parts, BLOCK_BYTES)
    back = [scratch(2 * BLOCK_BYTES), scratch(4 * BLOCK_BYTES)]
    assert read_all(files, fd, back, BLOCK_BYTES) == 6 * BLOCK_BYTES
    assert b"".join(map(bytes, back)) == b"".join(map(bytes, parts))


@pytest.mark.parametrize("files", [Files(), Picky()])
def test_memory_of_any_alignment_is_written_and_read(files: Files, fd: int) -> None:
    memory = memoryview(bytearray(os.urandom(BLOCK_BYTES + 1)))[1:]
    write_all(files, fd, [memory], 0)
    back = memoryview(bytearray(BLOCK_BYTES + 1))[1:]
    assert read_all(files, fd, [back], 0) == BLOCK_BYTES
    assert bytes(back) == bytes(memory)


def test_more_parts_than_one_call_takes_are_written(fd: int) -> None:
    memory = blocks(IOV_MAX + 10)
    parts = [memory[i : i + BLOCK_BYTES] for i in range(0, len(memory), BLOCK_BYTES)]
    write_all(FILES, fd, parts, 0)
    back = scratch(len(memory))
    assert read_all(FILES, fd, [back], 0) == len(memory)
    assert bytes(back) == bytes(memory)


def test_a_read_past_the_end_says_how_much_there_was(fd: int) -> None:
    write_all(FILES, fd, [blocks(2)], 0)
    assert read_all(FILES, fd, [scratch(4 * BLOCK_BYTES)], 0) == 2 * BLOCK_BYTES
    assert read_all(FILES, fd, [scratch(BLOCK_BYTES)], 8 * BLOCK_BYTES) == 0
    assert read_all(Picky(), fd, [memoryview(bytearray(3 * BLOCK_BYTES + 1))[1:]], 0) == 2 * BLOCK_BYTES


def test_a_write_that_makes_no_progress_is_an_error(fd: int) -> None:
    with pytest.raises(OSError, match="no progress"):
        write_all(Stuck(), fd, [blocks(1)], 0)


def test_scratch_is_page_aligned() -> None:
    assert ctypes.addressof(ctypes.c_char.from_buffer(scratch(10))) % mmap.PAGESIZE == 0
