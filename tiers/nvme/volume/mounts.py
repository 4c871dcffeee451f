"""What is mounted at a path: its mount point, its device, the type of its file system."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ...errors import TierUnavailable
from ..io.kernel import magic_of

# The kernel's numbers for types (linux/magic.h and the sources of those that live outside of it). Where
# several types share one, the table of mounts tells them apart.
KINDS = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xF2F52010: "f2fs",
    0xCA451A4E: "bcachefs",
    0x2FC12FC1: "zfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlay",
    0x65735546: "fuse",
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb3",
    0x517B: "smbfs",
    0x01021997: "9p",
    0x0BD00BD0: "lustre",
    0x00C36400: "ceph",
    0x47504653: "gpfs",
    0x19830326: "beegfs",
    0x5346414F: "afs",
    0x7461636F: "ocfs2",
    0x01161970: "gfs2",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
    0x9FA0: "proc",
    0x62656572: "sysfs",
}
# What a mount is called, by what the kernel's number says, where that is more than one name or a longer one.
FAMILIES = {
    "ext4": {"ext2", "ext3", "ext4"},
    "tmpfs": {"tmpfs", "devtmpfs"},
    "nfs": {"nfs", "nfs4"},
    "fuse": {"fuse", "fuseblk", "virtiofs"},
    "cifs": {"cifs", "smb3"},
    "smb3": {"cifs", "smb3"},
}

MOUNTINFO = Path("/proc/self/mountinfo")


class Mount(NamedTuple):
    """One mounted file system; `point` is None where the kernel does not tell where it is mounted."""

    kind: str
    device: str
    point: Path | None
    is_read_only: bool = False


def mount_of(path: Path) -> Mount:
    """What is mounted at a path that exists.

    Raises:
        OSError: the path cannot be reached.
    """
    # With a dot behind it, so that what is mounted when it is first looked at is mounted by now.
    fd = os.open(path / "." if path.is_dir() else path, os.O_PATH | os.O_CLOEXEC)
    try:
        kind = KINDS.get(magic_of(Path(f"/proc/self/fd/{fd}")), "")
        row = _row(_mount_id(fd))
    except FileNotFoundError:  # without /proc
        kind, row = KINDS.get(magic_of(path), ""), None
    finally:
        os.close(fd)
    if row is None:
        return Mount(kind or "unknown", "unknown", None)
    named = row.kind.partition(".")[0]
    if not kind or named == kind or named in FAMILIES.get(kind, ()):
        return row
    return row._replace(kind=kind)  # the row is of something above or below it


def refuse_dangling(path: Path) -> None:
    """Refuse a path through a link to nothing: most often to a drive that is not mounted.

    Raises:
        TierUnavailable: names the link, and what to do.
    """
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            target = os.readlink(link)
            raise TierUnavailable(
                "nvme", f"{link} is a link to {target}, where nothing is; mount its drive, or make {target}"
            )


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted right at `path`; False where there is no such directory.

    Raises:
        OSError: it cannot be reached.
    """
    if not path.is_dir():
        return False
    point = mount_of(path).point
    return path.is_mount() if point is None else point == Path(os.path.realpath(path))


def _mount_id(fd: int) -> str:
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    found = re.search(r"^mnt_id:\s*(\d+)$", text, re.MULTILINE)
    return found[1] if found else ""


def _row(mount_id: str) -> Mount | None:
    return dict(parsed(os.fsdecode(MOUNTINFO.read_bytes()))).get(mount_id)


def parsed(mountinfo: str) -> Iterator[tuple[str, Mount]]:
    """The rows of `/proc/self/mountinfo`, each with the number of its mount."""
    # Not `splitlines`: of all that it takes for the end of a line, the kernel writes only this one otherwise.
    for line in filter(None, mountinfo.split("\n")):
        about, _, source = line.partition(" - ")
        mount_id, _, _, _, point, options, *_ = about.split(" ")
        kind, device, super_options = [*source.split(" "), "", ""][:3]
        is_read_only = "ro" in options.split(",") or "ro" in super_options.split(",")
        yield mount_id, Mount(kind, _unescaped(device), Path(_unescaped(point)), is_read_only)


def _unescaped(text: str) -> str:
    """Blanks and the like stand in the table as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)
