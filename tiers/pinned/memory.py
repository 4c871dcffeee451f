"""How much memory this process may use, and how much of it is left."""

from __future__ import annotations

import glob
import os
import sys
from pathlib import Path
from typing import NamedTuple

from ..cgroups import CGROUP_ROOT, OWN_CGROUPS, memory_groups

MEMORY_INFO = Path("/proc/meminfo")

HEADROOM_BYTES = 512 << 20  # for the server's own processes, whose heaps still grow


class Room(NamedTuple):
    """How much is left of a source of memory, and the remedy if it is too little."""

    place: str
    left_bytes: int
    remedy: str


def memory_limit_bytes(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int:
    """The smaller of the physical memory and the limits of this process's control groups."""
    limits = [group.limit_bytes for group in memory_groups(root, own)]
    return min([_physical_bytes("MemTotal"), *limits])


def memory_left_bytes(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int:
    """What can still be allocated without swapping, on this machine and in each of this process's cgroups."""
    left = [group.left_bytes for group in memory_groups(root, own) if group.left_bytes is not None]
    return max(0, min([_physical_bytes("MemAvailable"), *left]))


def memory_room() -> Room:
    """How much memory an arena may take."""
    left_bytes = memory_left_bytes() - untouched_bytes("/dev/shm/kvtier-") - HEADROOM_BYTES
    return Room("memory", max(0, left_bytes), "give this process more memory")


def shared_memory_room(folder: Path) -> Room:
    """How much an arena may take of the file system that holds shared memory."""
    status = os.statvfs(folder)
    # Mounted with size=0 it has no bound but that of memory, and tells no size.
    free_bytes = status.f_bavail * status.f_frsize if status.f_blocks else sys.maxsize
    left_bytes = free_bytes - untouched_bytes(f"{folder}/kvtier-")
    remedy = f"enlarge {folder} (mount -o remount,size=..., docker run --shm-size=...)"
    return Room(str(folder), max(0, left_bytes), remedy)


def untouched_bytes(path_prefix: str) -> int:
    """Bytes that files in shared memory have reserved and not yet allocated.

    Counts files whose path starts with the prefix, also those that have lost their name, in all processes
    whose open files this user may see.
    """
    files: dict[tuple[int, int], int] = {}
    for descriptor in glob.iglob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor).startswith(path_prefix):
                status = os.stat(descriptor)
                untouched = max(0, status.st_size - status.st_blocks * 512)
                files[status.st_dev, status.st_ino] = untouched
        except OSError:
            continue  # closed meanwhile, or another user's
    return sum(files.values())


def _physical_bytes(field: str) -> int:
    fields = dict(line.split(":", 1) for line in MEMORY_INFO.read_text().splitlines())
    kib, unit = fields[field].split()
    assert unit == "kB", "the kernel counts in KiB, and calls them kB"
    return int(kib) * 1024
