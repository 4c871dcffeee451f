"""What this machine has for a document: its tiers in bytes, the room of its drives, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...tiers import ConfigError
from ..base import TierConfig
from ..config import KvtierConfig
from ..entries import NvmeConfig
from ..room import Room, Wanted, room_remarks, rooms_of
from ..sharedmemory import shared_memory_shortages


@dataclass(frozen=True, slots=True)
class Here:
    """A document on this machine, which may not be the one that it is for.

    Attributes:
        tiers: those below the device, in bytes as far as this machine can tell.
        rooms: of the drives of each of them, by its place in `tiers`; without those that cannot work here.
        missing: what this machine lacks, as sentences.
    """

    tiers: tuple[TierConfig, ...]
    rooms: Mapping[int, Sequence[Room]]
    missing: tuple[str, ...]


def look_here(config: KvtierConfig, chunk_bytes: int) -> Here:
    """Look at this machine. Refuses nothing, and changes nothing."""
    tiers, missing, wanted = [], list[str](), dict[int, list[Wanted]]()
    works = True
    for i, tier in enumerate(config.tiers[1:]):
        place = f"tiers[{i + 1}]"
        resolved, lacks = _resolved(tier, chunk_bytes, place)
        tiers.append(resolved or tier)
        missing += lacks
        works = works and resolved is not None
        if isinstance(resolved, NvmeConfig):
            wanted[i] = resolved.wanted(place)
    if works:
        whole = config.model_copy(update={"tiers": (config.tiers[0], *tiers)})
        missing += shared_memory_shortages(whole, chunk_bytes=chunk_bytes)
    rooms = _rooms(wanted, chunk_bytes, missing)
    return Here(tuple(tiers), rooms, tuple(dict.fromkeys(missing)))  # a lack of room is found twice


def _resolved(tier: TierConfig, chunk_bytes: int, place: str) -> tuple[TierConfig | None, list[str]]:
    """The tier in bytes, None where it cannot work here; and what is missing."""
    try:
        resolved = tier.resolve(chunk_bytes=chunk_bytes, json_path=place)
    except ConfigError as error:
        return None, [str(error)]
    shortage = resolved.shortage(chunk_bytes=chunk_bytes, json_path=place)
    lacks = [shortage] if shortage else []
    try:
        lacks += resolved.remarks(place)
        resolved.probe(chunk_bytes=chunk_bytes, json_path=place)
    except ConfigError as error:
        lacks.append(str(error))
    return resolved, lacks


def _rooms(
    wanted: Mapping[int, Sequence[Wanted]], chunk_bytes: int, missing: list[str]
) -> Mapping[int, Sequence[Room]]:
    """The rooms by tier; adds to what is missing."""
    try:
        found = rooms_of([one for drives in wanted.values() for one in drives], chunk_bytes=chunk_bytes)
    except ConfigError as error:
        missing.append(str(error))
        return {}
    missing += room_remarks(found)
    by_place = {room.place: room for room in found}
    return {i: [by_place[one.place] for one in drives] for i, drives in wanted.items()}
