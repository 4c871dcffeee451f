"""Which file systems a store works on: what the type says, and what was tried where it does not.

`VERDICTS` says what the type alone decides. A network file system is refused, whatever it can do: its locks
and its cached pages are another machine's too. `verdicts` adds what `probe.py` has found out by trying.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from .mounts import Mount


class Standing(enum.IntEnum):
    """How well a store fares on a file system."""

    WORKS = 0
    WARNS = 1
    REFUSED = 2


class Verdict(NamedTuple):
    """What is to be said of a file system, and how bad it is."""

    standing: Standing
    reason: str = ""


def _refused(reason: str) -> Verdict:
    return Verdict(Standing.REFUSED, reason)


def _warns(reason: str) -> Verdict:
    return Verdict(Standing.WARNS, reason)


_WORKS = Verdict(Standing.WORKS)
_NETWORK = _refused(
    "shared with other machines, so its locks and cached pages cannot be trusted; use a local drive"
)
_READ_ONLY = _refused("read-only by its nature; use a local drive")
_KERNEL = _refused("the kernel's own and holds no files; use a local drive")
_MEMORY = _warns("in memory: it takes RAM, and a reboot empties it; use a local drive")
_PROGRAM = _warns(
    "served by a program (FUSE), on which speed, durability and locks depend; use the drive itself, and do "
    "not let another machine or a second mount use the directory"
)
_MACHINE = _warns("lent by another machine, which its locks do not reach; do not share the directory")
_LAYER = _warns("a container's own layer and goes with the container; use a mounted volume")
_COPYING = _warns(
    "copy-on-write: a store needs free space also where it overwrites, and fragments; keep a reserve, and "
    "take no snapshots of the directory"
)

_BY_VERDICT = {
    _WORKS: "ext4 ext3 ext2 xfs btrfs f2fs jfs reiserfs",
    _COPYING: "zfs bcachefs nilfs2",
    _MEMORY: "tmpfs ramfs devtmpfs",
    _LAYER: "overlay aufs",
    _PROGRAM: "fuse fuseblk",
    _MACHINE: "virtiofs",
    _NETWORK: "nfs nfs4 cifs smb3 smbfs 9p lustre ceph gpfs beegfs afs glusterfs ocfs2 gfs2 orangefs pvfs2 "
    "wekafs davfs coda "
    # As programs name their own mounts:
    "fuse.sshfs fuse.glusterfs fuse.ceph-fuse fuse.juicefs fuse.s3fs fuse.gcsfuse fuse.rclone "
    "fuse.mount-s3 fuse.mountpoint-s3 fuse.goofys fuse.geesefs fuse.blobfuse fuse.blobfuse2 fuse.moosefs "
    "fuse.mfs fuse.lizardfs fuse.hdfs fuse.alluxio-fuse fuse.curlftpfs fuse.davfs2 fuse.seaweedfs "
    "fuse.nfs fuse.smbnetfs",
    _READ_ONLY: "squashfs erofs iso9660 udf cramfs",
    _KERNEL: "proc sysfs cgroup cgroup2 debugfs tracefs securityfs devpts mqueue autofs",
}
VERDICTS: dict[str, Verdict] = {kind: one for one, kinds in _BY_VERDICT.items() for kind in kinds.split()}

COPIES_ON_WRITE = frozenset(("btrfs", "zfs", "bcachefs", "nilfs2"))
LOCKS_ARE_KNOWN = frozenset(
    ["ext4", "ext3", "ext2", "xfs", "btrfs", "f2fs", "tmpfs"]
)  # to hold between processes

_NO_DIRECT = _warns("without direct I/O: chunks go through the page cache, which takes memory and CPU time")
_NO_FALLOCATE = _warns(
    "without fallocate: each segment is filled with zeros when it is made, so the first stores into it write "
    "twice as much"
)
_NO_LOCKS = _refused(
    "one whose locks do not exclude, so two servers would overwrite each other; use a local drive"
)
_NOT_WRITABLE = _refused("mounted read-only; mount it for writing")


class Abilities(NamedTuple):
    """What was tried; as if all went well where the file system was too full to try."""

    direct: bool = True
    fallocate: bool = True
    in_place: bool = True  # what is overwritten keeps its blocks, or can be made to
    locks: bool = True


def verdict_of(kind: str) -> Verdict:
    """What the type of a file system alone says; one that nobody has heard of is judged by what it can do."""
    return VERDICTS.get(kind) or VERDICTS.get(kind.partition(".")[0], _WORKS)


def verdicts(mount: Mount, abilities: Abilities | None) -> list[Verdict]:
    """What is to be said of a file system, the worst first; `abilities` are None where nothing was tried."""
    found = [verdict_of(mount.kind)]
    if mount.is_read_only:
        found.append(_NOT_WRITABLE)
    if abilities is not None:
        tried = {
            _NO_DIRECT: abilities.direct,
            _NO_FALLOCATE: abilities.fallocate,
            _COPYING: abilities.in_place or _COPYING in found,
            _NO_LOCKS: abilities.locks,
        }
        found += [verdict for verdict, is_able in tried.items() if not is_able]
    return sorted((one for one in found if one.reason), key=lambda one: -one.standing)
