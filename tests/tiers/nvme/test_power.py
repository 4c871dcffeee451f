"""Power losses, refusing devices and a file system that others fill."""

from __future__ import annotations

import asyncio
import errno
import os
import random
from pathlib import Path

import pytest
from faulty_files import AnotherBoot, RefusingFiles, UnsyncedFiles, WatchedFiles
from nvme_rig import CHUNK_BYTES, MIB, at_rest, filled, keys_of, opened, right, stored

from kvtier.tiers.base import Failure, RemoveReason
from kvtier.tiers.errors import TierError
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import aligned_buffers

LOSSES = 12
SETTLE_ROUNDS = 200


async def test_what_was_flushed_outlives_a_power_loss_and_the_rest_is_right_or_a_miss(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    rng, files, path = random.Random(seed), UnsyncedFiles(), tmp_path / "store"
    tier = await opened(path, files=files)
    first, durable, lost = 0, [], 0
    for loss in range(LOSSES):
        for _ in range(rng.randint(1, 4)):
            keys = keys_of(first, rng.randint(1, 12))
            first += len(keys)
            await stored(tier, keys)
            if rng.random() < 0.4:
                await tier.flush()
                durable = keys_of(0, first)
        left = tmp_path / f"after-{loss}"
        lost += files.lose_power(path, left, rng)
        after = await opened(left, files=AnotherBoot())
        try:
            assert await right(after, durable) == durable
            await right(after, keys_of(0, first))
            await stored(after, keys_of(100_000, 8))
            assert len(await right(after, keys_of(100_000, 8))) == 8
        finally:
            await after.close()
    await tier.close()
    assert lost > 0, "nothing was ever lost, so nothing was shown"


async def test_without_a_power_loss_the_index_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, 8))
    await tier.close()
    after = await opened(path, files=AnotherBoot())
    assert len(await right(after, keys_of(0, 8))) == 8
    await after.close()


@pytest.mark.parametrize(
    ("code", "failure"), [(errno.EIO, Failure.IO_ERROR), (errno.ENOSPC, Failure.NO_SPACE)]
)
async def test_a_device_that_refuses_a_write_fails_the_keys_and_nothing_is_raised(
    tmp_path: Path, code: int, failure: Failure
) -> None:
    files = RefusingFiles()
    tier = await opened(tmp_path / "store", files=files)
    await stored(tier, keys_of(0, 4))
    files.writes = code
    keys = keys_of(10, 4)
    outcome = await tier.store(keys, filled(keys))
    assert outcome.succeeded == ()
    assert set(outcome.failed.values()) == {failure}
    assert list(tier.lookup(keys)) == [False] * 4
    files.writes = 0
    await at_rest(tier)
    await stored(tier, keys)
    assert len(await right(tier, keys_of(0, 4) + keys)) == 8
    await tier.close()


async def test_a_device_that_refuses_a_read_fails_the_keys_and_keeps_the_chunks(tmp_path: Path) -> None:
    files = RefusingFiles()
    tier = await opened(tmp_path / "store", files=files)
    keys = keys_of(0, 4)
    await stored(tier, keys)
    files.reads = errno.EIO
    outcome = await tier.load(keys, aligned_buffers(4, CHUNK_BYTES))
    assert set(outcome.failed.values()) == {Failure.IO_ERROR}
    assert tier.stats().counters["io_errors"] > 0
    files.reads = 0
    assert await right(tier, keys) == keys
    await tier.close()


@pytest.mark.parametrize("chunks", [4, 64])  # within one segment, and over several that are sealed meanwhile
async def test_a_flush_tells_of_a_sync_that_failed_also_before_it(tmp_path: Path, chunks: int) -> None:
    files = RefusingFiles()
    tier = await opened(tmp_path / "store", files=files, capacity_bytes=16 * MIB)
    await stored(tier, keys_of(0, 4))
    await tier.flush()
    keys = keys_of(10, chunks)
    files.syncs = errno.EIO
    outcome = await tier.store(keys, filled(keys))
    await tier._upkeep.once()
    files.syncs = 0
    with pytest.raises(TierError, match="may not be durable"):
        await tier.flush()
    await tier.flush()
    assert await right(tier, keys) == list(outcome.succeeded)
    await tier.close()


async def test_a_removal_stays_one_after_a_power_loss(tmp_path: Path) -> None:
    path, files = tmp_path / "store", UnsyncedFiles()
    tier = await opened(path, files=files)
    await stored(tier, keys_of(0, 8))
    await tier.remove(keys_of(2, 3), RemoveReason.REQUESTED)
    await stored(tier, keys_of(3, 1))
    await tier.flush()
    files.lose_power(path, tmp_path / "after", random.Random(1))
    await tier.close()
    after = await opened(tmp_path / "after", files=AnotherBoot())
    assert await right(after, keys_of(0, 8)) == keys_of(0, 2) + keys_of(3, 1) + keys_of(5, 3)
    await after.close()


async def test_a_chunk_that_is_carried_is_durable_before_its_old_place_is_given_up(tmp_path: Path) -> None:
    files = WatchedFiles()
    tier = await opened(tmp_path / "store", files=files, write_amplification=2.0)
    hot = keys_of(0, 8)
    await stored(tier, hot)
    for first in range(100, 1600, 50):  # some segments full
        await stored(tier, keys_of(first, 50))
    await tier.flush()
    assert await right(tier, hot) == hot
    await tier._upkeep.once()
    assert await tier._carrier.reclaim(carry=True)
    assert tier.stats().counters["carried_chunks"] == len(hot)
    assert files.unsynced_then[-1] == 0
    assert await right(tier, hot) == hot
    await tier.close()


async def test_an_older_epoch_stays_one_after_a_power_loss(tmp_path: Path) -> None:
    path, files = tmp_path / "store", UnsyncedFiles()
    tier = await opened(path, files=files)
    await stored(tier, keys_of(0, 8))
    await tier.flush()
    await tier.invalidate()
    files.lose_power(path, tmp_path / "after", random.Random(1))
    await tier.close()
    after = await opened(tmp_path / "after", files=AnotherBoot())
    assert await right(after, keys_of(0, 8)) == []
    await stored(after, keys_of(0, 8))
    await after.close()


async def test_room_is_given_back_when_others_fill_the_file_system(tmp_path: Path) -> None:
    files, path = RefusingFiles(), tmp_path / "store"
    tier = await opened(path, files=files, reserve_bytes=64 * MIB, capacity_bytes=32 * MIB)
    for first in range(0, 1024, 64):
        await stored(tier, keys_of(first, 64))
    before = allocated_bytes(path)
    files.free = 60 * MIB  # 4 MiB less than shall stay free
    await gives_back(tier, path, before, 4 * MIB)
    keys = keys_of(5000, 64)
    outcome = await tier.store(keys, filled(keys))
    assert set(outcome.failed.values()) <= {Failure.NO_SPACE, Failure.DROPPED}
    assert allocated_bytes(path) <= before - 4 * MIB
    await tier.close()


async def gives_back(tier: NvmeTier, path: Path, before: int, wanted_bytes: int) -> None:
    """Let the tier's upkeep run, a bounded number of times, until the room is free."""
    for _ in range(SETTLE_ROUNDS):
        if allocated_bytes(path) <= before - wanted_bytes:
            return
        await tier.store([b"once more"], filled([b"once more"]))
        await asyncio.sleep(0.05)  # upkeep is its own task, on its own clock
    pytest.fail("the room was not given back")
