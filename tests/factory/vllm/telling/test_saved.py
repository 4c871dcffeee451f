"""The line that says what the tiers saved between two moments."""

from __future__ import annotations

from kvtier.engine.chain import ChainStats, with_counts
from kvtier.factory.vllm.telling.saved import saved
from kvtier.tiers.base import TierStats

CHUNK_TOKENS = 16.0


def stats(counts: dict[tuple[str, str], int] | None = None, *, breaker_state: int = 0) -> ChainStats:
    tiers = {
        "pinned": TierStats(0, 0, 1024),
        "nvme": TierStats(0, 0, 4096, gauges={"breaker_state": breaker_state}),
    }
    return ChainStats(with_counts(tiers, counts or {}), {"nvme": 0}, 0)


def test_nothing_is_said_where_nothing_happened() -> None:
    assert saved(stats(), stats(), CHUNK_TOKENS) == ""
    assert saved(stats(), stats(breaker_state=2), CHUNK_TOKENS) == "", "what stays open is no news"


def test_only_what_happened_since_the_last_time_is_said() -> None:
    before = stats({("hits", "pinned"): 10, ("hits", "nvme"): 1})
    now = stats({("hits", "pinned"): 138, ("hits", "nvme"): 65})
    assert saved(before, now, CHUNK_TOKENS) == "3,072 tokens not computed again (pinned 2,048, nvme 1,024)"


def test_what_moved_and_what_went_wrong_is_said_by_tier() -> None:
    counts = {
        ("loaded_bytes", "pinned"): 1 << 20,
        ("loaded_bytes", "nvme"): 3 << 19,
        ("stored_bytes", "pinned"): 2 << 20,
        ("stored_bytes", "nvme"): 1 << 20,
        ("late_loads", "nvme"): 2,
        ("dropped_chunks", "nvme"): 1_234,
        ("corrupt_chunks", "nvme"): 1,
        ("breaker_openings", "nvme"): 1,
    }
    assert saved(stats(), stats(counts, breaker_state=2), CHUNK_TOKENS).split("; ") == [
        "1.5MiB loaded from nvme",
        "2MiB stored in pinned",
        "1MiB stored in nvme",
        "2 chunks came too late from nvme",
        "1,234 chunks dropped by nvme",
        "1 chunks corrupt on nvme",
        "1 openings of the breaker of nvme",
        "the breaker of nvme is open",
    ]


def test_a_chunk_of_one_of_several_groups_of_layers_stands_for_fewer_tokens() -> None:
    assert saved(stats(), stats({("hits", "pinned"): 3}), 16 / 3) == (
        "16 tokens not computed again (pinned 16)"
    )
