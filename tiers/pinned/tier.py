"""The pinned tier: chunks in the slots of a page-locked arena, one copy away from the device."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from ..base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, TierStats
from ..settled import settled
from .arena import Arena
from .eviction import EvictionPolicy, LruPolicy
from .slots import Slot, SlotState, SlotTable


class PinnedTier:
    """Chunks in a fixed arena of slots, evicted by policy.

    The chain moves chunks through `table` and `buffer` without a copy. As a `Tier` of its own it copies in
    and out of its slots. Not thread-safe: one loop, or the chain's lock.
    """

    def __init__(self, arena: Arena, make_policy: Callable[[int], EvictionPolicy] = LruPolicy) -> None:
        self.name = "pinned"
        self.arena = arena
        self.table = SlotTable(arena.slot_count, make_policy(arena.slot_count))
        self._closed = False
        self._evicted_chunks = 0
        self._calls = itertools.count()  # each call's keys are taken for a prompt of their own

    @property
    def slot_bytes(self) -> int:
        return self.arena.slot_bytes

    def buffer(self, slot: Slot) -> Buffer:
        return self.arena.buffer(slot.index)

    def lookup(self, keys: Sequence[ChunkKey]) -> Sequence[bool]:
        return [self.table.is_ready(key) for key in keys]

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        if self._closed:
            return Outcome(failed=dict.fromkeys(keys, Failure.CLOSED))
        source = {key: buffer for key, buffer in zip(keys, buffers, strict=True) if not self.table.get(key)}
        slots, evicted = self.table.reserve(next(self._calls), list(source), range(len(source)))
        self._evicted_chunks += len(evicted)
        for slot in slots:
            data = source.pop(slot.key)
            self.buffer(slot)[: len(data)] = data
        self.table.commit(slots)
        return Outcome.of(keys, dict.fromkeys(source, Failure.NO_SPACE))

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        reason = Failure.CLOSED if self._closed else Failure.MISSING
        failed = {}
        for key, buffer in zip(keys, buffers, strict=True):
            slot = None if self._closed else self.table.get(key)
            if slot is None or slot.state is not SlotState.READY:
                failed[key] = reason
            else:
                buffer[:] = self.buffer(slot)[: len(buffer)]
        outcome = Outcome.of(keys, failed)
        self.table.touch(next(self._calls), outcome.succeeded, range(len(outcome.succeeded)))
        return outcome

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        self.table.drop([slot for slot in map(self.table.get, keys) if slot is not None])

    async def flush(self) -> None:
        """Nothing to do: memory cannot be made durable."""

    def stats(self) -> TierStats:
        table = self.table
        used = (table.slots_count - table.free_count) * self.slot_bytes
        counters = {"evicted_chunks": self._evicted_chunks}
        return TierStats(len(table), used, table.slots_count * self.slot_bytes, counters)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.table.drop_all()
            await settled(asyncio.to_thread(self.arena.close))  # seconds, with hundreds of page-locked GiB
