"""An nvme entry that admits at the second touch: on one drive, on two, and in a replay."""

from __future__ import annotations

from pathlib import Path

import pytest
from nvme_rig import CHUNK_BYTES, MIB, filled, keys_of

from kvtier.factory.base import TierContext
from kvtier.factory.builtin import NvmeFactory
from kvtier.factory.cli.planning.replay_plan import Ids, plan_replay
from kvtier.factory.config import parse_config
from kvtier.factory.entries import NvmeConfig
from kvtier.tiers.base import CountsUses, Tier, ability


def document(*paths: Path, admission: str) -> dict[str, object]:
    nvme = {
        "type": "nvme",
        "path": [str(path) for path in paths] if len(paths) > 1 else str(paths[0]),
        "capacity": 16 * MIB,
        "reserve": 0,
        "admission": admission,
    }
    pinned = {"type": "pinned", "capacity": MIB}
    return {"version": 1, "tiers": [{"type": "gpu"}, pinned, nvme]}


async def opened(*paths: Path, admission: str) -> Tier:
    config = parse_config(document(*paths, admission=admission)).tiers[2]
    assert isinstance(config, NvmeConfig)
    config = config.resolve(chunk_bytes=CHUNK_BYTES, json_path="tiers[2]")
    return await NvmeFactory.open(config, TierContext(CHUNK_BYTES, 1, {"model": "any"}))


@pytest.mark.parametrize("drives", [1, 2])
@pytest.mark.parametrize(("admission", "stored_at_once"), [("always", 8), ("second_touch", 0)])
async def test_a_chunk_reaches_the_drive_when_its_entry_says(
    tmp_path: Path, drives: int, admission: str, stored_at_once: int
) -> None:
    tier = await opened(*(tmp_path / f"drive{i}" for i in range(drives)), admission=admission)
    keys = keys_of(0, 8)
    assert len((await tier.store(keys, filled(keys))).succeeded) == stored_at_once
    assert len((await tier.store(keys, filled(keys))).succeeded) == 8
    assert sum(map(bool, tier.lookup(keys))) == 8
    assert ability(tier, CountsUses) is not None  # type: ignore[type-abstract]
    await tier.close()


@pytest.mark.parametrize(("admission", "stored_chunks"), [("always", 4), ("second_touch", 2)])
async def test_a_replay_admits_as_the_tier_does(tmp_path: Path, admission: str, stored_chunks: int) -> None:
    config = parse_config(document(tmp_path, admission=admission))
    (log,) = plan_replay(config, ids=Ids(512, CHUNK_BYTES, 1), step_keys=None, speeds=None).lower()
    for keys in (keys_of(0, 4), keys_of(0, 2)):
        await log.store(keys, filled(keys))
    assert log.stats().counters["stored_bytes"] == stored_chunks * CHUNK_BYTES
