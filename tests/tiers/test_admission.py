from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from kvtier.tiers.admission import SecondTouch
from kvtier.tiers.base import ChunkKey, Failure, Invalidates, ability
from kvtier.tiers.null import NullTier
from kvtier.tiers.testing import MemoryTier, aligned_buffers, pattern

KEYS = [b"%d" % number for number in range(12)]
CHUNK_BYTES = 64


async def offer(tier: SecondTouch, keys: Sequence[ChunkKey]) -> tuple[ChunkKey, ...]:
    buffers = aligned_buffers(len(keys), CHUNK_BYTES)
    for key, buffer in zip(keys, buffers, strict=True):
        buffer[:] = pattern(key, CHUNK_BYTES)
    outcome = await tier.store(keys, buffers)
    assert set(outcome.failed.values()) <= {Failure.NO_SPACE}, "refused by choice, which is nobody's fault"
    assert set(outcome.succeeded) | set(outcome.failed) == set(keys)
    return outcome.succeeded


@pytest.fixture
async def tier() -> AsyncIterator[SecondTouch]:
    tier = SecondTouch(MemoryTier(), 100)
    yield tier
    await tier.close()


async def test_a_chunk_is_taken_when_it_is_offered_again(tier: SecondTouch) -> None:
    assert await offer(tier, KEYS[:2]) == ()
    assert list(tier.lookup(KEYS[:2])) == [False, False]
    assert await offer(tier, KEYS[1:3]) == (KEYS[1],)
    assert list(tier.lookup(KEYS[:3])) == [False, True, False]
    buffer = aligned_buffers(1, CHUNK_BYTES)
    assert (await tier.load([KEYS[1]], buffer)).succeeded == (KEYS[1],)
    assert bytes(buffer[0]) == pattern(KEYS[1], CHUNK_BYTES)
    assert tier.stats().counters["not_admitted_chunks"] == 3


async def test_what_is_there_succeeds_also_when_it_was_seen_long_ago() -> None:
    tier = SecondTouch(MemoryTier(), 1)
    for _ in range(2):
        await offer(tier, KEYS[:1])
    for key in KEYS[1:]:
        await offer(tier, [key])
    assert await offer(tier, KEYS[:1]) == (KEYS[0],)


@given(st.lists(st.sampled_from(KEYS), max_size=60), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
async def test_what_was_seen_is_remembered_for_one_generation_and_at_most_two(
    offered: list[ChunkKey], capacity_chunks: int
) -> None:
    tier = SecondTouch(NullTier(), capacity_chunks)
    since: dict[ChunkKey, int] = {}  # new chunks seen since each was seen first
    for key in offered:
        before = tier.stats().counters["not_admitted_chunks"]
        await tier.store([key], aligned_buffers(1, CHUNK_BYTES))
        tier.check()
        was_refused = tier.stats().counters["not_admitted_chunks"] > before
        if key not in since:
            assert was_refused
        elif since[key] < capacity_chunks:
            assert not was_refused
        elif since[key] >= 2 * capacity_chunks:
            assert was_refused
        if was_refused:
            since = {other: count + 1 for other, count in since.items()}
            since[key] = 0


def test_what_the_tier_can_do_besides_is_found_behind_it() -> None:
    inner = MemoryTier()
    assert ability(SecondTouch(inner, 1), Invalidates) is ability(inner, Invalidates)  # type: ignore[type-abstract]
