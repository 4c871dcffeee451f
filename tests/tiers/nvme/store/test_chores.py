"""When a checkpoint is due, and what one that is made while the store is used is worth."""

from __future__ import annotations

from pathlib import Path

import damage
import pytest
from nvme_rig import MIB, keys_of, opened, right, stored

from kvtier.tiers.base import RemoveReason
from kvtier.tiers.nvme.store import chores
from kvtier.tiers.nvme.store.checkpoint import write_checkpoint


@pytest.mark.parametrize(
    ("name", "value"), [("CHECKPOINT_CHUNKS", 100), ("CHECKPOINT_PERIOD_S", 0.0)], ids=["chunks", "time"]
)
async def test_a_checkpoint_is_made_once_enough_was_stored_or_time_has_gone_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=16 * MIB)
    await stored(tier, keys_of(0, 8))
    await tier._keeper.stop()
    work = tier._keeper._chores
    work.round()
    assert not (path / "checkpoint").exists(), "too little, too soon"
    monkeypatch.setattr(chores, name, value)
    for first in range(100, 600, 50):
        await stored(tier, keys_of(first, 50))
    await tier._upkeep.once()
    await tier._ahead.finished()  # no segment is opened any more
    work.round()
    made = (path / "checkpoint").stat().st_ino
    work.round()
    assert (path / "checkpoint").stat().st_ino == made, "nothing came since"
    await tier.close()


async def test_a_checkpoint_that_is_older_than_a_removal_does_not_bring_a_chunk_back(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path, capacity_bytes=16 * MIB)
    await stored(tier, keys_of(0, 16))
    await tier.remove(keys_of(0, 4), RemoveReason.REQUESTED)
    write_checkpoint(tier._store.directory, tier._index)
    await tier.remove(keys_of(4, 4), RemoveReason.REQUESTED)
    await stored(tier, keys_of(6, 1))
    await tier.flush()
    left = path.with_name("left")
    damage.copy_of_whole_files(path, left)
    await tier.close()
    after = await opened(left, capacity_bytes=16 * MIB)
    assert await right(after, keys_of(0, 16)) == keys_of(6, 1) + keys_of(8, 8)
    await after.close()
