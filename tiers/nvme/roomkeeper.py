"""The only one that makes room: it gives back what is above the cap, evicts, and keeps segments ready.

No store evicts anything. It takes a segment that is ready, or waits for the next result of this task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..base import Failure
from ..errors import TierError
from .index.environment import Index, IndexFull
from .io.lanes import Lanes
from .io.refusal import failure_of
from .log.budget import SEGMENTS_MIN, Plan
from .writing import Writing


class RoomKeeper:
    """Keeps room in one store. One event loop; one pass at a time.

    Attributes:
        segments: how many the cap holds, when it was last looked at.
    """

    def __init__(
        self,
        lanes: Lanes,
        index: Index,
        writing: Writing,
        count_uses: Callable[[], Awaitable[None]],
        plan: Callable[[], Plan],
    ) -> None:
        self._lanes, self._index, self._count_uses, self._plan = lanes, index, count_uses, plan
        self._room, self._ahead = writing.log.room, writing.ahead
        self._durability, self._carrier = writing.durability, writing.carrier
        # Mutable state, changed on the loop only.
        self.segments = SEGMENTS_MIN
        self._changed = True
        self._stopping = False

    def changed(self) -> None:
        """Somebody took a segment, or waits for one."""
        self._changed = True

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping = True

    async def keep(self) -> None:
        """Make one pass, if anything has changed. Who waits for room is told what came of it.

        Raises:
            OSError, TierError: the pass was cut short.
        """
        if not self._changed and not await self._lanes.upkeep(self._others_took_room):
            return
        self._changed = False
        why: Failure | None = Failure.IO_ERROR
        try:
            await self._lanes.upkeep(self._index.free_dead_readers)
            await self._shrink()
            why = await self._loosen_index() or await self._prepare()
        except IndexFull:
            why = Failure.INDEX_FULL
            raise
        except (OSError, TierError) as error:
            why = failure_of(error)
            raise
        finally:
            self._ahead.settle(why)

    def _others_took_room(self) -> bool:
        return self._room.reserve_is_short() or self._room.index_is_nearly_tight()

    async def _shrink(self) -> None:
        """Give back what is above the cap, or what others need of the file system: what costs least first."""
        while not self._stopping and await self._lanes.upkeep(self._room.excess_bytes) > 0:
            given = await self._lanes.upkeep(self._room.shrink) or await self._ahead.give_one_back()
            if not given and not await self._reclaim(1, carry=False):
                return

    async def _loosen_index(self) -> Failure | None:
        """Evict what the index has no room for, before stores have to wait for it."""
        while not self._stopping and await self._lanes.upkeep(self._room.index_is_nearly_tight):
            if not await self._reclaim(1, carry=False):
                return Failure.INDEX_FULL if await self._lanes.upkeep(self._room.index_is_tight) else None
        return None

    async def _prepare(self) -> Failure | None:
        """Keep as many segments ready as there should be."""
        while not self._stopping:
            plan = await self._lanes.upkeep(self._plan)
            self.segments = plan.segments
            lacking = self._ahead.lacking(plan)
            if not lacking:
                return None
            if not await self._ahead.prepare(lacking) and not await self._reclaim(lacking, carry=True):
                return Failure.NO_SPACE
        return Failure.CLOSED

    async def _reclaim(self, count: int, *, carry: bool) -> bool:
        """Free up to so many segments; False where there is none to reclaim."""
        if carry:
            await self._count_uses()  # up to this moment: what was just read is not to be dropped
        if await self._carrier.reclaim(count, carry=carry):
            return True
        if not self._durability.retired_count:
            return False
        await self._durability.round()  # what is full can be reclaimed once it is sealed
        return await self._carrier.reclaim(count, carry=carry)
