"""The background work of the NVMe tier, in tasks that do not delay each other.

    room         gives back, evicts, keeps segments ready (`roomkeeper.py`); soon after each roll
    durability   syncs and seals (`log/durability.py`); once a period that follows from what a sync costs
    uses         counts what was read here, and used elsewhere (`reads.py`, `uses.py`)
    look         whether the directory is there, and how much of the drive it takes

No request waits for them but a store that finds no room; and they go through the same lanes, where loads come
first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from ..base import Failure
from ..errors import TierError
from .failures import FailureLog
from .io.files import allocated_bytes
from .io.lanes import Lanes
from .log.events import Events
from .periodic import Periodic
from .presence import Presence
from .roomkeeper import RoomKeeper
from .store.opening import Store
from .writing import Writing

PERIOD_S = 1.0  # of looks; and what was read is counted at most this much later


class Upkeep:
    """The tier's background tasks. One event loop.

    Attributes:
        used_bytes: allocated bytes of the whole directory, when it was last looked at.
        io_errors: steps that an error of the device or the index cut short.
    """

    def __init__(
        self,
        lanes: Lanes,
        store: Store,
        writing: Writing,
        count_uses: Callable[[], Awaitable[None]],
        events: Events,
        failures: FailureLog,
        presence: Presence,
    ) -> None:
        self._lanes, self._store, self._failures, self._presence = lanes, store, failures, presence
        self._ahead, self._durability, self._count_uses = writing.ahead, writing.durability, count_uses
        self._keeper = RoomKeeper(lanes, store.index, writing, count_uses, writing.log.room.plan)
        # Mutable state, changed on the loop only.
        self.used_bytes = 0
        self.io_errors = 0
        self._rolled = True
        self._looking = Periodic(self._look, lambda: PERIOD_S)
        self._rounds = Periodic(partial(self._guarded, self._round), lambda: self._durability.period_s)
        self._keeping = Periodic(self._keep, lambda: PERIOD_S)
        self._counting = Periodic(partial(self._guarded, count_uses), lambda: PERIOD_S)
        self._tasks = (self._looking, self._rounds, self._keeping, self._counting)
        events.on_rolled(self.room_changed)

    def room_changed(self) -> None:
        """Look at the room soon: somebody took some, or found none."""
        self._rolled = True
        self._keeper.changed()
        self._keeping.wake()
        if self._durability.is_round_due(self._keeper.segments):
            self._rounds.wake()

    async def once(self) -> None:
        """Take one step of each task. Errors are counted and logged; the next step retries."""
        for task in self._tasks:
            await task.once()

    async def stop(self) -> None:
        """End the tasks, count the last reads, make everything durable and leave the open segments."""
        self._keeper.stop()
        for task in self._tasks:
            await self._safely(task.stop)
        await self._guarded(self._ahead.close)
        await self._safely(self._durability.close)  # also where the directory is gone: no file stays open
        await self._guarded(self._count_uses)

    async def _look(self) -> None:
        await self._safely(self._look_around)

    async def _look_around(self) -> None:
        await self._lanes.upkeep(self._presence.look)
        if self._rolled and not self._presence.is_gone:
            self._rolled = False
            root = self._store.directory.root
            self.used_bytes = await self._lanes.upkeep(partial(allocated_bytes, root))

    async def _keep(self) -> None:
        if self._presence.is_gone:
            self._ahead.settle(Failure.GONE)
        else:
            await self._safely(self._keeper.keep)

    async def _round(self) -> None:
        await self._durability.round()

    async def _guarded(self, step: Callable[[], Awaitable[object]]) -> None:
        """Take one step, unless the directory is gone."""
        if not self._presence.is_gone:
            await self._safely(step)

    async def _safely(self, step: Callable[[], Awaitable[object]]) -> None:
        """An error of whatever kind is counted and logged: it must not end the task, nor stop another."""
        try:
            await step()
        except (OSError, TierError) as error:
            self.io_errors += 1
            self._failures.add(f"upkeep: {error}")
        except Exception as error:
            self.io_errors += 1
            self._failures.add_bug("upkeep", error)
