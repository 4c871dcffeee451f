"""A tier that keeps nothing: the zero of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

from .base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, TierStats


class NullTier:
    """Drops every store and misses every load, and says so."""

    def __init__(self, name: str = "null") -> None:
        self.name = name
        self._closed = False
        self._dropped_chunks = 0

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool]:
        return [False] * len(keys)

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        self._dropped_chunks += len(keys)
        reason = Failure.CLOSED if self._closed else Failure.DROPPED
        return Outcome(failed=dict.fromkeys(keys, reason))

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        reason = Failure.CLOSED if self._closed else Failure.MISSING
        return Outcome(failed=dict.fromkeys(keys, reason))

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        return None

    async def flush(self) -> None:
        return None

    async def invalidate(self) -> None:
        return None

    def stats(self) -> TierStats:
        return TierStats(0, 0, 0, {"dropped_chunks": self._dropped_chunks})

    async def close(self) -> None:
        self._closed = True
