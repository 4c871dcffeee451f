"""A result of the benchmark as a table, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .cases import KIB

COLUMNS = {
    "MiB/s": "mib_per_s",
    "kvtier is": "ratios",
    "durable MiB/s": "durable_mib_per_s",
    "kvtier is ": "durable_ratios",
    "p50 ms": "p50_ms",
    "p99 ms": "p99_ms",
    "p99/p50": "p99_by_p50",
    "CPU s/GiB": "cpu_s_per_gib",
    "syncs": "syncs",
    "their s": "syncs_s",
}
WHOLE = ("mib_per_s", "durable_mib_per_s", "syncs")
RATIOS = ("ratios", "durable_ratios")
PLOTTED = ("fio", "kvtier", "vllm_fs", "lmcache")


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("case", "chunk", "store")
    for title in COLUMNS:
        table.add_column(title, justify="right")
    for row in sorted(result["medians"], key=lambda row: (row["case"], row["chunk_bytes"], row["store"])):
        place = (row["case"], row["chunk_bytes"], row["store"])
        known = {**row, **{name: ratio_of(result[name], place) for name in RATIOS}}
        cells = [cell(name, known.get(name)) for name in COLUMNS.values()]
        table.add_row(row["case"], f"{row['chunk_bytes'] // KIB} KiB", row["store"], *cells)
    console.print(table)
    starts = result["starts"]
    console.print(f"{starts['at_rest']} of {starts['all']} starts found the drive at rest")
    for cost in result["lookup"]:
        console.print(
            f"{cost['chunks']:,} chunks: lookup {cost['lookup_us_per_key']:.2f} us a key, "
            f"open {cost['open_s']:.3f} s, {cost['rss_mib']:.0f} MiB above an empty process"
        )
    flush = result["flush"]
    console.print(
        f"one request of 1 MiB: {flush['store_ms']:.1f} ms to store, {flush['flush_ms']:.1f} to flush"
    )


def ratio_of(ratios: Sequence[dict[str, Any]], place: tuple[str, int, str]) -> float | None:
    for row in ratios:
        if (row["case"], row["chunk_bytes"], row["peer"]) == place:
            return float(row["ratio"])
    return None


def cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in RATIOS:
        return f"{value:.2f}x"
    return f"{value:.0f}" if name in WHOLE else f"{value:.2f}"


def plot(result: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), sharex=True)
    for axis, case in zip(axes.flat, ("store_one", "load_one", "store_many", "load_many"), strict=True):
        for name in PLOTTED:
            rows = sorted(
                (row["chunk_bytes"], row["mib_per_s"])
                for row in result["medians"]
                if (row["case"], row["store"]) == (case, name)
            )
            if rows:
                axis.plot(
                    [f"{size // KIB} KiB" for size, _ in rows], [rate for _, rate in rows], "o-", label=name
                )
        axis.set_title(case)
        axis.set_ylabel("MiB/s")
        axis.set_ylim(bottom=0)
        axis.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)
