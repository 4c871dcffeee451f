"""Rounds: what they sync and seal together, when they come, and what they cost."""

from __future__ import annotations

import asyncio
import itertools
import threading
from pathlib import Path

import pytest
from nvme_rig import MIB, keys_of, opened, stored

from kvtier.tiers.nvme.index.records import SegmentState
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.log.durability import PERIOD_MAX_S, PERIOD_MIN_S, RETIRED_MAX, Durability
from kvtier.tiers.nvme.log.events import Events

ALL_AT_ONCE_S = 60.0


class TogetherFiles(Files):
    """While `expected` is not 0, syncs return only once so many of them have begun together."""

    def __init__(self) -> None:
        self.expected = 0
        self._changed = threading.Condition()
        self._waiting = self._past = 0

    def sync_data(self, fd: int) -> None:
        if self.expected:
            self._wait_for_the_others()
        super().sync_data(fd)

    def _wait_for_the_others(self) -> None:
        with self._changed:
            self._waiting += 1
            mine = self._past
            if self._waiting == self.expected:
                self._waiting, self._past = 0, mine + 1
                self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._past > mine, ALL_AT_ONCE_S), "one after the other"


async def test_a_round_syncs_all_segments_at_once_and_then_all_trailers(tmp_path: Path) -> None:
    files = TogetherFiles()
    tier = await opened(tmp_path / "store", files=files)
    await tier._upkeep.once()
    await tier._ahead.finished()
    for _ in range(3):  # full, as far as a round can see
        segment = tier._ahead.take(carries=True)
        assert segment is not None
        segment.unsynced = True
        tier._durability.retire(segment)
    files.expected = 3
    assert await tier._durability.round()
    files.expected = 0
    assert tier._durability.retired_count == 0
    await tier.close()


@pytest.mark.parametrize(
    ("cost_s", "period_s"), [(0.001, PERIOD_MIN_S), (0.3, 15.0), (0.5, 25.0), (5.0, PERIOD_MAX_S)]
)
async def test_the_period_follows_from_what_a_round_costs(
    tmp_path: Path, cost_s: float, period_s: float
) -> None:
    tier = await opened(tmp_path / "store")
    times = itertools.cycle([100.0, 100.0 + cost_s])
    durability = Durability(tier._lanes, tier._log, Events(), clock=lambda: next(times))
    segment = tier._ahead.take(carries=True)
    while segment is None:
        await tier._upkeep.once()
        await tier._ahead.finished()
        segment = tier._ahead.take(carries=True)
    tier._durability.left(segment)
    durability.began(segment)
    segment.unsynced = True
    assert await durability.round()
    assert durability.period_s == pytest.approx(period_s)
    tier._durability.period_s = period_s
    assert tier.stats().gauges["durability_period_s"] == period_s
    await durability.close()
    await tier.close()


@pytest.mark.parametrize(("segments", "due"), [(2, 1), (64, 8), (100_000, RETIRED_MAX)])
async def test_a_round_is_due_once_many_full_segments_wait(tmp_path: Path, segments: int, due: int) -> None:
    tier = await opened(tmp_path / "store")
    retired = tier._durability._retired
    assert not tier._durability.is_round_due(segments)
    retired += [None] * (due - 1)  # type: ignore[list-item]
    assert not tier._durability.is_round_due(segments)
    retired += [None]  # type: ignore[list-item]
    assert tier._durability.is_round_due(segments)
    retired.clear()
    await tier.close()


async def test_a_small_store_laps_within_a_period(tmp_path: Path) -> None:
    """What is full is sealed when there is nothing else to reclaim, and not only by the clock."""
    tier = await opened(tmp_path / "store", capacity_bytes=4 * MIB)
    async with asyncio.timeout(ALL_AT_ONCE_S):
        for first in range(0, 800, 16):
            await stored(tier, keys_of(first, 16))
    assert tier.stats().counters["evicted_chunks"] > 400
    with tier._index.read() as txn:
        assert txn.totals(SegmentState.SEALED).segments > 10
    await tier.close()
