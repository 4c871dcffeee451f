"""Batches of one segment, and a file to put them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvtier.tiers.base import ChunkKey
from kvtier.tiers.nvme.format.codec import Batch, Entry, SegmentName, table_bytes
from kvtier.tiers.nvme.format.segment_file import SegmentFile
from kvtier.tiers.nvme.io.blocks import BLOCK_BYTES, blocks_of
from kvtier.tiers.nvme.io.files import Files

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


@contextmanager
def segment_file(folder: Path) -> Iterator[SegmentFile]:
    fd = FILES.open_data(folder / "7.seg", create=True, write=True)
    try:
        FILES.allocate(fd, SEGMENT_BYTES)
        yield SegmentFile(FILES, fd, NAME, SEGMENT_BYTES)
    finally:
        FILES.close(fd)
