"""What a container or a service manager shows of the system: enough, or the refusal says what is lacking."""

from __future__ import annotations

from pathlib import Path

import pytest
from mounts import in_memory, run
from nvme_rig import keys_of, opened, right, stored
from store_process import StoreProcess

from kvtier.tiers.nvme.index.errors import IndexFull
from kvtier.tiers.nvme.store.checkpoint import restore_checkpoint

pytestmark = pytest.mark.root


def within(*setup: str, pids: bool = False) -> list[str]:
    """A command that runs another one in namespaces of its own, after a setup there."""
    script = " && ".join([*setup, 'exec "$@"'])
    return ["unshare", "--mount", *(["--pid", "--fork"] if pids else []), "bash", "-c", script, "_"]


@pytest.mark.parametrize("memory", ["tmpfs -o size=0", "ramfs"])
def test_shared_memory_that_tells_no_size_is_used(tmp_path: Path, memory: str) -> None:
    inside = within(f"mount -t {memory} none /dev/shm")
    with StoreProcess(tmp_path / "store", within=inside) as process:
        assert process.greeting == "open"
        assert process.ask("store 0 20") == "20"
        assert process.ask("close") == "closed"


@pytest.mark.parametrize("drive", ["tmpfs -o size=0", "ramfs"])
async def test_a_drive_that_tells_no_size_keeps_its_reserve_by_itself(tmp_path: Path, drive: str) -> None:
    point = tmp_path / "drive"
    point.mkdir()
    run("mount", "-t", *drive.split(), "none", point)
    try:
        tier = await opened(point / "store", reserve_bytes=1 << 30)
        await stored(tier, keys_of(0, 20))
        assert await right(tier, keys_of(0, 20)) == keys_of(0, 20)
        await tier.close()
    finally:
        run("umount", point)


def test_a_proc_that_hides_the_boot_is_named_with_the_fix(tmp_path: Path) -> None:
    inside = within("mount -t proc -o subset=pid proc /proc", pids=True)
    with StoreProcess(tmp_path / "store", within=inside) as process:
        assert process.greeting.startswith("TierUnavailable")
        assert "boot_id is hidden from this process" in process.greeting
        assert "ProcSubset=all" in process.greeting
    assert not (tmp_path / "store").exists()


async def test_a_checkpoint_for_which_shared_memory_has_no_room_is_no_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, keys_of(0, 20))
    await tier.close()
    tier = await opened(path)
    try:
        with in_memory(tmp_path / "shared", 16 * 1024) as place, pytest.raises(IndexFull):
            restore_checkpoint(tier._store.directory, place / "copy")
    finally:
        await tier.close()


def test_a_limit_on_files_that_the_index_exceeds_is_named(tmp_path: Path) -> None:
    with StoreProcess(tmp_path / "store", within=within("ulimit -f 512")) as process:
        assert process.greeting.endswith("File too large; raise RLIMIT_FSIZE (ulimit -f)")
    assert not (tmp_path / "store").exists()
