"""Uses of chunks in other tiers, which the reclaim takes into account as it does reads from the drive.

What is hot enough to be served from memory all the time is never read from the drive. Without this it would
look cold there, and would leave first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from functools import partial
from itertools import islice

from ..base import ChunkKey
from .index.environment import Index, IndexFull
from .index.ledger import Ledger
from .index.records import NEVER, Extent
from .index.transaction import Transaction
from .io.lanes import Lanes
from .reads import COUNT_STEP_MAX
from .view import View

PARTS_OF_A_LAP = 16  # of the log: uses are told apart no finer; five eighths of a lap decide
USES_MAX = 65536  # keys remembered until they are counted; further ones within a period are not


class Uses:
    """Keys of chunks that were used elsewhere, each once until it is counted.

    Threads: `note` from any thread, without waiting; `count` on the event loop.
    """

    def __init__(self, lanes: Lanes, index: Index, view: View) -> None:
        self._lanes, self._index, self._view = lanes, index, view
        self._lock = threading.Lock()  # held to change the dict, and for nothing that waits
        # Under the lock; a dict, for what was used first is counted first:
        self._keys: dict[ChunkKey, None] = {}

    def note(self, keys: Sequence[ChunkKey]) -> None:
        """Remember the keys, as far as there is room for them."""
        with self._lock:
            room_count = USES_MAX - len(self._keys)
            if len(keys) > room_count:
                keys = list(islice((key for key in keys if key not in self._keys), room_count))
            self._keys.update(dict.fromkeys(keys))

    async def count(self) -> None:
        """Count what was used, in steps, between which others write; as many as there are now.

        Raises:
            TierError: the index cannot be asked, or not be written; what was to be counted is left out.
        """
        for _ in range(-(-len(self._keys) // COUNT_STEP_MAX)):
            with contextlib.suppress(IndexFull):  # a record may need a page; what was used matters less
                await self._lanes.index(partial(self._count, self._taken()))

    def _count(self, keys: Sequence[ChunkKey]) -> None:
        # What is hot is used in every period, and a record says when to a part of a lap: that is all that the
        # reclaim looks at, and most uses change nothing.
        scope, extents = self._view.find(keys)
        with self._index.read() as txn:
            since = txn.number("opened") - txn.totals().segments // PARTS_OF_A_LAP
        new = [
            (key, extent)
            for key, extent in zip(keys, extents, strict=True)
            if extent is not None and extent.used_at < max(since, NEVER + 1)
        ]
        if new:
            self._index.write(partial(_mark, scope, new))

    def _taken(self) -> list[ChunkKey]:
        with self._lock:
            keys = list(islice(self._keys, COUNT_STEP_MAX))
            for key in keys:
                del self._keys[key]
        return keys


def _mark(scope: int, used: Sequence[tuple[ChunkKey, Extent]], txn: Transaction) -> None:
    ledger = Ledger(txn)
    for key, extent in used:
        ledger.use(scope, key, extent)
    ledger.close()
