"""Several processes on one directory: shared chunks, one cap, and deaths among them."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nvme_rig import MIB, keys_of, opened, right, stored
from process_child import KEYS_COUNT

from kvtier.tiers.nvme.index.records import SegmentState
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.nvme.tier import NvmeTier

SUPPORT = Path(__file__).parents[2] / "support"
CAPACITY_BYTES = 8 * MIB
PROCESSES = 4
FOREVER = 1 << 30
ROUNDS = 300  # of the survivors; each stores about 128 KiB a round, so ten times the cap together
GIVE_UP_S = 120.0


@contextmanager
def processes(path: Path, rounds: list[int], seed: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Children at work on one store; none is left at the end."""
    children = [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "process_child.py")]
            + [str(argument) for argument in (path, CAPACITY_BYTES, seed + index, count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SUPPORT)},
        )
        for index, count in enumerate(rounds)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", child.communicate()[1]
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_two_of_four_are_killed_and_the_others_go_on_within_the_cap(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    rng, path = random.Random(seed), tmp_path / "store"
    peak_bytes, results = 0, []
    with processes(path, [FOREVER, FOREVER, ROUNDS, ROUNDS], seed) as children:
        doomed, survivors = children[:2], children[2:]
        kill_at_s = sorted(time.monotonic() + rng.uniform(0.5, 2.0) for _ in doomed)
        give_up_s = time.monotonic() + GIVE_UP_S
        while any(child.poll() is None for child in survivors) or doomed:
            peak_bytes = max(peak_bytes, allocated_bytes(path))
            if doomed and time.monotonic() > kill_at_s[0]:
                kill_at_s.pop(0)
                doomed.pop().kill()
            assert time.monotonic() < give_up_s, "the survivors do not come to an end"
        for child in survivors:
            output, errors = child.communicate()
            assert child.returncode == 0, errors
            results.append(json.loads(output))
    assert peak_bytes <= CAPACITY_BYTES
    assert sum(result["stored_bytes"] for result in results) > 2 * CAPACITY_BYTES, "too little to reclaim"
    assert all(result["loaded"] > 0 and result["evicted_chunks"] > 0 for result in results)
    assert all(result["corrupt_chunks"] == 0 for result in results), "nobody saw a chunk half written"
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        there = present(tier)
        read = await right(tier, there)
        evicted = set(there) - set(present(tier))  # this tier keeps room ahead as well
        assert there
        assert set(there) - set(read) <= evicted
        assert tier.stats().counters["corrupt_chunks"] == 0
    finally:
        await tier.close()


def present(tier: NvmeTier) -> list[bytes]:
    keys = keys_of(0, KEYS_COUNT + 16)
    return [key for key, found in zip(keys, tier.lookup(keys), strict=True) if found]


async def test_a_dead_process_open_segment_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with processes(path, [FOREVER], seed=1) as children:
        give_up_s = time.monotonic() + GIVE_UP_S
        while not (path / "segments").is_dir() or len(list((path / "segments").glob("*.seg"))) < 2:
            assert time.monotonic() < give_up_s
        children[0].kill()
        children[0].wait()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    try:
        left_open = open_segments(tier)
        for first in range(10_000, 10_400, 40):  # some segments full
            await stored(tier, keys_of(first, 40))
        assert not left_open & open_segments(tier), "filled up, sealed, and perhaps in a new life by now"
    finally:
        await tier.close()


def open_segments(tier: NvmeTier) -> set[tuple[int, int]]:
    """Segments that somebody appends to, each with its generation."""
    with tier._index.read() as txn:
        segments = txn.segments().items()
    return {
        (number, segment.generation) for number, segment in segments if segment.state is SegmentState.OPEN
    }
