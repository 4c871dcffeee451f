"""Uses of chunks in other tiers: remembered within bounds, counted like reads, carried by a reclaim."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from nvme_rig import CHUNK_BYTES, MIB, keys_of, opened, stored

from kvtier.tiers.base import ChunkKey, CountsUses
from kvtier.tiers.nvme import uses as module
from kvtier.tiers.nvme.index.records import NEVER, Extent
from kvtier.tiers.nvme.tier import NvmeTier


@pytest.fixture
async def tier(tmp_path: Path) -> AsyncIterator[NvmeTier]:
    tier = await opened(tmp_path / "store")
    yield tier
    await tier.close()


def extents(tier: NvmeTier, keys: Sequence[ChunkKey]) -> list[Extent]:
    found = [extent for extent in tier._view.find(keys)[1] if extent is not None]
    assert len(found) == len(keys)
    return found


def last_commit(tier: NvmeTier) -> int:
    with tier._index.read() as txn:
        return txn.last_commit()


def test_the_tier_counts_uses(tier: NvmeTier) -> None:
    assert isinstance(tier, CountsUses)


async def test_a_use_elsewhere_is_a_hit_of_the_chunk_and_no_load_of_the_tier(tier: NvmeTier) -> None:
    keys = keys_of(0, 4)
    await stored(tier, keys)
    tier.used([*keys[:2], b"never stored"])
    await tier._upkeep.once()
    assert [one.hits for one in extents(tier, keys)] == [1, 1, 0, 0]
    assert [one.used_at > NEVER for one in extents(tier, keys)] == [True, True, False, False]
    record = tier._view.record()
    assert (record.hits, record.hit_bytes) == (0, 0), "nothing was read from the drive"
    assert record.useful_bytes == sum(one.length_bytes for one in extents(tier, keys[:2]))


async def test_a_chunk_in_use_all_the_time_is_written_down_once(tier: NvmeTier) -> None:
    keys = keys_of(0, 4)
    await stored(tier, keys)
    tier.used(keys)
    await tier._upkeep.once()
    before = last_commit(tier)
    for _ in range(3):
        tier.used(keys)
        await tier._upkeep.once()
    assert last_commit(tier) == before
    assert [one.hits for one in extents(tier, keys)] == [1] * 4


async def test_a_reclaim_carries_what_was_used_elsewhere_lately(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "small", capacity_bytes=8 * MIB)
    always, late, early, never = keys_of(0, 4)
    await stored(tier, [always, late, early, never])
    tier.used([early])
    lap_chunks = 8 * MIB // CHUNK_BYTES
    start, missed_rounds = 1000, [0, 0, 0, 0]
    while tier.stats().counters["evicted_chunks"] < 3 * lap_chunks:
        tier.used([always])
        if lap_chunks // 2 < start - 1000 < lap_chunks * 3 // 4:
            tier.used([late])
        await stored(tier, keys_of(start, 8))
        await tier._upkeep.once()
        for number, there in enumerate(tier.lookup([always, late, early, never])):
            missed_rounds[number] += not there
        start += 8
    rounds = (start - 1000) // 8
    assert missed_rounds[0] == 0
    assert rounds // 4 < missed_rounds[1] < missed_rounds[2] < rounds
    assert missed_rounds[2] == missed_rounds[3], "a use at the start of its lap earns nothing"
    await tier.close()


async def test_what_is_used_is_remembered_within_bounds(
    tier: NvmeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "USES_MAX", 10)
    keys = keys_of(0, 30)
    await stored(tier, keys)
    for _ in range(3):
        tier.used(keys[:6])
        tier.used(keys[3:])
    await tier._upkeep.once()
    assert [one.hits for one in extents(tier, keys)] == [1] * 10 + [0] * 20
    tier.used(keys[20:])
    await tier._upkeep.once()
    assert [one.hits for one in extents(tier, keys)] == [1] * 10 + [0] * 10 + [1] * 10, "there is room again"


async def test_more_than_a_step_is_counted_in_one_round(
    tier: NvmeTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COUNT_STEP_MAX", 7)
    keys = keys_of(0, 30)
    await stored(tier, keys)
    tier.used(keys)
    await tier._upkeep.once()
    assert [one.hits for one in extents(tier, keys)] == [1] * 30


async def test_any_thread_may_tell_while_others_count(tier: NvmeTier) -> None:
    keys = keys_of(0, 64)
    await stored(tier, keys)

    def tell(start: int) -> None:
        for _ in range(2000):
            tier.used(keys[start : start + 16])

    with ThreadPoolExecutor(4) as threads:
        told = [asyncio.wrap_future(threads.submit(tell, start)) for start in range(0, 64, 16)]
        while not all(one.done() for one in told):
            await tier._upkeep.once()
        await asyncio.gather(*told)
    await tier._upkeep.once()
    assert [one.hits for one in extents(tier, keys)] == [1] * 64
    assert tier._upkeep.io_errors == 0


async def test_a_use_from_before_an_invalidation_counts_for_nothing_after_it(tier: NvmeTier) -> None:
    keys = keys_of(0, 4)
    await stored(tier, keys)
    tier.used(keys)
    await tier.invalidate()
    await tier._upkeep.once()
    assert tier._view.record().useful_bytes == 0
    assert tier._upkeep.io_errors == 0


async def test_what_was_used_last_is_counted_before_the_store_is_left(tmp_path: Path) -> None:
    first, keys = await opened(tmp_path / "store"), keys_of(0, 4)
    await stored(first, keys)
    first.used(keys)
    await first.close()
    first.used(keys)  # and whoever tells a closed tier is not told off
    second = await opened(tmp_path / "store")
    assert all(one.used_at > NEVER for one in extents(second, keys))
    await second.close()
