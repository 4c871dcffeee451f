"""What a real store writes: counted, kept over restarts and power losses, and held to its budget."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from nvme_rig import CHUNK_BYTES, KIB, MIB, at_rest, filled, keys_of, opened, right, stored

from kvtier.tiers.base import Failure
from kvtier.tiers.nvme.tier import NvmeTier
from kvtier.tiers.nvme.wear.record import DAY_MS
from kvtier.tiers.nvme.wear.terms import Terms

HOUR_S, DAY_S = 3600, DAY_MS // 1000
CAPACITY = 8 * MIB
TABLES = 1.2  # tables beside chunks of 16 KiB, and the ends of batches


class Clock:
    """The machine's monotonic clock, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1e6

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def budget_for(chunks_an_hour: int, clock: Callable[[], float]) -> Terms:
    return Terms(write_budget=chunks_an_hour * CHUNK_BYTES * 24 / CAPACITY, clock=clock)


async def small(path: Path, terms: Terms) -> NvmeTier:
    return await opened(path, capacity_bytes=CAPACITY, terms=terms)


def written(tier: NvmeTier) -> float:
    return tier.stats().gauges["written_bytes"]


async def test_what_is_written_is_counted_and_outlives_the_process(tmp_path: Path, clock: Clock) -> None:
    terms = Terms(endurance_bytes=CAPACITY * 100, clock=clock)
    tier = await small(tmp_path / "store", terms)
    assert "years_left" not in tier.stats().gauges, "nothing was written yet"
    await stored(tier, keys_of(0, 64))
    first = written(tier)
    assert 64 * CHUNK_BYTES <= first <= 64 * CHUNK_BYTES * TABLES
    await stored(tier, keys_of(0, 64))
    assert written(tier) == first, "it was there already"
    clock.now_s += 10 * DAY_S
    await tier._upkeep.once()
    gauges = tier.stats().gauges
    assert gauges["written_bytes_a_day"] == pytest.approx(first / 10, rel=0.01)
    assert gauges["drive_writes_a_day"] == pytest.approx(first / 10 / CAPACITY, rel=0.01)
    assert gauges["years_left"] == pytest.approx((CAPACITY * 100 - first) / (first / 10) / 365.25, rel=0.01)
    await tier.close()
    assert tier.stats().gauges == gauges, "as it was last"
    again = await small(tmp_path / "store", terms)
    assert first <= written(again) <= first + 256 * KIB, "the checkpoint of the close is in it"
    await again.close()


@pytest.mark.slow
async def test_what_is_carried_is_counted_too(tmp_path: Path, clock: Clock) -> None:
    tier, hot = await small(tmp_path / "store", Terms(clock=clock)), keys_of(0, 8)
    await stored(tier, hot)
    for first in range(100, 900, 100):
        await stored(tier, keys_of(first, 100))
        assert await right(tier, hot) == hot
    await at_rest(tier)
    counters = tier.stats().counters
    moved_bytes = counters["stored_bytes"] + counters["carried_bytes"]
    assert counters["carried_bytes"] > 0
    assert moved_bytes <= written(tier) <= moved_bytes * TABLES
    await tier.close()


@pytest.mark.slow
@pytest.mark.parametrize("keeps_checkpoint", [True, False])
async def test_after_a_power_loss_it_is_right_to_the_segments_that_were_open(
    tmp_path: Path, clock: Clock, keeps_checkpoint: bool
) -> None:
    """The index goes with the machine: a copy of the directory alone is what is found after it."""
    memory, lost = tmp_path / "memory", tmp_path / "lost"
    memory.mkdir()
    tier = await small(tmp_path / "store", Terms(clock=clock))
    await stored(tier, keys_of(0, 100))
    await tier.close()
    tier = await small(tmp_path / "store", Terms(clock=clock))
    for first in range(1000, 1800, 100):
        await stored(tier, keys_of(first, 100))
    await at_rest(tier)
    await tier.flush()
    before, segment_bytes = written(tier), tier._store.directory.facts.segment_bytes
    open_count = len(tier._log.room.own)
    shutil.copytree(tmp_path / "store", lost, copy_function=shutil.copy)
    await tier.close()
    if not keeps_checkpoint:
        (lost / "checkpoint").unlink()
    (lost / "lock").unlink()
    after = await opened(lost, capacity_bytes=CAPACITY, terms=Terms(clock=clock), memory=memory)
    slack_bytes = (open_count + 3) * segment_bytes
    wasted = 1 if keeps_checkpoint else TABLES  # ends of segments, which are too short for a chunk
    assert before - slack_bytes <= written(after) <= before * TABLES * wasted + slack_bytes
    await after.close()


async def test_what_was_written_before_the_checkpoint_was_lost_is_no_debt(
    tmp_path: Path, clock: Clock
) -> None:
    """The log says what was written, and not when: it may be years' worth."""
    memory, lost, terms = tmp_path / "memory", tmp_path / "lost", budget_for(64, clock)
    memory.mkdir()
    tier = await small(tmp_path / "store", terms)
    for first in (0, 1000, 2000):
        await stored(tier, keys_of(first, 48))
        await tier._count_uses()
        clock.now_s += 2 * HOUR_S
    await tier.flush()
    shutil.copytree(tmp_path / "store", lost, copy_function=shutil.copy)
    await tier.close()
    (lost / "checkpoint").unlink(missing_ok=True)
    (lost / "lock").unlink()
    after = await opened(lost, capacity_bytes=CAPACITY, terms=terms, memory=memory)
    assert written(after) > 64 * CHUNK_BYTES
    assert after.stats().gauges["written_bytes_a_day"] == 0, "it is of no rate, either"
    await stored(after, keys_of(3000, 32))
    await after.close()


async def test_stores_stop_at_the_budget_and_go_on_when_time_has_passed(tmp_path: Path, clock: Clock) -> None:
    tier = await small(tmp_path / "store", budget_for(64, clock))
    keys = keys_of(0, 100)
    outcome = await tier.store(keys, filled(keys))
    assert outcome.succeeded == tuple(keys[:64]), "the leading ones: no gap"
    assert set(outcome.failed.values()) == {Failure.NO_SPACE}
    assert tier.stats().counters["over_budget_chunks"] == 36
    await tier.flush()
    assert await right(tier, keys) == keys[:64]
    await stored(tier, keys[:64])  # what is there costs nothing
    await tier._count_uses()
    clock.now_s += HOUR_S / 4
    outcome = await tier.store(keys, filled(keys))
    assert 64 + 8 <= len(outcome.succeeded) <= 64 + 16, "tables count, too"
    await tier.close()


async def test_a_restart_does_not_fill_the_bucket(tmp_path: Path, clock: Clock) -> None:
    terms = budget_for(64, clock)
    tier = await small(tmp_path / "store", terms)
    await stored(tier, keys_of(0, 64))
    await tier.close()
    clock.now_s += 60
    tier = await small(tmp_path / "store", terms)
    more = keys_of(1000, 64)
    assert not (await tier.store(more, filled(more))).succeeded
    clock.now_s += 3 * HOUR_S
    await stored(tier, more)
    await tier.close()


async def test_the_budget_is_that_of_all_who_share_the_store(tmp_path: Path, clock: Clock) -> None:
    terms = budget_for(64, clock)
    one, other = await small(tmp_path / "store", terms), await small(tmp_path / "store", terms)
    await stored(one, keys_of(0, 64))
    more = keys_of(1000, 8)
    assert not (await other.store(more, filled(more))).succeeded
    await one.close()
    await other.close()


@pytest.mark.slow
async def test_carrying_stops_before_stores_do(tmp_path: Path, clock: Clock) -> None:
    tier, hot = await small(tmp_path / "store", budget_for(900, clock)), keys_of(0, 8)
    await stored(tier, hot)
    carried = []
    for first in range(100, 1300, 100):
        assert await right(tier, hot) == hot or not tier._meter.budget.spare_bytes() > 0
        keys = keys_of(first, 100)
        await tier.store(keys, filled(keys))
        await at_rest(tier)
        carried.append((tier._meter.budget.spare_bytes(), tier.stats().counters["carried_chunks"]))
    assert tier.stats().counters["over_budget_chunks"] > 0, "all was spent"
    while_spare = [count for spare_bytes, count in carried if spare_bytes > 0]
    after = [count for spare_bytes, count in carried if spare_bytes <= 0]
    assert while_spare[-1] > 0, "while there was enough, the hot ones were carried"
    assert after[-1] == after[0], "and then none"
    await tier.close()


async def test_a_chunk_larger_than_an_hours_worth_comes_in_its_time(tmp_path: Path, clock: Clock) -> None:
    """Else a small budget would mean nothing at all."""
    terms = Terms(write_budget=CHUNK_BYTES / 4 * 24 / CAPACITY, clock=clock)
    tier = await small(tmp_path / "store", terms)
    keys = keys_of(0, 16)
    there = 0
    for _ in range(24):
        outcome = await tier.store(keys, filled(keys))
        assert len(outcome.succeeded) <= there + 1
        there = len(outcome.succeeded)
        await tier._count_uses()
        clock.now_s += HOUR_S
    assert 24 // 4 // 2 <= there <= 24 // 4 + 1
    await tier.close()
