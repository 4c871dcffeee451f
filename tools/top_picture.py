"""Draws the picture of `kvtier top` in the documentation: `tools/top_picture.py`.

The numbers are made up, and the picture says nothing of speed. It needs no font from elsewhere: rich would
link one, so its frame is ours.
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from kvtier.factory.cli.watching.shapes import EngineNow, TierNow
from kvtier.factory.cli.watching.top_screen import screen

FILE = Path(__file__).parents[1] / "docs" / "images" / "top.svg"
COLUMNS = 80
GIB = 1 << 30
FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>kvtier top</title>
<style>.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace;
font-size: {char_height}px; line-height: {line_height}px }} {styles}</style>
<defs>{lines}</defs>
<rect width="100%" height="100%" rx="8" fill="#292929"/>
<g transform="translate({terminal_x}, {terminal_y})">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def tier(
    name: str, percents: tuple[float, float], loads: float, used: float, cap: int, **more: int
) -> TierNow:
    return TierNow(
        tier=name,
        hits=0,
        hit_percent=percents[1],
        hit_percent_now=percents[0],
        load_bytes_per_s=loads * GIB,
        store_bytes_per_s=0.3 * GIB,
        evicted_per_s=152.0 if name == "pinned" else 96.0,
        queue_chunks=0 if name == "pinned" else 12,
        used_bytes=round(used * GIB),
        cap_bytes=cap * GIB,
        bound_by="capacity",
        breaker="" if name == "pinned" else "closed",
        late_loads=more.get("late_loads", 0),
        dropped_chunks=0,
        corrupt_chunks=0,
    )


def engine() -> EngineNow:
    tiers = (
        tier("pinned", (41.2, 38.8), 2.1, 64.0, 64),
        tier("nvme", (22.5, 24.1), 1.2, 1741.0, 2048, late_loads=3),
    )
    saved_tokens, rate = 12_582_912, 5000
    name = "org/Llama-3.1-8B"
    return EngineNow(
        4711, "vllm", name, "0e29043b2ee0", 11_000.0, False, saved_tokens, saved_tokens / rate, tiers
    )


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), markup=False, highlight=False)
    console.print(screen([engine()], COLUMNS))
    FILE.write_text(console.export_svg(title="kvtier top", code_format=FRAME))


if __name__ == "__main__":
    main()
