"""Drives that die while they serve"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import fault, in_child
from loop_rig import MIB, Drive, drive, mortal_drive
from nvme_rig import filled, keys_of, opened, right, stored

from kvtier.tiers.base import Failure
from kvtier.tiers.breaker import BAD_CALLS_MAX, Breaker, BreakerState
from kvtier.tiers.nvme import striped


async def behind_breaker(made: Drive) -> Breaker:
    """A tier whose breaker, once it is open, stays so: its clock stands still."""
    tier = await opened(made.point / "store", capacity_bytes=32 * MIB)
    return Breaker(tier, slow_s=10, clock=lambda: 0.0)


READY_CHUNKS_MAX = 600  # of a store of 32 MiB: an eighth of it, and what is open


@fault(
    "the drive dies: every read and every write is EIO",
    sees="loads miss, stores fail, the breaker opens; no signal, nothing raised",
    loses="what is on the drive",
    heals="with another drive, and a restart",
)
@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_a_drive_dies(tmp_path: Path, kind: str) -> None:
    with mortal_drive(kind, tmp_path, 300 * MIB) as made:

        async def serve() -> None:
            tier = await behind_breaker(made)
            await tier.store(keys_of(0, 200), filled(keys_of(0, 200)))
            await tier.flush()
            made.drop_caches()
            made.cut()
            # What is ready takes writes as long as the device does; then the file system has to say it.
            for start in range(1000, 1000 + READY_CHUNKS_MAX + 40 * BAD_CALLS_MAX, 20):
                tier.lookup(keys_of(0, 200))
                await right(tier, keys_of(0, 200))  # type: ignore[arg-type]
                await tier.store(keys_of(start, 20), filled(keys_of(start, 20)))
            for start in range(5000, 5000 + 20 * BAD_CALLS_MAX, 20):  # in a row: a miss is a good call
                await tier.store(keys_of(start, 20), filled(keys_of(start, 20)))
            assert tier.state is BreakerState.OPEN
            assert not any(tier.lookup(keys_of(0, 200)))
            await tier.close()

        assert in_child(serve) == 0


@fault(
    "one of several drives of a tier dies",
    sees="its chunks miss; after some calls its breaker opens and the other drives take its share",
    loses="its own chunks",
    heals="with another drive at its path, or its path off the list, and a restart",
)
@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_one_of_two_drives_dies(tmp_path: Path, kind: str) -> None:
    with mortal_drive(kind, tmp_path, 300 * MIB) as dying, drive("ext4", tmp_path, 128 * MIB) as living:

        async def serve() -> None:
            drives = [
                striped.Drive(str(made.point), await behind_breaker(made), 1.0) for made in (dying, living)
            ]
            tier, keys = striped.StripedTier("nvme", drives), keys_of(0, 200)
            await stored(tier, keys)  # type: ignore[arg-type]
            await tier.flush()
            on_living = {key for key, hit in zip(keys, drives[1].tier.lookup(keys), strict=True) if hit}
            assert 60 < len(on_living) < 140
            dying.drop_caches()
            dying.cut()
            assert set(await right(tier, keys)) == on_living  # type: ignore[arg-type]
            for start in range(1000, 5000, 100):
                outcome = await tier.store(keys_of(start, 20), filled(keys_of(start, 20)))
                assert set(outcome.failed.values()) <= {Failure.IO_ERROR, Failure.NOT_ALLOWED}
            assert [one.tier.state for one in drives] == [BreakerState.OPEN, BreakerState.CLOSED]
            late = keys_of(9000, 50)
            await stored(tier, late)  # type: ignore[arg-type]
            assert await right(tier, late) == late  # type: ignore[arg-type]
            await tier.close()

        assert in_child(serve) == 0
