"""The room of a store: what cap, reserve and index leave, and what must be given back."""

from __future__ import annotations

from ..index.environment import Index
from ..index.records import Segment, SegmentState
from ..index.transaction import Transaction
from .budget import Budget
from .segments import CLAIM_BYTE, READERS_BYTE, Segments

INDEX_FILL_MAX = 0.5  # the rest is for pages in change: a step's copies, and copies that readers still see
AHEAD_BYTES_MAX = 64 * 1024 * 1024  # kept free for the next stores: tens of milliseconds of a fast drive
AHEAD_SHARE = 16  # of the cap at most: what is kept free is not used
KEPT_BYTES = (
    "kept_bytes"  # the number of bytes in segment files that have no record and are not ours to remove
)
SEGMENTS_FOR_AHEAD = 4  # in a store of fewer, a segment freed ahead would be too much of it


class Room:
    """How much room there is, and how much to give back. Blocking; any thread, at the same time."""

    def __init__(self, segments: Segments, index: Index) -> None:
        self._segments, self._index = segments, index

    def budget(self, txn: Transaction) -> Budget:
        """The cap that holds now: the last process that opened the store has set it."""
        facts = self._segments.facts
        capacity_bytes = max(0, txn.number("capacity_bytes") - txn.number(KEPT_BYTES))
        reserve_bytes = txn.number("reserve_bytes")
        chunk_bytes = txn.number("chunk_bytes") or facts.chunk_bytes
        return Budget(capacity_bytes, reserve_bytes, facts.segment_bytes, chunk_bytes)

    def is_ahead(self) -> bool:
        """Whether the next claims will find segments without reclaiming, as far as one can see now.

        A reclaim that nobody waits for can carry chunks over; one in the way of a store cannot.
        """
        with self._index.read() as txn:
            segments, budget = txn.segments(), self.budget(txn)
            free = [segment for segment in segments.values() if segment.state is SegmentState.FREE]
            room_bytes = sum(segment.allocated_bytes for segment in free)
            room_bytes += max(0, -self.excess_bytes_in(txn, segments))
        ahead_bytes = min(AHEAD_BYTES_MAX, budget.capacity_bytes // AHEAD_SHARE)
        small = len(segments) < SEGMENTS_FOR_AHEAD
        return small or room_bytes >= max(ahead_bytes, budget.segment_cost_bytes)

    def excess_bytes(self) -> int:
        """How much the store has to give back now, 0 or less where it need not."""
        with self._index.read() as txn:
            return self.excess_bytes_in(txn, txn.segments())

    def excess_bytes_in(self, txn: Transaction, segments: dict[int, Segment]) -> int:
        """The same, of these records in this transaction."""
        budget = self.budget(txn)
        allocated_bytes = sum(segment.allocated_bytes for segment in segments.values())
        above_cap = allocated_bytes - budget.segments_bytes(len(txn.namespaces()))
        return max(above_cap, budget.reserve_bytes - self._segments.free_bytes())

    def reserve_is_short(self) -> bool:
        """Whether others have filled the file system into the reserve; cheap."""
        with self._index.read() as txn:
            reserve_bytes = self.budget(txn).reserve_bytes
        return self._segments.free_bytes() < reserve_bytes

    def index_is_tight(self) -> bool:
        """Whether chunks have to leave because the index may not grow."""
        with self._index.read() as txn:
            return index_is_tight(txn)

    def shrink(self) -> bool:
        """Remove one free segment's file; False where there is none that nobody reads."""
        return self._index.write(self._remove_one)

    def _remove_one(self, txn: Transaction) -> bool:
        for number, segment in by_age(txn):
            fd = self.lock_free(txn, number) if segment.state is SegmentState.FREE else None
            if fd is not None:
                try:
                    self.remove(txn, number, fd)
                finally:
                    self._segments.files.close(fd)
                return True
        return False

    def lock_free(self, txn: Transaction, number: int) -> int | None:
        """Lock a free segment's file against claims and readers; drops the record where the file is gone."""
        fd = self._segments.lock(number, CLAIM_BYTE, READERS_BYTE)
        if fd is None and not self._segments.exists(number):
            txn.drop_segment(number)
        return fd

    def remove(self, txn: Transaction, number: int, fd: int) -> None:
        """Remove a segment's file and its record."""
        self._segments.remove(number, fd)  # first: a file without a record would be room that nobody counts
        txn.drop_segment(number)


def by_age(txn: Transaction) -> list[tuple[int, Segment]]:
    """The segments by number, the oldest first."""
    return sorted(txn.segments().items(), key=lambda item: item[1].opened)


def index_is_tight(txn: Transaction) -> bool:
    """Whether the extents leave no room for pages in change."""
    return txn.fill() > INDEX_FILL_MAX
