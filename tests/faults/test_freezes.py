"""File systems that are frozen"""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

import pytest
from faults import fault, in_child
from loop_rig import MIB, drive, needs
from nvme_rig import filled, keys_of, opened, stored

from kvtier.tiers.base import Outcome

FREEZE_S = 3
BEAT_S = 0.02
LATE_S = 1.0  # a lookup takes microseconds


def freeze(point: Path) -> None:
    """Freeze it, and have somebody else thaw it later."""
    subprocess.Popen(["sh", "-c", f"sleep {FREEZE_S}; fsfreeze -u {point}"])
    subprocess.run(["fsfreeze", "-f", point], check=True)


@fault(
    "the file system is frozen (fsfreeze, a snapshot by a backup)",
    sees="lookups, statistics and every other thread go on; transfers wait, and the breaker opens",
    loses="nothing",
    heals="by itself, when it is thawed",
)
@pytest.mark.root
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_freeze(tmp_path: Path) -> None:
    needs("fsfreeze")
    with drive("ext4", tmp_path, 128 * MIB) as made:

        async def serve() -> None:
            tier = await opened(made.point / "store", capacity_bytes=32 * MIB)
            await stored(tier, keys_of(0, 64))
            await tier.flush()
            freeze(made.point)
            # Upkeep alone at first, whose own work is what stands still; then a store as well.
            under_way: list[asyncio.Future[Outcome]] = []
            end_s, worst_s = time.monotonic() + FREEZE_S, 0.0
            while (left_s := end_s - time.monotonic()) > 0:
                if left_s < FREEZE_S / 2 and not under_way:
                    late = keys_of(100, 8)
                    under_way.append(asyncio.ensure_future(tier.store(late, filled(late))))
                began_s = time.monotonic()
                assert all(tier.lookup(keys_of(0, 64)))
                tier.stats()
                await asyncio.sleep(BEAT_S)  # other work of the loop, which a standstill delays as well
                worst_s = max(worst_s, time.monotonic() - began_s)
            await asyncio.gather(*under_way)
            await tier.close()
            assert worst_s < LATE_S, f"the process stood still for {worst_s:.1f} s"

        try:
            assert in_child(serve) == 0
        finally:
            subprocess.run(["fsfreeze", "-u", made.point], capture_output=True, check=False)
