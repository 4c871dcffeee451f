"""What entered a tier and what left it, as events for subscribers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from ..tiers.base import ChunkKey, RemoveReason, ReportsRemovals, Tier, ability

EVENTS_MAX = 65536  # not yet taken; a server takes them at every step, so more means that nobody does


class ChainEvent(NamedTuple):
    """Some chunks that a tier stored, or removed for a reason."""

    tier: str
    keys: tuple[ChunkKey, ...]
    removed: RemoveReason | None


class EventLog:
    """Keeps events until they are taken; drops the oldest where nobody takes them. Any thread."""

    def __init__(self) -> None:
        self._events: deque[ChainEvent] = deque(maxlen=EVENTS_MAX)  # each of its methods is atomic
        self.dropped_count = 0  # about: threads may count at the same time

    def watch(self, tiers: Iterable[Tier]) -> None:
        """Take in what these tiers evict on their own, as far as they report it."""
        for tier in tiers:
            reports = ability(tier, ReportsRemovals)  # type: ignore[type-abstract]
            if reports is not None:
                reports.watch(partial(self.removed, tier.name))

    def stored(self, tier: str, keys: Sequence[ChunkKey]) -> None:
        if keys:
            self._append(ChainEvent(tier, tuple(keys), None))

    def removed(self, tier: str, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        if keys:
            self._append(ChainEvent(tier, tuple(keys), reason))

    def failed(self, keys: Sequence[ChunkKey]) -> None:
        """Hear of chunks that were to enter the pinned tier and never did; no event tells of them."""

    def take(self) -> list[ChainEvent]:
        """Return what happened since the last call, in order."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def _append(self, event: ChainEvent) -> None:
        self.dropped_count += len(self._events) == EVENTS_MAX
        self._events.append(event)
