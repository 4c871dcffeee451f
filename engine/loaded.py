"""What became of a load, and where each chunk came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..tiers.base import ChunkKey, Outcome


@dataclass(frozen=True, slots=True)
class Loaded(Outcome):
    """What happened to each key of one load.

    Attributes:
        sources: by key that succeeded, the name of the tier that had its chunk.
    """

    sources: Mapping[ChunkKey, str] = field(default_factory=dict)
