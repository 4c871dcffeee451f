"""Bytes on their way between two tiers below, for chunks whose slots are gone."""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import Collection, Mapping, Sequence

from ...tiers.base import Buffer, ChunkKey, Outcome, Tier
from .deadlines import Deadlines

STAGING_BYTES = 64 << 20  # for each tier that is behind; made when it first needs them


class Relay:
    """Buffers of one tier below, filled from the tiers above it. One task at a time, on the loop thread.

    Args:
        load_deadlines_s: how long a load from each tier above may take. What comes later is left out.
    """

    def __init__(self, chunk_bytes: int, load_deadlines_s: Mapping[str, float]) -> None:
        self.chunks_max = max(1, STAGING_BYTES // chunk_bytes)
        self.lock = asyncio.Lock()  # whoever uses the buffers holds it
        self._chunk_bytes = chunk_bytes
        self._deadlines = Deadlines(0.0, load_deadlines_s)
        self._buffers: list[Buffer] = []

    async def filled(self, above: Sequence[Tier], keys: Sequence[ChunkKey]) -> dict[ChunkKey, Buffer]:
        """Read what the tiers above have, nearest first. The buffers are valid while `lock` is held."""
        assert self.lock.locked(), "one at a time uses the buffers"
        assert len(keys) <= self.chunks_max
        filled: dict[ChunkKey, Buffer] = {}
        for tier in above:
            missing = [key for key in keys if key not in filled]
            there = [key for key, hit in zip(missing, tier.lookup(missing), strict=True) if hit]
            if there:
                buffers = dict(zip(there, self._free(filled.values(), len(there)), strict=True))
                outcome = await self._loaded(tier, buffers)
                if outcome is None:  # it may still write there: these are its own from now on
                    self._buffers = list(filled.values())
                else:
                    filled.update((key, buffers[key]) for key in outcome.succeeded)
        return filled

    async def _loaded(self, tier: Tier, buffers: Mapping[ChunkKey, Buffer]) -> Outcome | None:
        """Load from a tier; None where it takes too long: a tier that hangs holds up none below it."""
        load = asyncio.ensure_future(tier.load(list(buffers), list(buffers.values())))
        load.add_done_callback(_seen)
        try:
            await asyncio.wait([load], timeout=self._deadlines.at_s(tier.name))
        except asyncio.CancelledError:
            load.cancel()
            await asyncio.wait([load])
            raise
        return load.result() if load.done() else None

    def _free(self, used: Collection[Buffer], count: int) -> list[Buffer]:
        taken = set(map(id, used))
        free = [buffer for buffer in self._buffers if id(buffer) not in taken]
        stride = -(-self._chunk_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        made: list[Buffer] = [
            memoryview(mmap.mmap(-1, stride))[: self._chunk_bytes] for _ in range(count - len(free))
        ]
        self._buffers += made
        return [*free, *made][:count]


def _seen(load: asyncio.Future[Outcome]) -> None:
    """Keep the loop from logging what a load raises that is no longer waited for."""
    if not load.cancelled():
        load.exception()
