"""Which capacities a sweep looks at, and what it concludes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvtier.engine.replay.replay import ReplayFigures
from kvtier.factory.cli.planning.replay_plan import Ids, LogPlan, ReplayPlan
from kvtier.factory.cli.planning.sweep import Sweep, capacities, knee_bytes, knee_sentence
from kvtier.tiers.pinned.eviction import LruPolicy

MIB = 1 << 20
PLAN = ReplayPlan(
    1000 * MIB, "lru", LruPolicy, Ids(512, MIB, 1), None, None, (LogPlan("nvme", 1 << 40, 1.3, "always"),)
)


@pytest.mark.parametrize(
    ("slots_count", "distinct_chunks", "counts"),
    [
        (1_000, 1_000_000, [125, 250, 500, 1_000, 2_000, 4_000, 8_000]),
        (1_000, 1_500, [125, 250, 500, 1_000, 2_000]),
        (1_000, 10, [125, 250, 500, 1_000]),
        (1, 1_000_000, [1, 2, 4, 8]),
    ],
)
def test_capacities_double_up_to_where_all_fits(
    slots_count: int, distinct_chunks: int, counts: list[int]
) -> None:
    plan = replace(PLAN, pinned_bytes=slots_count * MIB)
    assert capacities(plan, "pinned", distinct_chunks * MIB) == [count * MIB for count in counts]


def test_a_drive_is_never_too_small_for_its_log() -> None:
    least_bytes = PLAN.least_bytes("nvme")
    plan = PLAN.resized("nvme", 2 * least_bytes)
    assert capacities(plan, "nvme", 1 << 50) == [least_bytes << i for i in range(5)]


def swept(*rates: float) -> Sweep:
    figures = tuple(ReplayFigures(1, 1, 1, rate, (), None) for rate in rates)
    return Sweep("nvme", tuple(MIB << i for i in range(len(rates))), figures, MIB, None)


@pytest.mark.parametrize(
    ("rates", "knee_mib"),
    [
        ((10.0, 20.0, 30.0), None),
        ((10.0, 20.0, 20.5, 20.9), 2),
        ((10.0, 10.1, 30.0, 30.0), 4),
        ((10.0, 10.5, 10.9), 1),
    ],
)
def test_the_knee_is_where_doubling_stops_to_pay(rates: tuple[float, ...], knee_mib: int | None) -> None:
    sweep = swept(*rates)
    assert knee_bytes(sweep) == (None if knee_mib is None else knee_mib * MIB)
    assert ("still adds" in knee_sentence(sweep)) is (knee_mib is None)
