"""Eviction policies, one file each: `POLICIES` has them by their names in the tier-config document."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .arc import ArcPolicy
from .base import Evictable, EvictionPolicy, PromptId
from .foreign import GuardedPolicy
from .lru import LruPolicy
from .reuse import ReusePolicy
from .s3fifo import S3FifoPolicy

__all__ = [
    "POLICIES",
    "ArcPolicy",
    "Evictable",
    "EvictionPolicy",
    "GuardedPolicy",
    "LruPolicy",
    "PromptId",
    "ReusePolicy",
    "S3FifoPolicy",
]

POLICIES: Mapping[str, Callable[[int], EvictionPolicy]] = MappingProxyType(
    {"lru": LruPolicy, "arc": ArcPolicy, "s3fifo": S3FifoPolicy, "reuse": ReusePolicy}
)
"""Each policy is made with its owner's capacity in chunks."""
