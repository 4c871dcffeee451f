"""A chain built from a document: what its tiers are called, and when each is given up."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from engine_rig import CHUNK_BYTES, EngineRig, config

from kvtier.factory import composite, registry
from kvtier.factory.base import TierConfig, TierContext, unique_name
from kvtier.factory.composite import CompositeSpec
from kvtier.tiers.base import Tier
from kvtier.tiers.breaker import Breaker, BreakerState
from kvtier.tiers.testing import MemoryTier

KEYS = [b"one", b"two"]


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class StuckConfig(TierConfig):
    load_deadline_s: float


class StuckFactory:
    """Makes tiers whose loads never end."""

    Config = StuckConfig

    @staticmethod
    async def open(config: StuckConfig, context: TierContext) -> Tier:
        tier = MemoryTier()
        tier.gate.clear()
        return tier


@pytest.mark.parametrize(
    ("taken", "name"),
    [
        ([], "nvme"),
        (["pinned"], "nvme"),
        (["pinned", "nvme"], "nvme1"),
        (["nvme", "nvme1"], "nvme2"),
        (["nvme1"], "nvme"),
    ],
)
def test_a_name_that_is_taken_gets_a_number(taken: list[str], name: str) -> None:
    assert unique_name("nvme", taken) == name


def two_drives(path: Path) -> dict[str, Any]:
    document = config(path / "first")
    document["tiers"].append({**document["tiers"][2], "path": str(path / "second")})
    return document


def test_each_of_two_drives_has_numbers_of_its_own(tmp_path: Path) -> None:
    rig = EngineRig(two_drives(tmp_path))
    try:
        rig.store(KEYS)
        rig.engine.flush(10)
        stats = rig.engine.stats()
    finally:
        rig.engine.close()
    assert list(stats.tiers) == ["pinned", "nvme", "nvme1"]
    for name in stats.tiers:
        assert stats.tiers[name].chunks == len(KEYS)
        assert stats.counters["stored_bytes", name] == len(KEYS) * CHUNK_BYTES


def _is_given_up(tier: Tier) -> bool:
    return tier.stats().gauges["breaker_state"] == BreakerState.OPEN


async def test_each_tier_is_given_up_at_its_own_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(composite, "Breaker", partial(Breaker, clock=clock))
    monkeypatch.setattr(registry.TIERS, "places", dict(registry.TIERS.places))
    registry.register_tier("stuck", __name__, "StuckFactory")
    stuck = [{"type": "stuck", "load_deadline_s": seconds} for seconds in (2, 9)]
    pinned = {"type": "pinned", "capacity": CHUNK_BYTES}
    spec = CompositeSpec.from_config({"version": 1, "tiers": [{"type": "gpu"}, pinned, *stuck]})
    await spec.start(part_bytes=CHUNK_BYTES, parts=1, identity={})
    buffers = [memoryview(bytearray(CHUNK_BYTES))]
    loads = [asyncio.create_task(tier.load(KEYS[:1], buffers)) for tier in spec.lower]
    await asyncio.sleep(0)
    given_up = []
    for clock.now_s in (1.0, 3.0, 10.0):
        given_up.append([tier.name for tier in spec.lower if _is_given_up(tier)])
    for load in loads:
        load.cancel()
    await asyncio.gather(*loads, return_exceptions=True)
    await spec.close()
    assert given_up == [[], ["memory"], ["memory", "memory1"]]
    assert spec.load_deadline_s == 9
