"""What the chain counts and reports: chunks that moved, by tier, how long that took, and events of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from ...tiers.base import ChunkKey, RemoveReason
from ...tiers.histogram import Durations, Histogram
from ..events import EventLog


class Tally:
    """Counters by name and tier, durations, and the event log if there is one.

    The chain's lock guards all but the log.

    Args:
        lower: names of the tiers below the slots: calls of these are timed.
    """

    def __init__(self, slot_bytes: int, lower: Sequence[str], events: EventLog | None) -> None:
        self._slot_bytes = slot_bytes
        self._events = events
        # Mutable state:
        self.counters: Counter[tuple[str, str]] = Counter()
        self._durations = {tier: {"loaded": Durations(), "stored": Durations()} for tier in lower}

    def count(self, name: str, tier: str, amount: int = 1) -> None:
        self.counters[name, tier] += amount

    def moved(self, how: str, tier: str, chunks: int) -> None:
        """Count chunks that a tier has `stored`, or that were `loaded` from it."""
        self.counters[f"{how}_chunks", tier] += chunks
        self.counters[f"{how}_bytes", tier] += chunks * self._slot_bytes

    def took(self, how: str, tier: str, duration_s: float) -> None:
        """Note how long a call took whose chunks were `stored` in a tier, or `loaded` from it."""
        self.counters[f"{how}_us", tier] += int(duration_s * 1_000_000)
        self._durations[tier][how].add(duration_s)

    def histograms(self) -> dict[str, dict[str, Histogram]]:
        """How long calls took, by tier, then by name."""
        return {
            tier: {"load_s": own["loaded"].histogram(), "store_s": own["stored"].histogram()}
            for tier, own in self._durations.items()
        }

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
