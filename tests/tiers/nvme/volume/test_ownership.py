"""Directories of others, directories that others may open, and stores that something has opened to them."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from loop_rig import MIB, drive
from nvme_rig import keys_of, made, names, opened, right, stored

from kvtier.tiers.errors import TierUnavailable

SOMEBODY = 12345


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store of eight chunks that nobody uses."""
    path = tmp_path / "store"

    async def fill() -> None:
        tier = await opened(path)
        await stored(tier, keys_of(0, 8))
        await tier.close()

    asyncio.run(fill())
    return path


def as_fs_group(root: Path) -> None:
    """What a kubelet does to a volume with `fsGroup` at each start of a pod."""
    for path in (root, *root.rglob("*")):
        mode = path.stat().st_mode
        path.chmod(mode | 0o2070 if stat.S_ISDIR(mode) else mode | 0o060)


def as_state_directory(root: Path) -> None:
    """What systemd does to a `StateDirectory=` at each start of a service."""
    root.chmod(0o755)


def world_open(root: Path) -> None:
    root.chmod(0o1777)


def open_to_others(root: Path) -> list[Path]:
    return [path for path in (root, *root.rglob("*")) if path.stat().st_mode & 0o077]


@pytest.mark.parametrize("widen", [as_fs_group, as_state_directory, world_open])
async def test_our_store_that_was_opened_to_others_is_closed_again(
    store: Path, widen: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):  # at each start
        caplog.clear()
        widen(store)
        tier = await opened(store)
        try:
            assert await right(tier, keys_of(0, 8)) == keys_of(0, 8)
        finally:
            await tier.close()
        assert not open_to_others(store)
        (said,) = [record.getMessage() for record in caplog.records]
        assert "fsGroupChangePolicy: OnRootMismatch" in said
        assert "StateDirectoryMode=0700" in said


async def test_a_store_as_it_should_be_is_opened_without_a_word(
    store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await (await opened(store)).close()
    assert not caplog.text


async def test_a_link_in_a_store_leads_nobody_out_of_it(store: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("")
    outside.chmod(0o644)
    (store / "segments" / "link").symlink_to(outside)
    world_open(store)
    await (await opened(store)).close()
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


async def test_an_empty_directory_open_to_others_is_refused_with_a_path_that_works(tmp_path: Path) -> None:
    path = tmp_path / "volume"
    made(path, 0o755)
    inside = path / "kvtier"
    with pytest.raises(
        TierUnavailable, match=f"name a directory inside it, .*: {inside}, or chmod 0700 {path}"
    ):
        await opened(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755, "it may be somebody else's business"
    await (await opened(inside)).close()


@pytest.mark.root
async def test_the_root_of_a_mount_is_refused_with_a_directory_inside_it(tmp_path: Path) -> None:
    with drive("tmpfs", tmp_path, 64 * MIB) as volume:
        volume.point.chmod(0o1777)
        with pytest.raises(TierUnavailable, match="name a directory inside it") as refused:
            await opened(volume.point, capacity_bytes=8 * MIB)
        assert "chmod" not in str(refused.value), "whoever mounts it may open it again"
        await (await opened(volume.point / "kvtier", capacity_bytes=8 * MIB)).close()


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o2770, 0o1777])
async def test_what_is_in_a_directory_is_told_before_its_mode(tmp_path: Path, mode: int) -> None:
    made(tmp_path / "photos", mode, {"photo.jpg": ""})
    with pytest.raises(TierUnavailable, match=r"holds other files \(photo\.jpg\)"):
        await opened(tmp_path / "photos")


def as_user(uid: int, work: Callable[[], None]) -> int:
    """Do something in a child that is this user; returns its exit status."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def open_refused(path: Path, *words: str) -> Callable[[], None]:
    def work() -> None:
        with pytest.raises(TierUnavailable) as refused:
            asyncio.run(opened(path))
        assert all(word in str(refused.value) for word in words), refused.value

    return work


@pytest.fixture
def common(tmp_path: Path) -> Path:
    """A directory that every user can reach."""
    for path in (tmp_path, *tmp_path.parents[:-1]):
        if path.stat().st_uid == os.geteuid() and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o011)
    return tmp_path


@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads, in newer Pythons
def test_a_volume_of_root_that_all_may_write_to_is_refused_with_a_directory_inside_it(common: Path) -> None:
    made(common / "volume", 0o777)
    refusal = open_refused(common / "volume", "belongs to user 0", "name a directory inside it")
    assert as_user(SOMEBODY, refusal) == 0

    async def use() -> None:
        await (await opened(common / "volume" / "kvtier")).close()

    assert as_user(SOMEBODY, lambda: asyncio.run(use())) == 0


@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_root_is_told_whose_store_it_is_and_how_to_look_at_it(store: Path) -> None:
    for path in (store, *store.rglob("*")):
        shutil.chown(path, SOMEBODY, SOMEBODY)
    open_refused(store, f"belongs to user {SOMEBODY}, not to us (0)", f"sudo -u '#{SOMEBODY}'")()
    assert "chown" not in names(store)


@pytest.mark.root
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_directory_of_another_that_we_cannot_read_is_refused_as_his(common: Path) -> None:
    made(common / "his", 0o700)
    assert as_user(SOMEBODY, open_refused(common / "his", "belongs to user 0", "chown it")) == 0
