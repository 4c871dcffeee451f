"""Calls that do not return"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from faults import HangingFiles, fault
from nvme_rig import CHUNK_BYTES, filled, keys_of, opened, right, stored

from kvtier.engine.movement.flushing import TierFlush
from kvtier.tiers.breaker import Breaker, BreakerState
from kvtier.tiers.testing import aligned_buffers

SLOW_S = 10.0
AT_ONCE_S = 0.01
OLD, NEW = keys_of(0, 8), keys_of(100, 8)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@fault(
    "a read, a write or a sync hangs",
    sees="lookups and statistics answer; after the load deadline the breaker opens and everything misses",
    loses="the chunks of that call",
    heals="by itself, once the call has returned and a trial succeeds",
)
@pytest.mark.parametrize("call", ["preadv", "pwritev"])
async def test_a_call_hangs(tmp_path: Path, call: str) -> None:
    files, clock = HangingFiles(), Clock()
    tier = Breaker(await opened(tmp_path / "store", files=files), slow_s=SLOW_S, clock=clock)
    try:
        await tier.store(OLD, filled(OLD))
        files.call = call
        files.gate.clear()
        work = (
            tier.load(OLD, aligned_buffers(8, CHUNK_BYTES))
            if call == "preadv"
            else tier.store(NEW, filled(NEW))
        )
        under_way = asyncio.ensure_future(work)
        await asyncio.to_thread(files.waits.wait)
        assert list(tier.lookup(OLD)) == [True] * 8
        assert tier.stats().chunks == 8
        clock.now_s = SLOW_S + 1
        assert tier.state is BreakerState.OPEN
        assert list(tier.lookup(OLD)) == [False] * 8
        files.gate.set()
        await under_way
        clock.now_s += SLOW_S
        await tier.load(OLD, aligned_buffers(8, CHUNK_BYTES))  # the trial
        assert list(tier.lookup(OLD)) == [True] * 8
    finally:
        files.gate.set()
        await tier.close()


@fault(
    "a sync hangs",
    sees="stores and loads go on; `flush` raises after a minute, and names the tier",
    loses="nothing",
    heals="by itself, once it has returned",
)
async def test_a_sync_hangs(tmp_path: Path) -> None:
    files = HangingFiles()
    tier = await opened(tmp_path / "store", files=files)
    try:
        await stored(tier, OLD)
        files.call = "sync_data"
        files.gate.clear()
        flush = TierFlush(tier)
        under_way = asyncio.ensure_future(flush.error(SLOW_S))
        await asyncio.to_thread(files.waits.wait)
        await stored(tier, NEW)
        assert await right(tier, OLD + NEW) == OLD + NEW
        assert not under_way.done()
        assert "nvme: it has not confirmed" in str(await flush.error(AT_ONCE_S))
        files.gate.set()
        assert await under_way is None
        assert await flush.error(SLOW_S) is None
    finally:
        files.gate.set()
        await tier.close()
