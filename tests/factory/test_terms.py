"""An nvme entry with a write budget and an endurance: each drive keeps to its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nvme_rig import CHUNK_BYTES, MIB, filled, keys_of

from kvtier.factory.base import TierContext
from kvtier.factory.builtin import NvmeFactory
from kvtier.factory.config import parse_config
from kvtier.factory.entries import NvmeConfig
from kvtier.tiers.base import Tier
from kvtier.tiers.breaker import Breaker

AN_HOUR_CHUNKS = 32
CAPACITY = 16 * MIB


async def opened(*paths: Path, **fields: Any) -> Tier:
    nvme = {
        "type": "nvme",
        "path": [str(path) for path in paths] if len(paths) > 1 else str(paths[0]),
        "capacity": CAPACITY,
        "reserve": 0,
        "write_budget": AN_HOUR_CHUNKS * CHUNK_BYTES * 24 / CAPACITY,
        **fields,
    }
    tiers = [{"type": "gpu"}, {"type": "pinned", "capacity": MIB}, nvme]
    config = parse_config({"version": 1, "tiers": tiers}).tiers[2]
    assert isinstance(config, NvmeConfig)
    config = config.resolve(chunk_bytes=CHUNK_BYTES, json_path="tiers[2]")
    return Breaker(await NvmeFactory.open(config, TierContext(CHUNK_BYTES, 1, {"model": "any"})), slow_s=10)


@pytest.mark.parametrize("drives", [1, 2])
async def test_each_drive_takes_what_its_budget_has_left(tmp_path: Path, drives: int) -> None:
    tier = await opened(*(tmp_path / f"drive{i}" for i in range(drives)))
    keys = keys_of(0, 256)
    stored_count = len((await tier.store(keys, filled(keys))).succeeded)
    assert stored_count == drives * AN_HOUR_CHUNKS
    stats = tier.stats()
    assert stats.counters["over_budget_chunks"] == 256 - stored_count
    assert {part.counters["stored_chunks"] for part in stats.parts.values()} <= {AN_HOUR_CHUNKS}
    assert stats.gauges["breaker_state"] == 0, "it is a choice, and no fault"
    await tier.close()


async def test_what_is_not_admitted_costs_no_budget(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "drive", admission="second_touch")
    keys = keys_of(0, 64)
    for _ in range(2):
        await tier.store(keys, filled(keys))
    counters = tier.stats().counters
    assert counters["not_admitted_chunks"] == 64
    assert (counters["stored_chunks"], counters["over_budget_chunks"]) == (AN_HOUR_CHUNKS, 32)
    await tier.close()


async def test_of_several_drives_the_first_to_wear_out_says_how_long_they_last(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "one", tmp_path / "other", endurance="1GB")
    keys = keys_of(0, 40)
    await tier.store(keys, filled(keys))
    gauges, parts = tier.stats().gauges, [part.gauges for part in tier.stats().parts.values()]
    assert gauges["written_bytes"] == sum(part["written_bytes"] for part in parts) > 0
    assert gauges["written_bytes_a_day"] == sum(part["written_bytes_a_day"] for part in parts)
    assert gauges["drive_writes_a_day"] == max(part["drive_writes_a_day"] for part in parts)
    assert 0 < gauges["years_left"] == min(part["years_left"] for part in parts)
    await tier.close()
