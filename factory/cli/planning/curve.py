"""Draws a sweep: what a tier's capacity is worth, and what it writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ....tiers import ConfigError, KvtierError
from ...text.units import format_size
from .replay_plan import PINNED
from .sweep import DAY_S, Sweep, drives_bytes, knee_sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIB = 1 << 40
TIER_COLORS = ("#7f7f7f", "#1f77b4", "#2ca02c", "#9467bd")
TOTAL_COLOR = "black"


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


def plot(sweep: Sweep, file: Path, *, trace: str, document: str, unlimited_percent: float) -> None:
    """Write a PNG: the hit rate over a tier's capacity; of a drive also what is written.

    Raises:
        KvtierError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    panels = 1 if sweep.tier == PINNED else 2
    figure = Figure(figsize=(8, 4.6 if panels == 1 else 6.6), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=(2, 1)[:panels])[:, 0]
    _draw_hits(axes[0], sweep, unlimited_percent)
    if panels == 2:
        _draw_written(axes[1], sweep)
    for one in axes:
        one.axvline(sweep.configured_bytes, color="#d62728", linewidth=1, linestyle="--")
        one.grid(alpha=0.3)
        one.set_ylim(bottom=0)
    last = axes[-1]
    last.set_xscale("log", base=2)
    last.set_xticks(sweep.capacities_bytes, [format_size(size) for size in sweep.capacities_bytes])
    last.minorticks_off()
    last.set_xlabel(f"capacity of {sweep.tier}")
    answer = knee_sentence(sweep)
    figure.suptitle(f"How much {sweep.tier}? {answer[0].upper()}{answer[1:]}.", fontsize=11)
    made = time.strftime("%Y-%m-%d")
    axes[0].set_title(f"{trace} through {document}, {made}", fontsize=8, color="#555555", loc="left")
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    try:
        figure.savefig(file, format="png", dpi=120)
    except OSError as error:
        raise KvtierError(f"{file} cannot be written: {error.strerror or error}") from error


def _draw_hits(axes: Axes, sweep: Sweep, unlimited_percent: float) -> None:
    sizes, names = sweep.capacities_bytes, [tier.tier for tier in sweep.figures[0].tiers]
    totals = [found.hit_rate_percent for found in sweep.figures]
    axes.plot(sizes, totals, marker="o", color=TOTAL_COLOR, linewidth=2.5, label="all tiers")
    for i, name in enumerate(names if len(names) > 1 else ()):
        rates = [found.tiers[i].hit_rate_percent for found in sweep.figures]
        color = TIER_COLORS[i % len(TIER_COLORS)]
        axes.plot(sizes, rates, marker=".", color=color, linewidth=1.2, label=f"from {name}")
    axes.axhline(unlimited_percent, color="black", linestyle=":", linewidth=1, label="unlimited cache")
    axes.plot([], [], color="#d62728", linewidth=1, linestyle="--", label="as configured")
    for size, total in zip(sizes, totals, strict=True):
        axes.annotate(f"{total:.1f}", (size, total), xytext=(-4, 6), textcoords="offset points", **_SMALL)
    axes.set_ylabel("hit rate, % of prompt chunks")
    axes.margins(y=0.12)


_SMALL = {"ha": "right", "fontsize": 8}


def _draw_written(axes: Axes, sweep: Sweep) -> None:
    scale = DAY_S / sweep.span_s / TIB if sweep.span_s else 1 / TIB
    written = [drives_bytes(found) * scale for found in sweep.figures]
    axes.plot(sweep.capacities_bytes, written, marker="o", color="#ff7f0e", label="written to drives")
    axes.set_ylabel("TiB a day" if sweep.span_s else "TiB for this trace")
    axes.margins(y=0.15)
