"""A batch of chunks that is written to its place in the open segment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

from ...base import Buffer, ChunkKey
from ..format.codec import Batch, Entry
from ..format.open_segment import OpenSegment, Placement
from ..io.pieces import as_os_error
from ..io.plan import Write, plan_writes
from .chunks import Target


class PlacedBatch:
    """A batch that has its place in the open segment. Pieces run on lane threads, the rest on the loop."""

    def __init__(
        self,
        segment: OpenSegment,
        placement: Placement,
        target: Target,
        order: int,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
    ) -> None:
        self.segment, self.placement, self.target, self.order = segment, placement, target, order
        first_block = placement.block + placement.table_blocks
        file = segment.file
        self.pieces: Sequence[Write] = plan_writes(file.files, file.fd, target.checksum, first_block, chunks)
        self._lock = threading.Lock()
        self._left = len(self.pieces)
        # The result: the table as it was written, and what it names.
        self.table: bytes | None = None
        self.entries: tuple[Entry, ...] = ()
        self.error: OSError | None = None

    def calls(self) -> list[Callable[[], int]]:
        return [partial(self._run, piece) for piece in self.pieces]

    def _run(self, piece: Write) -> int:
        moved_bytes = piece()
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:  # every chunk is written: now the table may say so
            self.error = next((piece.error for piece in self.pieces if piece.error), None)
            self.write_table(tuple(Entry(*chunk) for piece in self.pieces for chunk in piece.written))
        return moved_bytes

    def write_table(self, entries: tuple[Entry, ...], *, removals: bool = False) -> None:
        if not entries:
            return
        placement, target = self.placement, self.target
        batch = Batch(
            self.segment.name,
            placement.block,
            placement.data_blocks,
            self.order,
            target.scope,
            target.namespace,
            removals,
            entries,
        )
        try:
            self.table = self.segment.file.write_table(batch)
        except (OSError, MemoryError) as error:
            self.error = as_os_error(error)
        else:
            self.entries = entries

    def reorder(self, order: int) -> None:
        """Write the table again with a later order; where that fails, the batch has failed."""
        entries, self.entries, self.table, self.order = self.entries, (), None, order
        self.write_table(entries)

    @property
    def end_block(self) -> int:
        return self.placement.block + self.blocks_count

    @property
    def blocks_count(self) -> int:
        return self.placement.table_blocks + self.placement.data_blocks

    @property
    def written_keys(self) -> list[ChunkKey]:
        return [entry.key for entry in self.entries]

    @property
    def missing_keys(self) -> set[ChunkKey]:
        """Keys that did not get into the table."""
        return {key for piece in self.pieces for key, _ in piece.chunks} - set(self.written_keys)
