"""The factories of the built-in tiers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from ..tiers import Tier
from ..tiers.admission import SecondTouch
from ..tiers.breaker import Breaker
from ..tiers.errors import TierUnavailable
from ..tiers.nvme.store.namespaces import Identity
from ..tiers.nvme.striped import Drive, StripedTier
from ..tiers.nvme.tier import NvmeTier
from ..tiers.pinned.arena import Arena
from ..tiers.pinned.tier import PinnedTier
from ..tiers.settled import settled
from .base import TierContext
from .drives import DriveConfig
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
        return PinnedTier(open_arena(config, context), config.make_policy)


class NvmeFactory:
    Config = NvmeConfig

    @staticmethod
    async def open(config: NvmeConfig, context: TierContext) -> Tier:
        if len(config.drives) > 1:
            return StripedTier(NvmeTier.name, await _open_drives(config, context))
        (drive,) = config.drives
        return _admitting(await _open_drive(drive, config, context), drive, config, context)


async def _open_drives(config: NvmeConfig, context: TierContext) -> list[Drive]:
    """Open all drives at once. If one fails, close the others again."""
    opening = [asyncio.ensure_future(_open_drive(drive, config, context)) for drive in config.drives]
    try:
        # Wait for all, even if one has failed: what is still being opened cannot be closed.
        await settled(asyncio.gather(*opening, return_exceptions=True))
        opened = [task.result() for task in opening]
        _refuse_twice(config.drives, opened)
    except BaseException:
        for tier in [task.result() for task in opening if _has_result(task)]:
            await tier.close()
        raise
    return [
        Drive(
            name=str(drive.path),
            tier=Breaker(
                _admitting(tier, drive, config, context),
                name=f"{tier.name} at {drive.path}",
                slow_s=config.load_deadline_s,
            ),
            weight=drive.capacity_bytes,
        )
        for drive, tier in zip(config.drives, opened, strict=True)
    ]


def _admitting(tier: NvmeTier, drive: DriveConfig, config: NvmeConfig, context: TierContext) -> Tier:
    if config.admission == "always":
        return tier
    return SecondTouch(tier, drive.capacity_bytes // context.chunk_bytes)


def _refuse_twice(drives: Sequence[DriveConfig], tiers: Sequence[NvmeTier]) -> None:
    """Refuse one directory by two paths: a link, or a mount of it elsewhere.

    Raises:
        TierUnavailable: names both paths.
    """
    paths: dict[tuple[int, int], Path] = {}
    for drive, tier in zip(drives, tiers, strict=True):
        first = paths.setdefault(tier.directory_id, drive.path)
        if first != drive.path:
            raise TierUnavailable(
                "nvme", f"{first} and {drive.path} are one directory (a link, or a mount); name it once"
            )


def _has_result(task: asyncio.Future[NvmeTier]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


async def _open_drive(drive: DriveConfig, config: NvmeConfig, context: TierContext) -> NvmeTier:
    return await NvmeTier.open(
        drive.path,
        capacity_bytes=drive.capacity_bytes,
        reserve_bytes=drive.reserve_bytes,
        identity=Identity(context.identity),
        chunk_bytes=context.chunk_bytes,
        write_amplification=config.write_amplification,
        terms=config.terms,
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
