"""The room of a store: what cap, reserve and index leave, and what must be given back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice

from ..index.environment import Index
from ..index.records import Segment, SegmentState
from ..index.transaction import Transaction
from ..io.blocks import BLOCK_BYTES
from ..io.refusal import LeftOut
from .budget import Budget, Plan
from .segments import CLAIM_BYTE, READERS_BYTE, Segments

INDEX_FILL_MAX = 0.5  # the rest is for pages in change: a step's copies, and copies that readers still see
INDEX_FILL_AHEAD = 0.48  # from here on chunks leave, so that a store seldom has to wait for it
SEGMENT_TAKES = "segment_takes"  # a number: the most bytes that a segment file was seen to take
UNIT_BYTES = "unit_bytes"  # a number: what the smallest file takes
KEPT_BYTES = "kept_bytes"  # a number: in segment files without a record that are not ours to remove
CANDIDATES_FIRST = 4  # looked at in one go: mostly one of these it is
CANDIDATES_MAX = 64  # looked at in one decision: all of them claimed or read, it is not the moment


class Room:
    """How much room there is, and how much to give back. Blocking; any thread, at the same time.

    Attributes:
        own: the segments that this process appends to, which it need not look at to see that they are taken.
    """

    def __init__(self, segments: Segments, index: Index) -> None:
        self._segments, self._index = segments, index
        self.own: set[int] = set()

    def budget(self, txn: Transaction) -> Budget:
        """The cap that holds now: the last process that opened the store has set it."""
        facts = self._segments.facts
        capacity_bytes = max(0, txn.number("capacity_bytes") - txn.number(KEPT_BYTES))
        reserve_bytes = txn.number("reserve_bytes")
        chunk_bytes = txn.number("chunk_bytes") or facts.chunk_bytes
        return Budget(
            capacity_bytes,
            reserve_bytes,
            facts.segment_bytes,
            chunk_bytes,
            txn.number(SEGMENT_TAKES),
            txn.number(UNIT_BYTES) or BLOCK_BYTES,
        )

    def plan(self) -> Plan:
        """What this process should keep ready."""
        with self._index.read() as txn:
            open_elsewhere = max(0, txn.totals(SegmentState.OPEN).segments - len(self.own))
            return Plan.of(self.budget(txn), txn.namespaces_count(), open_elsewhere)

    def excess_bytes(self) -> int:
        """How much the store has to give back now, 0 or less where it need not."""
        free_bytes = self._segments.free_bytes()
        with self._index.read() as txn:
            return self.excess_bytes_in(txn, free_bytes)

    def excess_bytes_in(self, txn: Transaction, free_bytes: int) -> int:
        """The same in this transaction, with so much free on the file system."""
        budget = self.budget(txn)
        above_cap = txn.totals().allocated_bytes - budget.segments_bytes(txn.namespaces_count())
        return max(above_cap, budget.reserve_bytes - free_bytes)

    def reserve_is_short(self) -> bool:
        """Whether others have filled the file system into the reserve; cheap."""
        with self._index.read() as txn:
            reserve_bytes = self.budget(txn).reserve_bytes
        return self._segments.free_bytes() < reserve_bytes

    def index_is_tight(self) -> bool:
        """Whether chunks have to leave because the index may not grow."""
        with self._index.read() as txn:
            return index_is_tight(txn)

    def index_is_nearly_tight(self) -> bool:
        """Whether chunks had better leave now, before a store has to wait for it."""
        with self._index.read() as txn:
            return txn.fill() > INDEX_FILL_AHEAD

    def oldest(self, *states: SegmentState) -> Iterator[tuple[int, Segment]]:
        """The oldest segments of these states that this process does not append to."""
        for first, end in ((0, CANDIDATES_FIRST), (CANDIDATES_FIRST, CANDIDATES_MAX)):
            with self._index.read() as txn:
                others = (one for one in txn.by_age(*states) if one[0] not in self.own)
                found = list(islice(others, first, end))
            yield from found

    # Giving back.

    def shrink(self) -> bool:
        """Remove one free segment's file; False where there is none that nobody reads."""
        left_out = LeftOut(_say_nothing)
        for number, _ in self.oldest(SegmentState.FREE):
            fd = left_out.tried(partial(self.lock_free, number))
            if fd is not None:
                try:
                    if self._is_free(number):  # and stays so: nobody opens it without the claim
                        self.remove(number, fd)
                        return True
                finally:
                    self._segments.files.close(fd)
        return False

    def lock_free(self, number: int) -> int | None:
        """Lock a free segment's file against claims and readers; drops the record where the file is gone."""
        fd = self._segments.lock(number, CLAIM_BYTE, READERS_BYTE)
        if fd is None and not self._segments.exists(number):  # nor will there be another of that number
            self._index.write(lambda txn: _drop_free(txn, number))
        return fd

    def remove(self, number: int, fd: int) -> None:
        """Remove the file and the record of a segment that is claimed and has nothing in it."""
        self._segments.remove(number, fd)  # first: a file without a record would be room that nobody counts
        self._index.write(lambda txn: txn.drop_segment(number))

    def _is_free(self, number: int) -> bool:
        with self._index.read() as txn:
            return is_free(txn.segment(number))


def _say_nothing(_: str) -> None:
    """Whoever claims a segment tells what was left out."""


def is_free(segment: Segment | None) -> bool:
    """Whether there is a segment and nothing in it."""
    return segment is not None and segment.state is SegmentState.FREE


def _drop_free(txn: Transaction, number: int) -> None:
    if is_free(txn.segment(number)):
        txn.drop_segment(number)


def index_is_tight(txn: Transaction) -> bool:
    """Whether the extents leave no room for pages in change."""
    return txn.fill() > INDEX_FILL_MAX
