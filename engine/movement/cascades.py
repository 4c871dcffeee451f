"""What goes down from the slots: which tier below is owed which chunk, and what each tier has.

A slot knows which tiers below have its chunk. What a tier lacks it is owed, in a queue of its own: when the
chunk is stored, and again when it is used. What waits for the first tier keeps its slot, up to a fraction of
all slots, unless that tier fails: beyond that a slot may be evicted, and its chunk leaves the queue. What
waits for a tier further down is a key, and holds nothing.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from ...tiers.base import ChunkKey, Failure, Outcome
from ...tiers.pinned.slots import Slot, SlotState, SlotTable
from .losses import Losses
from .queues import Limits, TierQueue
from .tally import Tally

NOTED_AT_ONCE = 64  # some 0.2 ms of the loop's thread, after which others may have the interpreter


class Batch(NamedTuple):
    """Chunks on their way to one tier.

    Attributes:
        tier: its place among those below.
        slots: readable ones, pinned until they are settled.
        keys: chunks that have no slot any more; a tier above this one may have them.
    """

    tier: int
    slots: list[Slot]
    keys: list[ChunkKey]


class Cascades:
    """The queues of the tiers below, nearest first. Pure; its owner holds a lock.

    Args:
        unfilled: tiers that are owed nothing of what a tier further down supplies.
        dirty_max: slots that may be kept from eviction because the first tier is owed them.
    """

    def __init__(
        self,
        table: SlotTable,
        tiers: Sequence[str],
        tally: Tally,
        *,
        slot_bytes: int,
        batch_bytes: int,
        dirty_max: int,
        unfilled: frozenset[str],
    ) -> None:
        self.dirty_max = dirty_max
        self._table, self._names, self._tally = table, tuple(tiers), tally
        self._unfilled = sum(1 << index for index, name in enumerate(tiers) if name in unfilled)
        # Mutable state; each method changes it in one go.
        self._queues = [TierQueue(Limits.of(slot_bytes, table.slots_count, batch_bytes)) for _ in tiers]
        self._use((1 << len(tiers)) - 1)
        self._dirty: dict[ChunkKey, Slot] = {}  # pinned: the first tier is owed them
        self._exposed: OrderedDict[ChunkKey, Slot] = OrderedDict()  # the same, not pinned
        self._losses = Losses()
        self._noted: dict[Slot, None] = {}  # pinned: stored, and not yet owed to any tier; in this order
        self._is_behind = False  # with those, though some were treated

    @property
    def dirty_count(self) -> int:
        """Slots that are kept for the first tier."""
        return len(self._dirty)

    @property
    def losses(self) -> Losses:
        """What is open and what is lost of everything that was stored."""
        self.catch_up()
        return self._losses

    @property
    def pending(self) -> dict[str, int]:
        """Chunks that each tier is owed, by its name."""
        self.catch_up()
        return {name: queue.pending_count for name, queue in zip(self._names, self._queues, strict=True)}

    @property
    def may_move(self) -> bool:
        """Whether some tier is owed chunks that may move now."""
        if self._noted:
            return True
        for queue in self._queues:  # noqa: SIM110 - asked in every call of a server, and there is one mostly
            if queue.may_move:
                return True
        return False

    @property
    def numbers(self) -> list[int]:
        """What each tier was owed last, for `has_offered`."""
        self.catch_up()
        return [queue.number for queue in self._queues]

    @property
    def retry_at_s(self) -> float | None:
        """When to take again, without another event: for a tier that failed, or at once for what is noted."""
        if self._is_behind:
            return 0.0
        times = [queue.retry_at_s for queue in self._queues if queue.retry_at_s is not None]
        return min(times, default=None)

    # What a tier is owed.

    def note(self, slots: Iterable[Slot]) -> None:
        """Slots were filled by a store, or named by one. They stay pinned until `catch_up` treats them so.

        A server's step waits for this. What follows from it can be done by whoever looks at it first, mostly
        the loop's thread.
        """
        noted, in_use, settled = self._noted, self._in_use, []
        for slot in slots:
            if slot in noted or slot.below & in_use == in_use:
                settled.append(slot)
            else:
                noted[slot] = None
        self._table.unpin(settled)

    def catch_up(self) -> bool:
        """Treat what was noted as stored; returns whether there was anything."""
        noted, self._noted, self._is_behind = self._noted, {}, False
        self._treat_as_stored(noted)
        return bool(noted)

    def stored(self, slots: Sequence[Slot]) -> None:
        """Slots were filled by a store, or named by one: the tiers that lack their chunks are owed them."""
        in_use = self._in_use
        if not slots or not in_use:
            return
        self._losses.stored([slot.key for slot in slots if not in_use & slot.below], in_use)
        for tier in _bits(in_use):
            self._owe(tier, [slot for slot in slots if not slot.below >> tier & 1])
        self._protect()

    def used(self, slots: Sequence[Slot]) -> None:
        """Chunks were used from their slots: what some tier lacks it is owed."""
        if self._noted:  # these are owed in their turn
            slots = [slot for slot in slots if slot not in self._noted]
        for tier in _bits(self._in_use):
            lacking = [slot for slot in slots if not (slot.below | slot.unfilled) >> tier & 1]
            if lacking:
                self._owe(tier, [slot for slot in lacking if slot.key not in self._queues[tier]])
        self._protect()

    def promoted(self, slots: Sequence[Slot], name: str) -> None:
        """A tier below has filled these slots. The nearer tiers are owed what they want of it."""
        source = self._names.index(name)
        nearer = (1 << source) - 1
        for slot in slots:
            slot.below |= self._in_use & ~nearer
            slot.unfilled = self._unfilled & nearer
        for tier in _bits(self._in_use):
            self._owe(tier, [slot for slot in slots if not (slot.below | slot.unfilled) >> tier & 1])
        self._protect()

    def evicted(self, keys: Iterable[ChunkKey]) -> None:
        """Chunks have left their slots. The first tier gets what it is owed from nowhere else."""
        first = self._first
        if first is None:
            return
        queue = self._queues[first]
        for key in keys:
            self._exposed.pop(key, None)
            if queue.drop(key):
                self._tally.count("dropped_chunks", self._names[first])
                self._losses.failed(key, first, Failure.DROPPED)

    def removed_by(self, name: str, keys: Iterable[ChunkKey]) -> None:
        """A tier reports that it has removed chunks. They are owed again when they are used."""
        tier = self._names.index(name)
        for key in keys:
            slot = self._table.get(key)
            if slot is not None:
                slot.below &= ~(1 << tier)
            self._queues[tier].left(key)

    def forget(self, keys: Collection[ChunkKey]) -> None:
        """Chunks were removed: no tier is owed them any more."""
        for key in keys:
            for queue in self._queues:
                queue.forget(key)
            self._release([key])
        self._losses.kept(keys)

    def forget_all(self) -> None:
        """Everything was invalidated."""
        self._clear()
        self._losses.forget_all()

    def give_up(self) -> None:
        """Nothing goes down from now on: what is not down is lost."""
        self.catch_up()
        self._losses.give_up()
        self._clear()
        self._use(0)

    def stop_using(self, name: str) -> None:
        """This tier is owed nothing from now on."""
        self.catch_up()
        tier = self._names.index(name)
        self._queues[tier].forget_all()
        self._losses.not_used(tier)
        if tier == self._first:
            self._release([*self._dirty, *self._exposed])
        self._use(self._in_use & ~(1 << tier))

    # What moves.

    def take(self, now_s: float, *, is_urgent: bool) -> list[Batch]:
        """Take what may move now. `settle` gives each slot and key back, and `ended` each batch.

        Of what was noted it treats a part; `retry_at_s` says at once then.

        Args:
            is_urgent: somebody waits for every chunk to be tried once, also where a tier is given a pause.
        """
        noted = list(islice(self._noted, NOTED_AT_ONCE))
        for one in noted:
            del self._noted[one]
        self._treat_as_stored(noted)
        self._is_behind = bool(self._noted)
        batches = []
        for tier, queue in enumerate(self._queues):
            while keys := queue.take(now_s, is_urgent=is_urgent):
                slots = [slot for key in keys if (slot := self._table.get(key)) and _is_ready(slot)]
                self._table.pin(slots)
                there = {slot.key for slot in slots}
                batches.append(Batch(tier, slots, [key for key in keys if key not in there]))
        return batches

    def wanted(self, tier: int, keys: Sequence[ChunkKey]) -> list[ChunkKey]:
        """Those of a batch that are of interest still: neither removed nor invalidated since."""
        return self._queues[tier].wanted(keys)

    def settle(
        self, tier: int, keys: Sequence[ChunkKey], slots: Sequence[Slot], outcome: Outcome, now_s: float
    ) -> None:
        """Chunks of a batch have come back; `slots` are those of them that were pinned for it."""
        settled = self._queues[tier].settle(keys, outcome, now_s)
        name = self._names[tier]
        self._tally.moved("stored", name, len(settled.stored))
        self._tally.stored(name, settled.stored)
        self._tally.count("dropped_chunks", name, len(settled.declined) + len(settled.failed))
        for key in settled.stored:
            slot = self._table.get(key)
            if slot is not None:
                slot.below |= 1 << tier
        self._losses.kept(settled.stored)
        for key in settled.declined:
            self._losses.declined(key, tier)
        for key, reason in settled.failed.items():
            self._losses.failed(key, tier, reason)
        if tier == self._first:  # also what is tried again: a tier that fails keeps no slot from others
            self._release(key for key in keys if not self._queues[tier].waits(key))
            if self._queues[tier].is_failing:
                self._expose()
            self._protect()
        self._table.unpin(slots)

    def is_overdue(self, batch: Batch) -> None:
        """The tier has not answered for too long: it keeps no slot any more but those that it may touch."""
        self._queues[batch.tier].is_overdue()
        if batch.tier == self._first:
            self._expose()

    def ended(self, batch: Batch) -> None:
        """A batch makes room for the next one; parts of it may still hang."""
        self._queues[batch.tier].ended(len(batch.slots) + len(batch.keys))

    def has_offered(self, numbers: Sequence[int]) -> bool:
        """Whether each tier was offered what it was owed up to these numbers."""
        return all(queue.has_offered(number) for queue, number in zip(self._queues, numbers, strict=True))

    def is_leaving(self, keys: frozenset[ChunkKey]) -> bool:
        """Whether one of these removed chunks is still on its way to some tier."""
        return any(queue.is_leaving(keys) for queue in self._queues)

    def check(self) -> None:
        """Assert integrity; for tests."""
        assert all(slot.pins for slot in self._noted), "what is noted stays"
        for queue in self._queues:
            queue.check()
        self._losses.check()
        assert all(slot.pins for slot in self._dirty.values()), "a dirty slot is pinned"
        assert len(self._dirty) <= self.dirty_max
        assert not self._dirty.keys() & self._exposed.keys()
        first = self._first
        assert first is not None or not self._dirty, "slots are kept for a tier"
        if first is not None:
            assert all(key in self._queues[first] for key in (*self._dirty, *self._exposed))

    def _treat_as_stored(self, noted: Collection[Slot]) -> None:
        if noted:
            self.stored([slot for slot in noted if _is_ready(slot)])  # others were removed meanwhile
            self._table.unpin(noted)

    def _use(self, tiers: int) -> None:
        """Owe something to these tiers only, of which each has a bit."""
        self._in_use = tiers
        self._first = (tiers & -tiers).bit_length() - 1 if tiers else None

    def _owe(self, tier: int, slots: Sequence[Slot]) -> None:
        left_out = dict.fromkeys(self._queues[tier].owe(slot.key for slot in slots))
        if left_out:
            self._tally.count("dropped_chunks", self._names[tier], len(left_out))
            slots = [slot for slot in slots if slot.key not in left_out]
        for key in left_out:
            self._losses.failed(key, tier, Failure.DROPPED)
        if tier == self._first:
            exposed = {slot.key: slot for slot in slots if slot.key not in self._dirty}
            if self._exposed or not self._keep(exposed):
                self._exposed.update(exposed)

    def _protect(self) -> None:
        """Keep slots for the first tier, oldest first, as many as may be; none where it fails."""
        count = min(len(self._exposed), self.dirty_max - len(self._dirty))
        if count <= 0 or self._first is None or self._queues[self._first].is_failing:
            return
        self._keep(dict(islice(self._exposed.items(), count)))
        for _ in range(count):
            self._exposed.popitem(last=False)

    def _keep(self, slots: Mapping[ChunkKey, Slot]) -> bool:
        """Keep all of these slots for the first tier, if there is room for them and it does not fail."""
        assert self._first is not None, "slots are kept for a tier"
        if len(slots) > self.dirty_max - len(self._dirty) or self._queues[self._first].is_failing:
            return False
        self._table.pin(slots.values())
        self._dirty.update(slots)
        return True

    def _expose(self) -> None:
        """Keep no slot for the first tier but those on their way."""
        waiting = dict(self._dirty)
        self._release(waiting)
        first = self._first
        assert first is not None, "what is dirty is so for a tier"
        queue = self._queues[first]
        self._exposed.update((key, slot) for key, slot in waiting.items() if queue.waits(key))

    def _release(self, keys: Iterable[ChunkKey]) -> None:
        slots = []
        for key in keys:
            self._exposed.pop(key, None)
            slot = self._dirty.pop(key, None)
            if slot is not None:
                slots.append(slot)
        self._table.unpin(slots)

    def _clear(self) -> None:
        self._table.unpin(self._noted)
        self._noted, self._is_behind = {}, False
        for queue in self._queues:
            queue.forget_all()
        self._release([*self._dirty, *self._exposed])


def _is_ready(slot: Slot) -> bool:
    return slot.state is SlotState.READY


@functools.cache
def _bits(mask: int) -> tuple[int, ...]:
    return tuple(index for index in range(mask.bit_length()) if mask >> index & 1)
