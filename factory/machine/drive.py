"""How the drive of a store stands: its file system, its disk, and the way to it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...tiers import TierUnavailable
from ...tiers.nvme.io.files import Files
from ...tiers.nvme.store.directory import StoreDirectory
from ...tiers.nvme.volume.filesystem import COPIES_ON_WRITE, Abilities, Standing, verdict_of
from ...tiers.nvme.volume.mounts import Mount, mount_of
from ...tiers.nvme.volume.probe import existing, try_out
from ..room import Room
from ..text.units import format_size
from .findings import Finding, fault, ok, unknown, warning
from .host import Host
from .topology import Disk, disks, gpus, nodes

FAST_SCHEDULERS = ("none", "mq-deadline", "kyber")


@dataclass(frozen=True, slots=True)
class DriveFacts:
    """What was found at a directory.

    Attributes:
        abilities: what was tried; None where nothing could be.
        refusal: why a start would refuse the directory, "" where it would not.
    """

    path: Path
    mount: Mount
    abilities: Abilities | None
    refusal: str
    major: int
    minor: int


def facts_of(path: Path) -> DriveFacts:
    """Look at a directory that is or will be a store's. Leaves nothing behind.

    Raises:
        OSError: it cannot be looked at.
    """
    place = existing(path)
    mount = mount_of(place)
    refusal, abilities = "", None
    try:
        StoreDirectory.look(path)
    except TierUnavailable as error:
        refusal = str(error)
    if not mount.is_read_only and os.access(place, os.W_OK | os.X_OK):
        abilities = try_out(Files(), place, mount, other_process=True)
    major, minor = _device(place, mount)
    return DriveFacts(path, mount, abilities, refusal, major, minor)


def _device(place: Path, mount: Mount) -> tuple[int, int]:
    """The number of the block device; some file systems have numbers of their own, and name the device."""
    try:
        state = os.stat(mount.device)
        number = state.st_rdev if stat.S_ISBLK(state.st_mode) else place.stat().st_dev
    except OSError:
        number = place.stat().st_dev
    return os.major(number), os.minor(number)


def look_at_room(room: Room) -> Finding:
    """Judge the room that a document's drive has."""
    if room.is_none:
        _, text = room.lacking()
        what, _, fix = text.partition(". ")
        return fault("room", what, fix)
    text = f"{format_size(room.cap_bytes)} of {format_size(room.capacity_bytes)}"
    if room.bound_by == "capacity":
        return ok("room", text)
    return warning(
        "room",
        f"{text}, bound by {room.bound_by}: {format_size(room.free_bytes)} are free, "
        f"{format_size(room.reserve_bytes)} have to stay so",
        'free some, or lower "capacity" to what it can have',
    )


def look_at_drive(facts: DriveFacts, host: Host) -> list[Finding]:
    """Judge the drive."""
    found = [*_file_system(facts), *_tried(facts)]
    below = disks(host, facts.major, facts.minor)
    if not below:
        found.append(unknown("disk", f"{facts.mount.device} is no disk that this machine shows"))
    for disk in below:
        found += [_scheduler(disk, host), _rotation(disk, host), _link(disk, host)]
    return [*found, _io_limits(facts, below, host)]


def _file_system(facts: DriveFacts) -> Iterator[Finding]:
    mount, verdict = facts.mount, verdict_of(facts.mount.kind)
    text = f"{mount.kind} on {mount.device}"
    if verdict.standing is Standing.REFUSED:
        yield fault("file-system", f"{text}: {verdict.reason}", "choose a directory on a local drive")
    elif verdict.standing is Standing.WARNS:
        yield warning("file-system", f"{text}: {verdict.reason}", "choose a directory on a local drive")
    else:
        yield ok("file-system", text)
    if mount.is_read_only:
        yield fault("mount", f"{mount.point} is mounted read-only", "mount it for writing")
    elif mount.point == Path("/"):
        yield warning(
            "mount",
            f"{facts.path} is on the root file system, which the whole machine needs",
            'mount the drive first; "mount" in the document refuses a start without it',
        )
    else:
        yield ok("mount", f"mounted at {mount.point or 'a place that the kernel does not tell'}")
    if facts.refusal:
        text, _, fix = facts.refusal.partition("; ")
        yield fault("directory", text, fix or "name another directory")
    else:
        yield ok("directory", f"{facts.path} can be used")


def _tried(facts: DriveFacts) -> Iterator[Finding]:
    able = facts.abilities
    if able is None:
        yield unknown("direct-io", "could not be tried: the directory is not writable for this user")
        return
    kind = facts.mount.kind
    yield (
        ok("direct-io", "works")
        if able.direct
        else warning(
            "direct-io",
            f"{kind} refuses it: chunks go through the page cache, which takes memory and CPU time",
            "use ext4 or xfs on a local drive",
        )
    )
    yield (
        ok("fallocate", "works")
        if able.fallocate
        else warning(
            "fallocate", f"{kind} has none: each segment is filled with zeros first", "use ext4 or xfs"
        )
    )
    yield (
        ok("locks", "exclude other processes")
        if able.locks
        else fault("locks", "do not exclude: two servers would overwrite each other", "use a local drive")
    )
    if kind in COPIES_ON_WRITE and not able.in_place:
        yield warning(
            "overwriting", "what is overwritten is copied: it takes room and fragments", "keep a reserve"
        )


def _scheduler(disk: Disk, host: Host) -> Finding:
    text = host.text(disk.folder.relative_to(host.root) / "queue/scheduler")
    chosen = re.search(r"\[(\S+)\]", text or "")
    if chosen is None:
        return unknown("scheduler", f"{disk.name}: not told")
    if chosen[1] in FAST_SCHEDULERS:
        return ok("scheduler", f"{disk.name}: {chosen[1]}")
    return warning(
        "scheduler",
        f"{disk.name}: {chosen[1]}, which costs a fast drive much of its speed",
        f"echo none > /sys/block/{disk.name}/queue/scheduler",
    )


def _rotation(disk: Disk, host: Host) -> Finding:
    rotates = host.number(disk.folder.relative_to(host.root) / "queue/rotational")
    if rotates is None:
        return unknown("medium", f"{disk.name}: not told")
    if not rotates:
        return ok("medium", f"{disk.name}: does not rotate")
    is_virtual = "virtio" in str(disk.folder) or disk.name.startswith(("vd", "xvd", "loop"))
    if is_virtual:
        return ok("medium", f"{disk.name}: virtual; what is behind it shows only to `kvtier bench`")
    return warning("medium", f"{disk.name}: a rotating disk, too slow for KV", "use an NVMe drive")


def _link(disk: Disk, host: Host) -> Finding:
    function = disk.pci()
    if function is None:
        return unknown("pcie", f"{disk.name}: no PCIe link to be seen, as for a virtual disk")
    place = function.relative_to(host.root)
    now, best = (
        tuple(host.text(place / f"{when}_link_{what}") or "?" for what in ("speed", "width"))
        for when in ("current", "max")
    )
    text = f"{disk.name}: {now[0]}, {now[1]} lanes"
    if now != best:
        return warning(
            "pcie", f"{text}, of {best[0]}, {best[1]} lanes that it can do", "look at its slot and its riser"
        )
    own, others = nodes(host, [place]), nodes(host, gpus(host))
    if own and others and not own & others:
        there = ", ".join(map(str, sorted(others)))
        return warning(
            "pcie",
            f"{text}, on NUMA node {min(own)}; the GPUs are on {there}",
            'move it next to a GPU, or give "numa_node" of the pinned tier the GPU\'s',
        )
    return ok("pcie", text)


def _io_limits(facts: DriveFacts, below: list[Disk], host: Host) -> Finding:
    devices = {f"{facts.major}:{facts.minor}"}
    devices |= {text for disk in below if (text := host.text(disk.folder.relative_to(host.root) / "dev"))}
    said = [said for device in sorted(devices) for said in _limits_of(device, host)]
    if not said:
        return ok("cgroup-io", "no limit on this drive")
    return warning("cgroup-io", f"this process is limited: {'; '.join(said)}", "raise the limit of its group")


def _limits_of(device: str, host: Host) -> Iterator[str]:
    for folder, is_v2 in host.groups("blkio"):
        place = folder.relative_to(host.root)
        if is_v2:
            lines = (host.text(place / "io.max") or "").splitlines()
            named = [line.partition(" ")[2] for line in lines if line.split(" ")[0] == device]
            parts = [part.split("=") for line in named for part in line.split() if not part.endswith("=max")]
            yield from (_limit(name, value, place) for name, value in parts)
            continue
        for name in ("read_bps", "write_bps", "read_iops", "write_iops"):
            lines = (host.text(place / f"blkio.throttle.{name}_device") or "").splitlines()
            yield from (_limit(name, line.split()[1], place) for line in lines if line.split()[0] == device)


def _limit(name: str, value: str, place: Path) -> str:
    what = "reads" if name.startswith("r") else "writes"
    amount = f"{value} calls" if "iops" in name else format_size(int(value))
    return f"{what} to {amount} a second by /{place}"
