"""The page of `kvtier report`: one HTML file without scripts, and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ....engine.live.board import Board
from ...text.ages import format_age
from ...text.units import format_size
from ..output import cut, one_line
from .report_chart import Point, chart
from .shapes import EngineNow, TierNow

if TYPE_CHECKING:
    from ....tiers.nvme.admin.survey import NamespaceUsage, Usage

LABEL_WIDTH = 80  # of foreign text; a label may have any length
NAMESPACES_MAX = 50  # the largest; a store may have any number

STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--quiet:#5d6877;--paper:#fff;--line:#d9dee5;--bad:#b3261e;
--c0:#1667b7;--c1:#c2571a;--c2:#2c7d4f;--c3:#7b3fa0}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--quiet:#9aa5b4;--paper:#12161c;--line:#323a46;--bad:#ff8a80;
--c0:#6cb2f5;--c1:#f2a36b;--c2:#74cf9b;--c3:#c795e6}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1rem;font:16px/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--paper)}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2rem;border-top:1px solid var(--line);padding-top:1rem}
h1,h2{overflow-wrap:anywhere}h3{font-size:1rem;margin-bottom:.2rem}
.lead{font-size:1.1rem}.quiet,figcaption{color:var(--quiet)}.bad{color:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 2rem}
figure{margin:0}svg{width:100%;height:auto}
svg text{font-size:13px;fill:var(--quiet)}svg line{stroke:var(--line)}
.line{fill:none;stroke-width:2;stroke-linejoin:round}
path.c0{stroke:var(--c0)}path.c1{stroke:var(--c1)}path.c2{stroke:var(--c2)}path.c3{stroke:var(--c3)}
@media(max-width:600px){svg text{font-size:17px}}
figcaption span{margin-right:1rem;font-size:.9rem}figcaption i{display:inline-block;width:1rem;height:3px;
margin-right:.35rem;vertical-align:middle}i.c0{background:var(--c0)}i.c1{background:var(--c1)}
i.c2{background:var(--c2)}i.c3{background:var(--c3)}
"""


def page(
    title: str,
    made: str,
    engines: Sequence[tuple[Board, EngineNow]],
    usage: Usage,
    namespaces: Sequence[NamespaceUsage],
) -> str:
    """The whole page.

    Args:
        title: the store's path; foreign text, as labels are.
        made: when it was made, for people.
    """
    body = [
        f"<h1>{_text(title)}</h1><p class=quiet>Made by kvtier report, {escape(made)}.</p>",
        f"<p class=lead>{escape(summary([now for _, now in engines], usage))}</p>",
        _list("What to do", list(advice([now for _, now in engines], usage))),
        *(_engine(board, now) for board, now in engines),
        _room(usage),
        _namespaces(namespaces),
    ]
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width">'
        f"<title>kvtier: {_text(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def summary(engines: Sequence[EngineNow], usage: Usage) -> str:
    held = f"The store holds {usage.live_chunks:,} chunks, {format_size(usage.live_bytes)}"
    read = f"{format_size(usage.useful_bytes)} of it were read back at least once."
    if not engines:
        return f"{held}; {read} No engine that uses it can be seen from here."
    tokens = [engine.saved_tokens for engine in engines if engine.saved_tokens is not None]
    saved = f" {sum(tokens):,} tokens were not computed again." if tokens else ""
    count = "One engine uses" if len(engines) == 1 else f"{len(engines)} engines use"
    return f"{count} it now.{saved} {held}; {read}"


def advice(engines: Sequence[EngineNow], usage: Usage) -> Iterator[str]:
    """What is worth looking at, the worst first."""
    tiers = [tier for engine in engines for tier in engine.tiers]
    for applies, text in _ADVICE:
        names = sorted({tier.tier for tier in tiers if applies(tier)})
        if names:
            yield f"{', '.join(names)}: {text}"
    if usage.bound_by != "capacity":
        cap = format_size(usage.cap_bytes)
        yield f"The store can take only {cap}: make room on the drive, or lower its reserve."
    if usage.years_left is not None and usage.years_left < 1:
        yield "The drive is worn out within a year at this rate: set a write_budget, or admission."


_ADVICE: Sequence[tuple[Callable[[TierNow], bool], str]] = (
    (lambda tier: tier.breaker == "open", "the breaker is open. Look at the drive and at the server's log."),
    (
        lambda tier: tier.corrupt_chunks > 0,
        "chunks failed their checksum. Run kvtier fsck, and look at the drive.",
    ),
    (lambda tier: tier.late_loads > 0, "loads came too late. The drive is slower than the deadline allows."),
    (
        lambda tier: tier.dropped_chunks > 0,
        "chunks were dropped. It does not keep up, or has no room for them.",
    ),
)


def _engine(board: Board, now: EngineNow) -> str:
    headings = ("tier", "hits", "hit %", "used", "of", "queue", "late", "dropped", "corrupt")
    rows = [
        (
            tier.tier,
            f"{tier.hits:,}",
            "-" if tier.hit_percent is None else f"{tier.hit_percent:.1f}",
            format_size(tier.used_bytes),
            format_size(tier.cap_bytes),
            f"{tier.queue_chunks:,}",
            f"{tier.late_loads:,}",
            f"{tier.dropped_chunks:,}",
            f"{tier.corrupt_chunks:,}",
        )
        for tier in now.tiers
    ]
    points = [*board.history, {"unix_s": board.now_unix_s, "tiers": _numbers(board)}]
    charts = (
        chart("Hit rate by tier, %", _hit_rates(points), "{:.0f}%".format),
        chart("Loaded a second", _rates(points, "loaded_bytes"), _size),
        chart("Stored a second", _rates(points, "stored_bytes"), _size),
        chart("Chunks evicted a second", _rates(points, "evicted_chunks"), "{:.1f}".format),
    )
    name = f"{_text(now.model or now.namespace)}, pid {now.pid}, up {format_age(now.up_s)}"
    return f"<h2>{name}</h2>{_table(headings, rows)}<div class=charts>{''.join(map(_block, charts))}</div>"


def _room(usage: Usage) -> str:
    rows = [
        ("allocated", format_size(usage.allocated_bytes)),
        ("can take", f"{format_size(usage.cap_bytes)}, by its {usage.bound_by}"),
        ("read back", format_size(usage.useful_bytes)),
        ("written", format_size(usage.written_bytes)),
        ("written a day", format_size(usage.written_bytes_a_day)),
        ("years left", "-" if usage.years_left is None else f"{usage.years_left:.1f}"),
    ]
    return "<h2>Room and wear</h2>" + _table(("", ""), rows)


def _namespaces(found: Sequence[NamespaceUsage]) -> str:
    largest = sorted(found, key=lambda one: one.chunk_bytes, reverse=True)
    rows = [
        (
            one.label,
            f"{one.chunks:,}",
            format_size(one.chunk_bytes),
            f"{one.hits:,}",
            f"{one.never_read_chunks:,}",
        )
        for one in largest[:NAMESPACES_MAX]
    ]
    more = len(largest) - len(rows)
    rest = f"<p class=quiet>and {more:,} smaller ones</p>" if more > 0 else ""
    headings = ("namespace", "chunks", "bytes", "hits", "never read")
    return "<h2>Namespaces</h2>" + _table(headings, rows) + rest


def _hit_rates(points: Sequence[Any]) -> dict[str, list[Point]]:
    def rate(before: Any, after: Any, tier: str) -> float | None:
        lookups = sum(_added(before, after, name, c) for name in after["tiers"] for c in ("hits", "misses"))
        return 100 * _added(before, after, tier, "hits") / lookups if lookups > 0 else None

    return _lines(points, rate)


def _rates(points: Sequence[Any], counter: str) -> dict[str, list[Point]]:
    return _lines(
        points,
        lambda before, after, tier: (
            _added(before, after, tier, counter) / (after["unix_s"] - before["unix_s"])
        ),
    )


def _lines(points: Sequence[Any], value: Callable[[Any, Any, str], float | None]) -> dict[str, list[Point]]:
    """Of each tier a value for every two points between which time went by."""
    tiers = list(points[-1]["tiers"])
    pairs = [(one, two) for one, two in pairwise(points) if two["unix_s"] > one["unix_s"]]
    return {tier: [Point(two["unix_s"], value(one, two, tier)) for one, two in pairs] for tier in tiers}


def _added(before: Any, after: Any, tier: str, counter: str) -> int:
    earlier = before["tiers"].get(tier, {}).get(counter, 0)
    return max(0, int(after["tiers"][tier].get(counter, 0)) - int(earlier))


def _numbers(board: Board) -> dict[str, Any]:
    return {name: tier["counters"] for name, tier in board.stats["tiers"].items()}


def _size(size_bytes: float) -> str:
    return format_size(round(size_bytes))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings) if any(headings) else ""
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _list(heading: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return f"<h2>{heading}</h2><ul class=bad>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>"


def _block(part: str) -> str:
    return f"<div>{part}</div>"


def _text(foreign: str) -> str:
    return escape(cut(one_line(foreign), LABEL_WIDTH))
