"""What is worth keeping: a chunk that is read from its slot all the time is not cold on the drive."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_rig import EngineRig, config

HOT = [b"hot-%02d" % number for number in range(8)]
COLD_COUNT = 16  # in a round
ROUNDS = 160  # more than two laps of the log
CAPACITY = 8 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rounds_per_load", "drives"),
    [(1, 1), (16, 1), (1, 2)],
    ids=["all the time", "four times a lap", "on two drives"],
)
def test_a_chunk_that_is_read_from_its_slot_outlives_the_cold_ones_on_the_drive(
    tmp_path: Path, rounds_per_load: int, drives: int
) -> None:
    document = config(
        tmp_path / "nvme", pinned_chunks=32 + COLD_COUNT * rounds_per_load, capacity=CAPACITY // drives
    )
    if drives > 1:
        document["tiers"][2]["path"] = [str(tmp_path / f"nvme{number}") for number in range(drives)]
    first = EngineRig(document)
    first.store(HOT)
    first.engine.flush(10)
    for number in range(ROUNDS):
        start = number * COLD_COUNT
        first.store([b"cold-%06d" % cold for cold in range(start, start + COLD_COUNT)])
        first.engine.flush(10)
        if number % rounds_per_load == 0:
            assert first.load(HOT) == tuple(HOT)
    stats = first.engine.stats()
    assert stats.tiers["nvme"].counters["evicted_chunks"] > COLD_COUNT * ROUNDS // 2
    assert stats.tiers["nvme"].counters["loaded_chunks"] == 0, "every hit came from a slot"
    first.engine.close()
    second = EngineRig(document)
    found = second.engine.lookup(HOT)
    second.engine.close()
    assert found == len(HOT)
