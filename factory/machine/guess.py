"""What a document for this machine would say, where nobody says otherwise; each guess with its reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...tiers.nvme.io.files import free_bytes
from ...tiers.nvme.volume.filesystem import Standing, verdict_of
from ...tiers.nvme.volume.mounts import Mount, parsed
from ..text.units import format_size
from .host import Host

GIB, MIB = 1 << 30, 1 << 20
SHARED_SHARE = 0.9  # of what shared memory has free: the index lies there too
SYSTEM_POINTS = ("/boot", "/efi", "/snap", "/var/lib/docker", "/run", "/usr", "/proc", "/sys", "/dev")


@dataclass(frozen=True, slots=True)
class Guess:
    """A value for the document, and why this one."""

    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Volume:
    """A mounted file system that a store could be on."""

    point: Path
    device: str
    whole_bytes: int
    free_bytes: int


def guess_pinned(memory_bytes: int, shared_bytes: int) -> Guess:
    """A size for the pinned tier, by what memory and shared memory have left."""
    half_bytes, shared_bytes = memory_bytes // 2, int(shared_bytes * SHARED_SHARE)
    size_bytes = min(half_bytes, shared_bytes)
    unit_bytes = GIB if size_bytes >= GIB else MIB
    value = format_size(max(unit_bytes, size_bytes // unit_bytes * unit_bytes))
    if half_bytes <= shared_bytes:
        return Guess(value, f"half of the memory that is available, {format_size(memory_bytes)}")
    return Guess(
        value, f"as much as /dev/shm has free, which is less than half of {format_size(memory_bytes)}"
    )


def guess_drive(volumes: Sequence[Volume]) -> Volume | None:
    """The volume with most free space, None where there is none."""
    return max(volumes, key=lambda volume: volume.free_bytes, default=None)


def volumes(host: Host) -> list[Volume]:
    """The file systems of this machine on which this user could make a store; not the root file system."""
    found = dict[str, Volume]()
    for mount in _suitable(host):
        point = mount.point
        assert point is not None, "a row of the table has its place"
        try:
            status = os.statvfs(point)
            volume = Volume(point, mount.device, status.f_blocks * status.f_frsize, free_bytes(point))
        except OSError:
            continue  # gone meanwhile, or not for us
        if os.access(point, os.W_OK | os.X_OK):
            found.setdefault(mount.device, volume)
    return list(found.values())


def _suitable(host: Host) -> Iterator[Mount]:
    mounts = [mount for _, mount in parsed(f"{host.text('/proc/self/mountinfo') or ''}\n")]
    of_root = {mount.device for mount in mounts if mount.point == Path("/")}
    for mount in mounts:
        is_system = mount.point is None or any(mount.point.is_relative_to(one) for one in SYSTEM_POINTS)
        is_file = mount.point is not None and not mount.point.is_dir()
        if is_system or is_file or mount.is_read_only or mount.device in of_root:
            continue
        if mount.device.startswith("/dev/") and verdict_of(mount.kind).standing is Standing.WORKS:
            yield mount
