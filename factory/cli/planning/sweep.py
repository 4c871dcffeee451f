"""A sweep: what another capacity of one tier would do, and from which on more of it adds little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ....engine.replay.replay import ReplayFigures
from ....tiers import ConfigError
from ...text.units import format_size
from ...text.wording import listed, nearest, shown
from .replay_plan import ReplayPlan
from .table import table

DOUBLINGS = 3  # to either side of the configured capacity
KNEE_POINTS = 1.0  # of hit rate: what a doubling has to add to be worth a line in an order
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Sweep:
    """The replays of a sweep, smallest capacity first.

    Attributes:
        tier: its name.
        span_s: how long the trace is; None where it does not say.
    """

    tier: str
    capacities_bytes: tuple[int, ...]
    figures: tuple[ReplayFigures, ...]
    configured_bytes: int
    span_s: float | None


def refuse_unknown(plan: ReplayPlan, tier: str) -> None:
    """Refuse the name of a tier that the document does not have.

    Raises:
        ConfigError: says which ones it has.
    """
    names = list(plan.capacities_bytes)
    if tier not in names:
        near = nearest(tier, names)
        meant = f"; did you mean {shown(near)}?" if near else ""
        raise ConfigError("--sweep", f"the document has no tier {shown(tier)}{meant} It has {listed(names)}")


def points(plan: ReplayPlan, tier: str, whole_bytes: int) -> dict[int, ReplayPlan]:
    """The chain with each capacity of the tier, smallest first."""
    return {size: plan.resized(tier, size) for size in capacities(plan, tier, whole_bytes)}


def capacities(plan: ReplayPlan, tier: str, whole_bytes: int) -> list[int]:
    """Capacities of the tier to replay, doubling, none far above what holds every chunk of the trace.

    Args:
        whole_bytes: all different chunks of the trace.
    """
    own_bytes, least_bytes = plan.capacities_bytes[tier], plan.least_bytes(tier)
    smaller = {own_bytes >> i for i in range(DOUBLINGS + 1)}
    larger = {own_bytes << i for i in range(1, DOUBLINGS + 1)}
    return sorted(
        {own_bytes}
        | {size for size in smaller if size >= least_bytes}
        | {size for size in larger if size < 2 * whole_bytes}
    )


def knee_bytes(sweep: Sweep) -> int | None:
    """The smallest capacity from which on each doubling adds less than a point of hit rate; None if none."""
    rates = [one.hit_rate_percent for one in sweep.figures]
    knee = None
    for i in range(len(rates) - 2, -1, -1):
        if rates[i + 1] - rates[i] >= KNEE_POINTS:
            break
        knee = sweep.capacities_bytes[i]
    return knee


def knee_sentence(sweep: Sweep) -> str:
    """What the sweep says about buying, in one sentence."""
    knee = knee_bytes(sweep)
    if knee is None:
        return f"twice as much {sweep.tier} still adds a point of hit rate or more at every size looked at"
    return f"above {format_size(knee)} of {sweep.tier}, twice as much adds less than a point of hit rate"


def drives_bytes(figures: ReplayFigures) -> int:
    """What is written to all drives together."""
    return sum(tier.written_bytes for tier in figures.tiers[1:])


def a_day(amount: float, span_s: float | None) -> float | None:
    """The same amount a day; None where nobody knows in what time it came."""
    return None if not span_s else amount * DAY_S / span_s


def written_a_day(size_bytes: float | None) -> str:
    """How a table shows what is written a day."""
    return "-" if size_bytes is None else format_size(round(size_bytes))


def as_text(sweep: Sweep) -> str:
    """One line a capacity, and the sentence."""
    names = [tier.tier for tier in sweep.figures[0].tiers]
    each = names if len(names) > 1 else []
    rows = [(sweep.tier, "hit rate", *(f"from {name}" for name in each), "to drives a day")]
    for size_bytes, found in zip(sweep.capacities_bytes, sweep.figures, strict=True):
        mark = " *" if size_bytes == sweep.configured_bytes else ""
        rates = (f"{tier.hit_rate_percent:.1f}%" for tier in found.tiers) if each else ()
        written = written_a_day(a_day(drives_bytes(found), sweep.span_s))
        rows.append((f"{format_size(size_bytes)}{mark}", f"{found.hit_rate_percent:.1f}%", *rates, written))
    return "\n".join([*table(rows), f"* as configured; {knee_sentence(sweep)}"])


def as_json(sweep: Sweep) -> dict[str, Any]:
    """The same for programs."""
    points = [
        {
            "capacity_bytes": size_bytes,
            "hit_rate_percent": found.hit_rate_percent,
            "tiers": {tier.tier: tier.hit_rate_percent for tier in found.tiers},
            "drives_written_bytes": drives_bytes(found),
        }
        for size_bytes, found in zip(sweep.capacities_bytes, sweep.figures, strict=True)
    ]
    return {"tier": sweep.tier, "knee_bytes": knee_bytes(sweep), "points": points}
