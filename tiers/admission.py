"""Admission at the second touch: a tier that takes only chunks that are offered to it a second time.

Most chunks are never used again. A drive that keeps them anyway wears out for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from .base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, Tier, TierStats

SEEN_MAX = 1 << 20  # hashes in one generation: some 60 MiB of memory

HASH_BYTES = 8  # two of a million chunks that share one are both admitted, once in ten million times


class SecondTouch:
    """A tier that refuses what it sees first, by choice (`Failure.NO_SPACE`), and takes it the next time.

    What was seen is remembered for one to two generations, each of as many chunks as the tier holds.

    Args:
        capacity_chunks: how many chunks the tier holds.
    """

    def __init__(self, tier: Tier, capacity_chunks: int) -> None:
        self.wrapped = tier
        self._seen_max = max(1, min(SEEN_MAX, capacity_chunks))
        # Mutable state, changed on the loop only.
        self._seen: set[bytes] = set()
        self._seen_before: set[bytes] = set()
        self._refused_chunks = 0

    @property
    def name(self) -> str:
        return self.wrapped.name

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool | None]:
        return self.wrapped.lookup(keys)

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        """Hand on what was seen before, or is there already; refuse the rest."""
        there = self.wrapped.lookup(keys)
        admitted = [bool(is_there) or self._is_seen(key) for key, is_there in zip(keys, there, strict=True)]
        refused = [key for key, admit in zip(keys, admitted, strict=True) if not admit]
        self._refused_chunks += len(refused)
        taken = [(key, buffer) for key, buffer, admit in zip(keys, buffers, admitted, strict=True) if admit]
        if not taken:
            return Outcome(failed=dict.fromkeys(refused, Failure.NO_SPACE), is_sample=False)
        outcome = await self.wrapped.store([key for key, _ in taken], [buffer for _, buffer in taken])
        return replace(outcome, failed={**outcome.failed, **dict.fromkeys(refused, Failure.NO_SPACE)})

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        return await self.wrapped.load(keys, buffers)

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        await self.wrapped.remove(keys, reason)

    async def flush(self) -> None:
        await self.wrapped.flush()

    def stats(self) -> TierStats:
        """The tier's numbers, with those that were not admitted."""
        stats = self.wrapped.stats()
        return replace(stats, counters={**stats.counters, "not_admitted_chunks": self._refused_chunks})

    async def close(self) -> None:
        await self.wrapped.close()

    def check(self) -> None:
        """Assert that what is remembered is bounded; for tests."""
        assert max(len(self._seen), len(self._seen_before)) <= self._seen_max, "too many hashes"

    def _is_seen(self, key: ChunkKey) -> bool:
        """Whether the key was offered before; from now on it was."""
        digest = blake2b(key, digest_size=HASH_BYTES).digest()
        if digest in self._seen or digest in self._seen_before:
            return True
        if len(self._seen) >= self._seen_max:
            self._seen, self._seen_before = set(), self._seen
        self._seen.add(digest)
        return False
