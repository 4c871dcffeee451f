"""The state of a chain: which chunk lies in which slot, what moves next, and who holds what.

Nothing here waits, moves a byte or takes a lock. The chain and its mover do, and call in under their lock.
Each method changes the state in one step and leaves it consistent.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from ..tiers.base import ChunkKey, Failure, Outcome, RemoveReason, Tier, TierStats
from ..tiers.pinned.slots import Slot, SlotState, SlotTier
from .events import EventLog
from .prompts import GroupOf, Prompt

BATCH_CHUNKS_MAX = 64  # one tier call; enough to fill a drive's queue, small enough to show progress
CASCADES_IN_FLIGHT_MAX = 4  # tier calls at once; each already spreads over the tier's own threads
DIRTY_FRACTION_MAX = 0.5  # of all slots; what waits for a drive may not crowd out what could hit


class Presence(enum.IntEnum):  # whole numbers, whose hash is not a call into Python
    """Where a wanted chunk is."""

    READY = enum.auto()  # in a slot, readable
    PENDING = enum.auto()  # on its way into a slot
    LATE = enum.auto()  # on its way for longer than the deadline: count it as a miss
    FULL = enum.auto()  # below, but every slot is in use: count it as a miss
    MISS = enum.auto()


# What is counted where a chunk cannot be had.
_REFUSALS = {Presence.LATE: "late_loads", Presence.FULL: "slotless", Presence.MISS: "misses"}


class Found(NamedTuple):
    """One answer to a request for a chunk.

    Attributes:
        slot: pinned for the caller, who returns it with `release`; None where there is nothing to read.
        source: name of the tier that supplies the chunk.
    """

    presence: Presence
    slot: Slot | None = None
    source: str = ""


class Reservation(NamedTuple):
    """What a store got.

    Attributes:
        slots: FILLING slots for new chunks, in the order of the keys, pinned for the caller.
        busy: keys whose slot somebody else is filling.
        left: keys for which there was no room.
        evicted: keys that left their slots for these.
        refused: nothing was taken and nothing evicted, as not all fits now: offer it again.
    """

    slots: list[Slot]
    busy: list[ChunkKey]
    left: list[ChunkKey]
    evicted: list[ChunkKey]
    refused: bool = False


class Batches(NamedTuple):
    """Batches that may move now: promotions from a tier, and cascades to all tiers below."""

    promotions: list[tuple[Tier, list[Slot]]]
    cascades: list[list[Slot]]


class Placement:
    """The slots of one pinned tier, and what is on its way into and out of them.

    A promotion or cascade that waits or runs holds a pin on its slots; that alone keeps a slot in place.
    """

    def __init__(
        self,
        pinned: SlotTier,
        *,
        below: str | None,
        load_deadline_s: float,
        events: EventLog | None,
        clock: Callable[[], float],
    ) -> None:
        self.name = pinned.name
        self.table = pinned.table
        self.slot_bytes = pinned.slot_bytes
        self.dirty_max = max(1, int(pinned.table.slots_count * DIRTY_FRACTION_MAX))
        self.load_deadline_s = load_deadline_s
        self._below = below  # the first tier that chunks go down to
        self._events = events
        self._clock = clock
        # Mutable state:
        self._since_s: dict[Slot, float] = {}  # when each promotion was queued
        self._to_promote: list[tuple[Tier, Slot]] = []
        self._to_cascade: deque[Slot] = deque()
        self._dirty: set[Slot] = set()
        self._admitted = 0  # chunks that will be committed and have their place among the dirty ones
        self._cascades_in_flight = 0
        self._cascades = below is not None  # whether anything goes down at all
        self._prompts = itertools.count()
        self.epoch = 0  # rises whenever everything is invalidated
        self.counters: Counter[tuple[str, str]] = Counter()

    @property
    def dirty(self) -> frozenset[Slot]:
        """Slots that wait for the tiers below, or are being copied there."""
        return frozenset(self._dirty)

    @property
    def dirty_count(self) -> int:
        """How many these are."""
        return len(self._dirty)

    def has_room(self, prompt: Prompt) -> bool:
        """Whether the prompt can have a slot now: free, or such that it may be evicted for it."""
        return self.table.room(prompt.id, 1) > 0

    def new_prompt(self, group_of: GroupOf) -> Prompt:
        """A prompt of which nothing is known yet."""
        return Prompt(next(self._prompts), group_of)

    def touch(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> None:
        """The prompt used the chunks."""
        self.table.touch(prompt.id, keys, prompt.place(keys))

    # Finding.

    def pin(self, key: ChunkKey) -> Found:
        """Pin the chunk's slot, if it has one that is worth waiting for."""
        slot = self.table.get(key)
        if slot is None:
            return Found(Presence.MISS)
        presence = self.presence(slot)
        if presence is Presence.LATE:
            return Found(presence)
        self.table.pin([slot])
        return Found(presence, slot, self.name)

    def presence(self, slot: Slot) -> Presence:
        if slot.state is SlotState.READY:
            return Presence.READY
        if slot.state is SlotState.GONE:
            return Presence.MISS
        since_s = self._since_s.get(slot)
        late = since_s is not None and self._clock() - since_s > self.load_deadline_s
        return Presence.LATE if late else Presence.PENDING

    def promote(self, prompt: Prompt, key: ChunkKey, tier: Tier) -> Found:
        """Take a slot for a chunk of a tier below and queue its promotion."""
        # The tier was asked without the lock: the key may have got a slot meanwhile.
        if self.table.get(key) is not None:
            return self.pin(key)
        slots, _ = self._take_slots(prompt, [key])
        if not slots:
            return Found(Presence.FULL)
        (slot,) = slots
        self.table.pin(slots)
        self._since_s[slot] = self._clock()
        self._to_promote.append((tier, slot))
        return Found(Presence.PENDING, slot, tier.name)

    # Storing.

    def reserve(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> Reservation:
        prompt.place(keys)  # all of them, in order: those that have a slot lie between the others
        held = {key: slot for key in keys if (slot := self.table.get(key)) is not None}
        new = [key for key in keys if key not in held]
        slots, evicted = self._take_slots(prompt, new)
        busy = [key for key, slot in held.items() if slot.state is SlotState.FILLING]
        return Reservation(slots, busy, new[len(slots) :], evicted)

    def admit(self, count: int) -> bool:
        """Give `count` chunks a place among the dirty ones, if all of them find one."""
        admits = len(self._dirty) + self._admitted + count <= self.dirty_max
        self._admitted += count if admits else 0
        return admits

    def commit(self, slots: Sequence[Slot], admitted: int) -> None:
        self._admitted -= admitted
        stored = [slot for slot in slots if slot.state is SlotState.FILLING]
        self.count_moved("stored", self.name, len(stored))
        self._queue_cascades(stored)
        self.table.commit(slots)
        self._emit_stored(self.name, [slot.key for slot in stored])

    def abandon(self, slots: Sequence[Slot]) -> None:
        self.table.drop(slots)
        self.table.unpin(slots)

    def drop_all(self) -> list[ChunkKey]:
        """Drop every chunk; returns the keys that could be read until now."""
        self.epoch += 1
        gone = self.table.drop_all()
        self.counters["invalidated_chunks", self.name] += len(gone)
        self._emit_removed(self.name, gone, RemoveReason.INVALIDATED)
        return gone

    def remove(self, keys: Sequence[ChunkKey]) -> None:
        """Drop the slots of these keys; their queued cascades never begin."""
        slots = [slot for key in keys if (slot := self.table.get(key)) is not None]
        ready = [slot.key for slot in slots if slot.state is SlotState.READY]
        self.counters["requested_chunks", self.name] += len(ready)
        self._emit_removed(self.name, ready, RemoveReason.REQUESTED)
        self.table.drop(slots)
        self._unqueue(set(slots).intersection(self._to_cascade))

    def removed_below(self, tier: str, keys: Sequence[ChunkKey]) -> None:
        """A tier below has removed chunks on request."""
        self.counters["requested_chunks", tier] += len(keys)
        self._emit_removed(tier, keys, RemoveReason.REQUESTED)

    # Moving.

    @property
    def has_promotions(self) -> bool:
        """Whether promotions are queued that have not begun."""
        return bool(self._to_promote)

    def take_batches(self) -> Batches:
        """Take what may move now; `promoted`, or `cascaded` and `cascade_ended`, give each batch back."""
        queued, self._to_promote = self._to_promote, []
        by_tier: dict[int, tuple[Tier, list[Slot]]] = {}
        for tier, slot in queued:
            by_tier.setdefault(id(tier), (tier, []))[1].append(slot)
        promotions = [(tier, batch) for tier, slots in by_tier.values() for batch in _batches(slots)]
        return Batches(promotions, self._take_cascades())

    def promoted(self, tier: Tier, slots: Sequence[Slot], outcome: Outcome) -> None:
        """A promotion ended; what did not succeed is a miss."""
        filled = set(outcome.succeeded)
        good = [slot for slot in slots if slot.key in filled]
        bad = [slot for slot in slots if slot.key not in filled]
        for slot in slots:
            del self._since_s[slot]
        self._emit_stored(self.name, [slot.key for slot in good if slot.state is SlotState.FILLING])
        corrupt = [key for key, reason in outcome.failed.items() if reason is Failure.CORRUPT]
        self._emit_removed(tier.name, corrupt, RemoveReason.CORRUPT)
        self.table.commit(good)
        self.abandon(bad)
        self.count_moved("loaded", tier.name, len(good))

    def stored_below(self, tier: Tier, outcome: Outcome) -> None:
        """One tier has taken what it could of a cascade."""
        self.counters["dropped_chunks", tier.name] += len(outcome.failed)
        self.count_moved("stored", tier.name, len(outcome.succeeded))
        self._emit_stored(tier.name, outcome.succeeded)

    def cascade_ended(self) -> None:
        """A cascade makes room for the next one; parts of it may still hang."""
        self._cascades_in_flight -= 1

    def cascaded(self, slots: Sequence[Slot]) -> None:
        """A cascade, or a part of one, is through with these, however it ended."""
        self._dirty.difference_update(slots)
        self.table.unpin(slots)

    def stop_cascading(self) -> None:
        """Drop the queue of cascades, and queue nothing from now on."""
        self._cascades = False
        self._unqueue(self._to_cascade)

    # Counting.

    def count_moved(self, how: str, tier: str, chunks: int) -> None:
        self.counters[f"{how}_chunks", tier] += chunks
        self.counters[f"{how}_bytes", tier] += chunks * self.slot_bytes

    def count_refused(self, found: Iterable[Found]) -> None:
        """Count what cannot be had, in time or at all, by reason."""
        for presence, *_ in found:
            if presence in _REFUSALS:
                self.counters[_REFUSALS[presence], self.name] += 1

    def stats(self) -> TierStats:
        table = self.table
        used = (table.slots_count - table.free_count) * self.slot_bytes
        return TierStats(len(table), used, table.slots_count * self.slot_bytes)

    def check(self) -> None:
        """Assert integrity; for tests."""
        self.table.check()
        assert all(slot.pins for slot in self._dirty), "a dirty slot is pinned"
        assert len(self._dirty) + self._admitted <= self.dirty_max
        assert set(self._to_cascade) <= self._dirty

    def _take_slots(self, prompt: Prompt, keys: Sequence[ChunkKey]) -> tuple[list[Slot], list[ChunkKey]]:
        slots, evicted = self.table.reserve(prompt.id, keys, prompt.place(keys))
        self.counters["evicted_chunks", self.name] += len(evicted)
        self._emit_removed(self.name, evicted, RemoveReason.EVICTED)
        return slots, evicted

    def _queue_cascades(self, slots: Sequence[Slot]) -> None:
        if not self._cascades or self._below is None:
            return
        room = self.dirty_max - len(self._dirty) - self._admitted
        accepted = slots[: max(0, room)]
        self.table.pin(accepted)
        self._dirty.update(accepted)
        self._to_cascade.extend(accepted)
        self.counters["dropped_chunks", self._below] += len(slots) - len(accepted)

    def _unqueue(self, slots: Collection[Slot]) -> None:
        gone = set(slots)
        self._to_cascade = deque(slot for slot in self._to_cascade if slot not in gone)
        self._dirty.difference_update(gone)
        self.table.unpin(gone)

    def _take_cascades(self) -> list[list[Slot]]:
        batches = []
        while self._to_cascade and self._cascades_in_flight < CASCADES_IN_FLIGHT_MAX:
            count = min(BATCH_CHUNKS_MAX, len(self._to_cascade))
            batches.append([self._to_cascade.popleft() for _ in range(count)])
            self._cascades_in_flight += 1
        return batches

    def _emit_stored(self, tier: str, keys: Sequence[ChunkKey]) -> None:
        if self._events is not None:
            self._events.stored(tier, keys)

    def _emit_removed(self, tier: str, keys: Collection[ChunkKey], reason: RemoveReason) -> None:
        if self._events is not None:
            self._events.removed(tier, list(keys), reason)


def _batches(slots: Iterable[Slot]) -> list[list[Slot]]:
    slots = list(slots)
    return [slots[i : i + BATCH_CHUNKS_MAX] for i in range(0, len(slots), BATCH_CHUNKS_MAX)]
