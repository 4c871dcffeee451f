"""The chain as the library uses it: jobs on the loop thread, which wait for slots, drives and the device."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from ..tiers.base import ChunkKey, Failure, Outcome, RemoveReason, Tier
from ..tiers.errors import TierError
from ..tiers.pinned.eviction import PromptId
from ..tiers.pinned.slots import Slot, SlotState
from .chain import Chain
from .loaded import Acquired, Loaded
from .movement.deadlines import Deadlines
from .movement.losses import Caller
from .movement.lower import ASKING
from .movement.placement import NOBODY, Presence, Reservation
from .movement.prompts import Prompt
from .movement.transfers import Run

HEADS_PER_ARENA = 2  # of a job larger than the arena, one half stays, and the rest passes through the other
BATCHES_PER_ARENA = 8  # a load has two batches in hand, and other jobs run beside it
REMOVED_AT_ONCE = 1024  # keys of one call of a tier
ASK_AGAIN_S = 0.01  # between two lookups of a tier that finds out whether it has a chunk

Failures = dict[ChunkKey, Failure]
Missed = dict[ChunkKey, Presence]

_WHY = {
    Presence.MISS: Failure.MISSING,
    Presence.ASKING: Failure.MISSING,
    Presence.LATE: Failure.TIMEOUT,
    Presence.FULL: Failure.NO_SPACE,
}
_LATER = frozenset({Presence.FULL, Presence.ASKING})  # worth asking again within the deadline


class LibraryChain(Chain):
    """A chain whose users wait. `lookup` and `contains` may be called from any thread; the coroutines on the
    loop thread.

    Jobs run in batches that fit the arena, so a job may be larger than the arena. A batch that finds no slot
    waits for one, at most for the load deadline, and holds none meanwhile. A cancelled job returns once
    nothing copies for it any more, and then holds no slot.
    """

    dirty_fraction = 7 / 8  # stores wait for a place among those; what is left is for loads

    _storing_chunks = 0  # in slots of stores under way, soon owed to the tiers below; on the loop only

    def lookup(self, keys: Sequence[ChunkKey]) -> list[bool]:
        """Say for each key whether a tier has it, or is about to; moves nothing."""
        return [name is not None for name in self.contains(keys)]

    def worth_loading(self, keys: Sequence[ChunkKey]) -> int:
        """Count the leading keys that a tier has, up to where computing them is expected to be sooner."""
        found = self.contains(keys)
        count = found.index(None) if None in found else len(found)
        prompt = self.new_prompt()
        with self._lock:
            for index, tier in enumerate(found[:count]):
                assert tier is not None, "it is before the first that no tier has"
                is_below = tier != self._pinned.name
                if is_below and not self._advisor.lets(prompt, tier, count - index):
                    self._decline(found[index:count])
                    return index
        return count

    def contains(self, keys: Sequence[ChunkKey]) -> list[str | None]:
        """Name for each key the nearest tier that has it, or is about to; moves nothing."""
        with self._lock:
            found = [self._pinned.name if self._placement.table.get(key) else None for key in keys]
        missed = [index for index, name in enumerate(found) if name is None]
        places = self._lower.find_all([keys[index] for index in missed])
        for index, place in zip(missed, places, strict=True):
            found[index] = None if place is None or place is ASKING else place.name
        return found

    def deadlines(self) -> Deadlines:
        """Those of a load that is called for now."""
        return Deadlines(self._clock(), self._load_deadlines_s)

    # --- on the loop thread -------------------------------------------------------------------------

    async def store(self, device: Tier, keys: Sequence[ChunkKey], caller: Caller) -> Outcome:
        """Copy chunks from the device into slots, and queue them for the tiers below.

        Args:
            caller: whose flush will tell what became of them.
        """
        with self._lock:
            self._placement.cascades.losses.joins(caller)
        failed: Failures = {}
        prompt, tail = self.new_prompt(), self.new_prompt()
        prompt.place(keys)
        fits = len(keys) <= self.slots_count
        head_chunks = len(keys) if fits else self.slots_count // HEADS_PER_ARENA
        for batch in self._batches(keys[:head_chunks]):
            failed |= await self._store_batch(device, prompt, batch, prompt.id)
        # What is behind the head passes through the slots that it leaves, as if it were another prompt's.
        for batch in self._batches(keys[head_chunks:]):
            failed |= await self._store_batch(device, tail, batch, prompt.id)
        if not fits:
            self.touch(prompt, keys[:head_chunks])  # younger than its tail, which leaves first
        return Outcome.of(keys, failed)

    async def load(
        self, device: Tier, keys: Sequence[ChunkKey], deadlines: Deadlines | None = None
    ) -> Loaded:
        """Promote chunks into slots where needed, and copy them onto the device.

        While one batch is copied, the next one is read already.

        Args:
            deadlines: those of the call that this is for, by default of one that is made now.
        """
        deadlines = deadlines or self.deadlines()
        failed: Failures = {}
        sources: dict[ChunkKey, str] = {}
        prompt = self.new_prompt()
        waiting = list(keys)
        ahead: Acquired | None = None
        try:
            while waiting or ahead is not None:
                if ahead is None:
                    ahead = self._acquire_some(prompt, waiting, deadlines)
                current, ahead = ahead, None
                slots, missed = await self._filled(current, deadlines)
                sources |= current.sources
                waiting = [key for key, why in missed.items() if why in _LATER] + waiting
                failed |= {key: _WHY[why] for key, why in missed.items() if why not in _LATER}
                if slots:
                    try:
                        ahead = self._acquire_some(prompt, waiting, deadlines) if waiting else None
                    finally:
                        failed |= await self._copy_in(device, prompt, slots)
                elif waiting and not await self._may_go_on(missed, deadlines):
                    failed |= {key: _WHY[missed.get(key, Presence.LATE)] for key in waiting}
                    break
        finally:
            if ahead is not None:
                self.release(ahead.slots)
        came = tuple(key for key in keys if key not in failed)
        loaded = Loaded(came, failed, sources={key: sources[key] for key in came})
        for source, chunks in Counter(loaded.sources.values()).items():
            self.count("hits", source, chunks)
        return loaded

    async def prefetch(self, keys: Sequence[ChunkKey]) -> Outcome:
        """Promote chunks into slots, where they stay as long as they are worth keeping."""
        deadlines = self.deadlines()
        failed: Failures = {}
        prompt = self.new_prompt()
        waiting = list(keys)
        while waiting:
            batch = self._acquire_some(prompt, waiting, deadlines)
            slots, missed = await self._filled(batch, deadlines)
            self.release(slots)
            self.touch(prompt, [slot.key for slot in slots])
            failed |= {key: _WHY[why] for key, why in missed.items()}
        return Outcome.of(keys, failed)

    async def clear(self, reason: RemoveReason = RemoveReason.REQUESTED) -> None:
        """Forget everything in every tier; nothing that was stored before is found any more.

        Args:
            reason: INVALIDATED where the weights changed, REQUESTED where they are the same.

        Raises:
            TierError: a tier could not be told, and is not used any more.
        """
        self.invalidate(reason)
        await self.mover.until(lambda: not self._lower.invalidations)
        for tier in self._lower.unused:
            raise TierError(tier.name, "it could not be told to forget its chunks, and is no longer used")

    async def remove(self, keys: Sequence[ChunkKey]) -> None:
        """Remove chunks from every tier; those that were stored before the call are gone when it returns.

        A chunk that is being stored under one of the keys may be removed or may stay.

        Raises:
            TierError: a tier failed to remove some; the others have removed theirs.
        """
        try:
            self._remove_slots(keys)
            for start in range(0, len(keys), REMOVED_AT_ONCE):
                await self.mover.remove(keys[start : start + REMOVED_AT_ONCE])
        finally:
            self._remove_slots(keys)  # what was promoted before the tiers below had removed it

    async def fetch(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> tuple[list[Slot], Failures]:
        """Bring the keys into slots and wait for them, at most for the deadline.

        Returns:
            Readable slots in the order of `keys`, pinned for the caller; and why each other key has none.
        """
        deadlines = self.deadlines()
        slots, missed = await self._filled(Acquired(keys, self.acquire(prompt, keys, deadlines)), deadlines)
        return slots, {key: _WHY[why] for key, why in missed.items()}

    async def wait_filled(self, keys: Sequence[ChunkKey]) -> list[ChunkKey]:
        """Wait until nobody fills the slots of these keys, at most for the deadline.

        Returns:
            Keys whose slots are still being filled.
        """
        with self._lock:
            slots = [slot for slot in map(self._placement.table.get, keys) if slot is not None]
        await self._wait_filled(slots, self.deadlines())
        return [slot.key for slot in slots if slot.state is SlotState.FILLING]

    async def wait_for_room(self, limit_s: float | None = None, spare: PromptId = NOBODY) -> bool:
        """Wait until a slot can be had, at most for the deadline; False where none came free.

        Args:
            limit_s: the deadline, if it is not the longest of the tiers'.
            spare: the prompt of whose line none is evicted.

        Who waits here holds no slot, and who holds a slot waits for a device or a drive and never for
        another slot. So nobody waits for himself, nor two for each other. Waiters are served in the order
        in which they came; the slot is theirs if they reserve before they await anything else.
        """
        with self._lock:
            self._room_waiters += 1
        try:
            return await self.mover.until(
                lambda: self._has_room(spare), self._placement.load_deadline_s if limit_s is None else limit_s
            )
        finally:
            with self._lock:
                self._room_waiters -= 1

    def reserve_leading(self, prompt: Prompt, keys: Sequence[ChunkKey], spare: PromptId) -> Reservation:
        """Take slots for those of `keys` that have none, as many leading ones as there is room for.

        None of the line of `spare` is evicted for them.

        The caller fills them, then calls `commit` or `abandon`, and waits for room for the rest.
        """
        with self._lock:
            reserved = self._placement.reserve_leading(prompt, keys, spare)
            wakeup = self.mover.request_owed(Run.NOW)
        self.mover.send(wakeup)
        return reserved

    async def _store_batch(
        self, device: Tier, prompt: Prompt, keys: Sequence[ChunkKey], spare: PromptId
    ) -> Failures:
        failed: Failures = {}
        waiting = list(keys)
        while waiting:
            # Before slots are taken, so that the device's blocks are held for the copy alone. Without a place
            # in time the chunks go into slots all the same, and may be evicted before they are down.
            count = len(waiting)
            await self.mover.until(lambda: self._has_places(count), self._placement.load_deadline_s)  # noqa: B023
            reserved = self.reserve_leading(prompt, waiting, spare)
            failed |= await self._copy_out(device, reserved.slots)
            self.touch(prompt, reserved.held)
            late = await self.wait_filled(reserved.busy)
            failed |= dict.fromkeys(late, Failure.TIMEOUT)
            # A busy slot whose filler gave up is ours to fill, in the next round.
            there = self.lookup(reserved.busy)
            waiting = [key for key, ok in zip(reserved.busy, there, strict=True) if not ok] + reserved.left
            came_on = bool(reserved.slots or reserved.busy)
            if waiting and not came_on and not await self.wait_for_room(spare=spare):
                return failed | dict.fromkeys(waiting, Failure.NO_SPACE)
        return failed

    def _acquire_some(self, prompt: Prompt, waiting: list[ChunkKey], deadlines: Deadlines) -> Acquired:
        """Take a batch from those that wait, pin what is in slots and start the promotion of the rest."""
        batch = waiting[: self._batch_chunks]
        found = self.acquire(prompt, batch, deadlines)
        del waiting[: len(batch)]
        return Acquired(batch, found)

    async def _filled(self, batch: Acquired, deadlines: Deadlines) -> tuple[list[Slot], Missed]:
        """Wait for a batch, at most for the deadlines.

        Returns:
            Readable slots in the order of the keys, pinned for the caller; and what became of the others.
        """
        try:
            late = await self._wait_filled(batch.slots, deadlines)
        except BaseException:
            self.release(batch.slots)
            raise
        ready = [slot for slot in batch.slots if slot.state is SlotState.READY]
        self.release([slot for slot in batch.slots if slot.state is not SlotState.READY])
        missed: Missed = {}
        sources: dict[ChunkKey, str] = {}
        for key, (presence, slot, source) in zip(batch.keys, batch.found, strict=True):
            if slot is None:
                missed[key] = presence
            elif slot.state is SlotState.READY:
                sources[key] = source
            else:
                missed[key] = Presence.LATE if slot in late else Presence.MISS
        self.used(sources)
        return ready, missed

    async def _may_go_on(self, missed: Missed, deadlines: Deadlines) -> bool:
        """Wait until those that were missed for the moment may be there; False where the time is over."""
        left_s = deadlines.last_s - self._clock()
        if Presence.FULL in missed.values():
            return await self.wait_for_room(left_s)
        await asyncio.sleep(min(ASK_AGAIN_S, max(0.0, left_s)))
        return left_s > 0

    async def _copy_out(self, device: Tier, slots: Sequence[Slot]) -> Failures:
        copied: frozenset[ChunkKey] = frozenset()
        self._storing_chunks += len(slots)
        try:
            outcome = await device.load([slot.key for slot in slots], self._buffers(slots))
            copied = frozenset(outcome.succeeded)
        finally:
            self._storing_chunks -= len(slots)
            self.abandon([slot for slot in slots if slot.key not in copied])
            self.commit([slot for slot in slots if slot.key in copied])
        return dict(outcome.failed)

    async def _copy_in(self, device: Tier, prompt: Prompt, slots: Sequence[Slot]) -> Failures:
        try:
            outcome = await device.store([slot.key for slot in slots], self._buffers(slots))
        finally:
            self.release(slots)
        self.touch(prompt, [slot.key for slot in slots])
        self.count_loaded(len(outcome.succeeded))
        return dict(outcome.failed)

    async def _wait_filled(self, slots: Sequence[Slot], deadlines: Deadlines) -> set[Slot]:
        """Wait until nobody fills these slots, at most for their tiers' deadlines; returns the late ones."""
        by_time: dict[float, list[Slot]] = {}
        late: set[Slot] = set()
        with self._lock:
            for slot in slots:
                if slot.state is SlotState.FILLING:
                    by_time.setdefault(deadlines.at_s(self._placement.supplier(slot)), []).append(slot)
        for due_s, filling in sorted(by_time.items()):
            if not await self.mover.until(lambda: _are_filled(filling), due_s - self._clock()):  # noqa: B023
                late.update(slot for slot in filling if slot.state is SlotState.FILLING)
        with self._lock:
            self._placement.count_late(late)
        return late

    def _decline(self, tiers: Sequence[str | None]) -> None:
        """Count what is computed though it lies in tiers below. Call it under the lock."""
        for tier, chunks in Counter(tiers).items():
            if tier is not None and tier != self._pinned.name:
                self._placement.tally.count("declined_chunks", tier, chunks)

    def _remove_slots(self, keys: Sequence[ChunkKey]) -> None:
        with self._lock:
            self._placement.remove(keys)
            wakeup = self.mover.request(Run.NOW)  # jobs may wait for what this set free
        self.mover.send(wakeup)

    def _batches(self, keys: Sequence[ChunkKey]) -> list[Sequence[ChunkKey]]:
        step = self._batch_chunks
        return [keys[start : start + step] for start in range(0, len(keys), step)]

    @property
    def _batch_chunks(self) -> int:
        return max(1, min(self._placement.batch_chunks, self.slots_count // BATCHES_PER_ARENA))

    def _buffers(self, slots: Sequence[Slot]) -> list[memoryview]:
        return [self._pinned.buffer(slot) for slot in slots]

    def _has_places(self, count: int) -> bool:
        """Whether so many more chunks may wait in slots for the first tier below. Call it under the lock."""
        cascades = self._placement.cascades
        places = cascades.dirty_max - cascades.dirty_count - self._storing_chunks
        return places >= min(count, cascades.dirty_max)

    def _has_room(self, spare: PromptId) -> bool:
        return self._placement.table.room(spare, 1) > 0


def _are_filled(slots: Sequence[Slot]) -> bool:
    return all(slot.state is not SlotState.FILLING for slot in slots)
