"""The life of a segment: claimed, sealed, reclaimed, and removed where the store must shrink.

Theory of operation. Every decision about a segment is made inside one write transaction of the index, so
by one process at a time, and is bound to a lock on the segment's file, which a killed process gives up:

    claim     a dead process's open segment first, then a free one, then a new one if the cap has room
    seal      trailer, then SEALED, then the claim is given up
    reclaim   the oldest segment that nobody appends to: RECLAIMING, its entries leave the index in steps,
              then FREE; a process that dies half way leaves RECLAIMING, and whoever reclaims next goes on
    shrink    a free segment's file is removed where the cap or the reserve asks for it

A free segment is overwritten in place. Its entries have left the index before; who found one earlier and
reads from it holds its READERS_BYTE, and then it is left alone. The claimer raises the generation while it
holds that byte alone, so whoever comes later sees that the segment is another one.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Collection
from typing import NamedTuple

from ..format.codec import FIRST_BLOCK, SegmentName
from ..format.open_segment import OpenSegment
from ..index.environment import Index
from ..index.records import Segment, SegmentState
from ..index.transaction import Transaction
from ..io.refusal import NOT_OF_THE_FILE, failure_of
from .events import Events
from .room import Room, by_age
from .segments import READERS_BYTE, Segments
from .victim import Victims

CLAIM_TRIES_MAX = 4  # bad segments one after the other: then it is the drive


class _Claim(NamedTuple):
    number: int
    segment: Segment
    fd: int


class Log:
    """Claims segments to append to, and seals them. Every method blocks; any thread, at the same time.

    Attributes:
        room: how much of it there is.
        victims: the segments that are emptied.
    """

    def __init__(self, segments: Segments, index: Index, events: Events) -> None:
        self._segments, self._files, self._index = segments, segments.files, index
        self._events = events
        self.room = Room(segments, index)
        self.victims = Victims(segments, index, events)

    # Claiming.

    def claim(self) -> OpenSegment | None:
        """Take a segment to append to, None where there is no room without reclaiming.

        Raises:
            OSError: the file system refused; nothing is claimed.
        """
        refused: OSError | None = None
        for _ in range(CLAIM_TRIES_MAX):
            claim = self._claim_one()
            if claim is None:
                return None
            try:
                return self._begin(claim)
            except OSError as error:
                if failure_of(error) in NOT_OF_THE_FILE:
                    # Left OPEN and unclaimed: another segment would fare no better, and this one is good.
                    self._files.close(claim.fd)
                    raise
                refused, drive_full = error, self._is_drive_full(claim, error)
                self._put_away(claim)
                if drive_full:
                    return None  # but in the place of an old segment there is room
                self._events.failed(f"segment {claim.number} cannot be appended to: {error}")
            except BaseException:
                # Left OPEN and unclaimed, as by a dead process: the next claim takes it over.
                self._files.close(claim.fd)
                raise
        assert refused is not None, "each try but the last refused one has returned"
        raise refused

    def _claim_one(self) -> _Claim | None:
        with contextlib.ExitStack() as undo:
            claim = self._index.write(lambda txn: self._take(txn, undo))
            if claim is not None:
                self._files.reached("claimed")
                undo.pop_all()
            return claim

    def _take(self, txn: Transaction, undo: contextlib.ExitStack) -> _Claim | None:
        undo.close()  # of an attempt that could not commit
        segments = by_age(txn)
        for number, segment in segments:
            fd = self._segments.claim(number) if segment.state is SegmentState.OPEN else None
            if fd is not None:
                undo.callback(self._files.close, fd)
                return _Claim(number, segment, fd)
        if self.room.excess_bytes_in(txn, dict(segments)) <= 0:
            for number, segment in segments:
                claim = self._reuse(txn, undo, number, segment)
                if claim is not None:
                    return claim
        return self._create(txn, undo, dict(segments))

    def _reuse(
        self, txn: Transaction, undo: contextlib.ExitStack, number: int, segment: Segment
    ) -> _Claim | None:
        fd = self.room.lock_free(txn, number) if segment.state is SegmentState.FREE else None
        if fd is None:
            return None
        undo.callback(self._files.close, fd)
        claimed = _opened(txn, segment.generation + 1, segment.allocated_bytes)
        txn.put_segment(number, claimed)
        return _Claim(number, claimed, fd)

    def _create(
        self, txn: Transaction, undo: contextlib.ExitStack, segments: dict[int, Segment]
    ) -> _Claim | None:
        cost_bytes = self.room.budget(txn).segment_cost_bytes
        if self.room.excess_bytes_in(txn, segments) + cost_bytes > 0:
            return None
        number = txn.number("segment") + 1
        # Made and locked before others can see the record, so that nobody takes it for a dead process's.
        fd = self._segments.claim(number, create=True)
        if fd is None:
            return None  # of somebody whose attempt could not commit, and who is about to make another
        undo.callback(self._files.close, fd)
        txn.set_number("segment", number)
        claimed = _opened(txn, 1, cost_bytes)
        txn.put_segment(number, claimed)
        return _Claim(number, claimed, fd)

    def _begin(self, claim: _Claim) -> OpenSegment:
        self._files.unlock(claim.fd, READERS_BYTE)
        self._segments.allocate(claim.number, claim.fd)
        file = self._segments.file(claim.fd, claim.number, claim.segment.generation)
        header = file.read_header()
        if header is None or header.name != file.name:
            file.write_header(claim.segment.opened)
            if claim.segment.end_block == FIRST_BLOCK:
                return OpenSegment(file, FIRST_BLOCK, opened=claim.segment.opened)
            # Else the header was damaged, and the chunks behind it are as good as ever.
        file.unseal()
        batches = list(file.sweep())  # of a process that died; committed or not, each is whole
        end = max([claim.segment.end_block, FIRST_BLOCK, *(batch.end_block for batch in batches)])
        tables = [batch.encode() for batch in batches]
        segment = OpenSegment(file, end, tables, opened=claim.segment.opened)
        segment.unsynced = True  # it may have died before it synced them
        return segment

    def _is_drive_full(self, claim: _Claim, error: OSError) -> bool:
        """Whether it was the room for the file that the file system refused."""
        allocated = self._segments.is_allocated(claim.fd)
        return not allocated and error.errno in (errno.ENOSPC, errno.EDQUOT)

    def _put_away(self, claim: _Claim) -> None:
        """Give up a segment that cannot be begun, so that nobody takes it over again."""
        try:
            self._index.write(lambda txn: self._put_away_in(txn, claim))
        finally:
            self._files.close(claim.fd)

    def _put_away_in(self, txn: Transaction, claim: _Claim) -> None:
        segment = txn.segment(claim.number)
        if segment is None or segment.generation != claim.segment.generation:
            return
        if segment.end_block > FIRST_BLOCK:  # its chunks can be read until it is reclaimed, next of all
            txn.put_segment(claim.number, segment._replace(state=SegmentState.RECLAIMING))
        else:
            self.room.remove(txn, claim.number, claim.fd)

    # Sealing.

    def seal(self, segment: OpenSegment) -> None:
        """Write the trailer and give up the claim.

        Raises:
            OSError: the trailer may be missing, and a rebuild sweeps the segment instead. It is sealed all
                the same: taken over, it would be full, and not be sealed, again and again.
        """
        assert segment.writers == 0, "nothing is appended while a segment is sealed"
        with contextlib.ExitStack() as at_last:
            at_last.callback(self.leave, segment)
            at_last.callback(self._index.write, lambda txn: _seal(txn, segment.name))
            segment.file.write_trailer(segment.batches)
            self._files.reached("trailer written")

    def leave(self, segment: OpenSegment) -> None:
        """Give up the claim of a segment that stays open: the next claim by anybody goes on with it."""
        self._files.close(segment.file.fd)

    def sync_others(self, own: Collection[int]) -> None:
        """Make durable what is in the open segments of all others; what is sealed was synced before.

        Raises:
            OSError, TierError: some of it may not be.
        """
        with self._index.read() as txn:
            segments = txn.segments().items()
        for number, segment in segments:
            if segment.state is SegmentState.OPEN and number not in own:
                with self._segments.opened(number) as file:
                    if file is not None:  # else its chunks are gone, and whoever loads one will notice
                        self._files.sync_data(file.fd)


def is_open(segment: Segment | None, name: SegmentName) -> bool:
    """Whether the record is that of this life, and somebody appends to it."""
    return segment is not None and (segment.state, segment.generation) == (SegmentState.OPEN, name.generation)


def _seal(txn: Transaction, name: SegmentName) -> None:
    segment = txn.segment(name.segment)
    if segment is not None and is_open(segment, name):
        txn.put_segment(name.segment, segment._replace(state=SegmentState.SEALED))


def _opened(txn: Transaction, generation: int, allocated_bytes: int) -> Segment:
    opened = txn.next_number("opened")
    return Segment(SegmentState.OPEN, generation, opened, FIRST_BLOCK, 0, 0, allocated_bytes)
