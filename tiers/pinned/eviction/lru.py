"""Least recently used first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence

from ...base import ChunkKey
from .base import Evictable, PromptId


class LruPolicy:
    """Least recently used first; within one batch the tail first."""

    def __init__(self, capacity_chunks: int) -> None:
        assert capacity_chunks > 0, "a policy needs room for one chunk"
        self._order: OrderedDict[ChunkKey, None] = OrderedDict()  # next victim first

    def arrive(self, prompt: PromptId) -> None:
        """Nothing: a line is a batch."""

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        count_before = len(self._order)
        for key in reversed(keys):
            self._order[key] = None
        assert len(self._order) == count_before + len(keys), "a chunk became resident twice"

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        for key in reversed(keys):
            if key in self._order:
                self._order.move_to_end(key)

    def remove(self, key: ChunkKey) -> None:
        self._order.pop(key, None)

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        victims: list[ChunkKey] = []
        passed: list[ChunkKey] = []
        while len(victims) < count and self._order:
            key, _ = self._order.popitem(last=False)
            (victims if evictable(key) else passed).append(key)
        self._order.update(dict.fromkeys(passed))
        return victims

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        return ()

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, key: object) -> bool:
        return key in self._order

    def check(self) -> None:
        assert len(list(self._order)) == len(self._order), "the order lost a key"
