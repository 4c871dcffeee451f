"""Pieces and parts on one open file, without a log or an index."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from kvtier.tiers.base import Buffer, ChunkKey, Failure
from kvtier.tiers.nvme.format.checksum import ChunkChecksum
from kvtier.tiers.nvme.index.records import Extent
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.io.pieces import Place, Wanted, Written
from kvtier.tiers.nvme.io.plan import Read, plan_writes
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


def ran(pieces: Sequence[Read[Extent]]) -> dict[ChunkKey, Failure]:
    for piece in pieces:
        piece()
    return {
        piece.chunks[position].key: failure for piece in pieces for position, failure in piece.failed.items()
    }
