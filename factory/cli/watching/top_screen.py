"""How `kvtier top` looks: a table an engine, or on a narrow terminal a line a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...text.ages import format_age
from ...text.units import format_size
from ..output import one_line
from .shapes import EngineNow, TierNow

NARROW_COLUMNS = 80  # fewer than the table needs
UNKNOWN = "-"
_BAD = "bold red"


def screen(engines: Sequence[EngineNow], columns: int) -> RenderableType:
    """All engines; foreign text is no markup here, and moves no cursor."""
    parts: list[RenderableType] = []
    for engine in engines:
        parts += [_heading(engine), _table(engine) if columns >= NARROW_COLUMNS else _lines(engine)]
        parts += [*_remarks(engine), *_saved(engine), Text("")]
    return Group(*parts)


def _heading(engine: EngineNow) -> Text:
    name = one_line(engine.model or engine.namespace)
    text = Text(f"{name}  {engine.kind}, pid {engine.pid}, up {format_age(engine.up_s)}", style="bold")
    if engine.stale:
        text.append("  no news for some seconds: stopped, or something hangs", style=_BAD)
    return text


def _table(engine: EngineNow) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), style="dim" if engine.stale else "")
    table.add_column("tier", no_wrap=True)
    for heading in ("hit % now", "ever", "load/s", "store/s", "evict/s", "queue", "used", "of"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tier in engine.tiers:
        table.add_row(Text(one_line(tier.tier)), *map(Text, _numbers(tier)))
    return table


def _lines(engine: EngineNow) -> Group:
    headings = ("hit now", "hit ever", "load/s", "store/s", "evict/s", "queue", "used", "of")
    lines: list[RenderableType] = []
    for tier in engine.tiers:
        lines.append(Text(one_line(tier.tier), style="bold"))
        lines += [
            Text(f"  {heading:<9}{value}") for heading, value in zip(headings, _numbers(tier), strict=True)
        ]
    return Group(*lines)


def _numbers(tier: TierNow) -> tuple[str, ...]:
    return (
        _shown(tier.hit_percent_now, "{:.1f}"),
        _shown(tier.hit_percent, "{:.1f}"),
        _size(tier.load_bytes_per_s),
        _size(tier.store_bytes_per_s),
        _shown(tier.evicted_per_s, "{:,.0f}"),
        f"{tier.queue_chunks:,}",
        format_size(tier.used_bytes),
        format_size(tier.cap_bytes),
    )


def _remarks(engine: EngineNow) -> Iterator[Text]:
    """A line for each tier with something to look at."""
    for tier in engine.tiers:
        bad = [f"breaker {tier.breaker}"] if tier.breaker in ("open", "trial") else []
        bad += [f"{tier.corrupt_chunks:,} chunks corrupt"] if tier.corrupt_chunks else []
        said = [f"{tier.late_loads:,} chunks too late"] if tier.late_loads else []
        said += [f"{tier.dropped_chunks:,} chunks dropped"] if tier.dropped_chunks else []
        said += [f"capped by {tier.bound_by}"] if tier.bound_by != "capacity" else []
        if bad or said:
            yield Text(f"{one_line(tier.tier)}: {', '.join([*bad, *said])}", style=_BAD if bad else "yellow")


def _saved(engine: EngineNow) -> Iterator[Text]:
    if engine.saved_tokens is None:
        return
    text = f"{engine.saved_tokens:,} tokens not computed again"
    if engine.saved_s is not None:
        text += f": {format_age(engine.saved_s)} of prefill at the measured rate"
    yield Text(text, style="green")


def _shown(number: float | None, how: str) -> str:
    return UNKNOWN if number is None else how.format(number)


def _size(size_bytes: float | None) -> str:
    return UNKNOWN if size_bytes is None else format_size(round(size_bytes))
