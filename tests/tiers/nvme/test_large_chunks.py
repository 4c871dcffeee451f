"""Chunks larger than a piece, through the whole tier."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from nvme_rig import KIB, MIB, keys_of, opened

from kvtier.tiers.base import Buffer, ChunkKey, Failure
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.store.opening import close_store, open_rebuilt
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import aligned_buffers

CHUNK_BYTES = 5 * MIB + 3
CAPACITY_BYTES = 256 * MIB


def random_chunks(sizes: Sequence[int]) -> dict[ChunkKey, Buffer]:
    """Made in one call each: the patterns of other tests take seconds at these sizes."""
    buffers = [aligned_buffers(1, size)[0] for size in sizes]
    for buffer in buffers:
        buffer[:] = os.urandom(len(buffer))
    return dict(zip(keys_of(0, len(sizes)), buffers, strict=True))


async def came_back(tier: NvmeTier, chunks: Mapping[ChunkKey, Buffer]) -> list[ChunkKey]:
    """The keys that load; their bytes must be right."""
    back = {key: aligned_buffers(1, len(buffer))[0] for key, buffer in chunks.items()}
    outcome = await tier.load(list(back), list(back.values()))
    wrong = [key for key in outcome.succeeded if bytes(back[key]) != bytes(chunks[key])]
    assert not wrong
    return list(outcome.succeeded)


class BadBlock(Files):
    """A drive with one bad block, by what is written to it."""

    def __init__(self) -> None:
        self.marked: bytes | None = None  # the first bytes of that block
        self.refuses: str = ""
        self._bad: tuple[int, int] | None = None

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        position = offset
        for buffer in buffers:
            for start in range(0, len(buffer) - BLOCK_BYTES + 1, BLOCK_BYTES):
                if bytes(buffer[start : start + 64]) == self.marked:
                    self._bad = os.fstat(fd).st_ino, position + start
                    if self.refuses == "write":
                        raise OSError(errno.EIO, "bad block")
            position += len(buffer)
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        end = offset + sum(map(len, buffers))
        if self.refuses == "read" and self._bad is not None:
            inode, position = self._bad
            if os.fstat(fd).st_ino == inode and offset <= position < end:
                raise OSError(errno.EIO, "bad block")
        return super().preadv(fd, buffers, offset)


@pytest.mark.parametrize("chunk_bytes", [2 * MIB, CHUNK_BYTES, 32 * MIB - 4095])
async def test_large_chunks_come_back_also_from_the_log_alone(tmp_path: Path, chunk_bytes: int) -> None:
    path, chunks = tmp_path / "store", random_chunks([chunk_bytes] * 3)
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, chunk_bytes=chunk_bytes)
    assert not (await tier.store(list(chunks), list(chunks.values()))).failed
    assert await came_back(tier, chunks) == list(chunks)
    await tier.close()
    close_store(open_rebuilt(Files(), path))  # which reads each chunk as a whole, and checks it
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES, chunk_bytes=chunk_bytes)
    assert await came_back(tier, chunks) == list(chunks)
    assert tier.stats().counters["corrupt_chunks"] == 0
    await tier.close()


async def test_large_and_small_chunks_of_one_request_come_back(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "store", capacity_bytes=CAPACITY_BYTES, chunk_bytes=CHUNK_BYTES)
    chunks = random_chunks([16 * KIB, CHUNK_BYTES, 5, MIB, MIB + 1, 2 * MIB, 100 * KIB])
    assert not (await tier.store(list(chunks), list(chunks.values()))).failed
    assert await came_back(tier, chunks) == list(chunks)
    await tier.close()


@pytest.mark.parametrize("megabyte", [0, 2, 4])
async def test_a_part_that_cannot_be_read_costs_its_chunk_and_no_other(tmp_path: Path, megabyte: int) -> None:
    files, chunks = BadBlock(), random_chunks([CHUNK_BYTES] * 4)
    keys = list(chunks)
    tier = await opened(
        tmp_path / "store", capacity_bytes=CAPACITY_BYTES, chunk_bytes=CHUNK_BYTES, files=files
    )
    files.marked = bytes(chunks[keys[1]][megabyte * MIB :][:64])
    assert not (await tier.store(keys, list(chunks.values()))).failed
    files.refuses = "read"
    assert await came_back(tier, chunks) == [keys[0], *keys[2:]]
    assert list(tier.lookup(keys)) == [True, False, True, True], "it lies on a bad place"
    files.refuses, files.marked = "", None
    assert not (await tier.store([keys[1]], [chunks[keys[1]]])).failed
    assert await came_back(tier, chunks) == keys
    await tier.close()


@pytest.mark.parametrize("megabyte", [0, 2, 4])
async def test_a_part_that_cannot_be_written_costs_its_chunk_and_no_other(
    tmp_path: Path, megabyte: int
) -> None:
    files, chunks = BadBlock(), random_chunks([CHUNK_BYTES] * 4)
    keys = list(chunks)
    tier = await opened(
        tmp_path / "store", capacity_bytes=CAPACITY_BYTES, chunk_bytes=CHUNK_BYTES, files=files
    )
    files.marked, files.refuses = bytes(chunks[keys[1]][megabyte * MIB :][:64]), "write"
    assert (await tier.store(keys, list(chunks.values()))).failed == {keys[1]: Failure.IO_ERROR}
    files.refuses = ""
    assert await came_back(tier, chunks) == [keys[0], *keys[2:]]
    await tier.close()
