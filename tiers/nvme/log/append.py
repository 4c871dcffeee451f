"""Appending to the log: batches placed, written by lanes, committed together.

The life of one append: every batch takes its place in the open segment; the lanes write the pieces of all
batches, and whichever lane finishes a batch's last piece writes its table; then one transaction, on the lane
that leads, makes the extents visible. Whatever happens in between, each batch is settled once, so that its
segment can be sealed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

from ...base import Buffer, ChunkKey, Failure
from ...errors import TierError
from ..format.checksum import ChunkChecksum
from ..format.segment_file import Batch, Entry, OpenSegment, Placement
from ..index.environment import Extent, Index, IndexFull, Transaction
from ..index.ledger import Ledger
from ..io.files import Files, Lanes
from ..io.pieces import WritePiece, plan_writes
from .lifecycle import Log, Removals, index_is_tight, is_open

logger = logging.getLogger(__name__)

PLACE_TRIES_MAX = 16  # others fill what we claim, or have left it full; then it is the disk or the index
RECLAIMS_PER_CLAIM_MAX = 4  # what we free may be taken by another process; then there is contention enough


_NO_BYTES = memoryview(b"")


class Target(NamedTuple):
    """Whose chunks they are."""

    namespace: bytes
    scope: int
    checksum: ChunkChecksum


Accept = Callable[[ChunkKey, Extent, Extent | None], Extent | None]
"""Called in the committing transaction with a key, where it was written, and where the index has it so far.
Returns the extent to put, or None to leave things as they are."""


class _Batch:
    """One placed batch on its way to the disk. Pieces run on lane threads, the rest on the loop."""

    def __init__(
        self,
        files: Files,
        segment: OpenSegment,
        placement: Placement,
        target: Target,
        order: int,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
    ) -> None:
        self.segment, self.placement, self.target, self.order = segment, placement, target, order
        first_block = placement.block + placement.table_blocks
        self.pieces: Sequence[WritePiece] = plan_writes(
            files, segment.file.fd, target.checksum, first_block, chunks
        )
        self._lock = threading.Lock()
        self._left = len(self.pieces)
        # The result: the table as it was written, and what it names.
        self.table: bytes | None = None
        self.entries: tuple[Entry, ...] = ()
        self.error: OSError | None = None

    def calls(self) -> list[Callable[[], None]]:
        return [partial(self._run, piece) for piece in self.pieces]

    def _run(self, piece: WritePiece) -> None:
        piece()
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:  # every chunk is written: now the table may say so
            self.error = next((piece.error for piece in self.pieces if piece.error), None)
            self.write_table(tuple(entry for piece in self.pieces for entry in piece.entries))

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
        except OSError as error:
            self.error = error
        else:
            self.entries = entries


class Appender:
    """The open segment of this process, and everything that is appended to it.

    One event loop. Cancellation: a cancelled append returns once no thread reads its buffers; what it had
    written is either committed as a whole or nothing.
    """

    def __init__(
        self, files: Files, lanes: Lanes, index: Index, log: Log, index_bytes: int, rolled: Callable[[], None]
    ) -> None:
        self._files, self._lanes, self._index, self._log = files, lanes, index, log
        self._index_bytes = index_bytes
        self._rolled = rolled  # told after each change of the open segment
        # Mutable state, changed on the loop only.
        self._current: OpenSegment | None = None
        self._retired: set[OpenSegment] = set()
        self._rolling: asyncio.Task[bool] | None = None
        self._sealing: set[asyncio.Task[None]] = set()
        self._syncing = asyncio.Lock()
        self._undurable: OSError | TierError | None = None  # what the next flush has to tell
        self._order = 0
        self.evicted_chunks = 0
        self.io_errors = 0
        # Changed by the roll only, on its thread.
        self._unnoted: list[Removals] = []  # of segments that were freed for want of one to note them in

    async def append(
        self,
        target: Target,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
        accept: Accept,
        *,
        order: int | None = None,
    ) -> dict[ChunkKey, Failure]:
        """Write the chunks and commit what `accept` takes; returns why the others failed.

        `order` is when the chunks were known to be wanted: a removal after that counts, were the index
        to be rebuilt. Now, if not given.
        """
        batches: list[_Batch] = []
        failed: dict[ChunkKey, Failure] = {}
        try:
            placed = await self._place_all(target, chunks, batches, order=order)
            failed.update((key, Failure.NO_SPACE) for key, _ in chunks[placed:])
            if batches:
                failed.update(await self._written(target, batches, accept))
        finally:
            for batch in batches:
                batch.segment.refused |= batch.error is not None
                self._settle(batch.segment, batch.table)
        return failed

    async def append_removals(self, target: Target, keys: Sequence[ChunkKey]) -> None:
        """Note in the log that these keys were forgotten, so that no rebuild brings them back.

        What could not be noted, the next `flush` tells.
        """
        with self._index.read() as txn:
            opened = txn.number("opened")  # in none that is opened later do they lie
        now_s = int(time.time())
        entries = tuple(Entry(key, opened, 0, 0, now_s) for key in keys)
        await self.note([Removals(target.namespace, target.scope, self.next_order(), entries)])

    async def note(self, removals: Sequence[Removals]) -> None:
        """Append removals; what could not be written, the next `flush` tells."""
        batches: list[_Batch] = []
        calls: list[Callable[[], None]] = []
        try:
            for one in removals:
                calls += await self._placed_notes(one, batches)
            if calls:
                await self._lanes.store(calls, then=lambda: None)
            for batch in batches:
                if batch.error is not None:
                    self._not_durable("removals", batch.error)
        finally:
            for batch in batches:
                self._settle(batch.segment, batch.table)

    async def _placed_notes(self, removals: Removals, batches: list[_Batch]) -> Sequence[Callable[[], None]]:
        entries, first = removals.entries, len(batches)
        chunks = [(entry.key, _NO_BYTES) for entry in entries]
        order = removals.order
        placed = await self._place_all(_target(removals), chunks, batches, order=order, pieces=False)
        if placed < len(entries):
            self._not_durable("removals", TierError("nvme", "there is no segment to note them in"))
        rest = iter(entries)
        return [
            partial(batch.write_table, tuple(islice(rest, batch.placement.chunks)), removals=True)
            for batch in batches[first:]
        ]

    async def flush(self) -> None:
        """Make everything durable that was appended so far, or was found to be there already.

        Raises:
            OSError, TierError: something appended since the last flush may be lost with the power, although
                a later sync went well: a kernel tells a failed one only once.
        """
        await self.sync()
        own = {segment.name.segment for segment in (self._current, *self._retired) if segment}
        # A chunk that was there already may be another's, who has not synced it yet or was killed before.
        await self._lanes.upkeep(partial(self._log.sync_others, own))
        if self._undurable is not None:
            error, self._undurable = self._undurable, None
            raise error

    async def sync(self) -> None:
        """Try to make everything that was appended so far durable; the next `flush` tells what failed."""
        async with self._syncing:  # what another sync has begun with is durable only when that one is through
            await self._sync_unsynced()
        if self._sealing:
            await asyncio.wait(self._sealing)

    async def _sync_unsynced(self) -> None:
        segments = [segment for segment in (self._current, *self._retired) if segment and segment.unsynced]
        for segment in segments:  # all at once: none may be sealed and closed while another is synced
            segment.hold()
        try:
            for segment in segments:
                await self._sync_one(segment)
        finally:
            for segment in segments:
                self._settle(segment, None)

    async def _sync_one(self, segment: OpenSegment) -> None:
        segment.unsynced = False  # before the sync: what is written during it may not be covered
        try:
            await self._lanes.upkeep(partial(self._files.sync_data, segment.file.fd))
        except OSError as error:
            segment.unsynced = True
            self._not_durable(f"segment {segment.name.segment}", error)
        except BaseException:
            segment.unsynced = True
            raise

    def _not_durable(self, what: str, error: OSError | TierError) -> None:
        self.io_errors += 1
        self._undurable = error
        logger.warning("nvme: %s could not be made durable: %s", what, error)

    async def close(self) -> None:
        """Seal what is to be sealed, and leave the open segment to whoever comes next."""
        if self._rolling is not None:
            await asyncio.wait([self._rolling])
        await self.sync()
        if self._current is not None:
            self._log.leave(self._current)
            self._current = None

    # The open segment.

    async def _place_all(
        self,
        target: Target,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
        batches: list[_Batch],
        *,
        order: int | None = None,
        pieces: bool = True,
    ) -> int:
        start = tries = 0
        while start < len(chunks) and tries < PLACE_TRIES_MAX:
            segment, rest = self._current, chunks[start:]
            lengths = [len(buffer) for _, buffer in rest]
            placement = segment.place([key for key, _ in rest], lengths) if segment else None
            if segment is None or placement is None:
                if not await self._make_room(segment):
                    return start
                tries += 1
                continue
            tries = 0
            mine = rest[: placement.chunks] if pieces else ()
            when = self.next_order() if order is None else order
            batches.append(_Batch(self._files, segment, placement, target, when, mine))
            start += placement.chunks
        return start

    def next_order(self) -> int:
        """A number for now: batches of one process in order, those of several by the clock."""
        self._order = max(self._order + 1, time.time_ns())
        return self._order

    async def _make_room(self, full: OpenSegment | None) -> bool:
        if full is not None and full.is_in_vain:
            return full.rewind()  # what is stored is not given up for room in which nothing can be written
        return await self._roll(full)

    async def _roll(self, full: OpenSegment | None) -> bool:
        """Replace the open segment; False where there is no room for another."""
        if self._current is not full:
            return True  # somebody else has done it while we waited
        if self._rolling is None:
            # A task of its own: a cancelled append must not lose the segment that was claimed for all.
            self._rolling = asyncio.create_task(self._claim(full))
        return await asyncio.shield(self._rolling)

    async def _claim(self, full: OpenSegment | None) -> bool:
        fresh = None
        try:
            fresh = await self._lanes.upkeep(self._claim_or_reclaim)
        except (OSError, TierError) as error:
            self.io_errors += 1
            logger.warning("nvme: no segment to write to: %s", error)
        finally:
            # Both at once: whoever finds this segment full before the waiters wake must start another roll.
            self._current, self._rolling = fresh, None
        self._retire(full)
        self._rolled()
        return fresh is not None

    def _retire(self, full: OpenSegment | None) -> None:
        if full is not None:  # also where there is no fresh one: sealed, it can be reclaimed
            self._retired.add(full)
            self._seal_if_done(full)

    def _claim_or_reclaim(self) -> OpenSegment | None:
        segment = self._claim_after_reclaims()
        if segment is not None and self._unnoted:
            try:
                self._note_first(segment)
            except OSError as error:
                self._not_durable("removals", error)
        return segment

    def _note_first(self, segment: OpenSegment) -> None:
        """Note what was removed in a segment that nobody else appends to yet, durably."""
        while self._unnoted:
            removals = self._unnoted.pop()
            rest = removals.entries
            while rest:
                placement = segment.place([entry.key for entry in rest], [0] * len(rest))
                if placement is None:
                    raise OSError(errno.ENOSPC, "they do not fit in one segment")
                batch = _Batch(self._files, segment, placement, _target(removals), removals.order, ())
                batch.write_table(rest[: placement.chunks], removals=True)
                segment.settle(batch.table)
                if batch.error is not None:
                    raise batch.error
                rest = rest[placement.chunks :]
        self._files.sync_data(segment.file.fd)

    def _claim_after_reclaims(self) -> OpenSegment | None:
        for _ in range(RECLAIMS_PER_CLAIM_MAX):
            segment = self._log.claim()
            if segment is not None:
                return segment
            if self._log.excess_bytes() > 0 and self._log.shrink():
                continue
            victim = self._log.begin_reclaim()
            if victim is None:
                return None
            self._unnoted += victim.removals
            self.evicted_chunks += self._log.finish_reclaim(victim)
        return self._log.claim()

    def _settle(self, segment: OpenSegment, table: bytes | None) -> None:
        segment.settle(table)
        if segment.lost and segment is self._current:
            self._current = None
            self._retire(segment)
        self._seal_if_done(segment)

    def _seal_if_done(self, segment: OpenSegment) -> None:
        if segment in self._retired and not segment.writers:
            self._retired.remove(segment)
            task = asyncio.create_task(self._seal(segment))
            self._sealing.add(task)
            task.add_done_callback(self._sealing.discard)

    async def _seal(self, segment: OpenSegment) -> None:
        try:
            await self._lanes.upkeep(partial(self._log.seal, segment))
        except (OSError, TierError) as error:
            self._not_durable(f"segment {segment.name.segment}", error)

    # Writing and committing.

    async def _written(
        self, target: Target, batches: Sequence[_Batch], accept: Accept
    ) -> Mapping[ChunkKey, Failure]:
        """Write the batches and commit them; returns why some keys are not there."""
        calls = [call for batch in batches for call in batch.calls()]
        lost, why = [], Failure.DROPPED
        try:
            lost = await self._lanes.store(calls, then=partial(self._commit, target, batches, accept))
        except IndexFull:
            lost, why = _entered(batches), Failure.NO_SPACE
        except TierError as error:
            self.io_errors += 1
            logger.warning("%s", error)
            lost, why = _entered(batches), Failure.IO_ERROR
        failed = dict.fromkeys(lost, why)
        for batch in batches:
            if batch.error is not None:
                self.io_errors += 1
                failed.update((key, _failure(batch.error)) for key in _missing(batch))
        return failed

    def _commit(self, target: Target, batches: Sequence[_Batch], accept: Accept) -> list[ChunkKey]:
        """On a lane: make visible what was written. Returns the keys that may not be any more."""
        self._files.reached("data written")
        written = [batch for batch in batches if batch.entries]
        if not written:
            return []
        self._files.reached("before commit")
        refused = self._index.write(lambda txn: self._put(txn, target, written, accept))
        self._files.reached("committed")
        return refused

    def _put(
        self, txn: Transaction, target: Target, batches: Sequence[_Batch], accept: Accept
    ) -> list[ChunkKey]:
        if index_is_tight(txn, self._index_bytes):
            raise IndexFull("nvme", "the index may not grow further")
        ledger = Ledger(txn)
        if not ledger.in_force(target.scope):
            return _entered(batches)
        refused: list[ChunkKey] = []
        for batch in batches:
            name = batch.segment.name
            if not is_open(ledger.segment(name.segment), name):
                # Its file was removed under us, and somebody has noticed.
                batch.segment.lost = True
                refused += [entry.key for entry in batch.entries]
                continue
            for entry in batch.entries:
                before = ledger.extent(target.scope, entry.key)
                place = Extent(name.segment, name.generation, *entry[1:], 0, 0)
                extent = accept(entry.key, place, before)
                if extent is not None:
                    ledger.put(target.scope, entry.key, before, extent)
            _raise_end(ledger, batch)
        ledger.close()
        return refused


def _target(removals: Removals) -> Target:
    return Target(removals.namespace, removals.scope, ChunkChecksum(removals.namespace))


def _raise_end(ledger: Ledger, batch: _Batch) -> None:
    number = batch.segment.name.segment
    segment = ledger.segment(number)
    assert segment is not None, "a claimed segment has a record"
    placement = batch.placement
    end = placement.block + placement.table_blocks + placement.data_blocks
    ledger.set_segment(number, segment._replace(end_block=max(segment.end_block, end)))


def _entered(batches: Sequence[_Batch]) -> list[ChunkKey]:
    return [entry.key for batch in batches for entry in batch.entries]


def _missing(batch: _Batch) -> set[ChunkKey]:
    """Keys of the batch that did not get into its table."""
    written = {entry.key for entry in batch.entries}
    return {key for piece in batch.pieces for key, _ in piece.chunks} - written


def _failure(error: OSError) -> Failure:
    return Failure.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else Failure.IO_ERROR
