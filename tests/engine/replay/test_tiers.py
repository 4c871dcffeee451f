"""The log without bytes: its own rules, and that it keeps what the real log keeps."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtier.engine.replay.tiers import LogWithoutBytes
from kvtier.tiers import ChunkKey, Failure, RemoveReason, Tier, TierUnavailable
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import aligned_buffers

CHUNK_BYTES = 1 << 20
CAPACITY_BYTES = 128 << 20  # segments of two chunks each, dozens of them
FEW_SEGMENTS_BYTES = 8 << 20  # three segments: nothing is freed ahead, so nothing depends on when upkeep runs


def log(capacity_bytes: int = CAPACITY_BYTES, write_amplification: float = 1.0) -> LogWithoutBytes:
    return LogWithoutBytes(
        "nvme",
        capacity_bytes=capacity_bytes,
        chunk_bytes=CHUNK_BYTES,
        write_amplification=write_amplification,
    )


def keys(count: int, start: int = 0) -> list[ChunkKey]:
    return [b"chunk-%08d" % i for i in range(start, start + count)]


async def store(tier: LogWithoutBytes, new: Sequence[ChunkKey]) -> None:
    await tier.store(new, [memoryview(b"")] * len(new))
    tier.check()


async def load(tier: LogWithoutBytes, wanted: Sequence[ChunkKey]) -> None:
    assert not (await tier.load(wanted, [memoryview(b"")] * len(wanted))).failed


async def test_it_is_a_tier() -> None:
    assert isinstance(log(), Tier)


async def test_what_was_stored_first_leaves_first() -> None:
    tier = log()
    stored = keys(200)
    for start in range(0, 200, 5):
        await store(tier, stored[start : start + 5])
    there = list(tier.lookup(stored))
    assert there == sorted(there), "what is there is the newest"
    kept_count = sum(there)
    assert 0 < kept_count < 128, "no more than the cap"
    stats = tier.stats()
    assert (stats.chunks, stats.counters["evicted_chunks"]) == (kept_count, 200 - kept_count)
    assert stats.used_bytes <= stats.capacity_bytes


async def fill(tier: LogWithoutBytes, count: int, read_at: int) -> int:
    """Store one chunk after the other, and load the first after so many; how many it outlived is returned."""
    (read,) = keys(1)
    for i in range(count):
        await store(tier, keys(1, start=i))
        if i == read_at:
            await load(tier, [read])
        if not tier.lookup([read])[0]:
            return i
    return count


async def test_a_chunk_that_was_read_lately_is_carried_once() -> None:
    lap = await fill(log(write_amplification=2.0), 2 * CAPACITY_BYTES // CHUNK_BYTES, read_at=0)
    assert lap < CAPACITY_BYTES // CHUNK_BYTES, "the reading was long ago"
    tier = log(write_amplification=2.0)
    assert lap * 1.5 < await fill(tier, 3 * lap, read_at=lap * 3 // 4) < 3 * lap
    assert tier.stats().counters["carried_bytes"] == CHUNK_BYTES, "nobody read it in its second lap"


async def test_a_chunk_that_another_tier_serves_is_carried_like_one_that_was_read() -> None:
    tier = log(write_amplification=2.0)
    (used,) = keys(1)
    await store(tier, [used])
    fill_count = 3 * CAPACITY_BYTES // CHUNK_BYTES
    for i in range(1, fill_count):
        await store(tier, keys(1, start=i))
        tier.used([used, b"unknown"])
    assert tier.stats().counters["carried_bytes"] // CHUNK_BYTES >= 2
    assert list(tier.lookup([used])) == [True]


async def test_without_amplification_nothing_is_carried() -> None:
    tier = log(write_amplification=1.0)
    for i in range(300):
        await store(tier, keys(1, start=i))
        await load(tier, keys(1, start=i))
    assert tier.stats().counters["carried_bytes"] == 0


@pytest.mark.parametrize("amplification", [1.1, 1.3, 2.0])
async def test_carrying_keeps_to_the_amplification(amplification: float) -> None:
    tier = log(write_amplification=amplification)
    for i in range(500):
        await store(tier, keys(1, start=i))
        await load(tier, [key for key in keys(1, start=max(0, i - 80)) if tier.lookup([key])[0]])
    counters = tier.stats().counters
    written_bytes = counters["stored_bytes"] + counters["carried_bytes"]
    assert counters["carried_bytes"] > 0
    assert written_bytes <= amplification * counters["stored_bytes"]


async def test_what_is_there_is_not_written_again() -> None:
    tier = log()
    await store(tier, keys(3))
    outcome = await tier.store(keys(4), [memoryview(b"")] * 4)
    assert outcome.succeeded == tuple(keys(4))
    assert tier.stats().counters["stored_bytes"] == 4 * CHUNK_BYTES


async def test_an_unknown_key_is_missing_and_a_removed_one_too() -> None:
    tier = log()
    await store(tier, keys(2))
    await tier.remove([*keys(1), b"never stored"], RemoveReason.REQUESTED)
    tier.check()
    outcome = await tier.load(keys(2), [memoryview(b"")] * 2)
    assert outcome.failed == {keys(1)[0]: Failure.MISSING}
    await tier.flush()
    await tier.close()


async def test_the_least_capacity_is_the_real_ones(tmp_path: Path) -> None:
    least_bytes = LogWithoutBytes.least_bytes(CHUNK_BYTES)
    await store(log(least_bytes), keys(3))
    real = await open_real(tmp_path / "store", least_bytes)
    await real.close()
    with pytest.raises(TierUnavailable, match="too small"):
        await open_real(tmp_path / "other", least_bytes - 1)


async def open_real(path: Path, capacity_bytes: int) -> NvmeTier:
    return await NvmeTier.open(
        path,
        capacity_bytes=capacity_bytes,
        reserve_bytes=0,
        identity=Identity({"model": "any"}),
        chunk_bytes=CHUNK_BYTES,
        write_amplification=1.3,
    )


async def test_it_keeps_what_the_real_log_keeps(tmp_path: Path) -> None:
    seed = 20250222
    print(f"seed {seed}")
    rng = random.Random(seed)
    model = log(FEW_SEGMENTS_BYTES, write_amplification=1.3)
    real = await open_real(tmp_path / "store", FEW_SEGMENTS_BYTES)
    try:
        known = keys(12)
        for _ in range(60):
            batch = rng.sample(known, rng.randint(1, 3))
            assert list(real.lookup(known)) == list(model.lookup(known))
            if rng.random() < 0.5:
                batch = [key for key, there in zip(batch, model.lookup(batch), strict=True) if there]
                await load(model, batch)
                await real.load(batch, aligned_buffers(len(batch), CHUNK_BYTES))
            else:
                await store(model, batch)
                assert not (await real.store(batch, aligned_buffers(len(batch), CHUNK_BYTES))).failed
                await real.flush()  # which seals, so that the next reclaim finds the oldest segment
        assert model.stats().counters["evicted_chunks"] == real.stats().counters["evicted_chunks"] > 0
    finally:
        await real.close()


PAGE = Path(__file__).parents[3] / "docs" / "replay.md"
PACKED = re.compile(r"^ *\| (\d+)MiB \| ([\d.]+)% \|$", re.MULTILINE)


async def test_the_page_says_how_much_of_a_large_drive_holds_chunks() -> None:
    rows = {int(size) << 20: float(percent) for size, percent in PACKED.findall(PAGE.read_text())}
    assert len(rows) == 4
    assert {size: await percent_packed(size) for size in rows} == rows


async def test_chunks_of_one_key_go_over_the_end_of_a_segment_and_fill_it() -> None:
    tier = LogWithoutBytes(
        "nvme", capacity_bytes=CAPACITY_BYTES, chunk_bytes=1 << 16, write_amplification=1.0, chunks_per_key=16
    )
    stored = keys(300)
    for start in range(0, 300, 5):
        await store(tier, stored[start : start + 5])
    there = list(tier.lookup(stored))
    assert there == sorted(there), "what is there is the newest"
    assert sum(there) > await kept_whole(300), "what does not straddle wastes the ends of segments"
    assert sum(there) * (1 << 20) <= CAPACITY_BYTES
    counters = tier.stats().counters
    assert counters["stored_bytes"] == 300 << 20
    assert counters["evicted_chunks"] == 300 - sum(there)


async def kept_whole(count: int) -> int:
    """How many of so many chunks as large as such a key a drive of the same capacity keeps."""
    tier = log()
    for start in range(0, count, 5):
        await store(tier, keys(5, start))
    return tier.stats().chunks


async def percent_packed(chunk_bytes: int, capacity_bytes: int = 2 << 40) -> float:
    """What part of a drive holds chunks when its segments are full: one segment stands for all."""
    tier = LogWithoutBytes(
        "nvme", capacity_bytes=capacity_bytes, chunk_bytes=chunk_bytes, write_amplification=1.0
    )
    segments = tier._plan.segments
    await store(tier, keys(tier._budget.segment_bytes // chunk_bytes))
    (full, *_) = tier._sealed or tier._open.values()
    return round(100 * segments * len(full.used_at) * chunk_bytes / capacity_bytes, 1)
