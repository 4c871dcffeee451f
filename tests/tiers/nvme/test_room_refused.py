"""File systems that have no room, no inode, or give a file more than its length"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from loop_rig import MAKE, drive
from mounts import run
from nvme_rig import MIB, filled, keys_of, opened, stored

from kvtier.tiers.errors import TierError, TierUnavailable
from kvtier.tiers.nvme.io.files import Files, allocated_bytes
from kvtier.tiers.nvme.store.namespaces import Identity

CAPACITY_BYTES = 16 * MIB


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@contextmanager
def _few_inodes(point: Path) -> Iterator[Path]:
    point.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64m,nr_inodes=40", "tmpfs", point)
    try:
        yield point
    finally:
        run("umount", "--lazy", point)


@pytest.mark.root
async def test_stores_go_on_in_old_segments_where_no_file_can_be_made(tmp_path: Path) -> None:
    with _few_inodes(tmp_path / "drive") as point:
        tier = await opened(point / "store", capacity_bytes=CAPACITY_BYTES)
        try:
            await stored(tier, keys_of(0, 200))
            with suppress(OSError):
                for number in range(1000):
                    (point / f"another-{number}").touch()
            await tier.store(keys_of(1000, 200), filled(keys_of(1000, 200)))
            await tier._upkeep.once()
            await stored(tier, keys_of(2000, 20))
        finally:
            await tier.close()


@pytest.mark.root
@pytest.mark.slow
async def test_a_new_namespace_opens_on_a_full_file_system(tmp_path: Path) -> None:
    with drive("ext4", tmp_path, 120 * MIB) as made:
        path = made.point / "store"
        tier = await opened(path)
        await stored(tier, keys_of(0, 2000))
        await tier.close()
        made.fill()
        tier = await opened(path, identity=Identity({"model": "another"}))
        await tier.close()


class FullFiles(Files):
    """The real files, until small ones find no room."""

    full = False

    def write_small(self, path: Path, data: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().write_small(path, data)


async def test_an_invalidation_that_finds_no_room_says_so_in_our_words(path: Path) -> None:
    files = FullFiles()
    tier = await opened(path, files=files)
    try:
        await stored(tier, keys_of(0, 8))
        files.full = True
        with pytest.raises(TierError):
            await tier.invalidate()
        assert not any(tier.lookup(keys_of(0, 8)))
        files.full = False
        await tier.invalidate()
        await stored(tier, keys_of(8, 8))
    finally:
        await tier.close()


@pytest.mark.root
@pytest.mark.slow
async def test_the_cap_holds_where_files_take_more_than_their_length(tmp_path: Path) -> None:
    image, point = tmp_path / "image", tmp_path / "drive"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(600 * MIB)
    run("mkfs.xfs", "-q", "-f", "-d", "extszinherit=1024", image)  # 4 MiB a file at least
    run("mount", "-o", "loop", image, point)
    try:
        tier = await opened(point / "store", capacity_bytes=CAPACITY_BYTES)
        for start in range(0, 2000, 40):
            await tier.store(keys_of(start, 40), filled(keys_of(start, 40)))
        await tier._upkeep.once()
        used_bytes = allocated_bytes(point / "store")
        await tier.close()
    finally:
        run("umount", "--lazy", point)
    assert used_bytes <= CAPACITY_BYTES


@pytest.mark.root
@pytest.mark.slow
async def test_the_cap_holds_where_small_files_take_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are many namespaces, and each has a file of 64 KiB."""
    monkeypatch.setitem(MAKE, "xfs", ["mkfs.xfs", "-q", "-f", "-b", "size=65536"])
    with drive("xfs", tmp_path, 400 * MIB) as made:
        path, worst_bytes = made.point / "store", 0
        tier = await opened(path, capacity_bytes=CAPACITY_BYTES)
        for start in range(0, 1200, 40):
            await stored(tier, keys_of(start, 40))
        for number in range(40):
            identity = Identity({"model": f"m{number}"})
            other = await opened(path, capacity_bytes=CAPACITY_BYTES, identity=identity)
            await other.store(keys_of(0, 2), filled(keys_of(0, 2)))
            await other.close()
            await tier._upkeep.once()
            worst_bytes = max(worst_bytes, allocated_bytes(path))
        await tier.close()
    assert worst_bytes <= CAPACITY_BYTES


@pytest.fixture
def large_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ext4 that gives a file of one byte a whole MiB."""
    monkeypatch.setitem(MAKE, "ext4", ["mkfs.ext4", "-q", "-F", "-O", "bigalloc", "-C", str(MIB)])
    with drive("ext4", tmp_path, 600 * MIB) as made:
        yield made.point


@pytest.mark.root
@pytest.mark.slow
async def test_the_cap_holds_where_every_small_file_takes_much(large_clusters: Path) -> None:
    store = large_clusters / "store"
    for number in range(8):
        identity = Identity({"model": f"m{number}"})
        tier = await opened(store, capacity_bytes=64 * MIB, identity=identity)
        for start in range(0, 800, 40):
            await stored(tier, keys_of(start, 40))
        await tier._upkeep.once()
        assert allocated_bytes(store) <= 64 * MIB
        await tier.close()
        assert allocated_bytes(store) <= 64 * MIB


@pytest.mark.root
async def test_a_cap_that_small_files_alone_would_fill_is_refused_with_one_that_works(
    large_clusters: Path,
) -> None:
    store = large_clusters / "store"
    with pytest.raises(TierUnavailable, match="the least that works is") as refused:
        await opened(store, capacity_bytes=CAPACITY_BYTES)
    assert not store.exists()
    least_bytes = int(str(refused.value).rpartition(" ")[2])
    tier = await opened(store, capacity_bytes=least_bytes)
    await stored(tier, keys_of(0, 8))
    await tier.close()
