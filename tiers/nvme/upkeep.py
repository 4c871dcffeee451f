"""The background work of the NVMe tier: syncing, counting reads, keeping room.

One task, which wakes after each change of the open segment and otherwise once a period. No request waits
for it; but it goes through the same lanes, where loads come first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from ..base import ChunkKey
from ..errors import TierError
from .failures import FailureLog
from .index.environment import IndexFull
from .index.ledger import Ledger
from .index.records import Extent
from .index.transaction import Transaction
from .io.files import allocated_bytes
from .io.lanes import Lanes
from .log.events import Events
from .log.reclaim import Carrier
from .log.room import Room
from .log.tail import Tail
from .presence import Presence
from .store.opening import Store
from .uses import Uses

PERIOD_S = 1.0  # what was stored is durable, and what was read is counted, at most this much later
READS_MAX = 65536  # reads remembered until they are counted; more within a period are not
COUNT_STEP_MAX = 512  # reads counted in one transaction: some 8 ms in which nobody else writes


class Read(NamedTuple):
    """One chunk that was loaded, and from where."""

    scope: int
    key: ChunkKey
    extent: Extent


class Upkeep:
    """The tier's background task. One event loop.

    Attributes:
        used_bytes: allocated bytes of the whole directory, when it was last looked at.
        io_errors: rounds that an error of the device or the index cut short.
    """

    def __init__(
        self,
        lanes: Lanes,
        store: Store,
        room: Room,
        tail: Tail,
        carrier: Carrier,
        events: Events,
        failures: FailureLog,
        presence: Presence,
        uses: Uses,
    ) -> None:
        self._lanes, self._store, self._room = lanes, store, room
        self._tail, self._carrier, self._failures = tail, carrier, failures
        self._presence, self._uses = presence, uses
        events.on_rolled(self.room_changed)
        # Mutable state, changed on the loop only.
        self.used_bytes = 0
        self.io_errors = 0
        self._reads: dict[Read, int] = {}
        self._look_at_room = True
        self._wake = asyncio.Event()
        self._round = asyncio.Lock()
        self._stopping = False
        self._task = asyncio.create_task(self._run())

    def count(self, read: Read) -> None:
        """Remember a read, until it is counted in the index."""
        if read in self._reads or len(self._reads) < READS_MAX:
            self._reads[read] = self._reads.get(read, 0) + 1

    def room_changed(self) -> None:
        """Look at the room soon: somebody took some, or found none."""
        self._look_at_room = True
        self._wake.set()

    async def once(self) -> None:
        """Run one round, after the one under way. Errors are counted and logged; the next round retries."""
        async with self._round:
            # Each for itself: what stops one of them must not stop another, which may be its cure.
            for step in (self._look_around, self._tail.sync, self._keep_room, self._count_reads):
                if not self._presence.is_gone:
                    await self._guarded(step)

    async def _guarded(self, step: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run one step. An error of whatever kind is counted and logged, and the next round tries again."""
        try:
            await step()
        except (OSError, TierError) as error:
            self.io_errors += 1
            self._failures.add(f"upkeep: {error}")
        except Exception as error:
            self.io_errors += 1
            self._failures.add_bug("upkeep", error)

    async def _look_around(self) -> None:
        await self._lanes.upkeep(self._presence.look)

    async def stop(self) -> None:
        """End the task, leave the open segment, count the last reads."""
        self._stopping = True
        self._wake.set()
        await self._guarded(self._ended)
        await self._guarded(self._tail.close)
        if not self._presence.is_gone:
            await self._guarded(self._count_reads)

    async def _ended(self) -> None:
        await self._task

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()  # before the work, so that what changes during it is not missed
            await self.once()
            if self._stopping:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._wake.wait()

    async def _count_reads(self) -> None:
        """Count what was read, here or elsewhere, in steps between which others write; what there is now."""
        for _ in range(-(-len(self._reads) // COUNT_STEP_MAX)):
            reads = dict(islice(self._reads.items(), COUNT_STEP_MAX))
            for read in reads:
                del self._reads[read]
            with contextlib.suppress(IndexFull):  # a record may need a page; what was read matters less
                await self._lanes.index(partial(self._store.index.write, partial(_count, reads)))
        await self._uses.count()

    async def _keep_room(self) -> None:
        """Give back what is above the cap, evict what the index cannot hold, free segments ahead."""
        if not self._look_at_room and not await self._lanes.upkeep(self._room.reserve_is_short):
            return
        self._look_at_room = False
        self._store.index.free_dead_readers()
        while not self._stopping and await self._lanes.upkeep(self._room.excess_bytes) > 0:
            if not await self._lanes.upkeep(self._room.shrink) and not await self._carrier.reclaim(
                carry=False
            ):
                break
        while not self._stopping and await self._lanes.upkeep(self._room.index_is_tight):
            if not await self._carrier.reclaim(carry=False):
                break
        while not self._stopping and not await self._lanes.upkeep(self._room.is_ahead):
            await self._count_reads()  # up to this moment: what was just read is not to be dropped
            if not await self._carrier.reclaim(carry=True):
                break
        self.used_bytes = await self._lanes.upkeep(partial(allocated_bytes, self._store.directory.root))


def _count(reads: dict[Read, int], txn: Transaction) -> None:
    ledger = Ledger(txn)
    for (scope, key, extent), times in reads.items():
        ledger.touch(scope, key, extent, times)
    ledger.close()
