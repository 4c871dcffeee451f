"""Least recently used first."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ...base import ChunkKey
from .base import Evictable, PromptId
from .lines import Lines
from .sweep import Sweep


class LruPolicy:
    """The line that was used least recently first, and of that its tail."""

    def __init__(self, capacity_chunks: int) -> None:
        assert capacity_chunks > 0, "a policy needs room for one chunk"
        self._lines = Lines()

    def arrive(self, prompt: PromptId) -> None:
        self._lines.arrive(prompt)

    def insert(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        count_before = len(self._lines)
        self._lines.add(self._lines.line(prompt), list(zip(keys, positions, strict=True)))
        assert len(self._lines) == count_before + len(keys), "a chunk became resident twice"

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        self._lines.use(self._lines.arrive(prompt), zip(keys, positions, strict=True))

    def remove(self, key: ChunkKey) -> None:
        self._lines.remove(key)

    def evict(self, count: int, evictable: Evictable, *, spare: PromptId | None = None) -> list[ChunkKey]:
        sweep = Sweep(self._lines, evictable, spare)
        victims: list[ChunkKey] = []
        while len(victims) < count and (line := sweep.oldest()):
            victims += sweep.take(line, count - len(victims))
        victims += sweep.take_behind_tails(count - len(victims))
        sweep.end()
        return victims

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        return self._lines.chunks(prompt)

    def __len__(self) -> int:
        return len(self._lines)

    def __contains__(self, key: object) -> bool:
        return key in self._lines

    def check(self) -> None:
        self._lines.check()
