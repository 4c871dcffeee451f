"""The tiers below, as lookups see them: who is told of uses, and who is not any more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from chain_rig import CountingTier

from kvtier.engine.movement.lower import ASKING, LowerTiers
from kvtier.tiers.breaker import Breaker
from kvtier.tiers.testing import MemoryTier


class RaisingTier(CountingTier):
    def used(self, keys: Sequence[bytes]) -> None:
        super().used(keys)
        raise RuntimeError("a tier of another package may")


class UnsureTier(MemoryTier):
    """Knows of no chunk yet."""

    def lookup(self, keys: Sequence[bytes]) -> Sequence[bool | None]:
        return [None] * len(keys)


def test_a_chunk_of_which_a_tier_does_not_know_yet_is_looked_for_further_down() -> None:
    far = MemoryTier("far")
    far.chunks[b"a"] = b"x"
    lower = LowerTiers([UnsureTier("near"), far])
    assert lower.find_all([b"a", b"b"]) == [far, ASKING]
    assert (lower.find(b"a"), lower.find(b"b")) == (far, ASKING)


def test_a_use_is_told_to_every_tier_but_the_one_that_served_it() -> None:
    near, plain, far = CountingTier("near"), MemoryTier("plain"), CountingTier("far")
    lower = LowerTiers([Breaker(near, slow_s=1.0), plain, far])
    lower.used([b"a"], "pinned")
    lower.used([b"b"], "near")
    lower.used([b"c"], "plain")
    assert (near.told, far.told) == ([b"a", b"c"], [b"a", b"b", b"c"])


def test_a_tier_that_raises_when_it_is_told_is_told_no_more(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = RaisingTier("bad"), CountingTier("good")
    lower = LowerTiers([bad, good])
    for key in (b"a", b"b"):
        lower.used([key], "pinned")
    assert (bad.told, good.told) == ([b"a"], [b"a", b"b"])
    assert [record.getMessage() for record in caplog.records] == [
        "bad raises when it is told what was used; it is told no more"
    ]


def test_a_tier_that_is_no_longer_used_is_told_no_more() -> None:
    one, other = CountingTier("one"), CountingTier("other")
    lower = LowerTiers([one, other])
    lower.stop_using(one)
    lower.used([b"a"], "pinned")
    assert (one.told, other.told) == ([], [b"a"])
