"""What is worth keeping: a chunk that is read from its slot all the time is not cold on the drive."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_rig import EngineRig, config

HOT = [b"hot-%02d" % number for number in range(8)]
COLD_COUNT = 16  # in a round
ROUNDS = 80  # some laps of the log


@pytest.mark.slow
@pytest.mark.xfail(reason="a hit in a slot is not told to the tiers below, which take the chunk for cold")
def test_a_chunk_that_is_read_from_its_slot_outlives_the_cold_ones_on_the_drive(tmp_path: Path) -> None:
    document = config(tmp_path / "nvme", pinned_chunks=32, capacity="2MiB")
    first = EngineRig(document)
    first.store(HOT)
    first.engine.flush(10)
    for start in range(0, ROUNDS * COLD_COUNT, COLD_COUNT):
        first.store([b"cold-%06d" % number for number in range(start, start + COLD_COUNT)])
        first.engine.flush(10)
        assert first.load(HOT) == tuple(HOT)
    first.engine.close()
    second = EngineRig(document)
    found = second.engine.lookup(HOT)
    second.engine.close()
    assert found == len(HOT)
