"""Segments that are ready to be appended to, prepared ahead of need.

One task prepares them (`tiers/nvme/roomkeeper.py`): claimed, allocated, their headers written and synced. So
a store takes the next one without a call on a file, a transaction or a sync. Where none is ready, it waits
for that task's next result, with a bound, and learns by name why there is none.

A carry never waits: it runs inside that very task. The last ones that are ready may be kept for it, so that
what is worth carrying has a place also while stores take all they can get.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Sequence
from functools import partial

from ...base import Failure
from ...errors import TierError
from ..format.open_segment import OpenSegment
from ..io.lanes import HEAD_LANES, Lanes
from ..io.refusal import failure_of
from .batch import PlacedBatch
from .budget import Plan
from .chunks import Removals
from .durability import Durability
from .events import Events
from .lifecycle import Log

BATCH_MAX = HEAD_LANES - 1  # claimed together, and then synced together, with their directory
ROOM_WAIT_S = 5.0  # for a segment, or for room in the index: some slow flushes, then a store is shed


class Ahead:
    """The segments that are ready. One event loop. Cancellation: a cancelled wait has taken nothing.

    Attributes:
        kept: how many of them only a carry may take.
        unwritten: removals to be written to the next segment that is prepared, before it is handed out.
        io_errors: times that a segment could not be made ready.
    """

    def __init__(self, lanes: Lanes, log: Log, durability: Durability, events: Events) -> None:
        self._lanes, self._log, self._durability, self._events = lanes, log, durability, events
        # Mutable state, changed on the loop only.
        self.kept = 0
        self.unwritten: list[Removals] = []
        self._ready: deque[OpenSegment] = deque()
        self._result: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self._waiting = 0  # for a segment
        self._coming = 0  # claimed, and not synced yet
        self._syncing: set[asyncio.Task[None]] = set()
        self.io_errors = 0

    # For who appends.

    def take(self, *, carries: bool) -> OpenSegment | None:
        """The segment that has been ready for longest; None where there is none for this use."""
        if len(self._ready) <= (0 if carries else self.kept):
            return None
        return self._ready.popleft()

    async def changed(self, deadline_s: float) -> Failure | None:
        """Wait until some segment is ready; says why there is none, `DROPPED` at the deadline."""
        self._waiting += 1
        try:
            return await self._next_result(deadline_s)
        finally:
            self._waiting -= 1

    async def index_room(self) -> Failure | None:
        """Wait until the index has room for more chunks; says why it has none.

        Raises:
            TierError: it cannot say.
        """
        deadline_s = wait_deadline_s()
        while self._log.room.index_is_tight():
            why = await self._next_result(deadline_s)
            if why is not None:
                return why
        return None

    async def _next_result(self, deadline_s: float) -> Failure | None:
        self._events.rolled()
        try:
            async with asyncio.timeout_at(deadline_s):
                return await asyncio.shield(self._result)
        except TimeoutError:
            return Failure.DROPPED

    # For the task that prepares.

    def settle(self, why: Failure | None) -> None:
        """Tell all who wait: why there is nothing for them, or that they may look again."""
        if why is None and self._coming and self._waiting:
            return  # there is nothing to look at yet
        result, self._result = self._result, asyncio.get_running_loop().create_future()
        result.set_result(why)

    def lacking(self, plan: Plan) -> int:
        """How many to prepare now."""
        self.kept = plan.kept
        wanted = max(plan.ahead, 1 if self._waiting else 0) + plan.kept
        return max(0, wanted - len(self._ready) - self._coming)

    async def prepare(self, count: int) -> int:
        """Claim up to so many segments, and have them synced meanwhile; returns how many.

        Raises:
            OSError, TierError: a claim was refused, after those that are coming.
        """
        hurried = self._waiting and not self._ready  # who waits gets the first one soon
        count = min(count, self.kept + 1 if hurried else BATCH_MAX)
        claimed, refused = await self._lanes.upkeep(partial(self._claim, count))
        if claimed:
            self._coming += len(claimed)
            # A task of its own: while a slow drive syncs these, the next ones can be claimed.
            task = asyncio.create_task(self._sync(claimed))
            self._syncing.add(task)
            task.add_done_callback(self._syncing.discard)
        if refused is not None:
            raise refused
        return len(claimed)

    def _claim(self, count: int) -> tuple[list[OpenSegment], OSError | TierError | None]:
        claimed: list[OpenSegment] = []
        try:
            while len(claimed) < count and (segment := self._log.claim()) is not None:
                claimed.append(segment)
        except (OSError, TierError) as error:
            return claimed, error
        return claimed, None

    async def _sync(self, claimed: Sequence[OpenSegment]) -> None:
        """Sync new headers, and what dead processes have left, together."""
        why: Failure | None = Failure.IO_ERROR
        try:
            if self.unwritten:
                await self._lanes.upkeep(partial(self._write_removals, claimed[0]))
            names, *errors = await self._lanes.sync_heads(
                [self._log.sync_names, *(segment.file.sync for segment in claimed)]
            )
            errors = [error or names for error in errors]
            for segment, error in zip(claimed, errors, strict=True):
                if error is None:
                    segment.unsynced = False
                    self._durability.began(segment)
                    self._ready.append(segment)
            # A later batch may be synced sooner: what is reclaimed first should have been written first.
            self._ready = deque(sorted(self._ready, key=lambda segment: segment.opened))
            refused = [(s, error) for s, error in zip(claimed, errors, strict=True) if error is not None]
            why = failure_of(refused[0][1]) if refused else None
            for segment, error in refused:
                self._failed(f"segment {segment.name.segment} cannot be synced: {error}")
                await self._lanes.upkeep(partial(self._log.put_away, segment))
        except (OSError, TierError) as error:
            self._failed(f"segments cannot be made ready: {error}")
        finally:
            self._coming -= len(claimed)
            self.settle(why)

    def _failed(self, message: str) -> None:
        self.io_errors += 1
        self._events.failed(message)

    async def finished(self) -> None:
        """Return when none is coming."""
        while self._syncing:
            await asyncio.wait(self._syncing)

    def _write_removals(self, segment: OpenSegment) -> None:
        """Write what is unwritten to a segment that nobody else appends to yet."""
        try:
            while self.unwritten:
                _write(self.unwritten[-1], segment)
                self.unwritten.pop()
        except OSError as error:
            self.unwritten.clear()
            self._durability.not_durable("removals", error)

    async def give_one_back(self) -> bool:
        """Give up the segment that was made ready last; False where there is none."""
        if not self._ready:
            return False
        segment = self._ready.pop()
        self._durability.left(segment)
        await self._lanes.upkeep(partial(self._log.give_back, segment))
        return True

    async def close(self) -> None:
        """Give them all back."""
        await self.finished()
        while await self.give_one_back():
            pass


def wait_deadline_s() -> float:
    """Until when a store that begins to wait now may wait for room."""
    return asyncio.get_running_loop().time() + ROOM_WAIT_S


def _write(removals: Removals, segment: OpenSegment) -> None:
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
