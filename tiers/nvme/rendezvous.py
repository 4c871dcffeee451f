"""Which drive keeps which chunk: weighted rendezvous hashing, worked out ahead for parts of the key space.

A key falls into one of `SLOTS` parts, and each part ranks all drives by a hash with each drive's name (Thaler
and Ravishankar 1998; weights after Schindelhauer and Schomaker 2005). So a drive gets chunks in proportion to
its weight, and one that is added or taken away moves no chunk between the others.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Sequence

from ..base import ChunkKey

SLOTS = 4096  # shares are right to a 4096th; 8 drives take 50 ms to rank, once


class Ranking:
    """The drives in the order in which each key asks for them. Immutable; any thread.

    Args:
        names: what names each drive for good, also at the next start.
        weights: above 0; a drive's share of all chunks is its share of their sum.
    """

    def __init__(self, names: Sequence[str], weights: Sequence[float]) -> None:
        assert len(set(names)) == len(names) == len(weights) > 0, "each drive has one name and one weight"
        self._ranks = tuple(_ranked(slot, names, weights) for slot in range(SLOTS))

    def of(self, key: ChunkKey) -> tuple[int, ...]:
        """The drives' numbers, the one that keeps the key first."""
        return self._ranks[zlib.crc32(key) % SLOTS]


def _ranked(slot: int, names: Sequence[str], weights: Sequence[float]) -> tuple[int, ...]:
    scores = [weight / -math.log(_unit(slot, name)) for name, weight in zip(names, weights, strict=True)]
    return tuple(sorted(range(len(names)), key=lambda drive: -scores[drive]))


def _unit(slot: int, name: str) -> float:
    """A number between 0 and 1, both excluded, that depends on nothing else."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=b"%d" % slot).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 2.0**64
