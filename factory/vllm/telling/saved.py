"""What the tiers saved between two moments, in one line."""

from __future__ import annotations

from collections.abc import Iterator

from ....engine.chain import ChainStats
from ...text.units import format_size

_BREAKER = {1: "on trial", 2: "open"}


def saved(before: ChainStats, now: ChainStats, chunk_tokens: float) -> str:
    """Say what happened; an empty string where nothing did.

    Args:
        chunk_tokens: how many tokens a chunk stands for.
    """
    changes = _Changes(before, now)
    hits = changes.by_tier("hits")
    said = [_hits(hits, chunk_tokens)] if hits else []
    said += [
        f"{format_size(size_bytes)} loaded from {tier}"
        for tier, size_bytes in changes.by_tier("loaded_bytes").items()
        if tier != next(iter(now.tiers))
    ]
    said += [
        f"{format_size(size_bytes)} stored in {tier}"
        for tier, size_bytes in changes.by_tier("stored_bytes").items()
    ]
    for counter, text in (
        ("late_loads", "chunks came too late from"),
        ("dropped_chunks", "chunks dropped by"),
        ("corrupt_chunks", "chunks corrupt on"),
        ("breaker_openings", "openings of the breaker of"),
    ):
        said += [f"{count:,} {text} {tier}" for tier, count in changes.by_tier(counter).items()]
    return "; ".join([*said, *_open_breakers(now)]) if said else ""


class _Changes:
    def __init__(self, before: ChainStats, now: ChainStats) -> None:
        self._before, self._now = before, now

    def by_tier(self, counter: str) -> dict[str, int]:
        """What was added to a counter, by the tiers to which anything was."""
        added = {
            tier: stats.counters.get(counter, 0) - self._before.tiers[tier].counters.get(counter, 0)
            for tier, stats in self._now.tiers.items()
        }
        return {tier: count for tier, count in added.items() if count}


def _hits(hits: dict[str, int], chunk_tokens: float) -> str:
    each = ", ".join(f"{tier} {round(chunks * chunk_tokens):,}" for tier, chunks in hits.items())
    return f"{round(sum(hits.values()) * chunk_tokens):,} tokens not computed again ({each})"


def _open_breakers(now: ChainStats) -> Iterator[str]:
    for tier, stats in now.tiers.items():
        state = _BREAKER.get(int(stats.gauges.get("breaker_state", 0)))
        if state is not None:
            yield f"the breaker of {tier} is {state}"
