"""The factories of the built-in tiers."""

from __future__ import annotations

from ..tiers import Tier
from ..tiers.nvme.store.namespaces import Identity
from ..tiers.nvme.tier import NvmeTier
from ..tiers.pinned.arena import Arena
from ..tiers.pinned.tier import PinnedTier
from .base import TierContext
from .entries import GpuConfig, NvmeConfig, PinnedConfig


class GpuFactory:
    """The gpu tier is made where the server's tensors are; no factory opens it."""

    Config = GpuConfig

    @staticmethod
    async def open(config: GpuConfig, context: TierContext) -> Tier:
        raise AssertionError("the first tier of a chain is the server's own memory")


class PinnedFactory:
    Config = PinnedConfig

    @staticmethod
    async def open(config: PinnedConfig, context: TierContext) -> Tier:
        return PinnedTier(open_arena(config, context), config.policy)


class NvmeFactory:
    Config = NvmeConfig

    @staticmethod
    async def open(config: NvmeConfig, context: TierContext) -> Tier:
        return await NvmeTier.open(
            config.path,
            capacity_bytes=config.capacity_bytes,
            reserve_bytes=config.reserve_bytes,
            identity=Identity(context.identity),
            chunk_bytes=context.chunk_bytes,
            write_amplification=config.write_amplification,
        )


def open_arena(config: PinnedConfig, context: TierContext) -> Arena:
    """Make or map the arena of a pinned tier."""
    slot_count = config.capacity_bytes // context.chunk_bytes
    if context.place is None:
        return Arena.private(slot_count, context.part_bytes, context.parts, numa_node=config.numa_node)
    place = context.place
    return Arena.shared(
        place.name,
        slot_count,
        context.part_bytes,
        context.parts,
        mappers=place.mappers,
        ranks=place.ranks,
        numa_node=config.numa_node,
    )
