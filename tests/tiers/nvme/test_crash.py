"""Kills at every labelled step and at random times: the store opens, is right, and kept what it promised.

KVTIER_KILLS sets how many random kills there are (`make crash`); the default is what CI has time for.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import damage
import pytest
from crash_rig import Children, Store, least_bytes
from nvme_rig import CHUNK_BYTES, MIB, keys_of, opened, stored

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
STEPS = sorted(
    {
        step
        for file in (ROOT / "tiers" / "nvme").rglob("*.py")
        for step in re.findall(r'reached\("([^"]+)"\)', file.read_text())
    }
)
assert len(STEPS) >= 15, "the labels are no longer where this looks for them"
ALL_KILLS = os.environ.get("KVTIER_KILLS")  # set by `make crash`, which has the time
VISITS = 3 if ALL_KILLS else 2  # at each step: the first, second (and third) time it is reached
RANDOM_KILLS = int(ALL_KILLS or 120)
KILL_WITHIN_S = 0.12  # about what a life takes, so that kills fall on all of it
ROOMY_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


TIGHT_BYTES = least_bytes(4 * MIB) + MIB


@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_at_any_step_leaves_a_whole_store(tmp_path: Path, children: Children, step: str) -> None:
    hit = 0
    for capacity_bytes, keeps_all in ((ROOMY_BYTES, True), (TIGHT_BYTES, False)):
        for visit in range(1, VISITS + 1):
            path = tmp_path / f"{keeps_all}-{visit}"
            store = Store(path, capacity_bytes, keeps_all, children)
            if step not in ("creating", "namespace written"):  # steps of the first life of a new store
                store.lead(seed=visit)
                store.lead(seed=visit + 10)
            if step == "caught up some":  # a step of a start that finds nothing but the log
                damage.lose_index(path)
            hit += store.lead(seed=visit + 20, step=step, visit=visit)
            await store.assert_whole()
            store.lead(seed=visit + 30)
            await store.assert_whole()
    assert hit, f"no life came to the step {step!r}"


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("lost", [damage.lose_memory, damage.lose_index], ids=["reboot", "log alone"])
async def test_what_was_flushed_outlives_kills_at_any_step_and_the_loss_of_the_index(
    tmp_path: Path, children: Children, step: str, lost: Callable[[Path], None]
) -> None:
    store = Store(tmp_path / "store", ROOMY_BYTES, True, children)
    store.lead(seed=1)
    for seed in range(2, 6):  # more than an index is trusted over
        store.lead(seed=seed, step=step, visit=1 + seed % 2)
        store.lead(seed=seed + 10, step="committed", visit=4)
    lost(store.path)
    await store.assert_whole()


@pytest.mark.parametrize("keeps_all", [True, False], ids=["roomy", "tight"])
async def test_kills_at_random_times_leave_a_whole_store(
    tmp_path: Path, children: Children, keeps_all: bool
) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    rng = random.Random(seed)
    capacity_bytes = ROOMY_BYTES if keeps_all else TIGHT_BYTES
    store = Store(tmp_path / "store", capacity_bytes, keeps_all, children)
    lives = 0
    while store.kills < RANDOM_KILLS // 2:
        store.lead(seed=rng.getrandbits(32), kill_after_s=rng.uniform(0, KILL_WITHIN_S))
        lives += 1
        if keeps_all and store.first * CHUNK_BYTES > capacity_bytes // 2:
            await store.assert_whole()
            store = Store(tmp_path / f"store-{lives}", capacity_bytes, keeps_all, children, kills=store.kills)
        elif lives % 4 == 0:
            await store.assert_whole()
        assert lives < 4 * RANDOM_KILLS, "lives end before they are killed"
    await store.assert_whole()


async def test_the_harness_would_notice_a_lost_promise(tmp_path: Path, children: Children) -> None:
    store = Store(tmp_path / "store", ROOMY_BYTES, True, children)
    tier = await opened(store.path, capacity_bytes=ROOMY_BYTES)
    await stored(tier, keys_of(0, 4))
    await tier.close()
    store.first, store.durable = 4, {"chunk-0000000009"}
    with pytest.raises(AssertionError, match="flushed and lost"):
        await store.assert_whole()
