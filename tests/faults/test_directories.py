"""Directories that are removed, opened to others, or not there"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faults import fault
from nvme_rig import filled, keys_of, names, opened, right, stored

from kvtier.factory.base import TierContext
from kvtier.factory.builtin import NvmeFactory
from kvtier.factory.config import parse_config, resolve_config
from kvtier.factory.entries import NvmeConfig
from kvtier.tiers import ConfigError
from kvtier.tiers.base import Failure
from kvtier.tiers.errors import TierUnavailable
from kvtier.tiers.nvme.admin.fsck import check_directory
from kvtier.tiers.nvme.io.files import Files
from kvtier.tiers.nvme.volume import probe
from kvtier.tiers.nvme.volume.mounts import Mount
from kvtier.tiers.testing import aligned_buffers

OLD = keys_of(0, 8)


@fault(
    "`rm -rf` of the directory under a server",
    sees="its chunks miss; nothing is raised",
    loses="what was in it",
    heals="with a restart at the latest, which makes it anew",
)
async def test_the_directory_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, OLD)
    while path.exists():  # the server may make and remove files of its own meanwhile
        shutil.rmtree(path, ignore_errors=True)
    await tier.load(OLD, aligned_buffers(8, 16384))
    await tier.store(keys_of(100, 8), filled(keys_of(100, 8)))
    await tier.close()
    tier = await opened(path)
    await stored(tier, OLD)
    assert await right(tier, OLD) == OLD
    await tier.close()


@fault(
    "chunks of a directory that was removed",
    sees="misses, and no talk of checksums",
    loses="what was in it",
    heals="-",
)
async def test_removed_chunks_are_misses(tmp_path: Path) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    try:
        await stored(tier, OLD)
        for file in (path / "segments").iterdir():
            file.write_bytes(b"")
            file.unlink()
        outcome = await tier.load(OLD, aligned_buffers(8, 16384))
        assert Failure.CORRUPT not in outcome.failed.values()
    finally:
        await tier.close()


@fault(
    "Kubernetes' `fsGroup` or systemd's `StateDirectory=` opens the directory to others",
    sees="one warning that names `fsGroupChangePolicy: OnRootMismatch` and `StateDirectoryMode=0700`",
    loses="nothing",
    heals="by itself: what is ours is closed again at the start",
)
@pytest.mark.parametrize("mode", [0o2770, 0o755])
async def test_a_directory_opened_to_others(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, OLD)
    await tier.close()
    path.chmod(mode)
    tier = await opened(path)
    assert await right(tier, OLD) == OLD
    await tier.close()
    assert path.stat().st_mode & 0o777 == 0o700
    assert "OnRootMismatch" in caplog.text


@fault(
    "the drive is not mounted (with `mount` in the tier's entry)",
    sees="`ConfigError`: nothing is mounted there",
    loses="nothing",
    heals="mount it",
)
def test_a_drive_that_is_not_mounted(tmp_path: Path) -> None:
    nvme = {"type": "nvme", "path": f"{tmp_path}/kvtier", "mount": str(tmp_path), "capacity": "1GiB"}
    document = {"version": 1, "tiers": [{"type": "gpu"}, {"type": "pinned", "capacity": "64MiB"}, nvme]}
    with pytest.raises(ConfigError, match="nothing is mounted at"):
        resolve_config(parse_config(document), chunk_bytes=4096)


@fault(
    "a directory on NFS, SMB, 9p, Lustre or Ceph",
    sees="`TierUnavailable` that names the type; nothing is made",
    loses="nothing",
    heals="use a local drive",
)
@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "ceph"])
async def test_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(probe, "mount_of", lambda _: Mount(kind, "host:/share", tmp_path))
    with pytest.raises(TierUnavailable, match=kind):
        await opened(tmp_path / "store")
    assert names(tmp_path) == []


@fault(
    "one directory under two paths, in a list of drives (a link, a bind mount)",
    sees="`TierUnavailable` that names both paths",
    loses="nothing",
    heals="take one of them off the list",
)
async def test_one_directory_by_two_paths(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o700)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    paths = [f"{tmp_path}/a/kvtier", f"{tmp_path}/b/kvtier"]
    config = NvmeConfig.model_validate({"type": "nvme", "path": paths, "capacity": 64 << 20, "reserve": 0})
    with pytest.raises(TierUnavailable, match="are one directory"):
        await NvmeFactory.open(config, TierContext(part_bytes=16384, parts=1, identity={"model": "m"}))


@fault(
    "a small file of a store is lost or damaged (`in-use`, `checkpoint`, `kvtier.json`)",
    sees="nothing; without `kvtier.json`, `TierUnavailable` that names `kvtier fsck --repair`",
    loses="nothing",
    heals="by itself, at the next start, from the log; `kvtier.json` with the repair",
)
@pytest.mark.parametrize("name", ["in-use", "checkpoint", "kvtier.json"])
@pytest.mark.parametrize("lost", [True, False])
async def test_a_small_file_is_lost(tmp_path: Path, name: str, lost: bool) -> None:
    path = tmp_path / "store"
    tier = await opened(path)
    await stored(tier, OLD)
    await tier.close()
    if lost:
        (path / name).unlink()
    else:
        (path / name).write_bytes(b"x" * 600)
    if name == "kvtier.json":
        with pytest.raises(TierUnavailable, match="fsck --repair"):
            await opened(path)
        check_directory(Files(), path, deep=False, repair=True, progress=lambda *_: None)
    tier = await opened(path)
    assert await right(tier, OLD) == OLD
    await tier.close()
