"""How long calls took: counted by ranges of time, in bounded memory."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the ranges: from a page that memory still has to a drive that hangs. One more has no end."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations at one moment, in seconds.

    Attributes:
        bounds_s: the upper end of each range but the last one, which has none.
        counts: how many durations each range has, not added up over the ranges.
        sums_s: their sum, by range.
    """

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sums_s: tuple[float, ...]

    @property
    def sum_s(self) -> float:
        return sum(self.sums_s)

    def since(self, earlier: Histogram | None) -> list[float]:
        """Durations that were added since: of each range as many as came, all of their mean."""
        durations_s: list[float] = []
        for index, (count, sum_s) in enumerate(zip(self.counts, self.sums_s, strict=True)):
            before_count = earlier.counts[index] if earlier is not None else 0
            if added := count - before_count:
                before_s = earlier.sums_s[index] if earlier is not None else 0.0
                durations_s += [(sum_s - before_s) / added] * added
        return durations_s

    def as_dict(self) -> dict[str, Any]:
        """The same in JSON's types."""
        return {"bounds_s": list(self.bounds_s), "counts": list(self.counts), "sum_s": self.sum_s}


class Durations:
    """Collects durations. Not thread-safe: a lock of its owner's guards it, or it is one thread's."""

    def __init__(self) -> None:
        # Mutable state:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._sums_s = [0.0] * (len(BOUNDS_S) + 1)

    def add(self, duration_s: float) -> None:
        index = bisect_left(BOUNDS_S, duration_s)
        self._counts[index] += 1
        self._sums_s[index] += duration_s

    def histogram(self) -> Histogram:
        return Histogram(BOUNDS_S, tuple(self._counts), tuple(self._sums_s))
