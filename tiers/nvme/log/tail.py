"""The tail of the log: the open segment that batches are placed in, and what takes its place when it is full.

A batch takes its place in the open segment, is written there, and is completed once, whatever happens in
between. A full segment is retired at once, and sealed later (`durability.py`). The next one is ready by then
(`ahead.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from ...base import Buffer, ChunkKey, Failure
from ..format.open_segment import OpenSegment
from ..index.order import Since
from .ahead import Ahead, wait_deadline_s
from .batch import PlacedBatch
from .chunks import Target
from .durability import Durability
from .events import Events

PLACE_TRIES_MAX = 16  # others fill what we took, or it was left full; then it is the drive or the index


class Tail:
    """Places batches in the open segment, and replaces it.

    One event loop. Cancellation: a cancelled `place` leaves in the list what it has placed so far.
    """

    def __init__(
        self, ahead: Ahead, durability: Durability, events: Events, *, carries: bool = False
    ) -> None:
        self._ahead, self._durability, self._events = ahead, durability, events
        self._carries = carries  # whether it is for carried chunks alone
        # Mutable state, changed on the loop only.
        self._current: OpenSegment | None = None
        self._order = 0

    async def place(
        self,
        target: Target,
        chunks: Sequence[tuple[ChunkKey, Buffer]],
        batches: list[PlacedBatch],
        *,
        wait: bool,
        since: Since | None = None,
        pieces: bool = True,
    ) -> tuple[int, Failure]:
        """Place as many leading chunks as there is room for, adding to `batches`.

        Where no segment is ready, it waits for one if it may. Returns how many chunks have their place, and
        why the others have none.
        """
        start = tries = 0
        while start < len(chunks) and tries < PLACE_TRIES_MAX:
            segment, rest = self._current, chunks[start:]
            if segment is not None and since is not None and segment.opened > (since.opened or math.inf):
                return start, Failure.DROPPED
            lengths = [len(buffer) for _, buffer in rest]
            placement = segment.place([key for key, _ in rest], lengths) if segment else None
            if segment is None or placement is None:
                why = await self._make_room(segment, wait=wait)
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

    def complete(self, segment: OpenSegment, table: bytes | None) -> None:
        """End one placement: its batch is written and named by `table`, or given up where that is None."""
        segment.complete(table)
        if segment.lost and segment is self._current:
            self._retire(segment)

    def retire_older(self, opened: int) -> None:
        """Retire the open segment if it was opened before this."""
        if self._current is not None and self._current.opened < opened:
            self._retire(self._current)

    async def _make_room(self, full: OpenSegment | None, *, wait: bool) -> Failure | None:
        """Replace the open segment; returns why there is no other."""
        if full is not None and full.is_in_vain:
            # What is stored is not given up for room in which nothing can be written.
            return None if full.rewind() else Failure.IO_ERROR
        if full is not None:
            self._retire(full)
        deadline_s = wait_deadline_s()
        while self._current is None:
            self._current = self._ahead.take(carries=self._carries)
            if self._current is not None:
                self._events.rolled()
            elif not wait:
                return Failure.DROPPED
            else:
                why = await self._ahead.changed(deadline_s)
                if why is not None and self._current is None:  # else somebody has got one meanwhile
                    return why
        return None

    def _retire(self, full: OpenSegment) -> None:
        """Also where there is no fresh one: once it is sealed, it can be reclaimed."""
        self._current = None
        self._durability.retire(full)
