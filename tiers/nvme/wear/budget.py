"""The write budget: how many bytes may be written to a drive a day, whoever writes them.

A bucket that fills at the rate of the budget, and holds an hour of it. What is written is taken out of it, as
the index counts it, so the processes that share a store share the bucket, and a restart does not fill it. A
chunk is written as long as anything is left; what that takes too much is owed, and comes off what follows.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from .record import DAY_MS, Wear

SAVED_MS = 3_600_000  # at most: what a quiet hour has left for a burst
STORES_SHARE = 8  # of what can be saved, kept for stores: carrying stops first


class WriteBudget(Protocol):
    """What may be written now. One event loop, but `debt_bytes` on any thread."""

    def left_bytes(self) -> int:
        """What may be stored; a chunk is, as long as it is above zero."""
        ...

    def spare_bytes(self) -> int:
        """What may be carried, likewise: less, so that stores go on for longer."""
        ...

    def spending(self, size_bytes: int) -> contextlib.AbstractContextManager[None]:
        """While so many bytes are on their way to the index, they count as written."""
        ...

    def debt_bytes(self, wear: Wear, now_ms: int) -> int:
        """How far the bucket is below full."""
        ...


class NoBudget:
    """The drive may be written as fast as it takes it."""

    def left_bytes(self) -> int:
        return sys.maxsize

    def spare_bytes(self) -> int:
        return sys.maxsize

    def spending(self, size_bytes: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def debt_bytes(self, wear: Wear, now_ms: int) -> int:
        return 0


class DailyBudget:
    """So many bytes a day.

    Args:
        wear: tells what was written; never waits.
        clock_ms: the machine's monotonic clock.
    """

    def __init__(self, bytes_a_day: float, wear: Callable[[], Wear], clock_ms: Callable[[], int]) -> None:
        self._wear, self._clock_ms = wear, clock_ms
        self._bytes_a_ms = bytes_a_day / DAY_MS
        self._saved_bytes_max = int(self._bytes_a_ms * SAVED_MS)
        # Mutable state, changed on the loop only.
        self._spending_bytes = 0

    def left_bytes(self) -> int:
        debt_bytes = self.debt_bytes(self._wear(), self._clock_ms())
        return self._saved_bytes_max - debt_bytes - self._spending_bytes

    def spare_bytes(self) -> int:
        return self.left_bytes() - self._saved_bytes_max // STORES_SHARE

    @contextlib.contextmanager
    def spending(self, size_bytes: int) -> Iterator[None]:
        self._spending_bytes += size_bytes
        try:
            yield
        finally:
            self._spending_bytes -= size_bytes

    def debt_bytes(self, wear: Wear, now_ms: int) -> int:
        # What came since the last note is paid back from the next one on, a second later.
        paid_bytes = int(self._bytes_a_ms * wear.passed_ms(now_ms))
        return max(0, wear.debt_bytes - paid_bytes) + wear.fresh_bytes
