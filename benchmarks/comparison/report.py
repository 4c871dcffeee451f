"""A result of the benchmark as a table."""

from __future__ import annotations

from collections.abc import Sequence
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
