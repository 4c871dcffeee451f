"""Where KV chunks lie: the Tier protocol and the tiers behind it."""

from .base import Buffer, ChunkKey, Failure, Outcome, RemoveReason, Tier, TierStats
from .errors import ClosedError, ConfigError, IdentityMismatch, KvtierError, TierError, TierUnavailable

__all__ = [
    "Buffer",
    "ChunkKey",
    "ClosedError",
    "ConfigError",
    "Failure",
    "IdentityMismatch",
    "KvtierError",
    "Outcome",
    "RemoveReason",
    "Tier",
    "TierError",
    "TierStats",
    "TierUnavailable",
]
