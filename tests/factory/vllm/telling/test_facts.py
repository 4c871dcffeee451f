"""What the start line says of one tier; without vLLM."""

from __future__ import annotations

from kvtier.factory.vllm.telling.facts import TierFacts
from kvtier.tiers.base import TierStats

GIB = 1 << 30


def line(cap_bytes: int, bound_by: str) -> str:
    facts = TierFacts(
        tier="nvme",
        capacity_bytes=2048 * GIB,
        cap_bytes=cap_bytes,
        bound_by=bound_by,
        capacity_tokens=cap_bytes >> 20,
        chunk_bytes=1 << 20,
        chunk_tokens=1.0,
        namespace="0",
    )
    return facts.line(TierStats(0, 0, 2048 * GIB, {}))


def test_the_start_line_says_what_a_tier_can_really_take() -> None:
    assert line(11 * GIB, "free space") == "nvme: 11GiB of 2TiB (free space), 11,264 tokens"
    assert line(2048 * GIB, "capacity") == "nvme: 2TiB, 2,097,152 tokens"
