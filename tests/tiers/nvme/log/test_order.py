"""What was removed stays removed, and what was stored again stays, whatever clocks and reclaims do."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import damage
import pytest
from crash_child import DeadlyFiles
from faults import in_child
from faulty_files import AnotherBoot, RefusingFiles
from nvme_rig import CHUNK_BYTES, filled, keys_of, opened, right, stored

from kvtier.tiers.base import ChunkKey, RemoveReason
from kvtier.tiers.errors import TierError
from kvtier.tiers.nvme.index.records import SegmentState
from kvtier.tiers.nvme.log.append import Appender
from kvtier.tiers.nvme.tier import NvmeTier

HOUR_NS = 3600 * 10**9


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead_ns: int) -> None:
    now_ns = time.clock_gettime_ns
    monkeypatch.setattr(
        "kvtier.tiers.nvme.index.order.time.time_ns", lambda: now_ns(time.CLOCK_REALTIME) + ahead_ns
    )


async def rebuilt(path: Path) -> NvmeTier:
    damage.lose_index(path)
    tier = await opened(path, files=AnotherBoot())
    await tier._keeper.caught_up()
    return tier


@pytest.mark.parametrize("first_ns", [-HOUR_NS, HOUR_NS])
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("flushed", [True, False])
async def test_clocks_do_not_decide_what_came_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_ns: int, again: bool, flushed: bool
) -> None:
    """Each step sees the clock set the other way, in a process of its own."""
    path, keys = tmp_path / "store", keys_of(0, 8)
    steps: list[Callable[[NvmeTier], object]] = [partial(stored, keys=keys)]
    steps.append(partial(_remove, keys=keys))
    if again:
        steps.append(partial(stored, keys=keys))
    for number, step in enumerate(steps):
        set_clock(monkeypatch, first_ns if number % 2 == 0 else -first_ns)
        tier = await opened(path)
        await step(tier)  # type: ignore[misc]
        if flushed:
            await tier.flush()
        await tier.close()
    after = await rebuilt(path)
    assert await right(after, keys) == (keys if again else [])
    await after.close()


async def _remove(tier: NvmeTier, keys: list[ChunkKey]) -> None:
    await tier.remove(keys, RemoveReason.REQUESTED)


async def test_a_store_that_a_removal_overtakes_is_kept(tmp_path: Path) -> None:
    """It was placed before the removal and is committed after it: then it is the later one."""
    path, keys = tmp_path / "store", keys_of(0, 8)
    tier = await opened(path)
    await stored(tier, keys)
    other = await opened(path)
    real, done = Appender._commit, list[int]()

    def commit(self: Appender, *arguments: object) -> object:
        if self is tier._appender and not done:
            done.append(1)
            tier._index.write(lambda txn: _removal_now(txn))
        return real(self, *arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Appender, "_commit", commit)
        await _remove(other, keys[:4])
        await stored(tier, keys[:4])
    assert done
    await tier.flush()
    await tier.close()
    await other.close()
    after = await rebuilt(path)
    assert await right(after, keys) == keys
    await after.close()


def _removal_now(txn: object) -> None:
    from kvtier.tiers.nvme.index.order import record_removal

    record_removal(txn, 0, ())  # type: ignore[arg-type]


async def hot_and_cold(tier: NvmeTier, hot: list[ChunkKey]) -> int:
    """Store hot chunks, fill some segments behind them, read the hot ones; returns the hot ones' segment."""
    await stored(tier, hot)
    await tier.flush()
    for first in range(1000, 1400, 16):
        await stored(tier, keys_of(first, 16))
    await tier.flush()
    assert await right(tier, hot) == hot
    await tier._upkeep.once()
    (extent, *_) = tier._index.find(tier._view.digest, hot)[1]
    assert extent is not None
    return extent.segment


def state_of(tier: NvmeTier, number: int) -> SegmentState:
    with tier._index.read() as txn:
        segment = txn.segment(number)
    assert segment is not None
    return segment.state


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_carry_that_cannot_be_synced_keeps_the_old_place(tmp_path: Path, code: int) -> None:
    files, hot = RefusingFiles(), keys_of(0, 40)
    tier = await opened(tmp_path / "store", files=files, write_amplification=3.0)
    old = await hot_and_cold(tier, hot)
    before = tier._index.find(tier._view.digest, hot)[1]
    files.syncs = code
    with pytest.raises(TierError, match="keeps its chunks"):
        await tier._carrier.reclaim(carry=True)
    assert state_of(tier, old) is SegmentState.RECLAIMING
    assert tier._index.find(tier._view.digest, hot)[1] == before
    assert tier.stats().counters["carried_chunks"] == 0
    files.syncs = 0
    assert await right(tier, hot) == hot
    with pytest.raises(TierError, match="durable"):
        await tier.flush()
    assert await tier._carrier.reclaim(carry=True)
    assert state_of(tier, old) is not SegmentState.RECLAIMING
    assert await right(tier, hot) == hot
    await tier.close()


@pytest.mark.parametrize("rolls", [True, False])
async def test_a_removal_is_final_also_against_a_carry_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rolls: bool
) -> None:
    """Removed between the look and the commit, while the open segment is replaced or not."""
    path, hot = tmp_path / "store", keys_of(0, 40)
    tier = await opened(path, write_amplification=3.0)
    await hot_and_cold(tier, hot)
    apart = tier._carrier._apart
    real, done = apart.append, list[int]()

    async def append(*arguments: object, **named: object) -> object:
        if not done:
            done.append(1)
            await _remove(tier, hot[:20])
            if rolls:  # into a segment that was opened after the removal
                apart.retire_older(1 << 62)
                await tier._ahead.close()
                assert await tier._ahead.prepare(1)
                await tier._ahead.finished()
        return await real(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(apart, "append", append)
        assert await tier._carrier.reclaim(carry=True)
    assert done
    assert await right(tier, hot) == hot[20:]
    for segment, opened_number in tables_with(tier, hot[:20]):
        assert opened_number <= removal_horizon(tier, hot[:20]), f"segment {segment} outlives the removal"
    await tier.flush()
    await tier.close()
    after = await rebuilt(path)
    assert await right(after, hot) == hot[20:]
    await after.close()


def tables_with(tier: NvmeTier, keys: list[ChunkKey]) -> list[tuple[int, int]]:
    """The segments that name one of the keys as stored, with when they were opened."""
    segments, found = tier._store.directory.segments, []
    with tier._index.read() as txn:
        records = txn.segments()
    for number, record in records.items():
        with segments.opened(number, record.generation) as file:
            assert file is not None
            batches = [batch for batch in file.sweep() if not batch.removals]
        if any(entry.key in keys for batch in batches for entry in batch.entries):
            found.append((number, record.opened))
    return found


def removal_horizon(tier: NvmeTier, keys: list[ChunkKey]) -> int:
    segments, horizons = tier._store.directory.segments, []
    with tier._index.read() as txn:
        records = txn.segments()
    for number, record in records.items():
        with segments.opened(number, record.generation) as file:
            assert file is not None
            batches = [batch for batch in file.sweep() if batch.removals]
        horizons += [entry.block for batch in batches for entry in batch.entries if entry.key in keys]
    return min(horizons)


@pytest.mark.parametrize("unread", [False, True])
async def test_a_removal_is_final_also_where_only_the_log_has_the_chunk(tmp_path: Path, unread: bool) -> None:
    """Its writer was killed between the table and the commit: a later start from the log would find it."""
    path, keys = tmp_path / "store", keys_of(0, 8)

    async def die() -> None:
        tier = await opened(path, files=DeadlyFiles("before commit", 1))
        await tier.store(keys, filled(keys))

    assert in_child(die) == -signal.SIGKILL
    tier = await (rebuilt(path) if unread else opened(path))
    assert tier.lookup(keys) == [unread] * len(keys)
    await _remove(tier, keys)
    await stored(tier, keys[:2])
    await tier.flush()
    await tier.close()
    after = await rebuilt(path)
    assert await right(after, keys) == keys[:2]
    await after.close()


async def test_stores_beside_removals_of_others_all_succeed(tmp_path: Path) -> None:
    tier = await opened(tmp_path / "store")
    for number in range(20):
        keys = keys_of(100 * number, 8)
        outcome = await tier.store(keys, filled(keys, CHUNK_BYTES))
        assert outcome.succeeded == tuple(keys)
        await _remove(tier, keys[:4])
    await tier.close()
