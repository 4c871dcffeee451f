"""Turns a tier-config document into a replay: each tier's capacity, and its policy.

Opens nothing. Looks at a path only where the capacity is a percentage of its file system, because the
document may be for another machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ....engine.recording.recorder import Sizes
from ....engine.replay.first_tokens import Speeds
from ....engine.replay.tiers import LogWithoutBytes, SlotsWithoutBytes
from ....tiers import ConfigError, Tier
from ....tiers.admission import SecondTouch
from ....tiers.pinned.eviction import POLICIES, EvictionPolicy
from ...base import TierConfig, unique_name
from ...config import KvtierConfig
from ...drives import DriveConfig
from ...entries import NvmeConfig, PinnedConfig
from ...sizes import parse_chunk_bytes
from ...text.units import Percent, format_size, size_bytes
from ...text.wording import quoted, shown

PINNED = "pinned"
SECOND_TOUCH = "second_touch"

TOKENS_PER_ID = 512  # of public traces
TOKEN_BYTES = 128 * 1024  # of Llama 3.1 8B in bf16: 32 layers, keys and values of 8 heads of 128


@dataclass(frozen=True, slots=True)
class Ids:
    """What the numbers of a trace stand for.

    Attributes:
        tokens: of the prompt.
        chunk_bytes: of one chunk of the server; whole pages.
        chunks: how many of those.
    """

    tokens: int
    chunk_bytes: int
    chunks: int


def ids_of(
    sizes: Sizes | None, *, tokens_per_id: int | None, chunk_tokens: int | None, chunk_bytes: str | None
) -> Ids:
    """What numbers stand for: as the options say, or else as the trace does, or else as in public ones.

    Raises:
        ConfigError: the options contradict each other.
    """
    tokens = tokens_per_id or (sizes.tokens_per_id if sizes else TOKENS_PER_ID)
    per_chunk = chunk_tokens or (sizes.chunk_tokens if sizes and not tokens_per_id else tokens)
    if chunk_tokens and tokens % chunk_tokens:
        raise ConfigError("--tokens-per-chunk", f"{chunk_tokens} is no part of the {tokens} tokens of an id")
    if chunk_bytes is None and sizes is not None and not chunk_tokens:
        size = str(sizes.chunk_bytes)
    else:
        size = chunk_bytes or str(math.ceil(per_chunk * TOKEN_BYTES))
    return Ids(tokens, parse_chunk_bytes(size), max(1, math.ceil(tokens / per_chunk)))


@dataclass(frozen=True, slots=True)
class LogPlan:
    """One drive, or several as one tier."""

    name: str
    capacity_bytes: int
    write_amplification: float
    admission: str


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """A chain to replay through.

    Attributes:
        pinned_bytes: of all slots.
        ids: what each key of a prompt stands for.
        step_keys: keys of a prompt that are stored in one step; None for all at once.
        speeds: how fast the server computes and loads; None where everything is loaded.
    """

    pinned_bytes: int
    policy: str
    make_policy: Callable[[int], EvictionPolicy]
    ids: Ids
    step_keys: int | None
    speeds: Speeds | None
    logs: tuple[LogPlan, ...]

    @property
    def chunks_per_key(self) -> int:
        return self.ids.chunks

    @property
    def key_bytes(self) -> int:
        return self.ids.chunk_bytes * self.ids.chunks

    @property
    def capacities_bytes(self) -> dict[str, int]:
        """What each tier may take, by its name, the pinned one first."""
        return {PINNED: self.pinned_bytes, **{log.name: log.capacity_bytes for log in self.logs}}

    def pinned(self) -> SlotsWithoutBytes:
        """A new, empty pinned tier."""
        return SlotsWithoutBytes(
            self.pinned_bytes // self.key_bytes, slot_bytes=self.key_bytes, make_policy=self.make_policy
        )

    def lower(self) -> Sequence[Tier]:
        """New, empty tiers below it."""
        return [self._lower(log) for log in self.logs]

    def _lower(self, log: LogPlan) -> Tier:
        tier = LogWithoutBytes(
            log.name,
            capacity_bytes=log.capacity_bytes,
            chunk_bytes=self.ids.chunk_bytes,
            write_amplification=log.write_amplification,
            chunks_per_key=self.ids.chunks,
        )
        if log.admission == "always":
            return tier
        return SecondTouch(tier, log.capacity_bytes // self.key_bytes)

    def resized(self, name: str, capacity_bytes: int) -> ReplayPlan:
        """The same chain with another capacity of that tier."""
        if name == PINNED:
            return replace(self, pinned_bytes=capacity_bytes)
        return self._with_log(name, lambda log: replace(log, capacity_bytes=capacity_bytes))

    def with_policy(self, policy: str) -> ReplayPlan:
        """The same chain with another policy of kvtier's own in the pinned tier."""
        return replace(self, policy=policy, make_policy=POLICIES[policy])

    def admitting(self, name: str, admission: str) -> ReplayPlan:
        """The same chain with another admission to that drive."""
        return self._with_log(name, lambda log: replace(log, admission=admission))

    def least_bytes(self, name: str) -> int:
        """The smallest capacity with which that tier works."""
        return self.key_bytes if name == PINNED else LogWithoutBytes.least_bytes(self.ids.chunk_bytes)

    def _with_log(self, name: str, change: Callable[[LogPlan], LogPlan]) -> ReplayPlan:
        return replace(self, logs=tuple(change(log) if log.name == name else log for log in self.logs))


def plan_replay(
    config: KvtierConfig, *, ids: Ids, step_keys: int | None, speeds: Speeds | None
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
    pinned = pinned.resolve(chunk_bytes=ids.chunk_bytes * ids.chunks, json_path="tiers[1]")
    logs: list[LogPlan] = []
    for i, tier in enumerate(lower, start=2):
        name = unique_name("nvme", [log.name for log in logs])
        logs.append(_log(tier, ids.chunk_bytes, f"tiers[{i}]", name))
    pinned_bytes = pinned.capacity_bytes // ids.chunk_bytes * ids.chunk_bytes
    return ReplayPlan(pinned_bytes, pinned.policy, pinned.make_policy, ids, step_keys, speeds, tuple(logs))


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
