"""One process's hand on the log: which segment it appends to, and which it empties.

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
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

from ...base import ChunkKey
from ..format.segment_file import (
    CLAIM_BYTE,
    FIRST_BLOCK,
    READERS_BYTE,
    Batch,
    Entry,
    OpenSegment,
    SegmentFile,
    SegmentName,
)
from ..index.environment import Extent, Index, Segment, SegmentState, Transaction
from ..index.ledger import Ledger
from ..io.files import Files
from ..store.directory import StoreDirectory
from .budget import Budget

logger = logging.getLogger(__name__)

CLAIM_TRIES_MAX = 4  # bad segments one after the other: then it is the drive
FORGET_STEP_MAX = 512  # entries dropped per transaction, so that others' commits get their turn
FORGET_STEP_PAGES = 32  # one entry per so many pages of the index: a step must fit in while it is nearly full
INDEX_FILL_MAX = 0.5  # the rest is for pages in change: a step's copies, and copies that readers still see
AHEAD_BYTES_MAX = 64 * 1024 * 1024  # kept free for the next stores: tens of milliseconds of a fast drive
AHEAD_SHARE = 16  # of the cap at most: what is kept free is not used
SEGMENTS_FOR_AHEAD = 4  # in a store of fewer, a segment freed ahead would be too much of it


class Live(NamedTuple):
    """A chunk in a segment that is being reclaimed."""

    namespace: bytes
    scope: int
    key: ChunkKey
    extent: Extent


class Removals(NamedTuple):
    """Keys of one namespace that were removed: a rebuild leaves out their chunks from before `order`."""

    namespace: bytes
    scope: int
    order: int
    entries: tuple[Entry, ...]


class Victim(NamedTuple):
    """A segment being emptied; `file` is None where its file is gone."""

    number: int
    segment: Segment
    file: SegmentFile | None
    live: tuple[Live, ...]
    removals: tuple[Removals, ...] = ()  # to be noted elsewhere before it is freed


class _Claim(NamedTuple):
    number: int
    segment: Segment
    fd: int


def _ignored(live: Sequence[Live]) -> None:
    """Nobody listens."""


class Log:
    """Claims, seals and reclaims. Every method blocks; any thread, at the same time."""

    def __init__(self, files: Files, directory: StoreDirectory, index: Index) -> None:
        self._files, self._directory, self._index = files, directory, index
        self._facts = directory.facts
        self.reclaimed: Callable[[Sequence[Live]], None] = _ignored  # hears what was in a freed segment

    def budget(self, txn: Transaction) -> Budget:
        """The cap that holds now: the last process that opened the store has set it."""
        return Budget(
            txn.number("capacity_bytes"),
            txn.number("reserve_bytes"),
            self._facts.segment_bytes,
            self._facts.index_bytes,
        )

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
                refused, disk_full = error, self._is_disk_full(claim, error)
                self._put_away(claim)
                if disk_full:
                    return None  # but in the place of an old segment there is room
                logger.warning("nvme: segment %d cannot be appended to: %s", claim.number, error)
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
        by_age = sorted(txn.segments().items(), key=lambda item: item[1].opened)
        for number, segment in by_age:
            if segment.state is SegmentState.OPEN:
                fd = self._locked(number, CLAIM_BYTE)
                if fd is not None:
                    undo.callback(self._files.close, fd)
                    return _Claim(number, segment, fd)
        if self._excess_bytes(txn, dict(by_age)) <= 0:
            for number, segment in by_age:
                claim = self._reuse(txn, undo, number, segment)
                if claim is not None:
                    return claim
        return self._create(txn, undo, dict(by_age))

    def _reuse(
        self, txn: Transaction, undo: contextlib.ExitStack, number: int, segment: Segment
    ) -> _Claim | None:
        if segment.state is not SegmentState.FREE:
            return None
        fd = self._locked(number, CLAIM_BYTE, READERS_BYTE)
        if fd is None:
            if not self._directory.segment_path(number).exists():
                txn.drop_segment(number)
            return None
        undo.callback(self._files.close, fd)
        claimed = _opened(txn, segment.generation + 1, segment.allocated_bytes)
        txn.put_segment(number, claimed)
        return _Claim(number, claimed, fd)

    def _create(
        self, txn: Transaction, undo: contextlib.ExitStack, segments: dict[int, Segment]
    ) -> _Claim | None:
        budget = self.budget(txn)
        if self._excess_bytes(txn, segments) + budget.segment_cost_bytes > 0:
            return None
        number = txn.number("segment") + 1
        # Made and locked before others can see the record, so that nobody takes it for a dead process's.
        fd = self._locked(number, CLAIM_BYTE, create=True)
        if fd is None:
            return None  # of somebody whose attempt could not commit, and who is about to make another
        undo.callback(self._files.close, fd)
        txn.set_number("segment", number)
        claimed = _opened(txn, 1, budget.segment_cost_bytes)
        txn.put_segment(number, claimed)
        return _Claim(number, claimed, fd)

    def _locked(self, number: int, *lock_bytes: int, create: bool = False) -> int | None:
        """The segment's file, with these bytes locked for us alone; None where one is taken or it is gone."""
        with contextlib.ExitStack() as undo:
            try:
                fd = self._files.open_data(self._directory.segment_path(number), create=create, write=True)
            except FileNotFoundError:
                return None
            undo.callback(self._files.close, fd)
            if create:
                self._files.reached("created a segment file")
            if not all(self._files.try_lock(fd, byte, exclusive=True) for byte in lock_bytes):
                return None
            undo.pop_all()
            return fd

    def _begin(self, claim: _Claim) -> OpenSegment:
        self._files.unlock(claim.fd, READERS_BYTE)
        size_bytes = self._facts.segment_bytes
        if self._files.size(claim.fd) < size_bytes:
            self._files.allocate(claim.fd, size_bytes)
            self._files.sync_directory(self._directory.segment_path(claim.number).parent)
        name = SegmentName(self._facts.store, claim.number, claim.segment.generation)
        file = SegmentFile(self._files, claim.fd, name, size_bytes)
        header = file.read_header()
        if header is None or header.name != name:
            file.write_header(claim.segment.opened)
            if claim.segment.end_block == FIRST_BLOCK:
                return OpenSegment(file, FIRST_BLOCK)
            # Else the header was damaged, and the chunks behind it are as good as ever.
        batches = list(file.sweep())  # of a process that died; committed or not, each is whole
        end = max([claim.segment.end_block, FIRST_BLOCK, *(batch.end_block for batch in batches)])
        segment = OpenSegment(file, end, [batch.encode() for batch in batches])
        segment.unsynced = True  # it may have died before it synced them
        return segment

    def _is_disk_full(self, claim: _Claim, error: OSError) -> bool:
        """Whether it was the room for the file that the file system refused."""
        unallocated = self._files.size(claim.fd) < self._facts.segment_bytes
        return unallocated and error.errno in (errno.ENOSPC, errno.EDQUOT)

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
            self._remove(txn, claim.number, claim.fd)

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
            if segment.state is not SegmentState.OPEN or number in own:
                continue
            with contextlib.suppress(FileNotFoundError):  # its chunks are gone, and that will be noticed
                fd = self._files.open_data(self._directory.segment_path(number))
                try:
                    self._files.sync_data(fd)
                finally:
                    self._files.close(fd)

    # Reclaiming.

    def begin_reclaim(self) -> Victim | None:
        """Choose the oldest segment that nobody appends to, and see what is in it."""
        with contextlib.ExitStack() as undo:
            chosen = self._index.write(lambda txn: self._choose(txn, undo))
            if chosen is None:
                return None
            undo.pop_all()
        number, segment, fd = chosen
        self._files.reached("reclaiming")
        if fd < 0:
            return Victim(number, segment, None, ())
        name = SegmentName(self._facts.store, number, segment.generation)
        file = SegmentFile(self._files, fd, name, self._facts.segment_bytes)
        try:
            return Victim(number, segment, file, *self._contents(file))
        except OSError:  # unreadable: what is in it is found in the index instead
            return Victim(number, segment, file, ())
        except BaseException:
            self._files.close(fd)
            raise

    def _choose(self, txn: Transaction, undo: contextlib.ExitStack) -> _Claim | None:
        undo.close()  # of an attempt that could not commit
        by_age = sorted(txn.segments().items(), key=lambda item: item[1].opened)
        for state in (SegmentState.RECLAIMING, None):
            for number, segment in by_age:
                if segment.state is SegmentState.FREE or state not in (None, segment.state):
                    continue
                fd = self._locked(number, CLAIM_BYTE)
                if fd is None and self._directory.segment_path(number).exists():
                    continue
                if fd is not None:
                    undo.callback(self._files.close, fd)
                chosen = segment._replace(state=SegmentState.RECLAIMING)
                txn.put_segment(number, chosen)
                return _Claim(number, chosen, -1 if fd is None else fd)
        return None

    def _contents(self, file: SegmentFile) -> tuple[tuple[Live, ...], tuple[Removals, ...]]:
        batches = file.read_trailer()
        if batches is None:
            batches = list(file.sweep())
        with self._index.read() as txn:
            return tuple(_live(txn, file.name, batches)), tuple(_removals(txn, file.name, batches))

    def finish_reclaim(self, victim: Victim) -> int:
        """Forget what is still in the segment and free it; returns how many chunks were forgotten."""
        name = SegmentName(self._facts.store, victim.number, victim.segment.generation)
        try:
            forgotten = self._forget(name, [(live.scope, live.key) for live in victim.live])
            with self._index.read() as txn:
                left = txn.segment(victim.number)
                unlisted = left is not None and left.live_chunks > 0
            if unlisted:  # the segment did not list all that the index has in it
                with self._index.read() as txn:
                    rest = [(scope, key) for scope, key, extent in txn.extents() if _lies_in(extent, name)]
                forgotten += self._forget(name, rest)
            self._files.reached("emptied")
            self._index.write(lambda txn: self._free(txn, victim))
        finally:
            self.abandon(victim)
        self.reclaimed(victim.live)
        return forgotten

    def abandon(self, victim: Victim) -> None:
        """Give up the claim; whoever reclaims next goes on with this segment."""
        if victim.file is not None:
            self._files.close(victim.file.fd)

    def _forget(self, name: SegmentName, entries: list[tuple[int, ChunkKey]]) -> int:
        forgotten = 0
        step = max(16, min(FORGET_STEP_MAX, self._facts.index_bytes // 4096 // FORGET_STEP_PAGES))
        for start in range(0, len(entries), step):
            part = entries[start : start + step]
            forgotten += self._index.write(lambda txn, part=part: _forget(txn, name, part))  # type: ignore[misc]
            self._files.reached("forgot some")
        return forgotten

    def _free(self, txn: Transaction, victim: Victim) -> None:
        segment = txn.segment(victim.number)
        if segment is None:
            return
        if victim.file is None:
            txn.drop_segment(victim.number)
            return
        emptied = segment._replace(state=SegmentState.FREE, end_block=0, live_chunks=0, live_bytes=0)
        txn.put_segment(victim.number, emptied)

    # Room.

    def room_ahead(self) -> bool:
        """Whether the next claims will find segments without reclaiming, as far as one can see now.

        A reclaim that nobody waits for can carry chunks over; one in the way of a store cannot.
        """
        with self._index.read() as txn:
            segments, budget = txn.segments(), self.budget(txn)
            free = [segment for segment in segments.values() if segment.state is SegmentState.FREE]
            room_bytes = sum(segment.allocated_bytes for segment in free)
            room_bytes += max(0, -self._excess_bytes(txn, segments))
        ahead_bytes = min(AHEAD_BYTES_MAX, budget.capacity_bytes // AHEAD_SHARE)
        small = len(segments) < SEGMENTS_FOR_AHEAD
        return small or room_bytes >= max(ahead_bytes, budget.segment_cost_bytes)

    def excess_bytes(self) -> int:
        """How much the store has to give back now, 0 or less where it need not."""
        with self._index.read() as txn:
            return self._excess_bytes(txn, txn.segments())

    def free_is_short(self) -> bool:
        """Whether others have filled the file system into the reserve; cheap."""
        with self._index.read() as txn:
            reserve_bytes = self.budget(txn).reserve_bytes
        return self._files.free_bytes(self._directory.root) < reserve_bytes

    def index_is_tight(self) -> bool:
        """Whether chunks have to be forgotten because the index may not grow."""
        with self._index.read() as txn:
            return index_is_tight(txn, self._facts.index_bytes)

    def shrink(self) -> bool:
        """Remove one free segment's file; False where there is none that nobody reads."""
        return self._index.write(self._remove_one)

    def _remove_one(self, txn: Transaction) -> bool:
        by_age = sorted(txn.segments().items(), key=lambda item: item[1].opened)
        for number, segment in by_age:
            if segment.state is not SegmentState.FREE:
                continue
            fd = self._locked(number, CLAIM_BYTE, READERS_BYTE)
            if fd is None:
                if not self._directory.segment_path(number).exists():
                    txn.drop_segment(number)
                continue
            try:
                self._remove(txn, number, fd)
            finally:
                self._files.close(fd)
            return True
        return False

    def _remove(self, txn: Transaction, number: int, fd: int) -> None:
        # The file first: a file without a record would be room that nobody counts.
        self._files.truncate(fd, 0)  # gives the room back even while some process has it open
        self._files.unlink(self._directory.segment_path(number))
        self._files.reached("removed a segment file")
        txn.drop_segment(number)

    def _excess_bytes(self, txn: Transaction, segments: dict[int, Segment]) -> int:
        budget = self.budget(txn)
        allocated_bytes = sum(segment.allocated_bytes for segment in segments.values())
        above_cap = allocated_bytes - budget.segments_bytes(len(txn.namespaces()))
        return max(above_cap, budget.reserve_bytes - self._files.free_bytes(self._directory.root))


def is_open(segment: Segment | None, name: SegmentName) -> bool:
    """Whether the record is that of this life, and somebody appends to it."""
    return segment is not None and (segment.state, segment.generation) == (SegmentState.OPEN, name.generation)


def _seal(txn: Transaction, name: SegmentName) -> None:
    segment = txn.segment(name.segment)
    if segment is not None and is_open(segment, name):
        txn.put_segment(name.segment, segment._replace(state=SegmentState.SEALED))


def index_is_tight(txn: Transaction, index_bytes: int) -> bool:
    return txn.tree_pages() * 4096 > index_bytes * INDEX_FILL_MAX


def _opened(txn: Transaction, generation: int, allocated_bytes: int) -> Segment:
    opened = txn.next_number("opened")
    return Segment(SegmentState.OPEN, generation, opened, FIRST_BLOCK, 0, 0, allocated_bytes)


def _lies_in(extent: Extent, name: SegmentName) -> bool:
    return (extent.segment, extent.generation) == (name.segment, name.generation)


def _live(txn: Transaction, name: SegmentName, batches: Sequence[Batch]) -> Iterator[Live]:
    for batch in batches:
        for entry in batch.entries:
            extent = txn.extent(batch.scope, entry.key)
            if extent is not None and _lies_in(extent, name):
                yield Live(batch.namespace, batch.scope, entry.key, extent)


def _removals(txn: Transaction, name: SegmentName, batches: Sequence[Batch]) -> Iterator[Removals]:
    """The removals that other segments may still need, free ones included until they are overwritten."""
    others = (segment for number, segment in txn.segments().items() if number != name.segment)
    oldest = min((segment.opened for segment in others), default=math.inf)
    by_target: dict[tuple[bytes, int], list[Batch]] = defaultdict(list)
    for batch in batches:
        if batch.removals:
            by_target[batch.namespace, batch.scope].append(batch)
    for (namespace, scope), removing in by_target.items():
        needed = [
            (entry, batch.order)
            for batch in removing
            for entry in batch.entries
            # A chunk that is there again may come back with a rebuild, in whatever place.
            if entry.block >= oldest and txn.extent(scope, entry.key) is None
        ]
        if needed:
            entries, orders = zip(*needed, strict=True)
            yield Removals(namespace, scope, max(orders), entries)


def _forget(txn: Transaction, name: SegmentName, entries: list[tuple[int, ChunkKey]]) -> int:
    ledger, count = Ledger(txn), 0
    for scope, key in entries:
        extent = ledger.extent(scope, key)
        if extent is not None and _lies_in(extent, name):
            ledger.forget(scope, key, extent)
            count += 1
    ledger.close()
    return count
