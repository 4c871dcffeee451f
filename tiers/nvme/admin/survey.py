"""Reports what a store holds: how its room is used, and by which namespaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..index.records import SegmentState
from ..index.transaction import Transaction
from ..io.files import allocated_bytes, free_bytes
from ..log.budget import effective_cap_bytes
from ..store.opening import Store
from ..wear.record import Wear


@dataclass(frozen=True, slots=True)
class Usage:
    """How the room of a store is used, in bytes.

    Attributes:
        allocated_bytes: what `du` counts for the whole directory.
        parts: the same by part of the directory.
        capacity_bytes: the most that it may take, as the last server that opened the store has set it.
        reserve_bytes: what that server has asked to keep free on the file system.
        free_bytes: of the file system.
        cap_bytes: what it can take as things are: its capacity, or what the free space leaves.
        bound_by: which of the two.
        live_bytes: of chunks that a lookup would find.
        useful_bytes: of those chunks that were ever read back, or used in another tier.
        segments: how many there are in each state.
        quarantined: how many chunks there is evidence of that failed their checksum.
        written_bytes: written to the drive since the store was made; the next two over about a week in use.
        endurance_bytes: what the drive is rated for, as that server has set it; 0 where it has not.
        years_left: until that much is written, at this rate; None where it cannot be said.
    """

    allocated_bytes: int
    parts: dict[str, int]
    capacity_bytes: int
    reserve_bytes: int
    free_bytes: int
    cap_bytes: int
    bound_by: Literal["capacity", "free space"]
    live_chunks: int
    live_bytes: int
    useful_bytes: int
    segments: dict[str, int]
    quarantined: int
    written_bytes: int
    written_bytes_a_day: int
    drive_writes_a_day: float
    endurance_bytes: int
    years_left: float | None


@dataclass(frozen=True, slots=True)
class NamespaceUsage:
    """One namespace and what it holds; times are seconds since 1970, 0 where there are no chunks.

    Attributes:
        differing: the fields in which the namespaces of this label are not all alike, with this one's
            values; None where it lacks one that another has.
    """

    digest: str
    label: str
    fields: dict[str, str]
    differing: dict[str, str | None]
    epoch: int
    chunks: int
    chunk_bytes: int
    never_read_chunks: int
    hits: int
    hit_bytes: int
    oldest_unix_s: int
    newest_unix_s: int


@dataclass(slots=True)
class _Sums:
    chunks: int = 0
    chunk_bytes: int = 0
    useful_bytes: int = 0
    never_read_chunks: int = 0
    oldest_s: int = 0
    newest_s: int = 0


def usage(store: Store) -> Usage:
    """Read every record of the index: about a second for a million chunks."""
    root = store.directory.root
    with store.index.read() as txn:
        sums = _by_scope(txn)
        in_force = [sums.get(namespace.scope, _Sums()) for namespace in txn.namespaces().values()]
        states = [segment.state for segment in txn.segments().values()]
        wear, reserve_bytes = Wear.of(txn), txn.number("reserve_bytes")
    own_bytes, room_bytes = allocated_bytes(root), free_bytes(root)
    cap_bytes = effective_cap_bytes(wear.capacity_bytes, own_bytes + room_bytes - reserve_bytes)
    return Usage(
        allocated_bytes=own_bytes,
        parts={path.name: _size(path) for path in sorted(root.iterdir())},
        capacity_bytes=wear.capacity_bytes,
        reserve_bytes=reserve_bytes,
        free_bytes=room_bytes,
        cap_bytes=cap_bytes,
        bound_by="capacity" if cap_bytes == wear.capacity_bytes else "free space",
        live_chunks=sum(one.chunks for one in in_force),
        live_bytes=sum(one.chunk_bytes for one in in_force),
        useful_bytes=sum(one.useful_bytes for one in in_force),
        segments={state.name.lower(): states.count(state) for state in SegmentState},
        quarantined=len(list(store.directory.quarantine_path.glob("*.chunk"))),
        written_bytes=wear.written_bytes,
        written_bytes_a_day=round(wear.bytes_a_day),
        drive_writes_a_day=round(wear.drive_writes_a_day, 6),
        endurance_bytes=wear.endurance_bytes,
        years_left=None if wear.years_left is None else round(wear.years_left, 3),
    )


def namespaces(store: Store) -> list[NamespaceUsage]:
    """Every namespace of the store, by label."""
    files = store.directory.namespaces.read()
    with store.index.read() as txn:
        records, sums = txn.namespaces(), _by_scope(txn)
    found = []
    for digest, record in records.items():
        file, held = files.get(digest), sums.get(record.scope, _Sums())
        found.append(
            NamespaceUsage(
                digest=digest.hex(),
                label=file.identity.label if file else digest.hex()[:12],
                fields=dict(file.identity.fields) if file else {},
                differing={},
                epoch=record.epoch,
                chunks=held.chunks,
                chunk_bytes=held.chunk_bytes,
                never_read_chunks=held.never_read_chunks,
                hits=record.hits,
                hit_bytes=record.hit_bytes,
                oldest_unix_s=held.oldest_s,
                newest_unix_s=held.newest_s,
            )
        )
    found.sort(key=lambda one: (one.label, one.digest))
    by_label: dict[str, list[NamespaceUsage]] = {}
    for one in found:
        by_label.setdefault(one.label, []).append(one)
    return [replace(one, differing=_differing(one, group)) for group in by_label.values() for one in group]


def _differing(one: NamespaceUsage, group: Sequence[NamespaceUsage]) -> dict[str, str | None]:
    readable = [other.fields for other in group if other.fields]  # of the others nothing is known
    if not one.fields:
        return {}
    named = dict.fromkeys(field for fields in readable for field in fields)
    return {
        field: one.fields.get(field)
        for field in named
        if any(fields.get(field) != one.fields.get(field) for fields in readable)
    }


def _by_scope(txn: Transaction) -> dict[int, _Sums]:
    sums: dict[int, _Sums] = {}
    for scope, _, extent in txn.extents():
        one = sums.setdefault(scope, _Sums(oldest_s=extent.stored_s))
        one.chunks += 1
        one.chunk_bytes += extent.length_bytes
        one.useful_bytes += extent.length_bytes if extent.hits else 0
        one.never_read_chunks += not extent.hits
        one.oldest_s = min(one.oldest_s, extent.stored_s)
        one.newest_s = max(one.newest_s, extent.stored_s)
    return sums


def _size(path: Path) -> int:
    try:
        return allocated_bytes(path)
    except FileNotFoundError:  # a server has removed it since it was listed
        return 0
