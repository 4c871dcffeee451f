"""What the chain counts and reports: chunks that moved, by tier, and the events of their subscribers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from ...tiers.base import ChunkKey, RemoveReason
from ..events import EventLog


class Tally:
    """Counters by name and tier, and the event log if there is one. The chain's lock guards the counters."""

    def __init__(self, slot_bytes: int, events: EventLog | None) -> None:
        self._slot_bytes = slot_bytes
        self._events = events
        # Mutable state:
        self.counters: Counter[tuple[str, str]] = Counter()

    def count(self, name: str, tier: str, amount: int = 1) -> None:
        self.counters[name, tier] += amount

    def moved(self, how: str, tier: str, chunks: int) -> None:
        """Count chunks that a tier has `stored`, or that were `loaded` from it."""
        self.counters[f"{how}_chunks", tier] += chunks
        self.counters[f"{how}_bytes", tier] += chunks * self._slot_bytes

    def stored(self, tier: str, keys: Sequence[ChunkKey]) -> None:
        """Tell subscribers that a tier has chunks now."""
        if self._events is not None:
            self._events.stored(tier, keys)

    def removed(self, tier: str, keys: Collection[ChunkKey], reason: RemoveReason) -> None:
        """Tell subscribers that chunks left a tier."""
        if self._events is not None:
            self._events.removed(tier, list(keys), reason)

    def failed(self, keys: Sequence[ChunkKey]) -> None:
        """Note that chunks which were to enter the pinned tier never did."""
        if self._events is not None:
            self._events.failed(keys)
