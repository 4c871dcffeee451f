"""The append position of one segment that this process has claimed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...base import ChunkKey
from ..io.blocks import blocks_of
from .codec import ENTRY_BYTES, FIRST_BLOCK, SegmentName, table_bytes
from .segment_file import SegmentFile


class Placement(NamedTuple):
    """Where a batch goes, and how many of the leading chunks are in it."""

    block: int
    chunks: int
    table_blocks: int
    data_blocks: int


class OpenSegment:
    """Where the next batch goes, and the tables that the trailer will repeat. Used on one event loop.

    Keeps room for the trailer from the first batch on, so sealing never fails for lack of room.
    """

    def __init__(
        self, file: SegmentFile, next_block: int, batches: Iterable[bytes] = (), *, opened: int = 0
    ) -> None:
        self.file = file
        self.opened = opened  # when this life began, in openings of the store
        self._first_block = next_block
        # Mutable state.
        self.next_block = next_block
        self.batches = list(batches)  # encoded tables, for the trailer
        self.batches_bytes = sum(map(len, self.batches))
        self.writers = 0  # batches placed and not yet completed
        self.unsynced = False
        self.refused = False  # some batch could not be written
        self.lost = False  # the index does not know it as ours any more

    @property
    def name(self) -> SegmentName:
        return self.file.name

    def place(self, keys: Sequence[ChunkKey], lengths_bytes: Sequence[int]) -> Placement | None:
        """Take room for as many leading chunks as fit; None when not even one does."""
        count, tables, data_blocks = 0, table_bytes(()), 0
        for key, length in zip(keys, lengths_bytes, strict=True):
            grown = tables + ENTRY_BYTES + len(key)
            if not self._fits(grown, data_blocks + blocks_of(length)):
                break
            count, tables, data_blocks = count + 1, grown, data_blocks + blocks_of(length)
        if not count:
            return None
        placement = Placement(self.next_block, count, blocks_of(tables), data_blocks)
        self.next_block += placement.table_blocks + data_blocks
        self.batches_bytes += tables
        self.writers += 1
        return placement

    def complete(self, table: bytes | None) -> None:
        """End one placement: its batch is written and named by `table`, or given up where that is None."""
        assert self.writers > 0, "each placement is completed once"
        self.writers -= 1
        if table is not None:
            self.batches.append(table)
            self.unsynced = True

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever placed in it, as far as its tables show."""
        return self.next_block == FIRST_BLOCK and not self.batches

    @property
    def is_in_vain(self) -> bool:
        """Whether writes were tried and all failed: another segment would fare no better."""
        return self.refused and not self.batches

    def rewind(self) -> bool:
        """Give back the room of batches that were not written; False while some may yet be."""
        assert not self.batches, "nothing is overwritten"
        if self.writers:
            return False
        self.next_block, self.batches_bytes = self._first_block, 0
        return True

    def _fits(self, tables_bytes: int, data_blocks: int) -> bool:
        body = blocks_of(self.batches_bytes + tables_bytes)
        end = self.next_block + blocks_of(tables_bytes) + data_blocks
        return end + body + 1 <= self.file.size_blocks
