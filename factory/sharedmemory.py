"""What a document's tiers want of shared memory together: the arena, and an index for each drive."""

from __future__ import annotations

from ..tiers.nvme.store.home import Sizes
from ..tiers.pinned.arenafile import SHARED_MEMORY, ArenaLayout
from ..tiers.pinned.memory import shared_memory_room
from .config import KvtierConfig
from .entries import NvmeConfig, PinnedConfig
from .text.units import format_size


def shared_memory_shortages(config: KvtierConfig, *, chunk_bytes: int) -> list[str]:
    """What shared memory lacks for a resolved chain of chunks of this size right now, with the remedy.

    Each tier alone may fit. Where the arena alone does not, that is told with it.
    """
    arena_bytes = sum(
        _arena_bytes(tier, chunk_bytes) for tier in config.tiers if isinstance(tier, PinnedConfig)
    )
    index_bytes = sum(
        _index_bytes(tier, chunk_bytes) for tier in config.tiers if isinstance(tier, NvmeConfig)
    )
    room = shared_memory_room(SHARED_MEMORY)
    if arena_bytes > room.left_bytes or arena_bytes + index_bytes <= room.left_bytes:
        return []
    wanted, left = format_size(arena_bytes + index_bytes), format_size(room.left_bytes)
    parts = f"{format_size(arena_bytes)} for the arena, {format_size(index_bytes)} for indexes"
    return [
        f"tiers: they want {wanted} of {room.place} together ({parts}), which has {left} free; {room.remedy}"
    ]


def _arena_bytes(tier: PinnedConfig, chunk_bytes: int) -> int:
    return ArenaLayout(
        tier.capacity_bytes // chunk_bytes, chunk_bytes, parts=1, ranks=1, mappers=1
    ).size_bytes


def _index_bytes(tier: NvmeConfig, chunk_bytes: int) -> int:
    return sum(Sizes.of(drive.capacity_bytes, chunk_bytes).shared_bytes for drive in tier.drives)
