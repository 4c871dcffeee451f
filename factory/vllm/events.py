"""vLLM's KV-cache events: which chunks entered a tier, and which left it.

vLLM turns them into `BlockStored` and `BlockRemoved` on its own event channel. It has no field for a
reason; reasons are counted in the metrics.

With self-describing events vLLM notes the blocks of a chunk when it is looked up or stored, and forgets them
with the chunk's last removal. So it has to be told where a removal will follow, and also what never came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from vllm.v1.kv_offload import base

from ...engine.events import EVENTS_MAX, ChainEvent, EventLog
from ...tiers.base import ChunkKey
from .places import CPU, STORAGE, locality

_FIELDS = frozenset(base.OffloadingEvent.__dataclass_fields__)
TELLS_FAILURES = "metadata_only" in _FIELDS  # from 0.33 on


class ServerEvents(EventLog):
    """Also keeps the chunks that were to enter the pinned tier and never did."""

    def __init__(self) -> None:
        super().__init__()
        self._failed: deque[ChunkKey] = deque(maxlen=EVENTS_MAX)  # each of its methods is atomic

    def failed(self, keys: Sequence[ChunkKey]) -> None:
        self._failed.extend(keys)

    def take_failed(self) -> list[ChunkKey]:
        """Return what failed since the last call."""
        return [self._failed.popleft() for _ in range(len(self._failed))]


def offloading_events(events: Iterable[ChainEvent], foreign: Collection[str] = ()) -> Iterator[Any]:
    """vLLM's event for each of the chain's.

    Args:
        foreign: names of the tiers of other packages.
    """
    for event in events:
        is_below, removed = event.tier != "pinned", event.removed is not None
        yield _event(
            event.keys,
            medium=STORAGE if is_below else CPU,
            removed=removed,
            locality=locality(event.tier not in foreign),
            ownership=event.tier if is_below else None,
            removal_expected=is_below and not removed,
        )


def failure_event(keys: Sequence[ChunkKey]) -> Any:
    """What lets vLLM forget the blocks of chunks that never entered the pinned tier; nobody hears of it."""
    return _event(keys, medium=CPU, removed=True, metadata_only=True)


def _event(keys: Sequence[ChunkKey], **about: Any) -> Any:
    told = {name: value for name, value in about.items() if name in _FIELDS}
    return base.OffloadingEvent(keys=[base.OffloadKey(key) for key in keys], **told)
