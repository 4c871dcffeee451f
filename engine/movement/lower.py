"""The tiers below the pinned one, as lookups see them; closed while they are being invalidated."""

from __future__ import annotations

import enum
import logging
from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

from ...tiers.base import ChunkKey, CountsUses, Tier, ability
from .rates import TierRate

logger = logging.getLogger(__name__)


class _Asking(enum.Enum):
    ASKING = enum.auto()


ASKING = _Asking.ASKING
"""No tier is known to have the chunk, and some tier finds out in the background: ask again."""

Place: TypeAlias = Tier | Literal[_Asking.ASKING] | None
"""Where a chunk is: in a tier, not known yet, or nowhere."""


class LowerTiers:
    """Lookups over the tiers below the pinned one. Any thread; never waits for a drive.

    Attributes:
        all: every tier, nearest first.
        tiers: those that are used: all but the ones that could not be told that the weights changed.
        rates: how fast loads from each are, by name. The chain's lock guards them.
        invalidations: how many are in progress. While there is one, every lookup misses, so no chunk of the
            old weights is served. Changed under the chain's lock.
    """

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self.all = tuple(tiers)
        self.tiers = self.all
        self.rates = {tier.name: TierRate() for tier in tiers}
        self.invalidations = 0
        counting = [(tier, ability(tier, CountsUses)) for tier in tiers]  # type: ignore[type-abstract]
        self._counting = tuple((tier, counts) for tier, counts in counting if counts is not None)

    def stop_using(self, tier: Tier) -> None:
        """Ask this tier for nothing and give it nothing from now on."""
        self.tiers = tuple(one for one in self.tiers if one is not tier)
        self._stop_telling(tier)

    @property
    def unused(self) -> tuple[Tier, ...]:
        return tuple(tier for tier in self.all if tier not in self.tiers)

    def used(self, keys: Sequence[ChunkKey], source: str) -> None:
        """Tell the tiers, but the one that served these chunks, that they were used."""
        for tier, counts in self._counting:
            if tier.name != source:
                try:
                    counts.used(keys)
                except Exception:  # a tier of another package may raise anything, and a server steps here
                    logger.exception("%s raises when it is told what was used; it is told no more", tier.name)
                    self._stop_telling(tier)

    def find(self, key: ChunkKey, among: Collection[str] | None = None) -> Place:
        """Return the nearest tier that has the chunk, of all or of those with the names `among`."""
        if self.invalidations:
            return None
        place: Place = None
        for tier in self.tiers:
            if among is not None and tier.name not in among:
                continue
            hit = tier.lookup((key,))[0]
            if hit:
                return tier
            if hit is None:
                place = ASKING
        return place

    def find_all(self, keys: Sequence[ChunkKey]) -> list[Place]:
        """Return for each key the nearest tier that has it, with one call a tier."""
        found: list[Place] = [None] * len(keys)
        if self.invalidations:
            return found
        positions = list(range(len(keys)))
        for tier in self.tiers:
            if not positions:
                break
            hits = tier.lookup([keys[position] for position in positions])
            for position, hit in zip(positions, hits, strict=True):
                if hit or hit is None:
                    found[position] = tier if hit else ASKING
            positions = [position for position in positions if found[position] in (None, ASKING)]
        return found

    def _stop_telling(self, tier: Tier) -> None:
        self._counting = tuple(one for one in self._counting if one[0] is not tier)
