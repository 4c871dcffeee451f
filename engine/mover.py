"""Moves chunks between a job's blocks on the device and the chain."""

from __future__ import annotations

from collections.abc import Sequence

from ..tiers.base import ChunkKey, Failure, Outcome, Tier
from ..tiers.pinned.slots import Slot, SlotTier
from .chain import Chain
from .placement import BATCH_CHUNKS_MAX

Failures = dict[ChunkKey, Failure]


class Mover:
    """Store and load for one chain, in batches that fit its arena, so that a job may be larger than it.

    A batch that finds no slot waits for one, at most for the chain's deadline, and holds none meanwhile. Runs
    on the loop thread. A cancelled move returns once nothing copies any more, and holds no slot.
    """

    def __init__(self, chain: Chain, pinned: SlotTier) -> None:
        self._chain = chain
        self._pinned = pinned
        self._batch_chunks = max(1, min(BATCH_CHUNKS_MAX, chain.slots_count // 4))

    async def store(self, device: Tier, keys: Sequence[ChunkKey]) -> Outcome:
        """Copy chunks from the device into slots and let them cascade."""
        failed: Failures = {}
        for batch in self._batches(keys):
            failed |= await self._store_batch(device, batch)
        return Outcome.of(keys, failed)

    async def load(self, device: Tier, keys: Sequence[ChunkKey]) -> Outcome:
        """Promote chunks into slots where need be, and copy them onto the device."""
        failed: Failures = {}
        for batch in self._batches(keys):
            failed |= await self._load_batch(device, batch)
        return Outcome.of(keys, failed)

    async def _store_batch(self, device: Tier, keys: Sequence[ChunkKey]) -> Failures:
        failed: Failures = {}
        waiting = list(keys)
        while waiting:
            reserved = self._chain.reserve(waiting)
            failed |= await self._copy_out(device, reserved.slots)
            late = await self._chain.settled(reserved.busy)
            failed |= dict.fromkeys(late, Failure.TIMEOUT)
            # A busy slot that its filler gave up is ours to fill, in the next round.
            there = self._chain.lookup(reserved.busy)
            waiting = [key for key, ok in zip(reserved.busy, there, strict=True) if not ok] + reserved.left
            came_on = bool(reserved.slots or reserved.busy)
            if waiting and not came_on and not await self._chain.room():
                return failed | dict.fromkeys(waiting, Failure.NO_SPACE)
        return failed

    async def _load_batch(self, device: Tier, keys: Sequence[ChunkKey]) -> Failures:
        failed: Failures = {}
        waiting = list(keys)
        while waiting:
            slots, missed = await self._chain.fetch(waiting)
            failed |= await self._copy_in(device, slots)
            waiting = [key for key, reason in missed.items() if reason is Failure.NO_SPACE]
            failed |= {key: reason for key, reason in missed.items() if reason is not Failure.NO_SPACE}
            # Slots come free as copies and cascades end: another round for the keys that found none.
            if waiting and not slots and not await self._chain.room():
                return failed | dict.fromkeys(waiting, Failure.NO_SPACE)
        return failed

    async def _copy_out(self, device: Tier, slots: Sequence[Slot]) -> Failures:
        copied: frozenset[ChunkKey] = frozenset()
        admitted = 0
        try:
            admitted = await self._chain.admit(len(slots))
            outcome = await device.load([slot.key for slot in slots], self._buffers(slots))
            copied = frozenset(outcome.succeeded)
        finally:
            self._chain.abandon([slot for slot in slots if slot.key not in copied])
            self._chain.commit([slot for slot in slots if slot.key in copied], admitted=admitted)
        return dict(outcome.failed)

    async def _copy_in(self, device: Tier, slots: Sequence[Slot]) -> Failures:
        try:
            outcome = await device.store([slot.key for slot in slots], self._buffers(slots))
        finally:
            self._chain.release(slots)
        self._chain.touch([slot.key for slot in slots])
        self._chain.count_loaded(len(outcome.succeeded))
        return dict(outcome.failed)

    def _buffers(self, slots: Sequence[Slot]) -> list[memoryview]:
        return [self._pinned.buffer(slot) for slot in slots]

    def _batches(self, keys: Sequence[ChunkKey]) -> list[Sequence[ChunkKey]]:
        return [keys[i : i + self._batch_chunks] for i in range(0, len(keys), self._batch_chunks)]
