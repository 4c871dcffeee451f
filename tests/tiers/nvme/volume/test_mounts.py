from __future__ import annotations

from pathlib import Path

import pytest
from loop_rig import KINDS, drive, run

from kvtier.tiers.nvme.volume import mounts
from kvtier.tiers.nvme.volume.mounts import Mount, is_mount_point, mount_of, parsed

TABLE = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
36 35 98:0 /sub /mnt/my\\040drive rw,noatime master:1 propagate_from:2 - nfs4 host:/a\\011b rw,vers=4.2
40 22 0:44 / /tank ro,relatime - zfs tank/data rw,xattr
41 22 0:45 / /s3 rw - fuse.s3fs s3fs ro
"""


def test_the_table_of_mounts_is_read() -> None:
    assert dict(parsed(TABLE)) == {
        "22": Mount("ext4", "/dev/sda1", Path("/")),
        "36": Mount("nfs4", "host:/a\tb", Path("/mnt/my drive")),
        "40": Mount("zfs", "tank/data", Path("/tank"), is_read_only=True),
        "41": Mount("fuse.s3fs", "s3fs", Path("/s3"), is_read_only=True),
    }


@pytest.mark.root
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_mounted_is_known_from_below_it(tmp_path: Path, kind: str) -> None:
    with drive(kind, tmp_path) as made:
        (made.point / "a").mkdir()
        (tmp_path / "link").symlink_to(made.point / "a")
        for path in (made.point, made.point / "a", tmp_path / "link"):
            mount = mount_of(path)
            assert mount.kind == {"bindfs": "fuse"}.get(kind, kind)
            assert mount.point == made.point
            assert made.device is None or mount.device == made.device
        assert is_mount_point(made.point)
        assert not is_mount_point(made.point / "a")
    assert not is_mount_point(made.point)
    assert not is_mount_point(made.point / "gone")


@pytest.mark.root
def test_a_directory_mounted_elsewhere_on_its_own_file_system_is_a_mount_point(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    assert source.stat().st_dev == target.stat().st_dev
    run("mount", "--bind", source, target)
    try:
        assert is_mount_point(target)
        assert mount_of(target).point == target
    finally:
        run("umount", target)
    assert not is_mount_point(target)


@pytest.mark.root
def test_the_last_of_two_mounts_at_one_place_counts(tmp_path: Path) -> None:
    with drive("ext4", tmp_path) as lower:
        run("mount", "-t", "tmpfs", "tmpfs", lower.point)
        try:
            assert mount_of(lower.point).kind == "tmpfs"
        finally:
            run("umount", lower.point)
        assert mount_of(lower.point).kind == "ext4"


@pytest.mark.parametrize(
    ("magic", "row", "kind"),
    [
        (0x6969, "ext4", "nfs"),  # a row that is not of this mount
        (0x6969, "nfs4", "nfs4"),
        (0x65735546, "fuse.sshfs", "fuse.sshfs"),
        (0x65735546, "virtiofs", "virtiofs"),
        (0xEF53, "ext3", "ext3"),
        (0x01021994, "devtmpfs", "devtmpfs"),
        (0x12345678, "newfs", "newfs"),
    ],
)
def test_the_kernels_number_and_the_table_agree_or_the_number_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, magic: int, row: str, kind: str
) -> None:
    monkeypatch.setattr(mounts, "magic_of", lambda _: magic)
    monkeypatch.setattr(mounts, "_row", lambda _: Mount(row, "/dev/x", Path("/")))
    assert mount_of(tmp_path).kind == kind


def test_without_a_table_the_number_says_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_row", lambda _: None)
    monkeypatch.setattr(mounts, "magic_of", lambda _: 0xFF534D42)
    assert mount_of(tmp_path) == Mount("cifs", "unknown", None)
    monkeypatch.setattr(mounts, "magic_of", lambda _: 1)
    assert mount_of(tmp_path) == Mount("unknown", "unknown", None)
    assert is_mount_point(Path("/"))
    assert not is_mount_point(tmp_path)
