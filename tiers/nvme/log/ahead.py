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
from ..io.lanes import Lanes
from .batch import PlacedBatch
from .budget import Plan
from .chunks import Removals
from .durability import Durability
from .events import Events
from .lifecycle import Log

ROOM_WAIT_S = 5.0  # for a segment, or for room in the index: some slow flushes, then a store is shed


class Ahead:
    """The segments that are ready. One event loop. Cancellation: a cancelled wait has taken nothing.

    Attributes:
        kept: how many of them only a carry may take.
        unwritten: removals to be written to the next segment that is prepared, before it is handed out.
    """

    def __init__(self, lanes: Lanes, log: Log, durability: Durability, events: Events) -> None:
        self._lanes, self._log, self._durability, self._events = lanes, log, durability, events
        # Mutable state, changed on the loop only.
        self.kept = 0
        self.unwritten: list[Removals] = []
        self._ready: deque[OpenSegment] = deque()
        self._result: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self._waiting = 0  # for a segment

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
        result, self._result = self._result, asyncio.get_running_loop().create_future()
        result.set_result(why)

    def lacking(self, plan: Plan) -> int:
        """How many to prepare now. They are prepared together, once half of them are gone."""
        self.kept = plan.kept
        wanted, ready = plan.ahead + plan.kept, len(self._ready)
        needed = plan.kept + 1 - ready if self._waiting else 0
        return max(needed, 0 if 2 * ready > wanted else wanted - ready)

    async def prepare(self, count: int) -> int:
        """Prepare up to so many segments; returns how many are ready now that were not.

        Raises:
            OSError, TierError: the last of them was refused.
        """
        claimed: list[OpenSegment] = []
        refused: BaseException | None = None
        try:
            while len(claimed) < count:
                segment = await self._lanes.upkeep(self._log.claim)
                if segment is None:
                    break
                claimed.append(segment)
        except (OSError, TierError) as error:
            refused = error
        if claimed and self.unwritten:
            await self._lanes.upkeep(partial(self._write_removals, claimed[0]))
        ready, unready = await self._synced(claimed)
        refused = unready or refused
        self._ready += ready
        if ready:
            self.settle(None)
        if refused is not None:
            raise refused
        return len(ready)

    async def _synced(
        self, claimed: Sequence[OpenSegment]
    ) -> tuple[Sequence[OpenSegment], BaseException | None]:
        """Sync new headers, and what dead processes have left, together."""
        errors = await self._lanes.sync([segment.file.sync for segment in claimed])
        ready, refused = [], None
        for segment, error in zip(claimed, errors, strict=True):
            if error is None:
                segment.unsynced = False
                self._durability.began(segment)
                ready.append(segment)
            else:
                refused = error
                await self._lanes.upkeep(partial(self._log.put_away, segment))
        return ready, refused

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
