"""Replays in processes of their own give the same figures, and leave none behind."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from kvtier.engine.replay.first_tokens import Speeds
from kvtier.engine.replay.parallel import replay_all
from kvtier.engine.replay.tiers import LogWithoutBytes, SlotsWithoutBytes
from kvtier.tiers import Tier
from kvtier.tiers.pinned.eviction import LruPolicy

REQUESTS = [[b"%04d" % (i % 7 * 10 + j) for j in range(5)] for i in range(60)]


@dataclass(frozen=True)
class Small:
    """A chain of some slots and a drive."""

    slots_count: int
    step_keys: int | None = None
    speeds: Speeds | None = None
    chunks_per_key: int = 1

    def pinned(self) -> SlotsWithoutBytes:
        return SlotsWithoutBytes(self.slots_count, slot_bytes=1 << 20, make_policy=LruPolicy)

    def lower(self) -> Sequence[Tier]:
        drive = LogWithoutBytes("nvme", capacity_bytes=64 << 20, chunk_bytes=1 << 20, write_amplification=1.3)
        return [drive]


CHAINS = [Small(count) for count in (5, 10, 20)]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_number_of_jobs_changes_no_figure() -> None:
    alone: list[int] = []
    together: list[int] = []
    one = replay_all(REQUESTS, CHAINS, alone.append, jobs=1)
    assert replay_all(REQUESTS, CHAINS, together.append, jobs=2) == one
    assert (
        len({figures.hits_chunks for figures in one} | {figures.tiers[0].hits_chunks for figures in one}) > 1
    )
    assert sum(alone) == sum(together) == len(CHAINS) * len(REQUESTS)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_an_interrupt_leaves_no_process() -> None:
    def interrupt(_served_count: int) -> None:
        raise KeyboardInterrupt

    before = multiprocessing.active_children()
    with pytest.raises(KeyboardInterrupt):
        replay_all(REQUESTS, CHAINS, interrupt, jobs=2)
    assert multiprocessing.active_children() == before
