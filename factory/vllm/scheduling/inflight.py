"""Transfers that the server has submitted to its workers, until every rank has ended them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from ....tiers.base import ChunkKey
from ....tiers.pinned.slots import Slot


class TransferMarks(Protocol):
    """What the workers leave in the arena for the scheduler to read."""

    def stores_failed(self, indexes: Sequence[int]) -> Sequence[bool]:
        """Say for each slot whether the last store into it failed on some rank."""
        ...

    def transfers_done(self, index: int, *, stores: int, loads: int) -> bool:
        """Say whether every rank has ended this many stores and loads of a slot, counted modulo 2**32."""
        ...


class InFlight:
    """Which slots workers may still touch. One thread: the scheduler's.

    The server may forget transfers, and never completes them, while workers still read and write their slots.
    Those slots are orphaned: they stay pinned until the workers' own counters say that they are done.
    """

    def __init__(self, marks: TransferMarks, slots_count: int) -> None:
        self._marks = marks
        # Mutable state:
        self._storing: dict[ChunkKey, tuple[int, Slot]] = {}
        self._orphaned: list[Slot] = []
        self._stores_submitted = 0
        self._stores_issued = [0] * slots_count  # no array of numpy's: a few change at a time
        self._loads_issued = [0] * slots_count

    @property
    def orphaned_count(self) -> int:
        """Slots whose transfers the server has forgotten but the workers may not have finished."""
        return len(self._orphaned)

    def store(self, slots: Sequence[Slot]) -> list[int]:
        """Stores into new slots begin, in the order of the prompt; returns the slots' indexes."""
        for slot in slots:
            self._stores_submitted += 1
            self._storing[slot.key] = (self._stores_submitted, slot)
        indexes = [slot.index for slot in slots]
        for index in indexes:
            self._stores_issued[index] += 1
        return indexes

    def load(self, slots: Sequence[Slot]) -> list[int]:
        """Loads from slots begin, several of which may be one; returns the slots' indexes."""
        indexes = [slot.index for slot in slots]
        for index in indexes:
            self._loads_issued[index] += 1
        return indexes

    def stored(self, keys: Collection[ChunkKey], success: bool) -> tuple[list[Slot], list[Slot]]:
        """Stores have ended: their slots, in the order in which they began; and those that failed."""
        slots = [slot for _, slot in sorted(self._storing.pop(key) for key in keys)]
        failed = self._marks.stores_failed([slot.index for slot in slots])
        bad = [slot for slot, is_bad in zip(slots, failed, strict=True) if is_bad or not success]
        return [slot for slot in slots if slot not in bad] if bad else slots, bad

    def ended_stores(self) -> list[ChunkKey]:
        """Stores that the workers have finished, whether or not the server has said so."""
        return [key for key, (_, slot) in self._storing.items() if self._is_quiet(slot.index)]

    def orphan(self, loading: Iterable[Slot]) -> list[Slot]:
        """The server forgets every transfer; returns the slots that are being stored."""
        storing = [slot for _, slot in self._storing.values()]
        self._orphaned += [*storing, *loading]
        self._storing.clear()
        return storing

    def quiet(self) -> list[Slot]:
        """Take the orphaned slots that no worker touches any more."""
        quiet = [slot for slot in self._orphaned if self._is_quiet(slot.index)]
        self._orphaned = [slot for slot in self._orphaned if slot not in quiet]
        return quiet

    def _is_quiet(self, index: int) -> bool:
        stores, loads = self._stores_issued[index], self._loads_issued[index]
        return self._marks.transfers_done(index, stores=stores, loads=loads)
