"""Keys of one namespace in a tier that knows nothing of namespaces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from kvtier.tiers.base import KEY_BYTES_MAX, CountsUses, Outcome, RemoveReason, ReportsProgress, ability
from kvtier.tiers.breaker import Breaker
from kvtier.tiers.namespaced import DIGEST_BYTES, Namespaced
from kvtier.tiers.testing import MemoryTier, TierContract

ONE, OTHER = b"1" * DIGEST_BYTES, b"2" * DIGEST_BYTES
LONG = bytes(KEY_BYTES_MAX)
BUFFER = [memoryview(bytearray(8))]


class TestNamespaced(TierContract):
    @pytest.fixture
    async def tier(self) -> Namespaced:
        return Namespaced(MemoryTier(), ONE)


class TellingTier(MemoryTier):
    """Reports what a test says has left it, and remembers what it is told."""

    moved_bytes = 7

    def __init__(self) -> None:
        super().__init__()
        self.report: Callable[[Sequence[bytes], RemoveReason], None] | None = None
        self.told: list[bytes] = []

    def watch(self, report: Callable[[Sequence[bytes], RemoveReason], None]) -> None:
        self.report = report

    def used(self, keys: Sequence[bytes]) -> None:
        self.told += keys


async def test_every_key_that_reaches_the_tier_begins_with_the_digest_and_is_short_enough() -> None:
    tier = MemoryTier()
    keys = [b"k", LONG[1:], LONG, b"\1" + LONG[1:]]
    await Namespaced(tier, ONE).store(keys, BUFFER * len(keys))
    assert len(tier.chunks) == len(keys)
    assert all(key.startswith(ONE) and len(key) <= KEY_BYTES_MAX for key in tier.chunks)


async def test_a_removal_is_reported_under_the_callers_key_and_only_to_its_namespace() -> None:
    tier, seen = TellingTier(), []
    one = Namespaced(tier, ONE)
    one.watch(lambda keys, reason: seen.append((list(keys), reason)))
    await one.store([b"a"], BUFFER)
    await Namespaced(tier, OTHER).store([b"b"], BUFFER)
    assert tier.report is not None
    tier.report(list(tier.chunks), RemoveReason.EVICTED)
    assert seen == [([b"a"], RemoveReason.EVICTED)]
    tier.report([key for key in tier.chunks if key.startswith(OTHER)], RemoveReason.EVICTED)
    await one.invalidate()
    tier.report(list(tier.chunks), RemoveReason.EVICTED)
    assert len(seen) == 1, "what was stored before a reset has left already"


async def test_a_chunk_that_is_on_its_way_when_the_weights_change_is_not_found_after_it() -> None:
    tier = MemoryTier()
    one = Namespaced(tier, ONE)
    tier.gate.clear()
    store = asyncio.ensure_future(one.store([b"a"], BUFFER))
    await asyncio.sleep(0)
    await one.invalidate()
    tier.gate.set()
    assert await store == Outcome((b"a",))
    assert list(one.lookup([b"a"])) == [False]


async def test_what_the_tier_answers_under_keys_that_were_not_asked_for_is_left_out() -> None:
    class Chatty(MemoryTier):
        async def store(self, keys, buffers):
            return Outcome((*keys, b"stranger"))

    assert await Namespaced(Chatty(), ONE).store([b"a"], BUFFER) == Outcome((b"a",))


def test_abilities_that_take_no_keys_or_the_tiers_own_keys_are_passed_on_and_others_are_hidden() -> None:
    tier = TellingTier()
    guarded = Breaker(Namespaced(tier, ONE), slow_s=1.0)
    counts = ability(guarded, CountsUses)  # type: ignore[type-abstract]
    progress = ability(guarded, ReportsProgress)  # type: ignore[type-abstract]
    assert counts is not None
    assert progress is not None
    counts.used([b"a"])
    assert [key.startswith(ONE) for key in tier.told] == [True]
    assert progress.moved_bytes == 7
    assert ability(guarded, TellingTier) is None
    plain = Namespaced(MemoryTier(), ONE)
    plain.used([b"a"])
    plain.watch(lambda keys, reason: None)
    assert plain.moved_bytes == 0
