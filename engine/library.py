"""The chain as the library uses it: jobs on the loop thread, which wait for slots, drives and the device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from ..tiers.base import ChunkKey, Failure, Outcome, Tier
from ..tiers.pinned.slots import Slot, SlotState
from .chain import Chain
from .losses import Caller
from .mover import Run
from .placement import BATCH_CHUNKS_MAX, Presence
from .prompts import Prompt

Failures = dict[ChunkKey, Failure]

_WHY = {Presence.MISS: Failure.MISSING, Presence.LATE: Failure.TIMEOUT, Presence.FULL: Failure.NO_SPACE}


class LibraryChain(Chain):
    """A chain whose users wait. `lookup` may be called from any thread; the coroutines on the loop thread.

    Jobs run in batches that fit the arena, so a job may be larger than the arena. A batch that finds no slot
    waits for one, at most for the load deadline, and holds none meanwhile. A cancelled job returns once
    nothing copies for it any more, and then holds no slot.
    """

    def lookup(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """Say for each key whether a tier has it, or is about to; moves nothing."""
        with self._lock:
            found = [self._placement.table.get(key) is not None for key in keys]
        missed = [index for index, hit in enumerate(found) if not hit]
        tiers = self._lower.find_all([keys[index] for index in missed])
        for index, tier in zip(missed, tiers, strict=True):
            found[index] = tier is not None
        return found

    # --- on the loop thread -------------------------------------------------------------------------

    async def store(self, device: Tier, keys: Sequence[ChunkKey], caller: Caller) -> Outcome:
        """Copy chunks from the device into slots, and queue them for the tiers below.

        Args:
            caller: whose flush will tell what became of them.
        """
        failed: Failures = {}
        for prompt, batch in self._batches(keys):
            failed |= await self._store_batch(device, prompt, batch)
        return Outcome.of(keys, failed)

    async def load(self, device: Tier, keys: Sequence[ChunkKey]) -> Outcome:
        """Promote chunks into slots where needed, and copy them onto the device."""
        failed: Failures = {}
        for prompt, batch in self._batches(keys):
            failed |= await self._load_batch(device, prompt, batch)
        return Outcome.of(keys, failed)

    async def remove(self, keys: Sequence[ChunkKey]) -> None:
        """Remove chunks from every tier; those that were stored before the call are gone when it returns.

        A chunk that is being stored under one of the keys may be removed or may stay.

        Raises:
            TierError: a tier failed to remove some; the others have removed theirs.
        """
        try:
            self._remove_slots(keys)
            for start in range(0, len(keys), BATCH_CHUNKS_MAX):
                await self.mover.remove(keys[start : start + BATCH_CHUNKS_MAX])
        finally:
            self._remove_slots(keys)  # what was promoted before the tiers below had removed it

    async def fetch(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> tuple[list[Slot], Failures]:
        """Bring the keys into slots and wait for them, at most for the deadline.

        Returns:
            Readable slots in the order of `keys`, pinned for the caller; and why each other key has none.
        """
        found = self.acquire(prompt, keys)
        pinned = [slot for _, slot, _ in found if slot is not None]
        try:
            await self._wait_filled(pinned)
        except BaseException:
            self.release(pinned)
            raise
        ready = [slot for slot in pinned if slot.state is SlotState.READY]
        useless = [slot for slot in pinned if slot.state is not SlotState.READY]
        self.release(useless)
        sources = {slot: source for _, slot, source in found}
        self.used({slot.key: sources[slot] for slot in ready})
        failed = {
            key: _WHY[presence] for key, (presence, slot, _) in zip(keys, found, strict=True) if not slot
        }
        late = {slot.key: Failure.TIMEOUT for slot in useless if slot.state is SlotState.FILLING}
        gone = {slot.key: Failure.MISSING for slot in useless if slot.state is SlotState.GONE}
        return ready, failed | late | gone

    async def wait_filled(self, keys: Sequence[ChunkKey]) -> list[ChunkKey]:
        """Wait until nobody fills the slots of these keys, at most for the deadline.

        Returns:
            Keys whose slots are still being filled.
        """
        with self._lock:
            slots = [slot for slot in map(self._placement.table.get, keys) if slot is not None]
        await self._wait_filled(slots)
        return [slot.key for slot in slots if slot.state is SlotState.FILLING]

    async def wait_for_room(self, prompt: Prompt) -> bool:
        """Wait until the prompt can have a slot, at most for the deadline; False where none came free.

        Who waits here holds no slot, and who holds a slot waits for a device or a drive and never for
        another slot. So nobody waits for himself, nor two for each other. Waiters are served in the order
        in which they came; the slot is theirs if they reserve before they await anything else.
        """
        with self._lock:
            self._room_waiters += 1
        try:
            return await self._until(lambda: self._has_room(prompt))
        finally:
            with self._lock:
                self._room_waiters -= 1

    async def admit(self, count: int) -> int:
        """Wait for places for `count` more chunks in the queue to the tiers below, at most for the deadline.

        A server's step never waits, and a chunk without a place stays in its slot only. Jobs wait here.

        Returns:
            What to hand to `commit`: `count`, or 0 where no place came free in time.
        """
        count = min(count, self._placement.dirty_max)
        return count if await self._until(lambda: self._admits(count)) else 0

    async def _store_batch(self, device: Tier, prompt: Prompt, keys: Sequence[ChunkKey]) -> Failures:
        failed: Failures = {}
        waiting = list(keys)
        while waiting:
            reserved = self.reserve(prompt, waiting)
            failed |= await self._copy_out(device, reserved.slots)
            late = await self.wait_filled(reserved.busy)
            failed |= dict.fromkeys(late, Failure.TIMEOUT)
            # A busy slot whose filler gave up is ours to fill, in the next round.
            there = self.lookup(reserved.busy)
            waiting = [key for key, ok in zip(reserved.busy, there, strict=True) if not ok] + reserved.left
            came_on = bool(reserved.slots or reserved.busy)
            if waiting and not came_on and not await self.wait_for_room(prompt):
                return failed | dict.fromkeys(waiting, Failure.NO_SPACE)
        return failed

    async def _load_batch(self, device: Tier, prompt: Prompt, keys: Sequence[ChunkKey]) -> Failures:
        failed: Failures = {}
        waiting = list(keys)
        while waiting:
            slots, missed = await self.fetch(prompt, waiting)
            failed |= await self._copy_in(device, prompt, slots)
            waiting = [key for key, reason in missed.items() if reason is Failure.NO_SPACE]
            failed |= {key: reason for key, reason in missed.items() if reason is not Failure.NO_SPACE}
            # Slots come free as copies and cascades end: another round for the keys that found none.
            if waiting and not slots and not await self.wait_for_room(prompt):
                return failed | dict.fromkeys(waiting, Failure.NO_SPACE)
        return failed

    async def _copy_out(self, device: Tier, slots: Sequence[Slot]) -> Failures:
        copied: frozenset[ChunkKey] = frozenset()
        admitted = 0
        try:
            admitted = await self.admit(len(slots))
            outcome = await device.load([slot.key for slot in slots], self._buffers(slots))
            copied = frozenset(outcome.succeeded)
        finally:
            self.abandon([slot for slot in slots if slot.key not in copied])
            self.commit([slot for slot in slots if slot.key in copied], admitted=admitted)
        return dict(outcome.failed)

    async def _copy_in(self, device: Tier, prompt: Prompt, slots: Sequence[Slot]) -> Failures:
        try:
            outcome = await device.store([slot.key for slot in slots], self._buffers(slots))
        finally:
            self.release(slots)
        self.touch(prompt, [slot.key for slot in slots])
        self.count_loaded(len(outcome.succeeded))
        return dict(outcome.failed)

    async def _wait_filled(self, slots: Sequence[Slot]) -> None:
        if not await self._until(lambda: all(slot.state is not SlotState.FILLING for slot in slots)):
            self.count("late_loads", self._pinned.name, 1)

    async def _until(self, is_so: Callable[[], bool]) -> bool:
        """Wait until `is_so()`, at most for the deadline; returns whether it is."""
        try:
            async with asyncio.timeout(self._load_deadline_s):
                while not is_so():
                    await self.mover.progress()
        except TimeoutError:
            return False
        return True

    def _remove_slots(self, keys: Sequence[ChunkKey]) -> None:
        with self._lock:
            self._placement.remove(keys)
            wakeup = self.mover.request(Run.NOW)  # jobs may wait for what this set free
        self.mover.send(wakeup)

    def _batches(self, keys: Sequence[ChunkKey]) -> Iterator[tuple[Prompt, Sequence[ChunkKey]]]:
        """The job's keys in parts, each with the prompt that they are of.

        A prompt never gives up slots to itself. So a job larger than the arena is a prompt a batch.
        """
        batch_chunks = max(1, min(BATCH_CHUNKS_MAX, self.slots_count // 4))
        whole = self.new_prompt()
        for start in range(0, len(keys), batch_chunks):
            prompt = whole if len(keys) <= self.slots_count else self.new_prompt()
            yield prompt, keys[start : start + batch_chunks]

    def _buffers(self, slots: Sequence[Slot]) -> list[memoryview]:
        return [self._pinned.buffer(slot) for slot in slots]

    def _admits(self, count: int) -> bool:
        with self._lock:
            return self._placement.admit(count)

    def _has_room(self, prompt: Prompt) -> bool:
        with self._lock:
            return self._placement.has_room(prompt)
