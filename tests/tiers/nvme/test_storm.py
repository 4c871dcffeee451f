"""Three processes on one directory, each killed again and again: what each has flushed is there.

KVTIER_STORM_S sets for how long (`make crash`); the default is what CI has time for.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_rig import Children, Store
from nvme_rig import CHUNK_BYTES, MIB

from kvtier.tiers.nvme.admin.fsck import check_directory
from kvtier.tiers.nvme.io.files import Files, allocated_bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PROCESSES = 3
STORM_S = float(os.environ.get("KVTIER_STORM_S", "6"))
KILL_WITHIN_S = 1.0  # a start takes a tenth of it, or all where the machine is busy
CAPACITY_BYTES = 256 * MIB


@pytest.fixture
def all_children() -> Iterator[list[Children]]:
    all_children = [Children() for _ in range(PROCESSES)]
    yield all_children
    for children in all_children:
        children.close()


async def test_three_processes_are_killed_again_and_again(
    tmp_path: Path, all_children: list[Children]
) -> None:
    seed, end_s = int.from_bytes(os.urandom(4), "big"), time.monotonic() + STORM_S
    kills = chunks = number = 0
    while time.monotonic() < end_s or not kills:
        path, number = tmp_path / f"store-{number}", number + 1
        stores = [
            Store(path, CAPACITY_BYTES, True, children, model=f"m{index}")
            for index, children in enumerate(all_children)
        ]
        randoms = [random.Random(f"{seed} {number} {index}") for index in range(PROCESSES)]
        lives = [asyncio.to_thread(led, *one, end_s) for one in zip(stores, randoms, strict=True)]
        await asyncio.gather(*lives)
        for store in stores:
            await store.assert_whole()
        report = check_directory(Files(), path, deep=True, repair=False, progress=lambda *_: None)
        assert not report.findings
        kills += sum(store.kills for store in stores)
        chunks += sum(store.first for store in stores)
    print(f"seed {seed}: {kills} kills, {chunks} chunks, {number} stores")


def led(store: Store, rng: random.Random, end_s: float) -> None:
    """Lead one life after the other, until the store has a third of what it holds, or time is up."""
    while store.first * CHUNK_BYTES < CAPACITY_BYTES // (3 * PROCESSES) and time.monotonic() < end_s:
        store.lead(seed=rng.getrandbits(32), kill_after_s=rng.uniform(0, KILL_WITHIN_S))
        assert allocated_bytes(store.path) <= CAPACITY_BYTES
