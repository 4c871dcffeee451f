"""One of several drives of a tier"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chain_rig import SLOT_BYTES, BothFaces, Slots
from faults import fault, in_child
from loop_rig import MIB, MortalDrive, drive, mortal_drive, needs, run
from nvme_rig import keys_of, opened

from kvtier.engine.loop import LoopThread
from kvtier.tiers.base import ChunkKey, Failure, Outcome
from kvtier.tiers.breaker import Breaker, BreakerState
from kvtier.tiers.nvme.striped import Drive, StripedTier
from kvtier.tiers.testing import aligned_buffers, pattern

DEADLINE_S = 1.0
PATIENCE_S = 60.0
OLD, NEW, LATE = keys_of(0, 100), keys_of(1000, 600), keys_of(5000, 100)


class Chains:
    """Chains over one tier of two drives, each with slots of its own."""

    def __init__(self, first: Path, second: Path) -> None:
        self.loop = LoopThread()
        self.tier = self.loop.submit(self._opened(first, second)).result(PATIENCE_S)

    async def _opened(self, *points: Path) -> StripedTier:
        drives = []
        for point in points:
            tier = Breaker(await opened(point / "store"), slow_s=DEADLINE_S)
            drives.append(Drive(str(point), tier, 1.0))
        return StripedTier("nvme", drives)

    @contextmanager
    def chain(self) -> Iterator[BothFaces]:
        chain = BothFaces(Slots(4096), [self.tier], self.loop, load_deadlines_s={self.tier.name: DEADLINE_S})
        yield chain
        self.loop.submit(chain.mover.stop()).result(PATIENCE_S)

    def drive(self, number: int) -> Breaker:
        return self.tier._drives[number].tier

    def share(self, number: int, keys: list[ChunkKey]) -> set[ChunkKey]:
        return {key for key in keys if self.tier._ranking.of(key)[0] == number}

    def store(self, chain: BothFaces, keys: list[ChunkKey]) -> None:
        slots = chain.reserve(chain.new_prompt(), keys).slots
        for slot in slots:
            chain._pinned.buffer(slot)[:] = pattern(slot.key, SLOT_BYTES)
        chain.commit(slots)

    def load(self, chain: BothFaces, keys: list[ChunkKey]) -> Outcome:
        """What is in slots after the deadline at the latest; its bytes are right."""
        slots, failed = self.loop.submit(chain.fetch(chain.new_prompt(), keys)).result(PATIENCE_S)
        for slot in slots:
            assert bytes(chain._pinned.buffer(slot)) == pattern(slot.key, SLOT_BYTES)
        chain.release(slots)
        return Outcome(tuple(slot.key for slot in slots), failed)

    def tried(self, number: int, key: ChunkKey) -> bool:
        """Load a chunk of this drive; whether its breaker is closed then."""
        load = self.drive(number).load([key], aligned_buffers(1, SLOT_BYTES))
        self.loop.submit(load).result(PATIENCE_S)
        return self.drive(number).state is BreakerState.CLOSED

    def close(self) -> None:
        self.loop.submit(self.tier.close()).result(PATIENCE_S)
        self.loop.close()


def wait_until(holds: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@fault(
    "one of several drives of a tier hangs, or its file system is frozen",
    sees="loads get what the others have; its breaker opens, and the others take its share",
    loses="its own chunks, for as long as it hangs",
    heals="by itself, once it answers and a trial succeeds",
)
@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("is_frozen", [False, True], ids=["hangs", "is frozen"])
def test_one_of_two_drives_hangs(tmp_path: Path, is_frozen: bool) -> None:
    needs("fsfreeze")
    with mortal_drive("ext4", tmp_path, 128 * MIB) as hanging, drive("ext4", tmp_path, 128 * MIB) as living:

        def serve() -> None:
            chains = Chains(hanging.point, living.point)
            with chains.chain() as before:
                chains.store(before, OLD)
                chains.loop.submit(before.mover.flush(None)).result(PATIENCE_S)
            with chains.chain() as chain:
                hang(hanging, is_frozen)
                try:
                    serve_meanwhile(chains, chain, is_frozen)
                finally:
                    go_on(hanging, is_frozen)
                wait_until(lambda: chains.tried(0, min(chains.share(0, OLD))))
            with chains.chain() as after:
                assert chains.load(after, OLD).succeeded == tuple(OLD)
            chains.close()

        assert in_child(lambda: asyncio.to_thread(serve)) == 0


def serve_meanwhile(chains: Chains, chain: BothFaces, is_frozen: bool) -> None:
    """A frozen file system still reads."""
    loaded = chains.load(chain, OLD)
    assert set(loaded.succeeded) == (set(OLD) if is_frozen else chains.share(1, OLD))
    assert set(loaded.failed.values()) <= {Failure.TIMEOUT}
    chains.store(chain, NEW)
    wait_until(lambda: all(chains.drive(1).lookup(sorted(chains.share(1, NEW)))))
    wait_until(lambda: chains.drive(0).state is BreakerState.OPEN)
    chains.store(chain, LATE)
    wait_until(lambda: all(chains.tier.lookup(LATE)))
    assert not any(chains.drive(0).lookup(LATE)), "the other one has them all"


def hang(made: MortalDrive, is_frozen: bool) -> None:
    if is_frozen:
        run("fsfreeze", "-f", made.point)
    else:
        made.hang()


def go_on(made: MortalDrive, is_frozen: bool) -> None:
    if is_frozen:
        run("fsfreeze", "-u", made.point)
    else:
        made.go_on()
