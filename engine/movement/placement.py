"""The state of a chain: which chunk lies in which slot, what moves next, and who holds what.

Nothing here waits, moves a byte or takes a lock. The chain and its mover do, and call in under their lock.
Each method changes the state in one step and leaves it consistent.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from ...tiers.base import ChunkKey, Failure, Outcome, RemoveReason, Tier, TierStats
from ...tiers.pinned.eviction import PromptId
from ...tiers.pinned.slots import Slot, SlotState, SlotTable, SlotTier
from ..events import EventLog
from .cascades import Cascades
from .deadlines import Deadlines, longest_s
from .prompts import GroupOf, Prompt
from .tally import Tally

NOBODY: PromptId = -1  # has no line that could be spared


class Presence(enum.IntEnum):  # whole numbers, whose hash is not a call into Python
    """Where a wanted chunk is."""

    READY = enum.auto()  # in a slot, readable
    PENDING = enum.auto()  # on its way into a slot
    LATE = enum.auto()  # on its way for longer than the deadline: count it as a miss
    FULL = enum.auto()  # below, but every slot is in use: count it as a miss
    ASKING = enum.auto()  # a tier below finds out whether it has the chunk: ask again
    MISS = enum.auto()


# What is counted of the pinned tier where a chunk cannot be had.
_REFUSALS = {Presence.FULL: "slotless", Presence.MISS: "misses"}


class Found(NamedTuple):
    """One answer to a request for a chunk.

    Attributes:
        slot: pinned for the caller, who returns it with `release`; None where there is nothing to read.
        source: name of the tier that supplies the chunk, or is late to.
    """

    presence: Presence
    slot: Slot | None = None
    source: str = ""


_FULL = Found(Presence.FULL)
_MISS = Found(Presence.MISS)


class Reservation(NamedTuple):
    """What a store got.

    Attributes:
        slots: FILLING slots for new chunks, in the order of the keys, pinned for the caller.
        busy: keys whose slot somebody else is filling.
        left: keys for which there was no room.
        held: keys whose slot can be read.
        evicted: keys that left their slots for these.
        refused: nothing was taken and nothing evicted, as not all fits now: offer it again.
    """

    slots: list[Slot]
    busy: list[ChunkKey]
    left: list[ChunkKey]
    evicted: list[ChunkKey]
    held: list[ChunkKey]
    refused: bool = False


class Take(NamedTuple):
    """Every new chunk gets a slot."""


class Cut(NamedTuple):
    """The prompt never fits: its leading new chunks get slots, and nothing from a position on."""

    ends_at: int


class Refuse(NamedTuple):
    """Not all fits now: nothing is taken and nothing evicted."""


StorePlan: TypeAlias = Take | Cut | Refuse


def plan_store(
    table: SlotTable, prompt: Prompt, held: Sequence[ChunkKey], new: Sequence[ChunkKey]
) -> StorePlan:
    """Decide what a store may take that leaves no gap in its prompt and evicts nothing of it.

    Args:
        held: keys of the store that have a slot, each of which is pinned.
        new: the others.
    """
    wanted = len(new)
    possible = table.room(prompt.id, wanted) if prompt.is_spared else min(wanted, table.idle_count)
    if possible == wanted:
        return Take()
    own = {*held, *table.line(prompt.id)} if prompt.is_spared else set(held)
    if len(own) + wanted <= table.slots_count:
        return Refuse()
    return Cut(sorted(prompt.positions[key] for key in new)[possible])


class Placement:
    """The slots of one pinned tier, and what is on its way into and out of them.

    A promotion or cascade that waits or runs holds a pin on its slots; that alone keeps a slot in place.
    """

    def __init__(
        self,
        pinned: SlotTier,
        lower: Sequence[str],
        *,
        dirty_fraction: float,
        load_deadlines_s: Mapping[str, float],
        unfilled: frozenset[str],
        batch_bytes: int,
        events: EventLog | None,
        clock: Callable[[], float],
    ) -> None:
        self.name = pinned.name
        self.table = pinned.table
        self.slot_bytes = pinned.slot_bytes
        self.load_deadlines_s = load_deadlines_s
        self.tally = Tally(pinned.slot_bytes, lower, events)
        self.cascades = Cascades(
            pinned.table,
            lower,
            self.tally,
            slot_bytes=pinned.slot_bytes,
            batch_bytes=batch_bytes,
            dirty_max=max(1, int(pinned.table.slots_count * dirty_fraction)),
            unfilled=unfilled,
        )
        self.batch_chunks = max(1, batch_bytes // pinned.slot_bytes)
        self._clock = clock
        # Mutable state:
        self._promoting: dict[Slot, tuple[str, float]] = {}  # from where, and when it is late
        self._to_promote: list[tuple[Tier, Slot]] = []
        self._prompts = itertools.count()
        self.epoch = 0  # rises whenever everything is invalidated

    @property
    def load_deadline_s(self) -> float:
        """The longest deadline of a tier below."""
        return longest_s(self.load_deadlines_s)

    def new_prompt(self, group_of: GroupOf) -> Prompt:
        """A prompt of which nothing is known yet."""
        return Prompt(next(self._prompts), group_of)

    def touch(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> None:
        """The prompt used the chunks; tiers below that lack some of them are owed these."""
        self.table.touch(prompt.id, keys, prompt.place(keys))
        slots = [slot for slot in map(self.table.get, keys) if slot is not None]
        self.cascades.used([slot for slot in slots if slot.state is SlotState.READY])

    # Finding.

    def pin(self, key: ChunkKey) -> Found:
        """Pin the chunk's slot, if it has one that is worth waiting for."""
        slot = self.table.get(key)
        if slot is None:
            return _MISS
        presence = Presence.READY if slot.state is SlotState.READY else self.presence(slot)
        if presence is Presence.LATE:
            return Found(Presence.LATE, None, self.supplier(slot))
        self.table.pin((slot,))
        return Found(presence, slot, self.name)

    def presence(self, slot: Slot, deadlines: Deadlines | None = None) -> Presence:
        """Look at a slot.

        Args:
            deadlines: of the load that asks; without, a promotion is late by its own time.
        """
        if slot.state is SlotState.READY:
            return Presence.READY
        if slot.state is SlotState.GONE:
            return Presence.MISS
        tier, due_s = self._promoting.get(slot, (self.name, math.inf))
        if deadlines is not None:
            due_s = deadlines.at_s(tier)
        return Presence.LATE if self._clock() > due_s else Presence.PENDING

    def supplier(self, slot: Slot) -> str:
        """Name the tier that fills a slot; the pinned one where a store does."""
        return self._promoting.get(slot, (self.name, 0.0))[0]

    def promote(self, prompt: Prompt, below: Mapping[ChunkKey, Tier]) -> dict[ChunkKey, Found]:
        """Take slots for chunks of tiers below and queue their promotions.

        Where not all find room, the leading ones get a slot.
        """
        # The tiers were asked without the lock: some keys may have got a slot meanwhile.
        found = {key: self.pin(key) for key in below if self.table.get(key) is not None}
        slots = self._take_slots(prompt, [key for key in below if key not in found], NOBODY)[0]
        self.table.pin(slots)
        deadlines = Deadlines(self._clock(), self.load_deadlines_s)
        for slot in slots:
            tier = below[slot.key]
            self._promoting[slot] = tier.name, deadlines.at_s(tier.name)
            self._to_promote.append((tier, slot))
            found[slot.key] = Found(Presence.PENDING, slot, tier.name)
        for key in below:
            found.setdefault(key, _FULL)
        return found

    # Storing.

    def reserve(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> Reservation:
        """Take slots for a store that does not wait: for all new chunks, or as `plan_store` says."""
        held, new, left = self._sorted_out(prompt, keys)
        slots = list(held.values())
        self.table.pin(slots)  # what the store names makes no room for the rest
        try:
            plan = plan_store(self.table, prompt, list(held), new)
            if not isinstance(plan, Take) and self.cascades.catch_up():
                plan = plan_store(self.table, prompt, list(held), new)
            if isinstance(plan, Refuse):
                prompt.refused_chunks = len(new)
                return Reservation([], [], [], [], [], refused=True)
            if isinstance(plan, Cut):
                prompt.ends_at = plan.ends_at
                _, new, left = self._sorted_out(prompt, keys)
            prompt.refused_chunks = 0
            reserved = self._reserved(prompt, held, new, left, prompt.id if prompt.is_spared else NOBODY)
            if reserved.held:
                there = [held[key] for key in reserved.held]
                self.table.pin(there)
                self.cascades.note(there)
            return reserved
        finally:
            self.table.unpin(slots)

    def reserve_leading(self, prompt: Prompt, keys: Sequence[ChunkKey], spare: PromptId) -> Reservation:
        """Take slots for as many leading chunks as find room without a chunk of the prompt to spare."""
        held, new, _ = self._sorted_out(prompt, keys)
        slots = list(held.values())
        self.table.pin(slots)
        try:
            reserved = self._reserved(prompt, held, new, [], spare)
            self.cascades.stored([held[key] for key in reserved.held])
            return reserved
        finally:
            self.table.unpin(slots)

    def commit(self, slots: Sequence[Slot]) -> None:
        """Filled slots can be read from now on, and the tiers below are owed their chunks."""
        self.note(slots)
        self.cascades.catch_up()

    def note(self, slots: Sequence[Slot]) -> None:
        """Filled slots can be read from now on; what the tiers below are owed of it is only noted."""
        stored = [slot.key for slot in slots if slot.state is SlotState.FILLING]
        self.tally.moved("stored", self.name, len(stored))
        self.tally.stored(self.name, stored)
        self.table.fill(slots)
        self.cascades.note(slots)

    def abandon(self, slots: Sequence[Slot]) -> None:
        self.tally.failed([slot.key for slot in slots if slot.state is SlotState.FILLING])
        self.table.drop(slots)
        self.table.unpin(slots)

    def drop_all(self) -> list[ChunkKey]:
        """Drop every chunk; returns the keys that could be read until now."""
        self.epoch += 1
        gone = self.table.drop_all()
        self.cascades.forget_all()
        self.tally.count("invalidated_chunks", self.name, len(gone))
        self.tally.removed(self.name, gone, RemoveReason.INVALIDATED)
        return gone

    def remove(self, keys: Sequence[ChunkKey]) -> None:
        """Drop the slots of these keys, and what the tiers below are owed of them."""
        slots = [slot for key in keys if (slot := self.table.get(key)) is not None]
        ready = [slot.key for slot in slots if slot.state is SlotState.READY]
        self.tally.count("requested_chunks", self.name, len(ready))
        self.tally.removed(self.name, ready, RemoveReason.REQUESTED)
        self.cascades.forget(keys)
        self.table.drop(slots)

    def removed_below(self, tier: str, keys: Sequence[ChunkKey]) -> None:
        """A tier below has removed chunks on request."""
        self.tally.count("requested_chunks", tier, len(keys))
        self.tally.removed(tier, keys, RemoveReason.REQUESTED)

    # Moving.

    @property
    def has_promotions(self) -> bool:
        """Whether promotions are queued that have not begun."""
        return bool(self._to_promote)

    def take_promotions(self) -> list[tuple[Tier, list[Slot]]]:
        """Take the promotions that are queued, in batches of one tier; `promoted` gives each back."""
        queued, self._to_promote = self._to_promote, []
        by_tier: dict[int, tuple[Tier, list[Slot]]] = {}
        for tier, slot in queued:
            by_tier.setdefault(id(tier), (tier, []))[1].append(slot)
        step = self.batch_chunks
        return [
            (tier, slots[start : start + step])
            for tier, slots in by_tier.values()
            for start in range(0, len(slots), step)
        ]

    def promoted(self, tier: Tier, slots: Sequence[Slot], outcome: Outcome) -> None:
        """A promotion ended; what did not succeed is a miss."""
        filled = set(outcome.succeeded)
        good = [slot for slot in slots if slot.key in filled]
        bad = [slot for slot in slots if slot.key not in filled]
        for slot in slots:
            del self._promoting[slot]
        self.tally.stored(self.name, [slot.key for slot in good if slot.state is SlotState.FILLING])
        corrupt = [key for key, reason in outcome.failed.items() if reason is Failure.CORRUPT]
        self.tally.removed(tier.name, corrupt, RemoveReason.CORRUPT)
        self.table.commit(good)
        self.abandon(bad)
        self.cascades.promoted([slot for slot in good if slot.state is SlotState.READY], tier.name)
        self.tally.moved("loaded", tier.name, len(good))

    # Counting.

    def count_refused(self, found: Iterable[Found]) -> None:
        """Count what cannot be had, in time or at all, by reason; what is late, of the tier that is."""
        for presence, _, source in found:
            if presence is Presence.LATE:
                self.tally.count("late_loads", source)
            elif presence in _REFUSALS:
                self.tally.count(_REFUSALS[presence], self.name)

    def count_late(self, slots: Iterable[Slot]) -> None:
        """Count promotions that a load waited for in vain, of the tier that they come from."""
        for slot in slots:
            self.tally.count("late_loads", self.supplier(slot))

    def stats(self) -> TierStats:
        table = self.table
        used = (table.slots_count - table.free_count) * self.slot_bytes
        return TierStats(len(table), used, table.slots_count * self.slot_bytes)

    def check(self) -> None:
        """Assert integrity; for tests."""
        self.table.check()
        self.cascades.check()

    def _sorted_out(
        self, prompt: Prompt, keys: Sequence[ChunkKey]
    ) -> tuple[dict[ChunkKey, Slot], list[ChunkKey], list[ChunkKey]]:
        """The keys of a store with a slot, those that may get one, and those beyond its end."""
        positions = prompt.place(keys)
        ends_at = prompt.ends_at
        held: dict[ChunkKey, Slot] = {}
        new, left = [], []
        for key, position in zip(keys, positions, strict=True):
            slot = self.table.get(key)
            if slot is not None:
                held[key] = slot
            elif ends_at is None or position < ends_at:
                new.append(key)
            else:
                left.append(key)
        return held, new, left

    def _reserved(
        self,
        prompt: Prompt,
        held: Mapping[ChunkKey, Slot],
        new: Sequence[ChunkKey],
        left: Sequence[ChunkKey],
        spare: PromptId,
    ) -> Reservation:
        slots, evicted = self._take_slots(prompt, new, spare)
        there = [key for key, slot in held.items() if slot.state is SlotState.READY]
        busy = [key for key, slot in held.items() if slot.state is SlotState.FILLING]
        return Reservation(slots, busy, [*new[len(slots) :], *left], evicted, there)

    def _take_slots(
        self, prompt: Prompt, keys: Sequence[ChunkKey], spare: PromptId
    ) -> tuple[list[Slot], list[ChunkKey]]:
        if len(keys) > self.table.idle_count:
            self.cascades.catch_up()  # which may return pins
        slots, evicted = self.table.reserve(prompt.id, keys, prompt.place(keys), spare=spare)
        if evicted:
            self.tally.count("evicted_chunks", self.name, len(evicted))
            self.tally.removed(self.name, evicted, RemoveReason.EVICTED)
            self.cascades.evicted(evicted)
        return slots, evicted
