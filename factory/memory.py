"""How much memory this process may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")

OWN_CGROUPS = Path("/proc/self/cgroup")


def memory_limit_bytes(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int:
    """The smaller of the physical memory and the limits of this process's control groups."""
    return min([psutil.virtual_memory().total, *_cgroup_limits(root, own)])


def _cgroup_limits(root: Path, own: Path) -> Iterator[int]:
    for folder, file_name in _cgroup_folders(root, own):
        while folder.is_relative_to(root):
            yield from _limit(folder / file_name)
            folder = folder.parent


def _cgroup_folders(root: Path, own: Path) -> Iterator[tuple[Path, str]]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            yield root / path.lstrip("/"), "memory.max"
        elif "memory" in controllers.split(","):
            yield root / "memory" / path.lstrip("/"), "memory.limit_in_bytes"


def _limit(file: Path) -> Iterator[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return  # a container may not see the group by the path that it has outside
    if text.isdecimal():  # "max" is no limit
        yield int(text)
