"""The slot table: which chunk lies in which slot, and who still uses it.

A slot's life is short enough to be a table of legal steps:

    free -> FILLING -> READY -> GONE -> free
               \\________________/

FILLING: a transfer writes the slot; nobody may read it. READY: it can be read, and evicted while nobody
pins it. GONE: no lookup finds it any more, but transfers that still touch it hold pins; the slot is free
again when the last pin is returned. So a slot is never handed out while anything reads or writes it.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from ..base import Buffer, ChunkKey
from .eviction import EvictionPolicy, PromptId


class SlotState(enum.IntEnum):  # integers: their hash is not a call into Python
    FILLING = enum.auto()
    READY = enum.auto()
    GONE = enum.auto()


LEGAL = {
    SlotState.FILLING: {SlotState.READY, SlotState.GONE},
    SlotState.READY: {SlotState.GONE},
    SlotState.GONE: set[SlotState](),
}


class Slot:
    """One chunk's place in the arena. Only `SlotTable` changes it, but for what lies below.

    Attributes:
        prompt, position: of whom the slot was taken for, and where in that prompt the chunk lies.
        below: bit i is set where tier i below is known to have the chunk. The chain's to change, as is:
        unfilled: bit i is set where tier i gets the chunk from a store only.
    """

    __slots__ = ("below", "index", "key", "pins", "position", "prompt", "state", "unfilled")

    def __init__(self, key: ChunkKey, index: int, prompt: PromptId, position: int) -> None:
        self.key = key
        self.index = index
        self.prompt = prompt
        self.position = position
        self.below = self.unfilled = 0
        self.state = SlotState.FILLING
        self.pins = 1  # whoever fills it

    def __repr__(self) -> str:
        return f"Slot({self.index}, {self.state.name}, pins={self.pins})"


class SlotTable:
    """Slots by key, with pins and eviction. Pure and not thread-safe: its owner holds a lock."""

    def __init__(self, slots_count: int, policy: EvictionPolicy) -> None:
        assert slots_count > 0, "an arena has at least one slot"
        self.slots_count = slots_count
        # Mutable state; every method below changes it in one go.
        self._free = list(range(slots_count - 1, -1, -1))
        self._by_key: dict[ChunkKey, Slot] = {}
        self.get = self._by_key.get  # the slot of a key; asked for every key of every call
        self._policy = policy
        self._leaving: set[Slot] = set()
        self._pinned_count = (
            0  # kept up to date: a server's step asks for it, and there can be a million slots
        )

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def free_count(self) -> int:
        return len(self._free)

    @property
    def leaving_count(self) -> int:
        """Slots that no lookup finds but that a transfer still touches."""
        return len(self._leaving)

    @property
    def pinned_count(self) -> int:
        """Slots that somebody holds a pin on."""
        return self._pinned_count

    @property
    def idle_count(self) -> int:
        """Slots that nobody holds a pin on, free ones among them."""
        return self.slots_count - self._pinned_count

    def line(self, prompt: PromptId) -> Collection[ChunkKey]:
        """The readable chunks that the prompt was the last one to use."""
        return self._policy.line(prompt)

    def is_ready(self, key: ChunkKey) -> bool:
        slot = self._by_key.get(key)
        return slot is not None and slot.state is SlotState.READY

    def room(self, prompt: PromptId, wanted: int) -> int:
        """How many of `wanted` more chunks of the prompt would find a slot, and none of its line leave.

        The line is walked only where that decides.
        """
        possible = self.idle_count
        if wanted <= len(self._free):
            return wanted
        line = self._policy.line(prompt)
        if wanted <= possible - len(line):
            return wanted
        return min(wanted, possible - sum(map(self._is_idle, line)))

    def reserve(
        self,
        prompt: PromptId,
        keys: Sequence[ChunkKey],
        positions: Sequence[int],
        *,
        spare: PromptId | None = None,
    ) -> tuple[list[Slot], list[ChunkKey]]:
        """Take a slot for each of `keys`, none of which is in the table; evict to make room.

        The prompt's line becomes the youngest.

        Args:
            spare: the prompt of whose line none is evicted; without, it is the one that the slots are for.

        Returns:
            Slots for as many leading keys as there was room for, FILLING and pinned once for the filler;
            and the keys that were evicted for them.
        """
        evicted = self._make_room(len(keys), prompt if spare is None else spare)
        self._policy.arrive(prompt)
        free, by_key = self._free, self._by_key
        slots = []
        for key, position in zip(keys[: len(free)], positions, strict=False):
            assert key not in by_key, "a chunk has one slot"
            slot = by_key[key] = Slot(key, free.pop(), prompt, position)
            slots.append(slot)
        self._pinned_count += len(slots)
        return slots, evicted

    def fill(self, slots: Iterable[Slot]) -> None:
        """The slots are filled: readable from now on. The filler keeps its pin."""
        ready: dict[PromptId, list[Slot]] = {}
        for slot in slots:
            if slot.state is SlotState.FILLING:
                self._advance(slot, SlotState.READY)
                ready.setdefault(slot.prompt, []).append(slot)
        for prompt, filled in ready.items():
            keys, positions = [slot.key for slot in filled], [slot.position for slot in filled]
            self._policy.insert(prompt, keys, positions)

    def commit(self, slots: Sequence[Slot]) -> None:
        """The slots are filled: readable from now on, the filler's pin returned."""
        self.fill(slots)
        self.unpin(slots)

    def pin(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            assert slot.state is not SlotState.GONE, "a slot that left cannot be pinned again"
            slot.pins += 1
            self._pinned_count += slot.pins == 1

    def unpin(self, slots: Iterable[Slot]) -> None:
        for slot in slots:
            assert slot.pins > 0, "each pin is returned once"
            slot.pins -= 1
            if slot.pins:
                continue
            self._pinned_count -= 1
            if slot.state is SlotState.GONE:
                self._leaving.remove(slot)
                self._free.append(slot.index)

    def touch(self, prompt: PromptId, keys: Sequence[ChunkKey], positions: Sequence[int]) -> None:
        """The prompt used the chunks; those without a slot are ignored."""
        self._policy.touch(prompt, keys, positions)

    def drop(self, slots: Iterable[Slot]) -> None:
        """Hide the slots from lookups; each is free when its last pin is returned."""
        for slot in slots:
            if slot.state is SlotState.GONE:
                continue
            if slot.state is SlotState.READY:
                self._policy.remove(slot.key)
            self._leave(slot)

    def drop_all(self) -> list[ChunkKey]:
        """Drop every chunk; returns the keys that could be read until now."""
        ready = [slot.key for slot in self._by_key.values() if slot.state is SlotState.READY]
        self.drop(list(self._by_key.values()))
        return ready

    def check(self) -> None:
        """Assert that every slot is in exactly one place."""
        held = [slot.index for slot in (*self._by_key.values(), *self._leaving)]
        assert sorted(held + self._free) == list(range(self.slots_count)), "a slot leaked or is held twice"
        assert all(slot.state is SlotState.GONE and slot.pins for slot in self._leaving)
        pinned = [slot for slot in (*self._by_key.values(), *self._leaving) if slot.pins]
        assert len(pinned) == self._pinned_count, "every slot that somebody holds is counted"
        ready = {slot.key for slot in self._by_key.values() if slot.state is SlotState.READY}
        assert len(self._policy) == len(ready), "the policy holds exactly what can be read"
        assert all(key in self._policy for key in ready)
        assert all(slot.pins for slot in self._by_key.values() if slot.state is SlotState.FILLING)
        self._policy.check()

    def _make_room(self, count: int, spare: PromptId) -> list[ChunkKey]:
        missing = count - len(self._free)
        if missing > 0:
            missing = min(missing, self.idle_count - len(self._free))
        if missing <= 0:  # none is needed, or none can be found
            return []
        victims = self._policy.evict(missing, self._is_idle, spare=spare)
        for key in victims:
            self._leave(self._by_key[key])
        return victims

    def _is_idle(self, key: ChunkKey) -> bool:
        return not self._by_key[key].pins

    def _leave(self, slot: Slot) -> None:
        self._advance(slot, SlotState.GONE)
        del self._by_key[slot.key]
        if slot.pins:
            self._leaving.add(slot)
        else:
            self._free.append(slot.index)

    def _advance(self, slot: Slot, state: SlotState) -> None:
        assert state in LEGAL[slot.state], f"{slot.state.name} -> {state.name} is not a legal step"
        slot.state = state


class SlotTier(Protocol):
    """A tier whose memory other tiers may read and write in place."""

    @property
    def name(self) -> str: ...

    @property
    def table(self) -> SlotTable:
        """Which chunk lies where; not thread-safe."""
        ...

    @property
    def slot_bytes(self) -> int: ...

    def buffer(self, slot: Slot) -> Buffer:
        """The slot's memory, writable, valid while the slot is pinned."""
        ...
