"""A small model of `reuse` with fixed parameters, which is asked how often it would have hit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from ...base import ChunkKey

GHOST_CAPACITIES = 4  # keys that left are remembered for so many capacities; more told nothing on any trace

# How much a shadow sees: each access of the sample costs four shadows about 2 µs, so more than is needed to
# tell the arms apart is waste. On the traces of docs/decisions.md 256 chunks did it.
ONE_IN_MIN = 8
ONE_IN_USUAL_MAX = 32  # of every 64th chunk, samples of one and the same trace chose differently
CHUNKS_MIN = 256
CHUNKS_MAX = 2048


def sampled_one_in(capacity_chunks: int) -> int:
    """Of how many chunks one goes through the shadows of a tier of this size: a power of two."""
    one_in = ONE_IN_MIN
    while capacity_chunks // one_in >= 2 * (CHUNKS_MIN if one_in < ONE_IN_USUAL_MAX else CHUNKS_MAX):
        one_in *= 2
    return one_in


class Arm(NamedTuple):
    """Parameters of `reuse`.

    Attributes:
        once_weight: by this the age of chunks that were used once counts more than that of the others.
        near_capacities: a chunk that comes back within so many capacities of evictions counts as used again.
    """

    once_weight: float
    near_capacities: float


class Shadow:
    """One arm over a sample of the chunks: keys without bytes, and one chunk at a time instead of lines.

    Attributes:
        hits: accesses that found their chunk, the older ones weighing less.
    """

    __slots__ = ("_again", "_capacity", "_clock", "_evictions", "_ghosts", "_near", "_once", "arm", "hits")

    def __init__(self, capacity_chunks: int, arm: Arm) -> None:
        self.hits = 0.0
        self._capacity = capacity_chunks
        self.arm = arm
        self._near = arm.near_capacities * capacity_chunks
        # When each chunk was last used, and at which eviction each ghost left; the oldest first.
        self._once: OrderedDict[ChunkKey, int] = OrderedDict()
        self._again: OrderedDict[ChunkKey, int] = OrderedDict()
        self._ghosts: OrderedDict[ChunkKey, int] = OrderedDict()
        self._clock = self._evictions = 0

    def use(self, keys: Iterable[ChunkKey]) -> None:
        """Chunks were used or stored, the tail first."""
        once, again, ghosts, clock, hits = self._once, self._again, self._ghosts, self._clock, 0
        for key in keys:
            clock += 1
            if key in again:
                again[key] = clock
                again.move_to_end(key)
                hits += 1
            elif key in once:
                del once[key]
                again[key] = clock
                hits += 1
            else:
                left_at = ghosts.pop(key, None)
                is_near = left_at is not None and self._evictions - left_at < self._near
                (again if is_near else once)[key] = clock
                if len(once) + len(again) > self._capacity:
                    self._evict(clock)
        self._clock = clock
        self.hits += hits

    def _evict(self, clock: int) -> None:
        key, _ = self._older(clock).popitem(last=False)
        self._evictions += 1
        self._ghosts[key] = self._evictions
        if len(self._ghosts) > GHOST_CAPACITIES * self._capacity:
            self._ghosts.popitem(last=False)

    def _older(self, clock: int) -> OrderedDict[ChunkKey, int]:
        once, again = self._once, self._again
        if not once or not again:
            return once or again
        once_age, again_age = clock - once[next(iter(once))], clock - again[next(iter(again))]
        return once if once_age * self.arm.once_weight >= again_age else again
