"""Kills at every labelled step and at random times: the store opens, is right, and kept what it promised.

KVTIER_KILLS sets how many random kills there are (`make crash`); the default is what CI has time for.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import damage
import pytest
from nvme_rig import CHUNK_BYTES, MIB, at_rest, keys_of, opened, right, stored

from kvtier.tiers.nvme.index.records import SegmentState
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.nvme.log.budget import SEGMENT_SLACK_BYTES, Budget, facts_for
from kvtier.tiers.nvme.tier import NvmeTier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[3]
SUPPORT = ROOT / "tests" / "support"
STEPS = sorted(
    {
        step
        for file in (ROOT / "tiers" / "nvme").rglob("*.py")
        for step in re.findall(r'reached\("([^"]+)"\)', file.read_text())
    }
)
assert len(STEPS) >= 15, "the labels are no longer where this looks for them"
VISITS = 3  # at each step: the first, second and third time it is reached
RANDOM_KILLS = int(os.environ.get("KVTIER_KILLS", "120"))
KILL_WITHIN_S = 0.12  # about what a life takes, so that kills fall on all of it
ROOMY_BYTES = 64 * MIB
NEVER = "never"


class Children:
    """The warm parent of all lives."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SUPPORT / "crash_child.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SUPPORT), "PYTHONWARNINGS": "ignore"},
            text=True,
        )

    def run(self, life: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._pipes()
        stdin.write(json.dumps(life) + "\n")
        stdin.flush()
        result: dict[str, Any] = json.loads(stdout.readline())
        return result

    def close(self) -> None:
        stdin, stdout = self._pipes()
        stdin.close()
        self._process.wait(30)
        stdout.close()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    children = Children()
    yield children
    children.close()


@dataclass
class Store:
    """A store that lives are led on, and what it has promised so far."""

    path: Path
    capacity_bytes: int
    keeps_all: bool
    children: Children
    first: int = 0
    durable: set[str] = field(default_factory=set)
    never_again: set[str] = field(default_factory=set)  # stored with weights that nobody else has
    kills: int = 0

    def lead(
        self, *, seed: int, step: str = NEVER, visit: int = 1, kill_after_s: float | None = None
    ) -> bool:
        """Lead one life; returns whether it was killed."""
        life = {
            "path": str(self.path),
            "capacity_bytes": self.capacity_bytes,
            "least_bytes": least_bytes(self.capacity_bytes),
            "seed": seed,
            "first": self.first,
            "step": step,
            "visit": visit,
            "kill_after_s": kill_after_s,
        }
        result = self.children.run(life)
        assert result["killed"] or result["status"] == 0, f"a life failed by itself: {life}"
        for line in result["said"]:
            self.first = line.get("asked", self.first)
            if "invalidating" in line:
                self.durable.clear()
            self.never_again.update(line.get("never_again", ()))
            self.durable.difference_update(line.get("removing", ()))
            self.durable.update(line.get("durable", ()))
        self.kills += result["killed"]
        return bool(result["killed"])

    async def assert_whole(self) -> None:
        """Open the store as the next process would, and hold it to everything it says."""
        tier = await opened(self.path, capacity_bytes=self.capacity_bytes)
        await tier._keeper.caught_up()  # on a slow drive it serves before it has read all
        try:
            await at_rest(tier)
            found = await right(tier, keys_of(0, self.first))
            assert self.never_again.isdisjoint(key.decode() for key in found)
            if self.keeps_all:
                lost = self.durable - {key.decode() for key in found}
                assert not lost, f"flushed and lost: {sorted(lost)[:4]}"
            there = sum(tier.lookup(keys_of(0, self.first)))
            assert tier.stats().chunks == there, "what it counts is what it has"
            assert allocated_bytes(self.path) <= self.capacity_bytes
            assert_books_match(tier, self.path)
        finally:
            await tier.close()
        assert sorted(p.name for p in (self.path / "segments").iterdir() if p.suffix != ".seg") == []


def assert_books_match(tier: NvmeTier, path: Path) -> None:
    """Every segment file has its record, and no record counts less than its file takes."""
    with tier._index.read() as txn:
        segments = txn.segments()
    on_disk = {int(file.stem): file.stat().st_blocks * 512 for file in (path / "segments").glob("*.seg")}
    assert on_disk.keys() == segments.keys(), "a file without a record, or a record without a file"
    for number, segment in segments.items():
        slack_bytes = segment.allocated_bytes - on_disk[number]
        # A process that died between making a file and filling it leaves an open segment to be taken over.
        exact = segment.state is not SegmentState.OPEN
        assert 0 <= slack_bytes <= (SEGMENT_SLACK_BYTES if exact else segment.allocated_bytes)


def least_bytes(capacity_bytes: int) -> int:
    facts = facts_for(capacity_bytes, CHUNK_BYTES)
    return Budget(capacity_bytes, 0, facts.segment_bytes, facts.chunk_bytes).least_bytes


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
