"""Whether the memory of this machine, and of its control groups, is enough for a chain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ...tiers.cgroups import memory_groups
from ..text.units import format_size
from .findings import Finding, fault, ok, unknown, warning
from .host import Host
from .topology import gpus

SHARED_MEMORY = "/dev/shm"
DOCKER_DEFAULT_BYTES = 64 << 20  # of /dev/shm in a container that was started without --shm-size
NO_LIMIT_BYTES = 1 << 60  # what version 1 writes for no limit is above this
LARGER = "mount -o remount,size=..., docker run --shm-size=..., Kubernetes: an emptyDir of medium Memory"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a document takes of this machine; nothing where there is no document.

    Attributes:
        arena_bytes: of the pinned tier.
        index_bytes: of the indexes of its drives, in shared memory, when they are full.
    """

    arena_bytes: int = 0
    index_bytes: int = 0

    @property
    def shared_bytes(self) -> int:
        return self.arena_bytes + self.index_bytes


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """The file system at /dev/shm; without a size it is bounded by the memory alone."""

    whole_bytes: int
    free_bytes: int
    is_writable: bool = True


def look_at_memory(host: Host, shared: SharedMemory | None, wanted: Wanted) -> list[Finding]:
    """Judge shared memory, the limit on locked memory, and the control groups."""
    own = [_memory(host, wanted), _shared_memory(shared, wanted), _memlock(host, wanted)]
    return [*own, *_groups(host, wanted)]


def _memory(host: Host, wanted: Wanted) -> Finding:
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", host.text("/proc/meminfo") or "", re.MULTILINE))
    if not {"MemTotal", "MemAvailable"} <= fields.keys():
        return unknown("memory", "not told")
    whole_bytes, left_bytes = (1024 * int(fields[name]) for name in ("MemTotal", "MemAvailable"))
    text = f"{format_size(left_bytes)} of {format_size(whole_bytes)} available"
    wants = f"{text}; arena and indexes take up to {format_size(wanted.shared_bytes)}"
    if wanted.shared_bytes > whole_bytes:
        return fault("memory", wants, 'lower "capacity" of the pinned tier')
    if wanted.shared_bytes > left_bytes:
        return warning(
            "memory",
            wants,
            'fine where a server that runs now holds it; else lower "capacity" of the pinned tier',
        )
    return ok("memory", text)


def _shared_memory(shared: SharedMemory | None, wanted: Wanted) -> Finding:
    if shared is None:
        return fault("shared-memory", f"there is no {SHARED_MEMORY}", f"mount a tmpfs there ({LARGER})")
    if not shared.is_writable:
        return fault(
            "shared-memory",
            f"{SHARED_MEMORY} cannot be written: the arena and the indexes have no place",
            f"mount a tmpfs there ({LARGER})",
        )
    whole, free = map(format_size, (shared.whole_bytes, shared.free_bytes))
    if not shared.whole_bytes:
        return ok("shared-memory", f"{SHARED_MEMORY} is bounded by the memory alone")
    if wanted.shared_bytes > shared.whole_bytes:
        return fault(
            "shared-memory",
            f"{SHARED_MEMORY} has {whole}; arena and indexes take up to {format_size(wanted.shared_bytes)}",
            f'enlarge it ({LARGER}), or lower "capacity" of the pinned tier',
        )
    if wanted.shared_bytes > shared.free_bytes:
        return warning(
            "shared-memory",
            f"{free} of {whole} are free; arena and indexes take up to {format_size(wanted.shared_bytes)}",
            "fine where a server that runs now holds the rest; else remove what is there",
        )
    if shared.whole_bytes <= DOCKER_DEFAULT_BYTES:
        return warning(
            "shared-memory",
            f"{SHARED_MEMORY} has {whole}, as in a container without --shm-size",
            f"enlarge it: {LARGER}",
        )
    return ok("shared-memory", f"{free} of {whole} free")


def _memlock(host: Host, wanted: Wanted) -> Finding:
    limit_bytes = host.limit("Max locked memory")
    if not gpus(host):
        return ok("memlock", "no GPU: nothing is page-locked")
    if limit_bytes is None or 0 < wanted.arena_bytes <= limit_bytes:
        return ok("memlock", "unlimited" if limit_bytes is None else format_size(limit_bytes))
    return warning(
        "memlock",
        f"{format_size(limit_bytes)} may be locked. CUDA locks beyond it; other drivers may not",
        "ulimit -l unlimited, docker run --ulimit memlock=-1, systemd: LimitMEMLOCK=infinity",
    )


def _groups(host: Host, wanted: Wanted) -> Iterator[Finding]:
    limited = False
    for group in memory_groups(host.root / "sys/fs/cgroup", host.root / "proc/self/cgroup"):
        if group.limit_bytes >= NO_LIMIT_BYTES:
            continue
        limited = True
        where, limit = f"/{group.file.relative_to(host.root)}", format_size(group.limit_bytes)
        if wanted.shared_bytes > group.limit_bytes:
            yield fault(
                "cgroup-memory",
                f"{where} allows {limit}; arena and indexes alone take {format_size(wanted.shared_bytes)}, "
                "and shared memory counts",
                'raise the limit, or lower "capacity" of the pinned tier',
            )
        elif group.left_bytes is None:
            yield unknown("cgroup-memory", f"{where} allows {limit}; nobody says how much of it is left")
        else:
            yield ok("cgroup-memory", f"{where} allows {limit}, {format_size(max(0, group.left_bytes))} left")
    for folder, is_v2 in host.groups("memory"):
        high_bytes = host.number(folder.relative_to(host.root) / "memory.high") if is_v2 else None
        if high_bytes is not None and wanted.shared_bytes > high_bytes:
            limited = True
            yield warning(
                "cgroup-memory",
                f"/{folder.relative_to(host.root)}/memory.high slows this process down from "
                f"{format_size(high_bytes)} on; arena and indexes take {format_size(wanted.shared_bytes)}",
                "raise it, or set it to max",
            )
    if not limited:
        yield ok("cgroup-memory", "no limit")
