"""Real file systems, tried; and stores on each of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from loop_rig import MIB, drive, run
from nvme_rig import keys_of, names, opened, right, stored

from kvtier.tiers.base import Buffer
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.io.files import Files, allocated_bytes
from kvtier.tiers.nvme.volume import probe
from kvtier.tiers.nvme.volume.filesystem import Abilities
from kvtier.tiers.nvme.volume.mounts import Mount
from kvtier.tiers.nvme.volume.probe import examined

ALL = Abilities()
EXPECTED = {
    "ext4": ALL,
    "xfs": ALL,
    "btrfs": ALL,
    "overlay": ALL,
    "ext3": ALL._replace(fallocate=False),
    "ext2": ALL._replace(fallocate=False),
    "bindfs": ALL._replace(fallocate=False),
}
WARNS = {"overlay": "container", "tmpfs": "in memory", "bindfs": "FUSE", "ext3": "zeros", "ext2": "zeros"}
CAPACITY_BYTES = 8 * MIB


@pytest.mark.root
@pytest.mark.parametrize("kind", EXPECTED)
def test_what_a_file_system_can_do_is_found_out_and_nothing_is_left(tmp_path: Path, kind: str) -> None:
    with drive(kind, tmp_path) as made:
        (made.point / "inside").mkdir()
        found = examined(Files(), made.point / "inside" / "not" / "yet", thorough=True)
        assert found.abilities == EXPECTED[kind]
        assert names(made.point / "inside") == []


@pytest.mark.root
@pytest.mark.parametrize("kind", [*EXPECTED, "tmpfs"])
async def test_a_store_works_on_it_and_warns_where_it_should(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with drive(kind, tmp_path) as made:
        path, keys = made.point / "store", keys_of(0, 1024)  # twice the cap
        tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
        for start in range(0, len(keys), 32):
            await stored(tier, keys[start : start + 32])
            assert allocated_bytes(path) <= CAPACITY_BYTES
        await tier.flush()
        await tier.close()
        tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
        try:
            kept = await right(tier, keys)
            assert kept == keys[-len(kept) :]
            assert len(kept) > len(keys) // 4
            assert tier.stats().counters["io_errors"] == 0
        finally:
            await tier.close()
    assert WARNS.get(kind, "") in caplog.text
    assert kind in WARNS or not caplog.text


@pytest.mark.root
async def test_segments_on_btrfs_are_overwritten_in_place(tmp_path: Path) -> None:
    with drive("btrfs", tmp_path) as made:
        tier = await opened(made.point / "store", capacity_bytes=CAPACITY_BYTES)
        await stored(tier, keys_of(0, 8))
        await tier.close()
        listed = run("lsattr", *(made.point / "store" / "segments").iterdir())
        assert all("C" in line.split()[0] for line in listed.splitlines()), listed


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("reserve_bytes", [0, 16 * MIB])
def test_a_full_btrfs_ends_no_process_and_no_service(tmp_path: Path, reserve_bytes: int) -> None:
    child = Path(__file__).parents[3] / "support" / "filled_child.py"
    with drive("btrfs", tmp_path) as made:
        command = [sys.executable, str(child), str(made.point / "store"), str(reserve_bytes)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


class WithoutLocks(Files):
    """A file system whose locks always succeed, as some network and shared ones do."""

    def try_lock(self, fd: int, byte: int, *, exclusive: bool) -> bool:
        return True


class WithoutOfdLocks(Files):
    """A file system, or a kernel, that has no locks of this kind."""

    def try_lock(self, fd: int, byte: int, *, exclusive: bool) -> bool:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.parametrize("files", [WithoutLocks(), WithoutOfdLocks()], ids=lambda one: type(one).__name__)
async def test_locks_that_lock_nothing_are_refused_before_anything_is_made(
    tmp_path: Path, files: Files
) -> None:
    with pytest.raises(TierUnavailable, match="locks do not exclude"):
        await opened(tmp_path / "made" / "store", files=files)
    assert names(tmp_path) == []


def test_a_lock_that_only_this_process_sees_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert examined(Files(), tmp_path, thorough=True).abilities.locks
    monkeypatch.setattr(probe, "_TRY_LOCK", "print('locked')")
    with pytest.raises(TierUnavailable, match="locks do not exclude"):
        examined(Files(), tmp_path, thorough=True)


def test_a_second_process_that_cannot_be_started_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert examined(Files(), tmp_path, thorough=True).abilities.locks


class WithoutDirect(Files):
    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        if self.direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return super().pwritev(fd, buffers, offset)


async def test_without_direct_io_a_store_goes_through_the_page_cache_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tier = await opened(tmp_path / "store", files=WithoutDirect())
    await stored(tier, keys_of(0, 4))
    assert await right(tier, keys_of(0, 4)) == keys_of(0, 4)
    await tier.close()
    assert "without direct I/O" in caplog.text


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "lustre", "ceph", "fuse.sshfs"])
async def test_a_network_file_system_is_refused_by_name_and_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(probe, "mount_of", lambda _: Mount(kind, "host:/share", tmp_path))
    with pytest.raises(TierUnavailable, match=f"{kind} is shared with other machines"):
        await opened(tmp_path / "store")
    assert names(tmp_path) == []


@pytest.mark.root
async def test_a_store_that_is_there_opens_on_a_full_file_system(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 64 * MIB) as made:
        tier = await opened(made.point / "store", capacity_bytes=CAPACITY_BYTES)
        await stored(tier, keys_of(0, 8))
        await tier.close()
        made.fill()
        tier = await opened(made.point / "store", capacity_bytes=CAPACITY_BYTES)
        assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
        await tier.close()


@pytest.mark.root
async def test_a_read_only_file_system_is_refused_by_name(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 64 * MIB) as made:
        made.remount("ro")
        with pytest.raises(TierUnavailable, match="mounted read-only; mount it for writing"):
            await opened(made.point / "store")
