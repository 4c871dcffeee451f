"""Makes durable what was appended: syncs of all open segments together, then seals of those that are full.

A flush is the drive's, not the file's, and it may take long. So nobody syncs a segment by itself: once a
period all that have unsynced bytes are synced side by side, then the trailers of the full ones are written
and synced, and they become SEALED in one transaction. The period follows from what that costs the drive.

A full segment stays OPEN until then, and cannot be reclaimed: a round comes earlier where many of them wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from ...errors import TierError
from ..format.open_segment import OpenSegment
from ..io.lanes import Lanes
from .events import Events
from .lifecycle import Log

PERIOD_MIN_S, PERIOD_MAX_S = 5.0, 30.0  # durability by the clock is worth little to a cache
PERIODS_PER_COST = 50.0  # of a round: then flushes take 2% of the drive's time
RETIRED_MAX = 64  # full ones that are not sealed yet: each is a file that is open
RETIRED_SHARE = 8  # of the store's segments at most, for the same reason as they cannot be reclaimed


class Durability:
    """Syncs and seals the segments that this process has claimed. One event loop.

    Attributes:
        period_s: between two rounds, by what the last ones have cost.
        undurable_count: times that something could not be made durable.
        io_errors: the same, of the tier's counters.
    """

    def __init__(
        self, lanes: Lanes, log: Log, events: Events, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lanes, self._log, self._events, self._clock = lanes, log, events, clock
        # Mutable state, changed on the loop only.
        self.period_s = PERIOD_MIN_S
        self.undurable_count = 0
        self.io_errors = 0
        self._open: set[OpenSegment] = set()  # ready, or appended to
        self._retired: list[OpenSegment] = []  # full, in the order in which they were
        self._rounds = asyncio.Lock()
        self._undurable: OSError | TierError | None = None  # what the next flush has to raise

    def began(self, segment: OpenSegment) -> None:
        """Look after a segment from now on."""
        self._open.add(segment)

    def left(self, segment: OpenSegment) -> None:
        """Look after it no longer: nothing was appended."""
        self._open.remove(segment)

    def retire(self, segment: OpenSegment) -> None:
        """Seal it in the next round that finds all its batches completed."""
        self._open.remove(segment)
        self._retired.append(segment)

    @property
    def retired_count(self) -> int:
        return len(self._retired)

    def is_round_due(self, segments: int) -> bool:
        """Whether too many full segments wait to be sealed, in a store of so many."""
        return len(self._retired) >= max(1, min(RETIRED_MAX, segments // RETIRED_SHARE))

    async def round(self) -> bool:
        """Make everything durable and seal what is full; the next `flush` raises what failed.

        Returns whether nothing has failed meanwhile.
        """
        before = self.undurable_count
        async with self._rounds:
            began_s = self._clock()
            failed = await self._sync_unsynced()
            await self._seal_retired(failed)
            cost_s = self._clock() - began_s
        if failed is not None:
            self.period_s = min(PERIOD_MAX_S, max(PERIOD_MIN_S, PERIODS_PER_COST * cost_s))
        return self.undurable_count == before

    async def sync(self) -> bool:
        """Make everything that was appended so far durable, without sealing; else the same."""
        before = self.undurable_count
        async with self._rounds:  # what another one has begun with is durable only when it is through
            await self._sync_unsynced()
        return self.undurable_count == before

    async def flush(self) -> None:
        """Make durable everything that was appended so far, or was found to be there already.

        Raises:
            OSError, TierError: something appended since the last flush may be lost with the power, although
                a later sync went well: a kernel reports a failed one only once.
        """
        await self.sync()
        own = {segment.name.segment for segment in (*self._open, *self._retired)}
        # A chunk that was there already may be another's, who has not synced it yet or was killed before.
        await self._lanes.upkeep(partial(self._log.sync_others, own))
        if self._undurable is not None:
            error, self._undurable = self._undurable, None
            raise error

    def not_durable(self, what: str, error: BaseException) -> None:
        """Count what may be lost with the power, for the next `flush` to raise."""
        if not isinstance(error, (OSError, TierError)):
            raise error
        self.io_errors += 1
        self.undurable_count += 1
        self._undurable = error
        self._events.failed(f"{what} could not be made durable: {error}")

    async def close(self) -> None:
        """Seal what is full, and leave the rest to whoever comes next."""
        try:
            await self.round()
        finally:
            for segment in (*self._open, *self._retired):
                self._log.leave(segment)
            self._open.clear()
            self._retired.clear()

    # One round.

    async def _sync_unsynced(self) -> set[OpenSegment] | None:
        """Sync all that have unsynced bytes; returns those that refused, None where there was nothing."""
        segments = [segment for segment in (*self._open, *self._retired) if segment.unsynced]
        for segment in segments:  # before the sync: what is written during it may not be covered
            segment.unsynced = False
        try:
            errors = await self._lanes.sync([segment.file.sync for segment in segments])
        except BaseException:
            for segment in segments:
                segment.unsynced = True
            raise
        failed = set()
        for segment, error in zip(segments, errors, strict=True):
            if error is not None:
                segment.unsynced = True
                failed.add(segment)
                self.not_durable(f"segment {segment.name.segment}", error)
        return failed if segments else None

    async def _seal_retired(self, failed: set[OpenSegment] | None) -> None:
        """Seal what is full and synced.

        What could not be synced gets no trailer, and is sealed all the same: taken over, it would be full,
        and not be sealed, again and again. A rebuild sweeps it.
        """
        refused = failed or set()
        full = [segment for segment in self._retired if not segment.writers]
        full = [segment for segment in full if segment in refused or not segment.unsynced]
        if not full:
            return
        synced = [segment for segment in full if segment not in refused]
        trailers = [partial(segment.file.write_trailer, segment.batches) for segment in synced]
        for segment, error in zip(synced, await self._lanes.sync(trailers), strict=True):
            if error is not None:
                self.not_durable(f"the trailer of segment {segment.name.segment}", error)
        # Meanwhile others may have retired some; nobody else takes one out.
        self._retired = [segment for segment in self._retired if segment not in full]
        await self._lanes.upkeep(partial(self._log.seal, full))
