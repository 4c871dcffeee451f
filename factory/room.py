"""The room that a document's drives have on this machine now, each file system counted once.

`look` asks the machine what lies at a path; the rest is arithmetic on its answers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from ..tiers import ConfigError
from ..tiers.nvme.io.files import allocated_bytes, free_bytes
from ..tiers.nvme.log.budget import Budget, effective_cap_bytes, facts_for
from ..tiers.nvme.store.facts import read_facts
from ..tiers.nvme.volume.mounts import mount_of
from ..tiers.nvme.volume.probe import existing
from .text.units import format_size
from .validation import refused

Bound: TypeAlias = Literal["capacity", "free space", "other tiers"]


class Wanted(NamedTuple):
    """What the document wants of one drive.

    Attributes:
        sizes: where its sizes stand in the document.
        place: where its path does.
    """

    sizes: str
    place: str
    path: Path
    capacity_bytes: int
    reserve_bytes: int


class Found(NamedTuple):
    """What this machine has at a path.

    Attributes:
        volume: equal for two paths on one file system.
        mount: the file system, for people.
        own_bytes: what the drive's directory takes already.
        segment_bytes: the size of the segments of the store that is there; 0 where there is none.
        holds_segments: whether that store may hold chunks.
    """

    volume: str
    mount: str
    whole_bytes: int
    free_bytes: int
    own_bytes: int
    segment_bytes: int
    holds_segments: bool


@dataclass(frozen=True, slots=True)
class Room:
    """The room of one drive, in bytes.

    Attributes:
        sizes: where its sizes stand in the document.
        place: where its path does.
        mount: the file system, for people.
        free_bytes: of the file system, to a user who is not root.
        own_bytes: what the directory takes already.
        alone_bytes: what it could take if no other drive of the document were on the file system.
        cap_bytes: what it can take; drives on one file system share what is free alike.
        least_bytes: the least room in which it holds chunks.
        smaller_bytes: a capacity with which it would hold chunks as things are; 0 where there is none, or
            where a store with segments of its own size is there already.
        holds_segments: whether it may hold chunks already.
        shared_with: the places of the other drives on the file system.
    """

    sizes: str
    place: str
    path: Path
    mount: str
    capacity_bytes: int
    reserve_bytes: int
    whole_bytes: int
    free_bytes: int
    own_bytes: int
    alone_bytes: int
    cap_bytes: int
    least_bytes: int
    smaller_bytes: int
    holds_segments: bool
    shared_with: tuple[str, ...]

    @property
    def bound_by(self) -> Bound:
        """What keeps the directory from growing further."""
        if self.cap_bytes == self.capacity_bytes:
            return "capacity"
        return "free space" if self.cap_bytes == self.alone_bytes else "other tiers"

    @property
    def is_none(self) -> bool:
        """Whether no chunk fits, even if no other drive of the document takes anything."""
        return self.alone_bytes < self.least_bytes

    def lacking(self) -> tuple[str, str]:
        """Where in the document it stands that no chunk fits; and why, and what to do."""
        missing_bytes = self.reserve_bytes + self.least_bytes - self.own_bytes - self.free_bytes
        where, free = f"the file system of {self.path} ({self.mount})", format_size(self.free_bytes)
        if self.smaller_bytes:
            return f"{self.sizes}.capacity", (
                f"{where} has room for {format_size(self.alone_bytes)}, in which a store made for "
                f"{format_size(self.capacity_bytes)} can hold nothing: its segments are too large. "
                f'Lower "capacity", for example to {self.smaller_bytes}'
            )
        if missing_bytes > self.reserve_bytes:  # then no reserve is low enough
            return self.place, (
                f"{where} has {free} free: the tier can hold nothing. Free {format_size(missing_bytes)}"
            )
        return f"{self.sizes}.reserve", (
            f"{format_size(self.reserve_bytes)} must stay free on {where}, which has {free} free: the tier "
            f'can hold nothing. Lower "reserve", or free {format_size(missing_bytes)}'
        )

    def remarks(self) -> list[str]:
        """Say what of it is probably not what was meant."""
        said = []
        if self.is_none:
            said.append(": ".join(self.lacking()))
        if self.capacity_bytes > self.whole_bytes > 0:
            wanted, whole, cap = map(format_size, (self.capacity_bytes, self.whole_bytes, self.cap_bytes))
            said.append(
                f"{self.sizes}.capacity: {wanted} is more than the whole file system of {self.path} "
                f"({whole}); the tier can take {cap} at most"
            )
        return said

    def line(self) -> str:
        """One line for people: the file system, its free space, and the cap that this leaves."""
        bound = "" if self.bound_by == "capacity" else f" ({self.bound_by})"
        return (
            f"{self.mount}: {format_size(self.free_bytes)} of {format_size(self.whole_bytes)} free; "
            f"the tier can take {format_size(self.cap_bytes)}{bound}"
        )


class Cap(NamedTuple):
    """What a tier can take on all its drives, and what keeps it from taking more."""

    size_bytes: int
    bound_by: Bound


def cap_of(rooms: Sequence[Room]) -> Cap:
    """The cap of a tier with these drives."""
    bounds = {room.bound_by for room in rooms}
    bound_by: Bound = next(iter(bounds)) if len(bounds) == 1 else "free space"
    return Cap(sum(room.cap_bytes for room in rooms), bound_by)


def look(path: Path) -> Found:
    """Ask this machine.

    Raises:
        OSError: the path cannot be reached.
        TierUnavailable: the store that is there cannot be used.
    """
    there = existing(path)
    status, mount = os.statvfs(there), mount_of(there)
    facts = read_facts(path) if path.is_dir() else None
    point = "" if mount.point is None else f" at {mount.point}"
    return Found(
        # Subvolumes of btrfs have numbers of their own, and the device in common.
        volume=mount.device if mount.device.startswith("/dev/") else str(there.stat().st_dev),
        mount=f"{mount.kind} on {mount.device}{point}",
        whole_bytes=status.f_blocks * status.f_frsize,
        free_bytes=free_bytes(there),
        own_bytes=allocated_bytes(path) if path.is_dir() else 0,
        segment_bytes=0 if facts is None else facts.segment_bytes,
        holds_segments=facts is not None and any((path / "segments").glob("*.seg")),
    )


def rooms_of(drives: Sequence[Wanted], *, chunk_bytes: int) -> list[Room]:
    """The room of each drive of a document.

    Raises:
        ConfigError: a path cannot be reached, or the store that is there cannot be used; names its place.
    """
    found = {}
    for drive in drives:
        with refused(drive.place):
            found[drive.place] = look(drive.path)
    return rooms_by(found, drives, chunk_bytes)


def rooms_by(found: Mapping[str, Found], drives: Sequence[Wanted], chunk_bytes: int) -> list[Room]:
    """The same from what was found, by place. Pure."""
    by_volume: dict[str, list[Wanted]] = {}
    for drive in drives:
        by_volume.setdefault(found[drive.place].volume, []).append(drive)
    return [_room(drive, found, by_volume[found[drive.place].volume], chunk_bytes) for drive in drives]


def _room(drive: Wanted, found: Mapping[str, Found], sharing: Sequence[Wanted], chunk_bytes: int) -> Room:
    here = found[drive.place]
    alone_bytes = effective_cap_bytes(
        drive.capacity_bytes, here.own_bytes + here.free_bytes - drive.reserve_bytes
    )
    growth_bytes = here.free_bytes - drive.reserve_bytes
    wants = {one.place: max(0, one.capacity_bytes - found[one.place].own_bytes) for one in sharing}
    if growth_bytes > 0:
        growth_bytes = fair_share(growth_bytes, list(wants.values()), wants[drive.place])
    return Room(
        sizes=drive.sizes,
        place=drive.place,
        path=drive.path,
        mount=here.mount,
        capacity_bytes=drive.capacity_bytes,
        reserve_bytes=drive.reserve_bytes,
        whole_bytes=here.whole_bytes,
        free_bytes=here.free_bytes,
        own_bytes=here.own_bytes,
        alone_bytes=alone_bytes,
        cap_bytes=effective_cap_bytes(drive.capacity_bytes, here.own_bytes + growth_bytes),
        least_bytes=_budget(drive.capacity_bytes, here, chunk_bytes).least_room_bytes,
        smaller_bytes=_smaller(alone_bytes, here, chunk_bytes),
        holds_segments=here.holds_segments,
        shared_with=tuple(one.place for one in sharing if one.place != drive.place),
    )


def fair_share(available_bytes: int, wants: Sequence[int], want: int) -> int:
    """What one of several gets who take alike until each has what it wants."""
    left_bytes, waiting = available_bytes, len(wants)
    for least in sorted(wants):
        even_bytes = left_bytes // waiting
        if least > even_bytes:
            return min(want, even_bytes)
        if least == want:
            return want
        left_bytes, waiting = left_bytes - least, waiting - 1
    raise AssertionError("`want` is one of `wants`")


def _budget(capacity_bytes: int, here: Found, chunk_bytes: int) -> Budget:
    """Of the store that is there, or else of a new one."""
    segment_bytes = here.segment_bytes or facts_for(capacity_bytes, chunk_bytes).segment_bytes
    return Budget(capacity_bytes, 0, segment_bytes, chunk_bytes)


def _smaller(room_bytes: int, here: Found, chunk_bytes: int) -> int:
    """A capacity for which a new store would be made so small that it fits; 0 where there is none."""
    if here.segment_bytes or not room_bytes:
        return 0
    return room_bytes if _budget(room_bytes, here, chunk_bytes).least_bytes <= room_bytes else 0


def refuse_no_room(rooms: Sequence[Room]) -> None:
    """Refuse a tier on whose drives no chunk fits, unless there may be chunks already.

    A server has to come back on a drive that others have filled meanwhile.

    Raises:
        ConfigError: says what to lower or to free.
    """
    if all(room.is_none and not room.holds_segments for room in rooms):
        raise ConfigError(*rooms[0].lacking())


def room_remarks(rooms: Sequence[Room]) -> list[str]:
    """Say what of the drives' room is probably not what was meant."""
    return [remark for room in rooms for remark in room.remarks()] + _sharing_remarks(rooms)


def _sharing_remarks(rooms: Sequence[Room]) -> list[str]:
    """Say which drives are on one file system, and what they want together where it lacks the room."""
    said, told = [], set[str]()
    for room in rooms:
        if room.shared_with and room.place not in told:
            group = [one for one in rooms if one.place == room.place or one.place in room.shared_with]
            told.update(one.place for one in group)
            said.append(_together(group))
    return said


def _together(group: Sequence[Room]) -> str:
    *first, last = [one.place for one in group]
    wanted_bytes = sum(one.capacity_bytes for one in group)
    has_bytes = sum(one.cap_bytes for one in group)
    head = f"{', '.join(first)} and {last} are on one file system ({group[0].mount})"
    if has_bytes < wanted_bytes:
        wanted, has = format_size(wanted_bytes), format_size(has_bytes)
        return f"{head}: together they want {wanted}, it has room for {has}"
    return f"{head}: together they add neither room nor speed"
