"""The table of verdicts: what is said of each type of file system, and of what was tried on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier.tiers.nvme.volume.filesystem import VERDICTS, Abilities, Standing, verdict_of, verdicts
from kvtier.tiers.nvme.volume.mounts import Mount


def mount(kind: str, *, is_read_only: bool = False) -> Mount:
    return Mount(kind, "/dev/x", Path("/mnt"), is_read_only)


@pytest.mark.parametrize("kind", ["ext4", "ext3", "ext2", "xfs", "btrfs", "f2fs", "never-heard-of"])
def test_what_works_needs_no_word(kind: str) -> None:
    assert verdicts(mount(kind), Abilities()) == []


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("tmpfs", "in memory"),
        ("ramfs", "in memory"),
        ("devtmpfs", "in memory"),
        ("overlay", "container"),
        ("zfs", "copy-on-write"),
        ("bcachefs", "copy-on-write"),
        ("fuse", "FUSE"),
        ("fuse.bindfs", "FUSE"),
        ("fuse.of-somebody", "FUSE"),
        ("fuseblk", "FUSE"),
        ("virtiofs", "another machine"),
    ],
)
def test_what_works_with_care_is_warned_of(kind: str, word: str) -> None:
    (verdict,) = verdicts(mount(kind), Abilities())
    assert (verdict.standing, word in verdict.reason) == (Standing.WARNS, True)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        *((kind, "other machines") for kind in ("nfs", "nfs4", "cifs", "smb3", "9p", "lustre", "ceph")),
        *((kind, "other machines") for kind in ("gpfs", "beegfs", "afs", "ocfs2", "gfs2", "glusterfs")),
        *(
            (f"fuse.{kind}", "other machines")
            for kind in ("sshfs", "s3fs", "ceph-fuse", "glusterfs", "juicefs")
        ),
        *((kind, "read-only") for kind in ("squashfs", "erofs", "iso9660")),
        *((kind, "kernel") for kind in ("proc", "sysfs", "cgroup2", "autofs")),
    ],
)
def test_what_cannot_hold_a_store_is_refused(kind: str, word: str) -> None:
    verdict = verdict_of(kind)
    assert (verdict.standing, word in verdict.reason) == (Standing.REFUSED, True)


@pytest.mark.parametrize(
    ("abilities", "standing", "word"),
    [
        (Abilities(direct=False), Standing.WARNS, "direct I/O"),
        (Abilities(fallocate=False), Standing.WARNS, "fallocate"),
        (Abilities(in_place=False), Standing.WARNS, "copy-on-write"),
        (Abilities(locks=False), Standing.REFUSED, "exclude"),
    ],
)
def test_what_was_tried_and_failed_is_said(abilities: Abilities, standing: Standing, word: str) -> None:
    (verdict,) = verdicts(mount("ext4"), abilities)
    assert (verdict.standing, word in verdict.reason) == (standing, True)


def test_the_worst_comes_first() -> None:
    said = verdicts(mount("fuse.bindfs", is_read_only=True), Abilities(direct=False))
    assert [one.standing for one in said] == [Standing.REFUSED, Standing.WARNS, Standing.WARNS]
    assert "mount it for writing" in said[0].reason


def test_what_is_copied_on_write_is_said_once() -> None:
    assert len(verdicts(mount("zfs"), Abilities(in_place=False))) == 1


def test_every_verdict_but_the_good_one_has_a_reason() -> None:
    for kind, verdict in VERDICTS.items():
        assert bool(verdict.reason) is (verdict.standing is not Standing.WORKS), kind
