"""Prints the figures of a replay as a table or as JSON, and plots them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ....engine.replay.first_tokens import FirstTokenFigures
from ....engine.replay.replay import ReplayFigures, TierFigures
from ....tiers import ConfigError, KvtierError
from ...text.units import format_size
from .replay_plan import ReplayPlan

_HEADINGS = ("tier", "capacity", "chunks", "hit rate", "promoted", "evicted", "written", "dropped")


class CurvePoint(NamedTuple):
    """One replay with another pinned capacity."""

    slots_count: int
    figures: ReplayFigures


def as_text(figures: ReplayFigures, plan: ReplayPlan, unlimited_percent: float) -> str:
    """A summary and one line a tier."""
    rows = [_HEADINGS, *(_row(tier, plan.chunk_bytes) for tier in figures.tiers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{figures.requests_count} requests, {figures.prompt_chunks} chunks of "
        f"{format_size(plan.chunk_bytes)}, stored {_steps(plan)}; pinned evicts by {plan.policy}",
        f"hit rate {figures.hit_rate_percent:.1f}%; an unlimited cache would reach {unlimited_percent:.1f}%",
        *_first_tokens(figures.first_tokens),
        "",
        *("  ".join(_padded(row, widths)).rstrip() for row in rows),
    ]
    return "\n".join(lines)


def as_json(figures: ReplayFigures, plan: ReplayPlan, unlimited_percent: float) -> dict[str, Any]:
    """All of it; sizes in bytes, rates in percent of all prompt chunks."""
    document = {
        "hit_rate_percent": figures.hit_rate_percent,
        "unlimited_hit_rate_percent": round(unlimited_percent, 3),
        "chunk_bytes": plan.chunk_bytes,
        "policy": plan.policy,
        "step_chunks": plan.step_chunks,
        **asdict(figures),
    }
    for tier in document["tiers"]:
        tier["capacity_chunks"] = tier["capacity_bytes"] // plan.chunk_bytes
    return document


def require_plotting(file: Path) -> None:
    """Check before the replay that its result can be plotted.

    Raises:
        ConfigError: matplotlib or the folder is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--plot", 'needs matplotlib, which is not installed: pip install "kvtier-core[plot]"'
        ) from error
    if not file.absolute().parent.is_dir():
        raise ConfigError("--plot", f"{file}: the folder does not exist")


def plot(curve: Sequence[CurvePoint], plan: ReplayPlan, unlimited_percent: float, file: Path) -> None:
    """Write a PNG: hit rate over pinned capacity, in total and by tier.

    Raises:
        KvtierError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    counts = [point.slots_count for point in curve]
    totals = [point.figures.hit_rate_percent for point in curve]
    axes.plot(counts, totals, marker="o", color="black", label="total")
    names = [tier.tier for tier in curve[0].figures.tiers]
    for i, name in enumerate(names if len(names) > 1 else ()):
        rates = [point.figures.tiers[i].hit_rate_percent for point in curve]
        axes.plot(counts, rates, marker=".", linestyle="--", label=name)
    axes.axhline(unlimited_percent, color="grey", linestyle=":", label="unlimited")
    axes.axvline(plan.slots_count, color="grey", linewidth=0.8, label="as configured")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{n:,}\n{format_size(n * plan.chunk_bytes)}" for n in counts], fontsize=8)
    axes.set_xlabel(f"pinned capacity ({plan.policy}), in chunks of {format_size(plan.chunk_bytes)}")
    axes.set_ylabel("hit rate, % of prompt chunks")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=5)
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise KvtierError(f"{file} cannot be written: {error.strerror or error}") from error


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
    return "by whole prompts" if plan.step_chunks is None else f"{plan.step_chunks} a step"


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
