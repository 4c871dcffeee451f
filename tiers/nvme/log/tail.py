"""The tail of the log: the open segment of this process, and those that it is about to seal.

A batch takes its place in the open segment, is written there, and is completed once, whatever happens in
between. A full segment is retired at once and sealed when its last batch is completed.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import Sequence
from functools import partial

from ...base import Buffer, ChunkKey, Failure
from ...errors import TierError
from ..format.open_segment import OpenSegment
from ..index.environment import IndexFull
from ..io.lanes import Lanes
from ..io.refusal import failure_of
from .batch import PlacedBatch
from .chunks import Removals, Target
from .events import Events
from .lifecycle import Log
from .order import Since

PLACE_TRIES_MAX = 16  # others fill what we claim, or have left it full; then it is the drive or the index
RECLAIMS_PER_CLAIM_MAX = 4  # what we free may be taken by another process; then there is contention enough


class Tail:
    """Places batches in the open segment; replaces, syncs and seals it.

    One event loop. Cancellation: a cancelled `place` leaves in the list what it has placed so far.
    """

    def __init__(self, lanes: Lanes, log: Log, events: Events) -> None:
        self._lanes, self._log, self._events = lanes, log, events
        # Mutable state, changed on the loop only.
        self._current: OpenSegment | None = None
        self._retired: set[OpenSegment] = set()
        self._rolling: asyncio.Task[Failure | None] | None = None
        self._sealing: set[asyncio.Task[None]] = set()
        self._syncing = asyncio.Lock()
        self._undurable: OSError | TierError | None = None  # what the next flush has to raise
        self._order = 0
        self.undurable_count = 0  # times that something could not be made durable
        self.evicted_chunks = 0
        self.io_errors = 0
        # Changed by the roll only, on its thread.
        self._unwritten: list[Removals] = []  # of segments freed while there was none to write them to

    # Placing.

    async def place(
        self,
        target: Target,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
        batches: list[PlacedBatch],
        *,
        since: Since | None = None,
        pieces: bool = True,
    ) -> tuple[int, Failure]:
        """Place as many leading chunks as there is room for, adding to `batches`.

        Returns how many, and why the others have no place.
        """
        start = tries = 0
        while start < len(chunks) and tries < PLACE_TRIES_MAX:
            segment, rest = self._current, chunks[start:]
            if segment is not None and since is not None and segment.opened > (since.opened or math.inf):
                return start, Failure.DROPPED
            lengths = [len(buffer) for _, buffer in rest]
            placement = segment.place([key for key, _ in rest], lengths) if segment else None
            if segment is None or placement is None:
                why = await self._make_room(segment)
                if why is not None:
                    return start, why
                tries += 1
                continue
            tries = 0
            mine = rest[: placement.chunks] if pieces else ()
            when = self.next_order() if since is None else since.order
            batches.append(PlacedBatch(segment, placement, target, when, mine))
            start += placement.chunks
        return start, Failure.NO_SPACE

    def next_order(self) -> int:
        """Return a number for now: a guess, which the commit corrects where a removal is ahead of it."""
        self._order = max(self._order + 1, time.time_ns())
        return self._order

    def order_from(self, order: int) -> None:
        """Go on from an order that the index has given out; any thread."""
        self._order = max(self._order, order)  # may be lost to one at the same time: then it comes again

    async def _make_room(self, full: OpenSegment | None) -> Failure | None:
        if full is not None and full.is_in_vain:
            # What is stored is not given up for room in which nothing can be written.
            return None if full.rewind() else Failure.IO_ERROR
        return await self._roll(full)

    async def _roll(self, full: OpenSegment | None) -> Failure | None:
        """Replace the open segment; returns why there is no other."""
        if self._current is not full:
            return None  # somebody else has done it while we waited
        if self._rolling is None:
            # A task of its own: a cancelled append must not lose the segment that was claimed for all.
            self._rolling = asyncio.create_task(self._claim(full))
        return await asyncio.shield(self._rolling)

    async def _claim(self, full: OpenSegment | None) -> Failure | None:
        fresh, why = None, Failure.NO_SPACE
        try:
            fresh = await self._lanes.upkeep(self._claim_or_reclaim)
        except IndexFull as error:
            why = Failure.INDEX_FULL
            self._events.failed(f"no segment to write to: {error}")
        except (OSError, TierError) as error:
            self.io_errors += 1
            why = failure_of(error)
            self._events.failed(f"no segment to write to: {error}")
        finally:
            # Both at once: whoever finds this segment full before the waiters wake must start another roll.
            self._current, self._rolling = fresh, None
        self._retire(full)
        self._events.rolled()
        return None if fresh is not None else why

    def _retire(self, full: OpenSegment | None) -> None:
        if full is not None:  # also where there is no fresh one: sealed, it can be reclaimed
            self._retired.add(full)
            self._seal_if_done(full)

    def _claim_or_reclaim(self) -> OpenSegment | None:
        segment = self._claim_after_reclaims()
        if segment is not None and self._unwritten:
            try:
                self._write_removals(segment)
            except OSError as error:
                self.not_durable("removals", error)
        return segment

    def _write_removals(self, segment: OpenSegment) -> None:
        """Write what is unwritten to a segment that nobody else appends to yet, durably."""
        while self._unwritten:
            removals = self._unwritten.pop()
            rest = removals.entries
            while rest:
                placement = segment.place([entry.key for entry in rest], [0] * len(rest))
                if placement is None:
                    raise OSError(errno.ENOSPC, "they do not fit in one segment")
                batch = PlacedBatch(segment, placement, removals.target, removals.order, ())
                batch.write_table(rest[: placement.chunks], removals=True)
                segment.complete(batch.table)
                if batch.error is not None:
                    raise batch.error
                rest = rest[placement.chunks :]
        segment.file.files.sync_data(segment.file.fd)

    def _claim_after_reclaims(self) -> OpenSegment | None:
        for _ in range(RECLAIMS_PER_CLAIM_MAX):
            segment = self._log.claim()
            if segment is not None:
                return segment
            if self._log.room.excess_bytes() > 0 and self._log.room.shrink():
                continue
            victim = self._log.victims.begin()
            if victim is None:
                return None
            self._unwritten += victim.removals
            self.evicted_chunks += self._log.victims.finish(victim)
        return self._log.claim()

    def complete(self, segment: OpenSegment, table: bytes | None) -> None:
        """End one placement: its batch is written and named by `table`, or given up where that is None."""
        segment.complete(table)
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
            self.not_durable(f"segment {segment.name.segment}", error)

    # Durability.

    async def flush(self) -> None:
        """Make durable everything that was appended so far, or was found to be there already.

        Raises:
            OSError, TierError: something appended since the last flush may be lost with the power, although
                a later sync went well: a kernel reports a failed one only once.
        """
        await self.sync()
        own = {segment.name.segment for segment in (self._current, *self._retired) if segment}
        # A chunk that was there already may be another's, who has not synced it yet or was killed before.
        await self._lanes.upkeep(partial(self._log.sync_others, own))
        if self._undurable is not None:
            error, self._undurable = self._undurable, None
            raise error

    async def sync(self) -> bool:
        """Try to make everything that was appended so far durable; the next `flush` raises what failed.

        Returns whether nothing has failed meanwhile.
        """
        before = self.undurable_count
        async with self._syncing:  # what another sync has begun with is durable only when that one is through
            await self._sync_unsynced()
        if self._sealing:
            await asyncio.wait(self._sealing)
        return self.undurable_count == before

    async def _sync_unsynced(self) -> None:
        segments = [segment for segment in (self._current, *self._retired) if segment and segment.unsynced]
        for segment in segments:  # all at once: none may be sealed and closed while another is synced
            segment.hold()
        try:
            for segment in segments:
                await self._sync_one(segment)
        finally:
            for segment in segments:
                self.complete(segment, None)

    async def _sync_one(self, segment: OpenSegment) -> None:
        segment.unsynced = False  # before the sync: what is written during it may not be covered
        try:
            await self._lanes.upkeep(partial(segment.file.files.sync_data, segment.file.fd))
        except OSError as error:
            segment.unsynced = True
            self.not_durable(f"segment {segment.name.segment}", error)
        except BaseException:
            segment.unsynced = True
            raise

    def not_durable(self, what: str, error: OSError | TierError) -> None:
        """Count what may be lost with the power, for the next `flush` to raise."""
        self.io_errors += 1
        self.undurable_count += 1
        self._undurable = error
        self._events.failed(f"{what} could not be made durable: {error}")

    async def close(self) -> None:
        """Seal what is to be sealed, and leave the open segment to whoever comes next."""
        if self._rolling is not None:
            await asyncio.wait([self._rolling])
        await self.sync()
        if self._current is not None:
            self._log.leave(self._current)
            self._current = None
