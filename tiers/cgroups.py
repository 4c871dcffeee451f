"""Control groups: what memory this process may use at most, whatever the machine has.

Shared memory counts into the group of whoever touches it first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


class MemoryGroup(NamedTuple):
    """A group with a limit on memory.

    Attributes:
        file: the one that holds the limit.
        left_bytes: of the limit, cached files not counted; None where nobody can say.
    """

    file: Path
    limit_bytes: int
    left_bytes: int | None


class _Version(NamedTuple):
    """The files of one version of control groups."""

    limit: str
    used: str
    reclaimable: str  # a field of memory.stat: cached files, which give way to whoever asks


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("memory.max", "memory.current", "inactive_file")


def memory_groups(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> Iterator[MemoryGroup]:
    """Those of this process' groups, and of the groups around them, that limit its memory."""
    for folder, version in _cgroup_folders(root, own):
        limit, used = _number(folder / version.limit), _number(folder / version.used)
        if limit is not None:
            cached = _stat(folder / "memory.stat", version.reclaimable)
            yield MemoryGroup(folder / version.limit, limit, None if used is None else limit - used + cached)


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
