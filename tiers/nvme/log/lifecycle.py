"""The life of a segment: claimed, sealed, reclaimed, and removed where the store must shrink.

Theory of operation. A decision about a segment begins with a look at the index, is acted on under a lock on
the segment's file, which a killed process gives up, and is confirmed in one short write transaction, so by
one process at a time. No file is touched inside a transaction, which may run again:

    claim     a dead process's open segment first, then a free one, then a new one if the cap has room
    seal      synced, then the trailer, then SEALED, then the claim is given up
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
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from ..format.codec import FIRST_BLOCK, SegmentName
from ..format.open_segment import OpenSegment
from ..format.segment_file import BadBlocks, SegmentFile
from ..index.environment import Index
from ..index.records import Segment, SegmentState
from ..index.transaction import Transaction
from ..io.refusal import NOT_OF_THE_FILE, LeftOut, failure_of
from .events import Events
from .room import SEGMENT_TAKES, Room, is_free
from .segments import READERS_BYTE, Segments, sync_open
from .victim import Victims

CLAIM_TRIES_MAX = 4  # bad segments one after the other: then it is the drive
DRIVE_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
CREATE_TRIES_MAX = 4  # others take the new file for one that was left: each open of the store may do so once


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
        self.victims = Victims(segments, index, self.room, events)

    # Claiming.

    def claim(self) -> OpenSegment | None:
        """Take a segment to append to, once it is synced; None where there is no room without reclaiming.

        Raises:
            OSError: the file system refused; nothing is claimed.
        """
        refused: OSError | None = None
        for _ in range(CLAIM_TRIES_MAX):
            claim = self._claim_one()
            if claim is None:
                return None
            try:
                segment = self._begin(claim)
            except OSError as error:
                if failure_of(error) in NOT_OF_THE_FILE:
                    # Left OPEN and unclaimed: another segment would fare no better, and this one is good.
                    self._close(claim.number, claim.fd)
                    raise
                refused, drive_full = error, self._is_drive_full(claim, error)
                self._put_away(claim.number, claim.fd)
                if drive_full:
                    return None  # but in the place of an old segment there is room
                self._events.failed(f"segment {claim.number} cannot be appended to: {error}")
            except BaseException:
                # Left OPEN and unclaimed, as by a dead process: the next claim takes it over.
                self._close(claim.number, claim.fd)
                raise
            else:
                if segment is not None:
                    return segment
                refused = OSError(errno.EIO, f"segment {claim.number} cannot be read as a whole")
        assert refused is not None, "each try but the last refused one has returned"
        raise refused

    def _claim_one(self) -> _Claim | None:
        left_out = LeftOut(self._events.failed)
        claim = self._take_over(left_out) or self._reuse(left_out) or self._create()
        if claim is not None:
            self.room.own.add(claim.number)
            self._files.reached("claimed")
        return claim

    def _take_over(self, left_out: LeftOut) -> _Claim | None:
        """An open segment that nobody has claimed any more."""
        for number, found in self.room.oldest(SegmentState.OPEN):
            fd = left_out.tried(partial(self._segments.claim, number))
            if fd is not None:
                with self._closed_unless_kept(fd) as keep:
                    with self._index.read() as txn:
                        segment = txn.segment(number)  # which nobody else moves now
                    if is_open(segment, self._segments.name(number, found.generation)):
                        assert segment is not None, "it is open"
                        keep()
                        return _Claim(number, segment, fd)
        return None

    def _reuse(self, left_out: LeftOut) -> _Claim | None:
        """A free segment that nobody reads, where the store need not shrink."""
        free_bytes = self._segments.free_bytes()
        for number, _ in self.room.oldest(SegmentState.FREE):
            fd = left_out.tried(partial(self.room.lock_free, number))
            if fd is not None:
                with self._closed_unless_kept(fd) as keep:
                    self._files.reached("locked a free segment")
                    reopen = partial(self._reopened, number, free_bytes)
                    segment = self._index.write(reopen)
                    if segment is not None:
                        keep()
                        return _Claim(number, segment, fd)
        return None

    def _reopened(self, number: int, free_bytes: int, txn: Transaction) -> Segment | None:
        segment = txn.segment(number)
        if segment is None or not is_free(segment) or self.room.excess_bytes_in(txn, free_bytes) > 0:
            return None
        reopened = _opened(txn, segment.generation + 1, segment.allocated_bytes)
        txn.put_segment(number, reopened)
        return reopened

    def _create(self) -> _Claim | None:
        """A new segment, where the cap has room for one.

        A file comes before its record, so that nobody takes the record for a dead process's. Until it is
        claimed, whoever opens the store may take it for one that was left, and remove it.
        """
        free_bytes = self._segments.free_bytes()
        for _ in range(CREATE_TRIES_MAX):
            with self._index.read() as txn:
                if not self._has_room(txn, free_bytes):
                    return None
            number = self._index.write(lambda txn: txn.next_number("segment"))
            self._files.reached("numbered a segment")
            try:
                fd = self._segments.claim(number, create=True)
            except OSError as error:
                if error.errno not in DRIVE_FULL:
                    raise
                return None  # no inode, perhaps; but there are old segments
            if fd is not None:
                return self._recorded(number, fd, free_bytes)
        return None

    def _recorded(self, number: int, fd: int, free_bytes: int) -> _Claim | None:
        """Give the new file its record, or remove it where the cap has no room any more."""
        with self._closed_unless_kept(fd) as keep, contextlib.ExitStack() as undo:
            undo.callback(self._segments.unlink, number)
            self._files.reached("locked a new segment")
            segment = self._index.write(partial(self._put_new, number, free_bytes))
            if segment is None:
                return None
            undo.pop_all()
            keep()
            return _Claim(number, segment, fd)

    def _put_new(self, number: int, free_bytes: int, txn: Transaction) -> Segment | None:
        if not self._has_room(txn, free_bytes):
            return None
        segment = _opened(txn, 1, self.room.budget(txn).segment_cost_bytes)
        txn.put_segment(number, segment)
        return segment

    def _has_room(self, txn: Transaction, free_bytes: int) -> bool:
        cost_bytes = self.room.budget(txn).segment_cost_bytes
        return self.room.excess_bytes_in(txn, free_bytes) + cost_bytes <= 0

    @contextlib.contextmanager
    def _closed_unless_kept(self, fd: int) -> Iterator[Callable[[], object]]:
        """Close a locked file at the end, which gives its locks up, unless the function given is called."""
        with contextlib.ExitStack() as undo:
            undo.callback(self._files.close, fd)
            yield undo.pop_all

    def _begin(self, claim: _Claim) -> OpenSegment | None:
        """Make it ready for the first batch, or the next one; None where it is sealed instead."""
        self._files.unlock(claim.fd, READERS_BYTE)
        self._segments.allocate(claim.number, claim.fd)
        taken_bytes = self._files.taken_bytes(claim.fd)
        if taken_bytes > claim.segment.allocated_bytes:
            self._index.write(partial(_book, claim.number, taken_bytes))
        file = self._segments.file(claim.fd, claim.number, claim.segment.generation)
        header = file.read_header()
        is_damaged = header is None or header.name != file.name
        if is_damaged:
            file.write_header(claim.segment.opened)
        segment: OpenSegment | None
        if is_damaged and claim.segment.end_block == FIRST_BLOCK:
            segment = OpenSegment(file, FIRST_BLOCK, opened=claim.segment.opened)
        else:  # the chunks behind a damaged header are as good as ever
            segment = self._gone_on_with(claim, file)
        if segment is not None:
            segment.unsynced = True  # its header, or what a process has written that died before it synced it
        return segment

    def _gone_on_with(self, claim: _Claim, file: SegmentFile) -> OpenSegment | None:
        """What a dead process has left; None where some of it cannot be read now.

        A trailer would lack that, and is believed to list everything: so it is sealed without one.
        """
        file.unseal()
        bad = BadBlocks()
        batches = list(file.sweep(bad=bad))  # committed or not, each is whole
        if bad.count:
            file.sync()
            self._index.write(lambda txn: _seal(txn, [file.name]))
            self._close(claim.number, claim.fd)
            return None
        end = max([claim.segment.end_block, FIRST_BLOCK, *(batch.end_block for batch in batches)])
        tables = [batch.encode() for batch in batches]
        return OpenSegment(file, end, tables, opened=claim.segment.opened)

    def _is_drive_full(self, claim: _Claim, error: OSError) -> bool:
        """Whether it was the room for the file that the file system refused."""
        allocated = self._segments.is_allocated(claim.fd)
        return not allocated and error.errno in DRIVE_FULL

    def put_away(self, segment: OpenSegment) -> None:
        """Give up a segment that cannot be synced, before anybody has appended to it."""
        self._put_away(segment.name.segment, segment.file.fd, is_empty=segment.is_empty)

    def _put_away(self, number: int, fd: int, *, is_empty: bool = True) -> None:
        """Give up a segment so that nobody takes it over again."""
        try:
            if not self._index.write(partial(_leave_to_reclaim, number, is_empty)):
                self.room.remove(number, fd)
        finally:
            self._close(number, fd)

    def give_back(self, segment: OpenSegment) -> None:
        """Give up a segment that nobody has appended to yet: it is free, if nothing lies in it.

        A dead process may have left something that raised no end in the index: removals.
        """
        try:
            if segment.is_empty:
                self._index.write(partial(_free_if_empty, segment.name))
        finally:
            self.leave(segment)

    def _close(self, number: int, fd: int) -> None:
        """Give up a claim."""
        self.room.own.discard(number)
        self._files.close(fd)

    # Sealing.

    def seal(self, full: Sequence[OpenSegment]) -> None:
        """Say in the index that these segments are full, and give up their claims."""
        assert not any(segment.writers for segment in full), "nothing is appended while a segment is sealed"
        self._files.reached("trailers written")
        try:
            self._index.write(lambda txn: _seal(txn, [segment.name for segment in full]))
        finally:
            for segment in full:  # whoever finds one open goes on with it, and seals it again
                self.leave(segment)

    def leave(self, segment: OpenSegment) -> None:
        """Give up the claim of a segment that stays open: the next claim by anybody goes on with it."""
        self._close(segment.name.segment, segment.file.fd)

    def sync_names(self) -> None:
        """Make the names of new segments durable.

        Raises:
            OSError: some may not be.
        """
        self._segments.sync_names()

    def sync_others(self, own: Collection[int]) -> None:
        """Make durable what is in the open segments of all others; what is sealed was synced before.

        Raises:
            OSError, TierError: some of it may not be.
        """
        sync_open(self._segments, self._index, own)


def is_open(segment: Segment | None, name: SegmentName) -> bool:
    """Whether the record is that of this life, and somebody appends to it."""
    return segment is not None and (segment.state, segment.generation) == (SegmentState.OPEN, name.generation)


def _book(number: int, taken_bytes: int, txn: Transaction) -> None:
    """Count what a file takes of a file system that gives it more than its length, and the next ones too."""
    segment = txn.segment(number)
    assert segment is not None, "it is claimed"
    txn.put_segment(number, segment._replace(allocated_bytes=taken_bytes))
    txn.set_number(SEGMENT_TAKES, max(taken_bytes, txn.number(SEGMENT_TAKES)))


def _leave_to_reclaim(number: int, is_empty: bool, txn: Transaction) -> bool:
    """Where something lies in it, it can be read until it is reclaimed, next of all."""
    segment = txn.segment(number)
    if segment is None or (is_empty and segment.end_block <= FIRST_BLOCK):
        return False
    txn.put_segment(number, segment._replace(state=SegmentState.RECLAIMING))
    return True


def _free_if_empty(name: SegmentName, txn: Transaction) -> None:
    segment = txn.segment(name.segment)
    if segment is not None and is_open(segment, name) and segment.end_block <= FIRST_BLOCK:
        for state in (SegmentState.RECLAIMING, SegmentState.FREE):
            txn.put_segment(name.segment, segment._replace(state=state, end_block=0))


def _seal(txn: Transaction, names: Sequence[SegmentName]) -> None:
    for name in names:
        segment = txn.segment(name.segment)
        if segment is not None and is_open(segment, name):
            txn.put_segment(name.segment, segment._replace(state=SegmentState.SEALED))


def _opened(txn: Transaction, generation: int, allocated_bytes: int) -> Segment:
    opened = txn.next_number("opened")
    return Segment(SegmentState.OPEN, generation, opened, FIRST_BLOCK, 0, 0, allocated_bytes)
