"""An engine's numbers over a day, in bounded memory: fine for the last minutes, coarse for those before."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..chain import ChainStats

FINE_S, FINE_POINTS = 10.0, 60  # ten minutes
COARSE_S, COARSE_POINTS = 60.0, 1440  # a day
COUNTERS = (
    "hits",
    "misses",
    "loaded_bytes",
    "stored_bytes",
    "evicted_chunks",
    "dropped_chunks",
    "late_loads",
)


class History:
    """Points of an engine's life. One thread's."""

    def __init__(self) -> None:
        # Mutable state:
        self._fine: deque[dict[str, Any]] = deque(maxlen=FINE_POINTS)
        self._coarse: deque[dict[str, Any]] = deque(maxlen=COARSE_POINTS)

    def add(self, now_unix_s: float, stats: ChainStats) -> bool:
        """Keep the numbers where the last ones are old enough; returns whether it did."""
        if self._fine and 0 <= now_unix_s - self._fine[-1]["unix_s"] < FINE_S:
            return False
        point = {"unix_s": round(now_unix_s, 1), "tiers": dict(_numbers(stats))}
        if len(self._fine) == FINE_POINTS:
            oldest = self._fine[0]
            if not self._coarse or oldest["unix_s"] - self._coarse[-1]["unix_s"] >= COARSE_S:
                self._coarse.append(oldest)
        self._fine.append(point)
        return True

    def encoded(self) -> bytes:
        """A line a point, oldest first."""
        return b"".join(
            json.dumps(point, separators=(",", ":")).encode() + b"\n"
            for point in (*self._coarse, *self._fine)
        )


def points(data: bytes) -> list[dict[str, Any]]:
    """The points of an encoded history; what is none is left out."""
    found = []
    for line in data.splitlines():
        try:
            point = json.loads(line)
        except ValueError:
            continue
        if isinstance(point, dict) and {"unix_s", "tiers"} <= point.keys():
            found.append(point)
    return found


def _numbers(stats: ChainStats) -> Iterator[tuple[str, Mapping[str, int]]]:
    for name, tier in stats.tiers.items():
        counters = {counter: tier.counters.get(counter, 0) for counter in COUNTERS}
        yield name, {**counters, "used_bytes": tier.used_bytes}
