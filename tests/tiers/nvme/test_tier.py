from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from nvme_rig import CHUNK_BYTES, IDENTITY, KIB, MIB, filled, keys_of, made, names, opened, right, stored

from kvtier.tiers.base import Buffer, Failure, RemoveReason, Tier
from kvtier.tiers.errors import IdentityMismatch, TierUnavailable
from kvtier.tiers.nvme.io.files import Files, allocated_bytes
from kvtier.tiers.nvme.store.mark import read_mark
from kvtier.tiers.nvme.store.namespaces import Identity, NamespaceFile, Namespaces
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.testing import TierContract, aligned_buffers


class TestNvmeTierContract(TierContract):
    @pytest.fixture
    async def tier(self, tmp_path: Path) -> AsyncIterator[NvmeTier]:
        self.path = tmp_path / "store"
        tier = await opened(self.path, chunk_bytes=self.CHUNK_BYTES)
        yield tier
        await tier.close()

    async def reopened(self, tier: Tier) -> Tier:
        await tier.close()
        return await opened(self.path, chunk_bytes=self.CHUNK_BYTES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def tier(path: Path) -> AsyncIterator[NvmeTier]:
    tier = await opened(path)
    yield tier
    await tier.close()


async def test_chunks_are_there_after_a_restart(path: Path) -> None:
    keys = keys_of(0, 40)
    tier = await opened(path)
    await stored(tier, keys)
    await tier.close()
    tier = await opened(path)
    try:
        assert await right(tier, keys) == keys
        assert tier.stats().chunks == 40
    finally:
        await tier.close()


@pytest.mark.slow
async def test_the_cap_holds_over_ten_times_its_bytes(path: Path) -> None:
    capacity_bytes, keys = 8 * MIB, keys_of(0, 5 * 1024)
    tier = await opened(path, capacity_bytes=capacity_bytes)
    try:
        for start in range(0, len(keys), 32):
            await stored(tier, keys[start : start + 32])
            assert allocated_bytes(path) <= capacity_bytes
    finally:
        await tier.close()
    evicted_chunks = tier.stats().counters["evicted_chunks"]
    tier = await opened(path, capacity_bytes=capacity_bytes)
    try:
        await tier._upkeep.once()  # which may make room first
        kept = await right(tier, keys)
        assert kept == keys[-len(kept) :]
        assert len(kept) > 4 * MIB // CHUNK_BYTES
        assert len(kept) == tier.stats().chunks
        evicted_chunks += tier.stats().counters["evicted_chunks"]
    finally:
        await tier.close()
    assert evicted_chunks == len(keys) - len(kept)


@pytest.mark.slow
async def test_a_chunk_that_is_read_again_and_again_outlives_the_others(path: Path) -> None:
    tier = await opened(path, capacity_bytes=8 * MIB)
    try:
        hot = keys_of(1_000_000, 8)
        await stored(tier, hot)
        for start in range(0, 2 * 1024, 8):
            assert await right(tier, hot) == hot
            await tier._upkeep.once()
            await stored(tier, keys_of(start, 8))
        counters = tier.stats().counters
        assert 0 < counters["carried_bytes"] <= 0.3 * counters["stored_bytes"]
    finally:
        await tier.close()


async def test_chunks_of_any_length_up_to_the_longest_read_back(tier: NvmeTier) -> None:
    for number, size_bytes in enumerate((1, 4095, 4096, 4097, 10_000, 16 * KIB)):
        keys = keys_of(number * 10, 3)
        await stored(tier, keys, size_bytes)
        assert await right(tier, keys, size_bytes) == keys


async def test_a_chunk_of_another_length_is_a_miss(tier: NvmeTier) -> None:
    keys = keys_of(0, 1)
    await stored(tier, keys, 8 * KIB)
    outcome = await tier.load(keys, aligned_buffers(1, 12 * KIB))
    assert outcome.failed == {keys[0]: Failure.MISSING}


async def test_an_older_epoch_is_a_miss_and_its_store_under_way_too(tier: NvmeTier) -> None:
    old, late, new = keys_of(0, 4), keys_of(10, 4), keys_of(20, 4)
    await stored(tier, old)
    under_way = tier.store(late, filled(late))
    await tier.invalidate()
    outcome = await under_way
    assert set(outcome.failed.values()) == {Failure.DROPPED}
    assert not any(tier.lookup(old + late))
    await stored(tier, new + old)
    assert await right(tier, new + late + old) == new + old


async def test_what_is_stored_after_new_weights_is_nobody_elses(path: Path, tier: NvmeTier) -> None:
    old, new = keys_of(0, 4), keys_of(10, 4)
    other = await opened(path)
    try:
        await stored(other, old)
        await tier.invalidate()
        assert not any(other.lookup(old)), "nothing older is served again, by no process"
        await stored(tier, new + old)
        assert not any(other.lookup(new + old)), "the other process still has the old weights"
        await stored(other, keys_of(0, 2))
        await tier.invalidate()
        assert not any(tier.lookup(new + old))
        assert await right(other, old) == keys_of(0, 2), "the second time it is the tier's own chunks alone"
    finally:
        await other.close()


async def test_after_a_restart_the_weights_are_those_on_disk_again(path: Path, tier: NvmeTier) -> None:
    await tier.invalidate()
    await stored(tier, keys_of(0, 4))
    assert len(names(path / "namespaces")) == 2
    await tier.close()
    assert len(names(path / "namespaces")) == 1, "what nobody can use any more does not pile up"
    again = await opened(path)
    try:
        assert not any(again.lookup(keys_of(0, 4)))
        await stored(again, keys_of(0, 4))
        assert await right(again, keys_of(0, 4)) == keys_of(0, 4)
    finally:
        await again.close()


async def test_the_namespace_of_a_killed_process_is_dropped_at_the_next_start(path: Path) -> None:
    killed = await opened(path, identity=IDENTITY.of_one_process())
    await stored(killed, keys_of(0, 4))
    shutil.copytree(path, path.with_name("left"))
    await killed.close()
    after = await opened(path.with_name("left"))
    try:
        assert names(path.with_name("left") / "namespaces") == [f"{IDENTITY.digest.hex()}.json"]
    finally:
        await after.close()


async def test_another_identity_sees_nothing_of_it(path: Path, tier: NvmeTier) -> None:
    keys = keys_of(0, 4)
    await stored(tier, keys)
    other = await opened(path, identity=Identity({"model": "m", "dtype": "float16"}))
    try:
        assert not any(other.lookup(keys))
        await stored(other, keys)
        await other.remove(keys[:2], RemoveReason.REQUESTED)
        assert await right(tier, keys) == keys
        assert await right(other, keys) == keys[2:]
    finally:
        await other.close()


async def test_two_tiers_on_one_directory_share_their_chunks(path: Path, tier: NvmeTier) -> None:
    other = await opened(path)
    try:
        await stored(tier, keys_of(0, 4))
        await stored(other, keys_of(4, 4))
        assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
        assert await right(other, keys_of(0, 8)) == keys_of(0, 8)
    finally:
        await other.close()


async def test_a_namespace_file_with_other_fields_is_refused_by_the_field(path: Path) -> None:
    tier = await opened(path)
    await tier.close()
    other = NamespaceFile(Identity({**IDENTITY.fields, "dtype": "float16"}), 1, 0)
    Namespaces(Files(), path / "namespaces").write(IDENTITY.digest, other)  # as where one was copied
    with pytest.raises(IdentityMismatch, match="dtype is 'bfloat16' here and 'float16' there"):
        await opened(path)


async def test_a_directory_open_to_others_is_refused_with_the_fix(path: Path) -> None:
    made(path, 0o755)
    with pytest.raises(TierUnavailable, match="chmod 0700"):
        await opened(path)


async def test_a_newer_format_is_refused_untouched(path: Path) -> None:
    made(path, 0o700, {"kvtier.json": '{"format": 99}'})
    with pytest.raises(TierUnavailable, match="newer"):
        await opened(path)
    assert names(path) == ["kvtier.json"]


async def test_a_capacity_that_holds_nothing_is_refused_with_the_least(path: Path) -> None:
    with pytest.raises(TierUnavailable, match="the least that works is") as refused:
        await opened(path, capacity_bytes=MIB // 4)
    assert names(path.parent) == []
    least_bytes = int(str(refused.value).rsplit(maxsplit=1)[1])
    tier = await opened(path, capacity_bytes=least_bytes)
    await stored(tier, keys_of(0, 4))
    await tier.close()


async def test_a_store_that_was_made_for_much_more_says_that_its_segments_are_too_large(path: Path) -> None:
    tier = await opened(path, capacity_bytes=64 << 30)
    await tier.close()
    hint = r"in this store's segments of \d+ bytes \(a directory made anew has smaller ones\); the least "
    with pytest.raises(TierUnavailable, match=hint):
        await opened(path, capacity_bytes=16 * MIB)


async def test_useful_bytes_are_of_what_is_there_and_was_read(path: Path) -> None:
    tier = await opened(path)
    await stored(tier, keys_of(0, 8))
    assert tier.stats().gauges["useful_bytes"] == 0
    await right(tier, keys_of(0, 3))
    await right(tier, keys_of(0, 2))
    await tier.close()
    assert tier.stats().gauges["useful_bytes"] == 3 * CHUNK_BYTES
    tier = await opened(path)
    await tier.remove(keys_of(0, 1), RemoveReason.REQUESTED)
    assert tier.stats().gauges["useful_bytes"] == 2 * CHUNK_BYTES
    await tier.close()


async def test_what_is_evicted_is_told(path: Path) -> None:
    told: list[bytes] = []
    tier = await opened(path, capacity_bytes=4 * MIB)
    tier.watch(lambda keys, reason: told.extend(keys) if reason is RemoveReason.EVICTED else None)
    for first in range(0, 640, 16):
        await stored(tier, keys_of(first, 16))
    await tier.close()
    keys = keys_of(0, 640)
    tier = await opened(path, capacity_bytes=4 * MIB)
    gone = [key for key, found in zip(keys, tier.lookup(keys), strict=True) if not found]
    assert gone
    assert sorted(told) == gone
    await tier.close()


async def test_the_index_of_a_store_grows_with_the_cap_and_with_smaller_chunks(path: Path) -> None:
    for capacity_bytes, chunk_bytes in ((8 * MIB, 64 * KIB), (32 * MIB, 64 * KIB), (32 * MIB, 4 * KIB)):
        tier = await opened(path, capacity_bytes=capacity_bytes, chunk_bytes=chunk_bytes)
        await tier._upkeep.once()  # smaller chunks need more room beside the segments: some is given back
        for first in range(0, 2 * capacity_bytes // chunk_bytes, 64):
            keys = keys_of(first, 64)
            outcome = await tier.store(keys, filled(keys, chunk_bytes))
            assert not outcome.failed
        assert tier.stats().chunks * chunk_bytes > capacity_bytes // 2
        await tier.close()


async def test_long_keys_fill_the_cap_as_short_ones_do(path: Path) -> None:
    tier = await opened(path, capacity_bytes=16 * MIB, chunk_bytes=4 * KIB)
    for first in range(0, 8192, 64):
        keys = [key.ljust(256, b"-") for key in keys_of(first, 64)]
        assert not (await tier.store(keys, filled(keys, 4 * KIB))).failed
    assert tier.stats().chunks * 4 * KIB > 8 * MIB
    await tier.close()


class HeldReads(Files):
    """The real files; reads wait until they are let go."""

    def __init__(self) -> None:
        self.go, self.begun = threading.Event(), threading.Event()

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.begun.set()
        self.go.wait()
        return super().preadv(fd, buffers, offset)


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_close_that_is_cancelled_while_it_waits_for_a_load_leaves_the_store(
    tmp_path: Path, turns: int
) -> None:
    files, path, keys = HeldReads(), tmp_path / "store", keys_of(0, 40)
    files.go.set()
    tier = await opened(path, files=files)
    await stored(tier, keys)
    files.go.clear()
    files.begun.clear()
    load = asyncio.create_task(right(tier, keys))
    await asyncio.to_thread(files.begun.wait)
    closing = asyncio.create_task(tier.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:  # as a loop does that ends
        task.cancel()
    files.go.set()
    ends = await asyncio.gather(load, closing, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    assert tier._closing is not None
    await asyncio.wait([tier._closing])
    await tier.close()
    mark = read_mark(path)
    assert mark is not None
    assert mark.closed
