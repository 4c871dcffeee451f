"""How much memory this process may use, and how much of it is left."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MEMORY_INFO = Path("/proc/meminfo")

CGROUP_ROOT = Path("/sys/fs/cgroup")

OWN_CGROUPS = Path("/proc/self/cgroup")

HEADROOM_BYTES = 512 << 20  # for the server's own processes, whose heaps still grow


class Room(NamedTuple):
    """How much is left of a source of memory, and the remedy if it is too little."""

    place: str
    left_bytes: int
    remedy: str


class _Version(NamedTuple):
    """The files of one version of control groups."""

    limit: str
    used: str
    reclaimable: str  # a field of memory.stat: cached files, which give way to whoever asks


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("memory.max", "memory.current", "inactive_file")


def memory_limit_bytes(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int:
    """The smaller of the physical memory and the limits of this process's control groups."""
    limits = (_number(folder / version.limit) for folder, version in _cgroup_folders(root, own))
    return min([_physical_bytes("MemTotal"), *(limit for limit in limits if limit is not None)])


def memory_left_bytes(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int:
    """What can still be allocated without swapping, on this machine and in each of this process's cgroups."""
    left = [_physical_bytes("MemAvailable")]
    for folder, version in _cgroup_folders(root, own):
        limit, used = _number(folder / version.limit), _number(folder / version.used)
        if limit is not None and used is not None:
            left.append(limit - used + _stat(folder / "memory.stat", version.reclaimable))
    return max(0, min(left))


def memory_room() -> Room:
    """How much memory an arena may take."""
    left_bytes = memory_left_bytes() - untouched_bytes("/dev/shm/kvtier-") - HEADROOM_BYTES
    return Room("memory", max(0, left_bytes), "give this process more memory")


def shared_memory_room(folder: Path) -> Room:
    """How much an arena may take of the file system that holds shared memory."""
    status = os.statvfs(folder)
    left_bytes = status.f_bavail * status.f_frsize - untouched_bytes(f"{folder}/kvtier-")
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


def _cgroup_folders(root: Path, own: Path) -> Iterator[tuple[Path, _Version]]:
    """Each group that this process is in, and the groups around it."""
    for folder, version in _own_folders(root, own):
        while folder.is_relative_to(root):
            yield folder, version
            folder = folder.parent


def _own_folders(root: Path, own: Path) -> Iterator[tuple[Path, _Version]]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield root / path.lstrip("/"), _V2
        elif "memory" in controllers.split(","):
            yield root / "memory" / path.lstrip("/"), _V1


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None  # a container may not see the group by the path that it has outside
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _stat(file: Path, field: str) -> int:
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[0] == field), 0)
