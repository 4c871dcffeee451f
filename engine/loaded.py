"""A load: what was found for a batch of it, what became of all of it, and where each chunk came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..tiers.base import ChunkKey, Outcome
from ..tiers.pinned.slots import Slot
from .movement.placement import Found


@dataclass(frozen=True, slots=True)
class Loaded(Outcome):
    """What happened to each key of one load.

    Attributes:
        sources: by key that succeeded, the name of the tier that had its chunk.
    """

    sources: Mapping[ChunkKey, str] = field(default_factory=dict)


class Acquired(NamedTuple):
    """A batch of a load: what was found for each key, with the slots pinned."""

    keys: Sequence[ChunkKey]
    found: list[Found]

    @property
    def slots(self) -> list[Slot]:
        return [one.slot for one in self.found if one.slot is not None]

    @property
    def sources(self) -> dict[ChunkKey, str]:
        """The tier that has, or will have supplied, each chunk that has a slot."""
        return {
            key: one.source for key, one in zip(self.keys, self.found, strict=True) if one.slot is not None
        }
