"""The facts of a tier that stay as they are: what `vllm:kv_offload_config_info` shows, and the start line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TypeAlias

from ....tiers.base import TierStats
from ...text.units import format_size

Value: TypeAlias = str | int | float

NAMESPACE_DIGITS = 12  # of a digest; enough for `kvtier rm --namespace`


@dataclass(frozen=True, slots=True)
class TierFacts:
    """One tier of a server.

    Attributes:
        cap_bytes: what the tier can take of its capacity, by the room that there was at the start.
        bound_by: what keeps it from taking more: its capacity, the free space, or other tiers.
        capacity_tokens: what fits into its cap.
        chunk_bytes: of all ranks together.
        chunk_tokens: how many tokens of all layers a chunk stands for; a fraction of its own tokens where
            there are several groups of layers.
        namespace: the first digits of the digest.
    """

    tier: str
    capacity_bytes: int
    cap_bytes: int
    bound_by: str
    capacity_tokens: int
    chunk_bytes: int
    chunk_tokens: float
    namespace: str

    @property
    def token_bytes(self) -> int:
        return round(self.chunk_bytes / self.chunk_tokens)

    def labels(self) -> Mapping[str, Value]:
        """The same by name."""
        return asdict(self)

    def line(self, found: TierStats) -> str:
        """The tier at start, for people."""
        size = format_size(self.capacity_bytes)
        if self.cap_bytes < self.capacity_bytes:
            size = f"{format_size(self.cap_bytes)} of {size} ({self.bound_by})"
        parts = [f"{self.tier}: {size}, {self.capacity_tokens:,} tokens"]
        direct_io = found.gauges.get("direct_io")
        if direct_io is not None:
            parts.append("direct I/O" if direct_io else "no direct I/O")
        if found.chunks or direct_io is not None:  # a drive without chunks is worth a word after a restart
            parts.append(f"{found.chunks:,} chunks found")
        return ", ".join(parts)


LABELS = tuple(field.name for field in fields(TierFacts))
