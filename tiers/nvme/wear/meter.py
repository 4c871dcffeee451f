"""The meter of one process: notes what was written in which time, and what may still be written."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from ...base import Buffer, ChunkKey
from ...errors import TierError
from ..index.environment import Index, IndexFull
from ..index.transaction import Transaction
from ..io.blocks import aligned
from .budget import DailyBudget, NoBudget, WriteBudget
from .record import NOTE_PERIOD_MS, Wear
from .terms import NO_TERMS, Terms


class Meter:
    """The meter of one process that has the store open.

    Threads: `gauges` from any thread, without waiting; `note` blocks; the rest on the event loop.

    Attributes:
        budget: what may be written now.
        over_budget_chunks: chunks that were not stored because nothing was left of it.
    """

    def __init__(self, index: Index, capacity_bytes: int, terms: Terms = NO_TERMS) -> None:
        self._index, self._clock = index, terms.clock
        self._opened_ms = self._now_ms()
        self.budget: WriteBudget = NoBudget()
        if terms.write_budget is not None:
            self.budget = DailyBudget(terms.write_budget * capacity_bytes, self._wear, self._now_ms)
        # Mutable state; `_last` on any thread, whole each time.
        self.over_budget_chunks = 0
        self._last = Wear()  # as it was seen last, for when the index cannot be asked
        self._closed = False

    @contextlib.contextmanager
    def spending(self, new: Mapping[ChunkKey, Buffer]) -> Iterator[list[tuple[ChunkKey, Buffer]]]:
        """The leading chunks that may be written now: they count as written until the index knows them."""
        left_bytes, spent_bytes = self.budget.left_bytes(), 0
        chunks: list[tuple[ChunkKey, Buffer]] = []
        for chunk in new.items():
            if spent_bytes >= left_bytes:
                break
            chunks.append(chunk)
            spent_bytes += aligned(len(chunk[1]))
        self.over_budget_chunks += len(new) - len(chunks)
        with self.budget.spending(spent_bytes):
            yield chunks

    def gauges(self) -> Mapping[str, float]:
        """What was written, how fast, and what that means for the drive."""
        return self._wear().gauges()

    def note(self) -> None:
        """Note what was written since the last time, by whomever, and that time has passed.

        Raises:
            TierError: the index cannot be asked or written; the next note makes up for it.
        """
        wear = self._wear()
        if wear.fresh_bytes or wear.unnoted_ms(self._now_ms(), self._opened_ms) >= NOTE_PERIOD_MS:
            with contextlib.suppress(IndexFull):  # a number may need a page; the next note makes up for it
                self._index.write(self._put)

    def close(self) -> None:
        """The index is about to be left: its numbers are the last ones."""
        self._wear()
        self._closed = True

    def _wear(self) -> Wear:
        if not self._closed:
            with contextlib.suppress(TierError), self._index.read() as txn:
                self._last = Wear.of(txn)
        return self._last

    def _put(self, txn: Transaction) -> None:
        wear, now_ms = Wear.of(txn), self._now_ms()
        wear.noted(now_ms, self._opened_ms, self.budget.debt_bytes(wear, now_ms)).put(txn)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)
