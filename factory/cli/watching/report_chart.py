"""A chart of lines over time, as SVG that takes its colors from the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import NamedTuple

from ...text.ages import format_age

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 70, 8, 10, 24  # room for the numbers at the axes
POINTS_MAX = 320  # two for a column of a phone's screen: more are not seen


class Point(NamedTuple):
    """A value at a time; None where nothing is known, which breaks the line."""

    unix_s: float
    value: float | None


def chart(title: str, lines: Mapping[str, Sequence[Point]], shown: Callable[[float], str]) -> str:
    """A figure with a legend; a sentence where there is nothing to draw."""
    known = [point for line in lines.values() for point in line if point.value is not None]
    heading = f"<h3>{escape(title)}</h3>"
    if len({point.unix_s for point in known}) < 2:
        return f"{heading}<p class=quiet>Not enough was seen yet.</p>"
    start_s, end_s = min(point.unix_s for point in known), max(point.unix_s for point in known)
    top = max(point.value or 0.0 for point in known) or 1.0
    paths = "".join(
        f'<path class="line c{index % 4}" d="{_path(_fewer(line), start_s, end_s, top)}"/>'
        for index, line in enumerate(lines.values())
    )
    legend = "".join(
        f'<span><i class="c{index % 4}"></i>{escape(name)}</span>' for index, name in enumerate(lines)
    )
    return (
        f"{heading}<figure><figcaption>{legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{_axes(shown(top), shown(top / 2), shown(0.0), end_s - start_s)}{paths}</svg></figure>"
    )


def _axes(top: str, middle: str, zero: str, span_s: float) -> str:
    rows = ((TOP, top), ((TOP + HEIGHT - BOTTOM) / 2, middle), (HEIGHT - BOTTOM, zero))
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{escape(text)}</text>'
        for y, text in rows
    )
    foot = HEIGHT - 6
    return (
        f'{grid}<text x="{LEFT}" y="{foot}">{format_age(span_s)} ago</text>'
        f'<text x="{WIDTH - RIGHT}" y="{foot}" text-anchor="end">now</text>'
    )


def _fewer(line: Sequence[Point]) -> Sequence[Point]:
    step = -(-len(line) // POINTS_MAX)
    return line[::-1][::step][::-1]  # the last one stays


def _path(line: Sequence[Point], start_s: float, end_s: float, top: float) -> str:
    drawn, is_broken = [], True
    for unix_s, value in line:
        if value is None:
            is_broken = True
            continue
        x = LEFT + (WIDTH - LEFT - RIGHT) * (unix_s - start_s) / (end_s - start_s)
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top
        drawn.append(f"{'M' if is_broken else 'L'}{x:.1f} {y:.1f}")
        is_broken = False
    return "".join(drawn)
