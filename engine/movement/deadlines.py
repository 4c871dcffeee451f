"""The deadlines of one load: by when each tier has to supply its chunks."""

from __future__ import annotations

from collections.abc import Mapping

NO_DEADLINE_S = 10.0  # for chains without a drive, where nothing can be slow, and tiers that name none


class Deadlines:
    """How long one load may wait, counted from its call however many batches it takes.

    Args:
        now_s: when the load was called.
        by_tier_s: seconds for each tier below. A tier that is not named gets the longest of them.
    """

    def __init__(self, now_s: float, by_tier_s: Mapping[str, float]) -> None:
        self._now_s = now_s
        self._by_tier_s = by_tier_s
        self._longest_s = longest_s(by_tier_s)

    @property
    def last_s(self) -> float:
        """When the last of them passes."""
        return self._now_s + self._longest_s

    def at_s(self, tier: str) -> float:
        """When the load gives up waiting for this tier."""
        return self._now_s + self._by_tier_s.get(tier, self._longest_s)


def longest_s(by_tier_s: Mapping[str, float]) -> float:
    """The longest deadline of a chain's tiers, for what is no tier's."""
    return max(by_tier_s.values(), default=NO_DEADLINE_S)
