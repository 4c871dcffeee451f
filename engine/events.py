"""What came into a tier and what left it, for whoever follows along."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from ..tiers.base import ChunkKey, RemoveReason

EVENTS_MAX = 65536  # not yet taken; a server takes them at every step, so more means that nobody does


class ChainEvent(NamedTuple):
    """Some chunks that a tier stored, or removed for a reason."""

    tier: str
    keys: tuple[ChunkKey, ...]
    removed: RemoveReason | None


@runtime_checkable
class TellsRemovals(Protocol):
    """A tier that removes chunks on its own and can say so."""

    def watch(self, told: Callable[[Sequence[ChunkKey], RemoveReason], None]) -> None:
        """Call `told`, on any thread and quickly, whenever chunks have left the tier."""
        ...


class EventLog:
    """Events until they are taken, the oldest dropped where nobody does. Safe from any thread."""

    def __init__(self) -> None:
        self._events: deque[ChainEvent] = deque(maxlen=EVENTS_MAX)  # each of its methods is atomic

    def stored(self, tier: str, keys: Sequence[ChunkKey]) -> None:
        if keys:
            self._events.append(ChainEvent(tier, tuple(keys), None))

    def removed(self, tier: str, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        if keys:
            self._events.append(ChainEvent(tier, tuple(keys), reason))

    def take(self) -> list[ChainEvent]:
        """Return what happened since the last call, in order."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken
