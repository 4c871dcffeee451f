"""Drives and file systems that differ from most"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from faults import fault
from loop_rig import MIB, drive
from nvme_rig import keys_of, opened, right, stored
from page_shim import page_shim
from store_process import StoreProcess

from kvtier.tiers.nvme.io.files import allocated_bytes

CAPACITY_BYTES = 8 * MIB


def has_fallocate(point: Path) -> bool:
    command = ["fallocate", "--length", "4096", str(point / "probe")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


async def goes_round(path: Path) -> None:
    """Store twice the cap, start again, load what is there."""
    tier, keys = await opened(path, capacity_bytes=CAPACITY_BYTES), keys_of(0, 1024)
    for start in range(0, len(keys), 32):
        await stored(tier, keys[start : start + 32])
        assert allocated_bytes(path) <= CAPACITY_BYTES
    await tier.close()
    tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
    kept = await right(tier, keys)
    assert kept == keys[-len(kept) :]
    assert len(kept) > 100
    await tier.close()


@fault("a drive with sectors of 4 KiB", sees="nothing", loses="nothing", heals="-")
@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_sectors_of_4_kib(tmp_path: Path, kind: str) -> None:
    with drive(kind, tmp_path, 300 * MIB, sector_bytes=4096) as made:
        await goes_round(made.point / "store")


@fault(
    "a file system without fallocate (ext2, ext3, many FUSE)",
    sees="one warning; the first stores into a new segment write twice as much",
    loses="nothing",
    heals="-",
)
@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext2", "ext3", "bindfs"])
async def test_no_fallocate(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with drive(kind, tmp_path, 128 * MIB) as made:
        if kind == "bindfs" and has_fallocate(made.point):
            pytest.skip("this bindfs has fallocate")
        await goes_round(made.point / "store")
    assert "fallocate" in caplog.text


@fault(
    "pages of 64 KiB (GH200, Grace; told to the process by a shim, on a kernel that has others)",
    sees="nothing",
    loses="nothing",
    heals="-",
)
def test_pages_of_64_kib(tmp_path: Path) -> None:
    path, within = tmp_path / "store", ["env", f"LD_PRELOAD={page_shim(tmp_path, 65536)}"]
    with StoreProcess(path, within=within) as first, StoreProcess(path, within=within) as second:
        for start in range(0, 2048, 64):  # twice the cap
            asked = first if start % 128 else second
            assert asked.ask(f"store {start} 64") == "64"
        assert allocated_bytes(path) <= 16 * MIB
        assert first.ask("look 1920 128") == "128"
        first.kill()
        assert second.ask("look 1920 128") == "128"
        assert second.ask("close") == "closed"
    with StoreProcess(path, within=within) as third:
        assert third.ask("look 1920 128") == "128"
        assert third.ask("close") == "closed"
