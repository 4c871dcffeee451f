"""Prints the figures of a replay as a table or as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from ....engine.replay.first_tokens import FirstTokenFigures
from ....engine.replay.replay import ReplayFigures, TierFigures
from ....engine.replay.trace import Trace
from ...text.units import format_size
from .replay_plan import ReplayPlan
from .table import table

_HEADINGS = ("tier", "capacity", "chunks", "hit rate", "promoted", "evicted", "written", "dropped")


def as_text(figures: ReplayFigures, plan: ReplayPlan, unlimited_percent: float, read: Trace) -> str:
    """A summary and one line a tier."""
    rows = [_HEADINGS, *(_row(tier, plan.ids.chunk_bytes) for tier in figures.tiers)]
    lines = [
        f"{figures.requests_count} requests, {figures.prompt_chunks} chunks of "
        f"{format_size(plan.ids.chunk_bytes)}, stored {_steps(plan)}; pinned evicts by {plan.policy}",
        f"hit rate {figures.hit_rate_percent:.1f}%; an unlimited cache would reach {unlimited_percent:.1f}%",
        *([f"{read.left_out} prompts were not recorded"] if read.left_out else ()),
        *_first_tokens(figures.first_tokens),
        "",
        *table(rows),
    ]
    return "\n".join(lines)


def as_json(
    figures: ReplayFigures, plan: ReplayPlan, unlimited_percent: float, read: Trace
) -> dict[str, Any]:
    """All of it; sizes in bytes, rates in percent of all prompt chunks."""
    document = {
        "hit_rate_percent": figures.hit_rate_percent,
        "unlimited_hit_rate_percent": round(unlimited_percent, 3),
        "chunk_bytes": plan.ids.chunk_bytes,
        "tokens_per_id": plan.ids.tokens,
        "chunks_per_id": plan.ids.chunks,
        "span_s": read.span_s,
        "left_out_prompts": read.left_out,
        "policy": plan.policy,
        "step_chunks": None if plan.step_keys is None else plan.step_keys * plan.ids.chunks,
        **asdict(figures),
    }
    for tier in document["tiers"]:
        tier["capacity_chunks"] = tier["capacity_bytes"] // plan.ids.chunk_bytes
    return document


def _row(tier: TierFigures, chunk_bytes: int) -> tuple[str, ...]:
    return (
        tier.tier,
        format_size(tier.capacity_bytes),
        str(tier.capacity_bytes // chunk_bytes),
        f"{tier.hit_rate_percent:.1f}%",
        str(tier.promoted_chunks),
        str(tier.evicted_chunks),
        format_size(tier.written_bytes),
        str(tier.dropped_chunks),
    )


def _first_tokens(figures: FirstTokenFigures | None) -> Iterator[str]:
    if figures is not None:
        yield (
            f"loaded {figures.loaded_chunks} chunks from below, computed {figures.computed_chunks}, of which "
            f"{figures.declined_chunks} lay below"
        )
        yield (
            f"first token after {_time(figures.median_s)} (median); "
            f"{_time(figures.median_loading_all_s)} if all was loaded"
        )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def _steps(plan: ReplayPlan) -> str:
    return "by whole prompts" if plan.step_keys is None else f"{plan.step_keys * plan.ids.chunks} a step"
