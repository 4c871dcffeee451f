"""Stores that lives are led on until they are killed, and what each has promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nvme_rig import CHUNK_BYTES, IDENTITY, at_rest, keys_of, opened, right

from kvtier.tiers.nvme.index.records import SegmentState
from kvtier.tiers.nvme.io.files import allocated_bytes
from kvtier.tiers.nvme.log.budget import SEGMENT_SLACK_BYTES, Budget, facts_for
from kvtier.tiers.nvme.store.namespaces import Identity
from kvtier.tiers.nvme.tier import NvmeTier

SUPPORT = Path(__file__).parent
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


def identity_of(model: str) -> Identity:
    return Identity({**IDENTITY.fields, "model": model})


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
    model: str = IDENTITY.fields["model"]  # of the namespace: stores of one path may have one each

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
            "model": self.model,
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
        tier = await opened(self.path, capacity_bytes=self.capacity_bytes, identity=identity_of(self.model))
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
