"""A prompt as its chunks come and go: where each of them lies in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from ...tiers.base import ChunkKey
from ...tiers.pinned.eviction import PromptId

GroupOf: TypeAlias = Callable[[ChunkKey], bytes]
"""Names the group of layers that a chunk belongs to; the groups of a prompt are counted side by side."""


def one_group(key: ChunkKey) -> bytes:
    """Every chunk is of one group: a chunk has all layers."""
    return b""


class Prompt:
    """The positions of one prompt's chunks, head first. Not thread-safe: one user of the chain has it.

    A server that knows the positions tells them. Otherwise they are counted, in the order in which the chunks
    are first named: a position only has to rise along the prompt.

    Attributes:
        id: what eviction policies know the prompt by.
        positions: of every chunk that was named so far.
        ends_at: the position from which on nothing more of this prompt is stored, as a chunk before it could
            not be; None while all can.
        refused_chunks: chunks that found no slot when they were last offered; they are offered again.
        asks_since_s: when a tier below first had to find out whether it has one of its chunks.
        is_spared: whether its chunks are surely one prompt's: then none makes room for another of them.
        loads: how many chunks more are loaded from tiers below.
        advised: tiers below of which that is decided, each once for all that the prompt has only there.
        declined: chunks below that are computed instead.
    """

    def __init__(self, id: PromptId, group_of: GroupOf = one_group) -> None:
        self.id = id
        self.positions: dict[ChunkKey, int] = {}
        self.ends_at: int | None = None
        self.refused_chunks = 0
        self.asks_since_s: float | None = None
        self.is_spared = True
        self.loads = math.inf
        self.advised: set[str] = set()
        self.declined: set[ChunkKey] = set()
        self._group_of = group_of
        self._counted: dict[bytes, int] = {}  # chunks named so far, by group

    def place(self, keys: Sequence[ChunkKey], told: Sequence[int] | None = None) -> list[int]:
        """Return the position of each key, which from now on stays as it is.

        Args:
            told: their positions, where the server knows them.
        """
        if told is not None:
            self.positions.update(zip(keys, told, strict=True))
        try:
            return list(map(self.positions.__getitem__, keys))  # as at every mention but the first
        except KeyError:
            self._count([key for key in keys if key not in self.positions])
            return list(map(self.positions.__getitem__, keys))

    def starts(self) -> None:
        """It is being computed: should it be preempted and looked for again, that is another search."""
        self.loads = math.inf
        self.advised.clear()
        self.asks_since_s = None

    def _count(self, new: Iterable[ChunkKey]) -> None:
        positions, counted, group_of = self.positions, self._counted, self._group_of
        for key in new:
            if key not in positions:  # else it is named twice
                group = group_of(key)
                positions[key] = position = counted.get(group, 0)
                counted[group] = position + 1
