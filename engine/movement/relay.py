"""Bytes on their way between two tiers below, for chunks whose slots are gone."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Sequence

from ...tiers.base import Buffer, ChunkKey, Tier

STAGING_BYTES = 64 << 20  # for each tier that is behind; made when it first needs them


class Relay:
    """Buffers of one tier below, filled from the tiers above it. One task at a time, on the loop thread."""

    def __init__(self, chunk_bytes: int) -> None:
        self.chunks_max = max(1, STAGING_BYTES // chunk_bytes)
        self.lock = asyncio.Lock()  # whoever uses the buffers holds it
        self._chunk_bytes = chunk_bytes
        self._buffers: list[Buffer] = []

    async def filled(self, above: Sequence[Tier], keys: Sequence[ChunkKey]) -> dict[ChunkKey, Buffer]:
        """Read what the tiers above have, nearest first. The buffers are valid while `lock` is held."""
        assert self.lock.locked(), "one at a time uses the buffers"
        assert len(keys) <= self.chunks_max
        free = self._made(len(keys))
        filled: dict[ChunkKey, Buffer] = {}
        for tier in above:
            missing = [key for key in keys if key not in filled]
            there = [key for key, hit in zip(missing, tier.lookup(missing), strict=True) if hit]
            if there:
                buffers = dict(zip(there, free, strict=False))
                outcome = await tier.load(there, list(buffers.values()))
                filled.update((key, buffers[key]) for key in outcome.succeeded)
                free = [buffer for buffer in free if all(buffer is not used for used in filled.values())]
        return filled

    def _made(self, count: int) -> list[Buffer]:
        while len(self._buffers) < count:
            stride = -(-self._chunk_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
            self._buffers.append(memoryview(mmap.mmap(-1, stride))[: self._chunk_bytes])
        return self._buffers[:count]
