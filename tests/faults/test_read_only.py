"""File systems that become read-only"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import fault, in_child
from loop_rig import MIB, drive
from nvme_rig import filled, keys_of, opened, right, stored

from kvtier.tiers.errors import TierUnavailable


@fault(
    "an emergency remount, read-only (ext4 errors=remount-ro)",
    sees="stores fail; what is there loads, from the drive as long as it answers",
    loses="the chunks of failed stores",
    heals="with a check of the file system, a mount and a restart",
)
@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_emergency_remount(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 128 * MIB) as made:

        async def serve() -> None:
            tier = await opened(made.point / "store", capacity_bytes=32 * MIB)
            await stored(tier, keys_of(0, 100))
            await tier.flush()
            made.remount("abort")
            # As far as the open segment goes, some kernels write on. What comes after it needs new room;
            # it stays well below the cap, so that nothing that is there has to go.
            for start in range(1000, 2000, 50):
                outcome = await tier.store(keys_of(start, 50), filled(keys_of(start, 50)))
                assert start < 1500 or not outcome.succeeded
            assert await right(tier, keys_of(0, 100)) == keys_of(0, 100)
            await tier.close()

        assert in_child(serve) == 0


@fault(
    "a start on a read-only file system",
    sees="`TierUnavailable`: mounted read-only",
    loses="nothing",
    heals="mount it for writing",
)
@pytest.mark.root
async def test_a_start_on_a_read_only_file_system(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 128 * MIB) as made:
        tier = await opened(made.point / "store", capacity_bytes=32 * MIB)
        await stored(tier, keys_of(0, 8))
        await tier.close()
        made.remount("ro")
        with pytest.raises(TierUnavailable, match="mounted read-only"):
            await opened(made.point / "store", capacity_bytes=32 * MIB)
        made.remount("rw")
        tier = await opened(made.point / "store", capacity_bytes=32 * MIB)
        assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
        await tier.close()
