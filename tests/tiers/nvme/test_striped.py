"""Several drives as one tier: shares, drives that fail or hang, and what concerns them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from chain_rig import CountingTier
from nvme_rig import CHUNK_BYTES, MIB, filled, keys_of, opened, right, stored

from kvtier.tiers.base import (
    Buffer,
    ChunkKey,
    CountsUses,
    Divides,
    Failure,
    GuardsItself,
    Invalidates,
    Outcome,
    RemoveReason,
    ReportsRemovals,
    Tier,
)
from kvtier.tiers.breaker import BAD_CALLS_MAX, PAUSE_S, Breaker
from kvtier.tiers.errors import TierError
from kvtier.tiers.nvme.striped import Drive, StripedTier
from kvtier.tiers.testing import MemoryTier, TierContract, aligned_buffers

SLOW_S = 5.0


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Rig:
    """A striped tier over tiers in memory, whose drives a test can break or hold up."""

    def __init__(self, count: int = 3, all_wait_s: float = 0.05) -> None:
        self.clock = Clock()
        self.tiers = [FailingTier(f"drive-{i}") for i in range(count)]
        drives = [
            Drive(f"/mnt/{i}", Breaker(tier, slow_s=SLOW_S, clock=self.clock), 1.0)
            for i, tier in enumerate(self.tiers)
        ]
        self.tier = StripedTier("nvme", drives, all_wait_s=all_wait_s)

    async def break_down(self, number: int) -> None:
        """Let calls fail until the drive is out."""
        self.tiers[number].fails = True
        for start in range(1_000_000, 1_000_000 + BAD_CALLS_MAX):
            await self.tier.store(keys_of(start * 100, 30), filled(keys_of(start * 100, 30), 64))
        assert self.tier.stats().gauges["drives_out"] == 1


class FailingTier(MemoryTier):
    fails = False

    async def store(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        if self.fails:
            return Outcome(failed=dict.fromkeys(keys, Failure.IO_ERROR))
        return await super().store(keys, buffers)

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        if self.fails:
            raise OSError(5, "Input/output error")
        return await super().load(keys, buffers)

    async def flush(self) -> None:
        await self.gate.wait()
        if self.fails:
            raise TierError(self.name, "it is gone")
        await super().flush()

    async def invalidate(self) -> None:
        await self.gate.wait()
        if self.fails:
            raise TierError(self.name, "it is gone")
        await super().invalidate()

    async def remove(self, keys: Sequence[ChunkKey], reason: RemoveReason) -> None:
        await self.gate.wait()
        await super().remove(keys, reason)

    async def close(self) -> None:
        await self.gate.wait()
        await super().close()


class TestStripedTierContract(TierContract):
    @pytest.fixture
    async def tier(self, tmp_path: Path) -> AsyncIterator[StripedTier]:
        self.path = tmp_path
        tier = await self.opened()
        yield tier
        await tier.close()

    async def opened(self) -> StripedTier:
        tiers = {name: await opened(self.path / name, chunk_bytes=self.CHUNK_BYTES) for name in "abc"}
        drives = [Drive(name, Breaker(tier, slow_s=SLOW_S), 1.0) for name, tier in tiers.items()]
        return StripedTier("nvme", drives)

    async def reopened(self, tier: Tier) -> Tier:
        await tier.close()
        return await self.opened()


def test_it_has_the_abilities_of_a_drive_and_guards_itself() -> None:
    tier = Rig().tier
    assert isinstance(tier, Invalidates)
    assert isinstance(tier, ReportsRemovals)
    assert isinstance(tier, GuardsItself)
    assert isinstance(tier, Divides)
    assert isinstance(tier, CountsUses)
    tier.rename("nvme1")
    assert tier.name == "nvme1"


async def test_one_request_uses_all_drives_and_each_chunk_lies_on_one() -> None:
    rig, keys = Rig(), keys_of(0, 90)
    assert (await rig.tier.store(keys, filled(keys, 64))).succeeded == tuple(keys)
    each = [len(tier.chunks) for tier in rig.tiers]
    assert min(each) > 15
    assert sum(each) == 90
    assert rig.tier.lookup([*keys, b"never stored"]) == [True] * 90 + [False]
    assert len(rig.tiers[0].log) == 1, "one call a drive"


async def test_a_use_is_told_to_the_drive_that_has_the_chunk_and_to_the_next_while_that_is_out() -> None:
    drives = [CountingTier(f"drive-{number}") for number in range(3)]
    keys = keys_of(0, 90)
    breakers = [Breaker(drive, slow_s=SLOW_S) for drive in drives]
    tier = StripedTier("nvme", [Drive(one.name, one, 1.0) for one in breakers])
    await tier.store(keys, filled(keys, 64))
    tier.used(keys)
    assert [set(drive.told) for drive in drives] == [set(drive.chunks) for drive in drives]
    tier._retired = frozenset({1})
    tier.used(keys)
    assert len(drives[0].told) + len(drives[2].told) == 90 + 90 - len(drives[1].told)


def test_drives_that_count_no_uses_are_told_of_none() -> None:
    Rig().tier.used(keys_of(0, 90))


async def test_a_failing_drive_takes_its_own_chunks_and_no_more() -> None:
    rig, keys = Rig(), keys_of(0, 90)
    await rig.tier.store(keys, filled(keys, 64))
    lost = set(rig.tiers[1].chunks)
    rig.tiers[1].fails = True
    outcome = await rig.tier.load(keys, aligned_buffers(90, 64))
    assert outcome.failed == dict.fromkeys(sorted(lost), Failure.IO_ERROR)
    assert outcome.succeeded == tuple(key for key in keys if key not in lost)


async def test_while_a_drive_is_out_its_share_goes_to_the_others_and_it_gets_it_back() -> None:
    rig, old, new = Rig(), keys_of(0, 90), keys_of(1000, 90)
    await rig.tier.store(old, filled(old, 64))
    lost = set(rig.tiers[1].chunks)
    await rig.break_down(1)
    assert rig.tier.lookup(old) == [key not in lost for key in old], "the rest of it is as good as before"
    assert (await rig.tier.store(new, filled(new, 64))).succeeded == tuple(new)
    assert await right(rig.tier, new, 64) == new  # type: ignore[arg-type]
    assert (await rig.tier.store(old, filled(old, 64))).succeeded == tuple(old), "prompts are whole again"
    assert rig.tier.lookup(old) == [True] * 90
    rig.tiers[1].fails = False
    rig.clock.now_s = 2 * PAUSE_S
    assert len(await right(rig.tier, old, 64)) == 90  # type: ignore[arg-type]
    assert rig.tier.stats().gauges["drives_out"] == 0
    assert rig.tier.lookup(old) == [True] * 90


async def test_while_a_drive_is_tried_its_share_goes_to_the_others() -> None:
    rig, old, new = Rig(), keys_of(0, 90), keys_of(1000, 90)
    await rig.break_down(1)
    rig.tiers[1].fails = False
    rig.tiers[1].gate.clear()
    rig.clock.now_s = 2 * PAUSE_S
    trial = asyncio.ensure_future(rig.tier.store(old, filled(old, 64)))
    for _ in range(5):  # it starts a task for each drive
        await asyncio.sleep(0)
    assert rig.tier.stats().gauges["drives_out"] == 1
    assert (await rig.tier.store(new, filled(new, 64))).succeeded == tuple(new)
    assert rig.tier.lookup(new) == [True] * 90
    rig.tiers[1].gate.set()
    assert (await trial).succeeded == tuple(old)
    assert rig.tier.stats().gauges["drives_out"] == 0


async def test_it_says_whose_keys_are_whose() -> None:
    rig, keys = Rig(), keys_of(0, 90)
    await rig.tier.store(keys, filled(keys, 64))
    shares = [{keys[position] for position in positions} for positions in rig.tier.divide(keys)]
    assert sorted(map(sorted, shares)) == sorted(sorted(tier.chunks) for tier in rig.tiers)
    alone = Rig(1)
    await alone.break_down(0)
    assert alone.tier.divide(keys) == [list(range(90))], "no drive has them"


async def test_where_every_drive_is_out_all_is_a_miss() -> None:
    rig, keys = Rig(1), keys_of(0, 8)
    await rig.tier.store(keys, filled(keys, 64))
    await rig.break_down(0)
    assert rig.tier.lookup(keys) == [False] * 8
    assert (await rig.tier.load(keys, aligned_buffers(8, 64))).failed == dict.fromkeys(keys, Failure.MISSING)
    assert (await rig.tier.store(keys, filled(keys, 64))).failed == dict.fromkeys(keys, Failure.DROPPED)


async def test_a_cancelled_load_returns_once_no_drive_touches_a_buffer() -> None:
    rig, keys = Rig(), keys_of(0, 30)
    await rig.tier.store(keys, filled(keys, 64))
    held = HoldsOn("late")
    drives = [Drive(str(i), Breaker(tier, slow_s=SLOW_S), 1.0) for i, tier in enumerate([*rig.tiers, held])]
    tier = StripedTier("nvme", drives)
    load = asyncio.ensure_future(tier.load(keys, aligned_buffers(30, 64)))
    await held.began.wait()
    load.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not load.done(), "a thread still writes into the buffers"
    held.lets_go.set()
    with pytest.raises(asyncio.CancelledError):
        await load


class HoldsOn(MemoryTier):
    """A tier whose load cannot be stopped, as a read that the kernel has begun."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.began, self.lets_go = asyncio.Event(), asyncio.Event()

    async def load(self, keys: Sequence[ChunkKey], buffers: Sequence[Buffer]) -> Outcome:
        self.began.set()
        try:
            await self.lets_go.wait()
        except asyncio.CancelledError:
            await self.lets_go.wait()
            raise
        return await super().load(keys, buffers)


async def test_a_flush_reaches_every_drive_and_names_the_one_that_failed() -> None:
    rig = Rig()
    rig.tiers[0].fails = True
    with pytest.raises(TierError, match=r"/mnt/0: .*it is gone"):
        await rig.tier.flush()
    assert [tier.log for tier in rig.tiers[1:]] == [[("flush", ())]] * 2


@pytest.mark.parametrize("what", ["flush", "remove"])
async def test_a_drive_that_hangs_keeps_no_other_and_is_named(what: str) -> None:
    rig, keys = Rig(), keys_of(0, 30)
    await rig.tier.store(keys, filled(keys, 64))
    rig.tiers[2].gate.clear()
    work = rig.tier.flush() if what == "flush" else rig.tier.remove(keys, RemoveReason.REQUESTED)
    with pytest.raises(TierError, match="/mnt/2 has not answered"):
        await work
    if what == "remove":
        assert not rig.tiers[0].chunks
        assert not rig.tiers[1].chunks
    rig.tiers[2].gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not rig.tier._left_behind


async def test_a_removal_reaches_what_another_drive_took_over() -> None:
    rig, keys = Rig(2), keys_of(0, 30)
    await rig.tier.store(keys, filled(keys, 64))
    await rig.break_down(1)
    await rig.tier.store(keys, filled(keys, 64))
    await rig.tier.remove(keys, RemoveReason.REQUESTED)
    assert not set(keys) & (rig.tiers[0].chunks.keys() | rig.tiers[1].chunks.keys())


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_drive_that_cannot_be_told_of_new_weights_is_used_no_more(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig, keys = Rig(), keys_of(0, 90)
    await rig.tier.store(keys, filled(keys, 64))
    rig.tiers[0].fails = how == "fails"
    if how == "hangs":
        rig.tiers[0].gate.clear()
    await rig.tier.invalidate()
    assert rig.tiers[0].chunks, "it was not told"
    rig.tiers[0].fails = False
    rig.tiers[0].gate.set()
    await asyncio.sleep(0)
    rig.tiers[0].chunks = dict.fromkeys(keys, b"old weights")
    assert not any(rig.tier.lookup(keys))
    assert (await rig.tier.store(keys, filled(keys, 64))).succeeded == tuple(keys)
    assert len(await right(rig.tier, keys, 64)) == 90  # type: ignore[arg-type]
    assert "/mnt/0 could not be told" in caplog.text


async def test_where_no_drive_can_be_told_it_is_an_error() -> None:
    rig = Rig(2)
    for tier in rig.tiers:
        tier.fails = True
    with pytest.raises(TierError, match="it is gone"):
        await rig.tier.invalidate()


async def test_a_drive_that_hangs_keeps_no_other_from_closing(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    rig.tiers[0].gate.clear()
    await rig.tier.close()
    assert [tier._closed for tier in rig.tiers] == [False, True, True]
    assert "close of /mnt/0" in caplog.text
    rig.tiers[0].gate.set()
    for _ in range(5):
        await asyncio.sleep(0)


async def test_numbers_are_summed_and_told_for_each_drive(tmp_path: Path) -> None:
    sizes = {"a": 16 * MIB, "b": 48 * MIB}
    drives = [
        Drive(name, Breaker(await opened(tmp_path / name, capacity_bytes=size), slow_s=SLOW_S), size)
        for name, size in sizes.items()
    ]
    tier = StripedTier("nvme", drives)
    try:
        keys = keys_of(0, 200)
        await stored(tier, keys)  # type: ignore[arg-type]
        stats = tier.stats()
        assert stats.chunks == 200
        assert stats.capacity_bytes == sum(sizes.values())
        assert stats.counters["stored_bytes"] == 200 * CHUNK_BYTES
        assert {name: part.capacity_bytes for name, part in stats.parts.items()} == sizes
        assert sum(part.counters["stored_bytes"] for part in stats.parts.values()) == 200 * CHUNK_BYTES
        each = [part.chunks for part in stats.parts.values()]
        assert sum(each) == 200
        assert each[1] > 2 * each[0], "a larger drive gets more"
        assert stats.gauges["breaker_state"] == stats.gauges["drives_out"] == 0
    finally:
        await tier.close()


async def test_what_a_drive_evicts_is_reported_but_for_what_another_has(tmp_path: Path) -> None:
    told: list[bytes] = []
    drives = [
        Drive(name, Breaker(await opened(tmp_path / name, capacity_bytes=4 * MIB), slow_s=SLOW_S), 1.0)
        for name in ("a", "b")
    ]
    tier = StripedTier("nvme", drives)
    tier.watch(lambda keys, reason: told.extend(keys) if reason is RemoveReason.EVICTED else None)
    keys = keys_of(0, 1280)
    for first in range(0, 1280, 16):
        await stored(tier, keys[first : first + 16])  # type: ignore[arg-type]
    await asyncio.gather(*(one.tier.wrapped._upkeep.once() for one in drives))  # type: ignore[attr-defined]
    gone = [key for key, hit in zip(keys, tier.lookup(keys), strict=True) if not hit]
    await tier.close()
    assert gone
    assert set(gone) <= set(told)
    assert len(told) == len(set(told))
