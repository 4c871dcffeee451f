"""Turns a tier-config document into a replay: each tier's capacity in chunks, and its policy.

Opens nothing. Looks at a path only where the capacity is a percentage of its file system, because the
document may be for another machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ....engine.replay.first_tokens import Speeds
from ....engine.replay.tiers import LogWithoutBytes, SlotsWithoutBytes
from ....tiers import ConfigError, Tier
from ....tiers.admission import SecondTouch
from ....tiers.pinned.eviction import EvictionPolicy
from ...base import TierConfig, unique_name
from ...config import KvtierConfig
from ...drives import DriveConfig
from ...entries import NvmeConfig, PinnedConfig
from ...text.units import Percent, format_size, size_bytes
from ...text.wording import quoted, shown


@dataclass(frozen=True, slots=True)
class LogPlan:
    """One drive."""

    name: str
    capacity_bytes: int
    write_amplification: float
    admission: str


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """A chain to replay through.

    Attributes:
        chunk_bytes: of a slot; whole pages.
        step_chunks: chunks of a prompt that are stored in one step; None for all at once.
        speeds: how fast the server computes and loads; None where everything is loaded.
    """

    slots_count: int
    policy: str
    make_policy: Callable[[int], EvictionPolicy]
    chunk_bytes: int
    step_chunks: int | None
    speeds: Speeds | None
    logs: tuple[LogPlan, ...]

    def pinned(self) -> SlotsWithoutBytes:
        """A new, empty pinned tier."""
        return SlotsWithoutBytes(self.slots_count, slot_bytes=self.chunk_bytes, make_policy=self.make_policy)

    def lower(self) -> Sequence[Tier]:
        """New, empty tiers below it."""
        return [self._lower(log) for log in self.logs]

    def _lower(self, log: LogPlan) -> Tier:
        tier = LogWithoutBytes(
            log.name,
            capacity_bytes=log.capacity_bytes,
            chunk_bytes=self.chunk_bytes,
            write_amplification=log.write_amplification,
        )
        if log.admission == "always":
            return tier
        return SecondTouch(tier, log.capacity_bytes // self.chunk_bytes)

    def resized(self, slots_count: int) -> ReplayPlan:
        """The same chain with another pinned capacity."""
        return replace(self, slots_count=slots_count)


def plan_replay(
    config: KvtierConfig, *, chunk_bytes: int, step_chunks: int | None, speeds: Speeds | None
) -> ReplayPlan:
    """Turn a checked document into a chain without bytes.

    Raises:
        ConfigError: a tier is too small for such chunks, or of a type that cannot be replayed; or there are
            speeds, and the document lets nobody decide by them.
    """
    if speeds is not None and config.recompute == "never":
        raise ConfigError(
            "recompute",
            '"never" loads all that a tier has; remove it, or --prefill-tokens-per-s and --load-bytes-per-s',
        )
    _, pinned, *lower = config.tiers
    assert isinstance(pinned, PinnedConfig), "the config puts the pinned tier below the device"
    pinned = pinned.resolve(chunk_bytes=chunk_bytes, json_path="tiers[1]")
    logs: list[LogPlan] = []
    for i, tier in enumerate(lower, start=2):
        name = unique_name("nvme", [log.name for log in logs])
        logs.append(_log(tier, chunk_bytes, f"tiers[{i}]", name))
    slots_count = pinned.capacity_bytes // chunk_bytes
    return ReplayPlan(
        slots_count, pinned.policy, pinned.make_policy, chunk_bytes, step_chunks, speeds, tuple(logs)
    )


def _log(tier: TierConfig, chunk_bytes: int, json_path: str, name: str) -> LogPlan:
    if not isinstance(tier, NvmeConfig):
        raise ConfigError(
            f"{json_path}.type", f'{shown(tier.type)} cannot be replayed; only "pinned" and "nvme" can'
        )
    capacity_bytes = _capacity_bytes(tier, f"{json_path}.capacity")
    least_bytes = LogWithoutBytes.least_bytes(chunk_bytes)
    if capacity_bytes < least_bytes:
        raise ConfigError(
            f"{json_path}.capacity",
            f"{format_size(capacity_bytes)} is too small for chunks of {format_size(chunk_bytes)}; "
            f"it needs at least {least_bytes} bytes",
        )
    return LogPlan(name, capacity_bytes, tier.write_amplification, tier.admission)


def _capacity_bytes(tier: NvmeConfig, json_path: str) -> int:
    """The capacity of all drives of the tier together."""
    return sum(_drive_bytes(drive, json_path) for drive in tier.drives)


def _drive_bytes(drive: DriveConfig, json_path: str) -> int:
    assert drive.capacity is not None, "the tier's own stands in"
    if isinstance(drive.capacity, int):
        return drive.capacity
    return size_bytes(drive.capacity, _file_system_bytes(drive.path, drive.capacity, json_path))


def _file_system_bytes(path: Path, share: Percent, json_path: str) -> int:
    try:
        status = os.statvfs(path)
    except OSError as error:
        raise ConfigError(
            json_path,
            f"{shown(str(share))} is a share of the file system of {quoted(path)}, which this machine "
            'does not have; write a size instead, for example "2TiB"',
        ) from error
    return status.f_blocks * status.f_frsize
