"""Counts what was read, so that a reclaim knows what is worth carrying."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from itertools import islice
from typing import NamedTuple

from ..base import ChunkKey
from .index.environment import Index, IndexFull
from .index.ledger import Ledger
from .index.records import Extent
from .index.transaction import Transaction
from .io.lanes import Lanes

READS_MAX = 65536  # reads remembered until they are counted; more within a period are not
COUNT_STEP_MAX = 512  # reads counted in one transaction: some 8 ms in which nobody else writes


class Read(NamedTuple):
    """One chunk that was loaded, and from where."""

    scope: int
    key: ChunkKey
    extent: Extent


class Reads:
    """Remembers reads and counts them in the index, in bounded steps. One event loop."""

    def __init__(self, lanes: Lanes, index: Index) -> None:
        self._lanes, self._index = lanes, index
        self._counting = asyncio.Lock()  # who waits for it finds that what was read before is counted
        # Mutable state, changed on the loop only.
        self._reads: dict[Read, int] = {}

    def add(self, read: Read) -> None:
        """Remember a read, until it is counted in the index."""
        if read in self._reads or len(self._reads) < READS_MAX:
            self._reads[read] = self._reads.get(read, 0) + 1

    async def count(self) -> None:
        """Count what was read, in steps, between which others write; as many as there are now."""
        async with self._counting:
            for _ in range(-(-len(self._reads) // COUNT_STEP_MAX)):
                reads = dict(islice(self._reads.items(), COUNT_STEP_MAX))
                for read in reads:
                    del self._reads[read]
                with contextlib.suppress(IndexFull):  # a record may need a page; what was read matters less
                    await self._lanes.index(partial(self._index.write, partial(_count, reads)))


def _count(reads: dict[Read, int], txn: Transaction) -> None:
    ledger = Ledger(txn)
    for (scope, key, extent), times in reads.items():
        ledger.touch(scope, key, extent, times)
    ledger.close()
