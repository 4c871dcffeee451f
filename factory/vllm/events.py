"""vLLM's KV-cache events: which chunks entered a tier, and which left it.

vLLM turns them into `BlockStored` and `BlockRemoved` on its own event channel. It has no field for a
reason; reasons are counted in the metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from vllm.v1.kv_offload import base

from ...engine.events import ChainEvent


def offloading_events(events: Iterable[ChainEvent]) -> Iterator[Any]:
    """vLLM's event for each of the chain's."""
    for event in events:
        yield base.OffloadingEvent(
            keys=[base.OffloadKey(key) for key in event.keys],
            medium=_medium(event.tier),
            removed=event.removed is not None,
            **_place(event.tier),
        )


def _medium(tier: str) -> Any:
    medium = getattr(base, "Medium", None)  # plain strings before 0.27
    if medium is None:
        return "CPU" if tier == "pinned" else "STORAGE"
    return medium.CPU if tier == "pinned" else medium.STORAGE


def _place(tier: str) -> dict[str, Any]:
    fields = base.OffloadingEvent.__dataclass_fields__
    place: dict[str, Any] = {}
    if "locality" in fields:
        place["locality"] = base.Locality.LOCAL
    if "ownership" in fields:
        place["ownership"] = None if tier == "pinned" else tier
    return place
